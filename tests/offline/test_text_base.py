"""A bundle that is an adapter on a base which `gatekeeper fetch` has converted: small, and of no machine."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors import safe_open
from support.tiny_gguf import write_distribution

from models.bundle import load_bundle
from models.inference.packaged import MODELS, locate
from service.cli import main

Said = pytest.CaptureFixture[str]


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache, with a base called tiny."""
    site = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "tiny", write_distribution(site))
        patch.syspath_prepend(site)
        patch.setenv("GATEKEEPER_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        assert run("fetch", "tiny") == 0
        yield locate("tiny")


@pytest.fixture(scope="module")
def echoes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("echoes") / "echoes.jsonl"
    rows = [{"prompt": one + two, "answer": one} for one in "abcdef" for two in "abcdef"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, fetched: Path, echoes: Path) -> Path:
    output = tmp_path_factory.mktemp("adapter") / "adapter"
    quick = ("--epochs", "1", "--tuning-epochs", "1", "--batch-size", "8", "--max-tokens", "48")
    assert run("tune", "--data", echoes, "--model", "tiny", *quick, "--output", output) == 0
    return output


def test_it_holds_the_adapter_alone(adapter: Path, fetched: Path) -> None:
    manifest = load_bundle(adapter).manifest
    assert (manifest.runtime, manifest.base and manifest.base.fetch) == ("peft", "tiny")
    assert {path.name for path in adapter.iterdir()} == {
        *("README.md", "adapter_config.json", "adapter_model.safetensors", "gatekeeper.json")
    }
    with safe_open(adapter / "adapter_model.safetensors", framework="pt") as file:
        assert all("lora_" in name for name in file.keys())  # noqa: SIM118  safe_open has no other way
    assert str(fetched.parent) not in "".join(
        path.read_text(encoding="utf-8") for path in adapter.iterdir() if path.suffix == ".json"
    )
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"


def test_it_is_calibrated_and_evaluated(adapter: Path, echoes: Path, tmp_path: Path, capsys: Said) -> None:
    assert run("calibrate", adapter, "--data", echoes, "--large", "oracle") == 0
    assert run("evaluate", adapter, "--data", echoes, "--large", adapter, "--output", tmp_path / "out") == 0
    numbers = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert numbers["a_S"]["value"] == numbers["a_L"]["value"]  # beside itself
    assert "Warning" not in capsys.readouterr().err


def test_a_base_that_is_gone_is_told_with_the_command(
    adapter: Path, echoes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    monkeypatch.setenv("GATEKEEPER_CACHE_DIR", str(tmp_path))
    assert run("evaluate", adapter, "--data", echoes, "--large", "oracle") == 2
    assert "gatekeeper fetch tiny" in capsys.readouterr().err.splitlines()[-1]
    assert not list(adapter.parent.glob("*.work"))
