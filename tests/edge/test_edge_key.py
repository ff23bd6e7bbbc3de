"""Commands that ask a running edge send an API key, from a variable or a file, and say which scope one lacks."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel
from support.processes import Service, spawn_edge, stopping

from models.errors import InputError
from models.evaluation.edge_client import api_key, call, edge_client
from service.access.keys import new_key
from service.cli import main

FULL, FULL_ENTRY = new_key("full", ["classify", "override"], None)
LOW, LOW_ENTRY = new_key("low", ["classify"], None)


class Anything(BaseModel):
    """Whatever was answered."""


@pytest.fixture(scope="module")
def guarded_edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    entries = ",".join(f"{entry.name}:{entry.sha256}:{'+'.join(entry.scopes)}" for entry in (FULL_ENTRY, LOW_ENTRY))
    edge = spawn_edge(tmp_path_factory.mktemp("guarded"), "http://127.0.0.1:9", API_KEYS=entries)
    with stopping(edge):
        edge.wait_ready()
        yield edge


def test_the_demo_asks_with_a_key(
    guarded_edge: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("GATEKEEPER_API_KEY", raising=False)
    assert main(["demo", "--url", guarded_edge.url]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "asks for an API key: give one in GATEKEEPER_API_KEY, or in a file with --api-key-file" in line
    monkeypatch.setenv("GATEKEEPER_API_KEY", f" {LOW}\n")
    assert main(["demo", "--url", guarded_edge.url]) == 0
    shown = capsys.readouterr().out
    assert "no other threshold" in shown
    assert "it needs `override`" in shown
    file = tmp_path / "key"
    file.write_text(f"{FULL}\n")
    assert main(["demo", "--url", guarded_edge.url, "--api-key-file", str(file)]) == 0
    assert "0.99  " in capsys.readouterr().out
    monkeypatch.setenv("GATEKEEPER_API_KEY", "gk_nobody_secret")
    assert main(["demo", "--url", guarded_edge.url]) == 2
    assert "does not take this API key" in capsys.readouterr().err


async def test_proxies_of_the_environment_do_not_stand_between(
    guarded_edge: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (
        ("ALL_PROXY", "socks5://127.0.0.1:1"),
        ("NO_PROXY", "fe80::/10"),
        ("HTTP_PROXY", "http://127.0.0.1:9"),
    ):
        monkeypatch.setenv(name, value)
    async with edge_client(guarded_edge.url, "--endpoint", LOW) as client:
        await call(client, "GET", "/v1/models", None, Anything)
        body = {"inputs": "a", "parameters": {"threshold": 0.5}}
        with pytest.raises(InputError, match="`override`; `gatekeeper keys new NAME --scopes classify,override`"):
            await asyncio.wait_for(call(client, "POST", "/v1/classify", body, Anything), 20)


@pytest.mark.parametrize("content", [b"", b"two words", b"gk_a\ngk_b\n", "gk_schlüssel".encode(), b"x" * 10_000, b"\0"])
def test_a_file_without_a_key_is_told_without_its_content(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    with pytest.raises(InputError) as refused:
        api_key(file)
    assert str(refused.value).startswith(str(file))
    assert "gk_a" not in str(refused.value)


def test_an_empty_variable_is_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEKEEPER_API_KEY", "")
    assert api_key(None) is None
