"""Secrets among the settings: what no header can carry is refused at start, in one line that does not repeat it."""

import os
from pathlib import Path

import pytest

from service.cli import main
from service.commands.up import admin_token
from service.errors import StartupError
from service.settings import EdgeSettings


@pytest.mark.parametrize(
    "token",
    [
        *("secret-token\n", "secret-token\r\n", "secret-token ", "\tsecret-token", "schlüssel-token", "secret\ntoken"),
        *("secret\x01token", "secret\x7ftoken", "secret-token\N{NO-BREAK SPACE}"),
    ],
)
@pytest.mark.parametrize("name", ["GATEKEEPER_ADMIN_TOKEN", "GATEKEEPER_REMOTE_KEY"])
def test_what_no_header_carries_is_refused_at_start(
    name: str, token: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such as a token read from a file with its line break: every call with it would be 401."""
    monkeypatch.setenv(name, token)
    assert main(["serve"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"gatekeeper: {name}: must be visible ASCII characters")
    assert "secret" not in line


@pytest.mark.parametrize("token", ["       ", "1234567", "   short   "])
def test_a_short_token_is_refused(
    token: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GATEKEEPER_ADMIN_TOKEN", token)
    assert main(["serve"]) == 2
    assert "GATEKEEPER_ADMIN_TOKEN: must have at least 8 characters" in capsys.readouterr().err


@pytest.mark.parametrize("token", ["12345678", "a token of words", "!#$%&'*+-.^_`|~=/"])
def test_what_a_header_carries_is_taken(token: str) -> None:
    settings = EdgeSettings.model_validate({"admin_token": token})
    assert settings.admin_token is not None
    assert settings.admin_token.get_secret_value() == token


def test_the_token_of_a_pair_is_kept_in_a_file_of_its_owner(tmp_path: Path) -> None:
    settings = EdgeSettings(policy_path=tmp_path / "new" / "policy.db")
    token, path = admin_token(settings)
    assert path is not None
    assert admin_token(settings) == (token, path)
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["folder", "pipe", "huge", "short", "latin", "lines", "nul"])
def test_a_token_file_that_holds_none_is_told(tmp_path: Path, name: str) -> None:
    path = tmp_path / "admin-token"
    if name == "folder":
        path.mkdir()
    elif name == "pipe":
        os.mkfifo(path)
    else:
        contents = {"huge": b"x" * 10_000, "short": b"abc\n", "latin": b"schl\xfcssel-token\n"}
        path.write_bytes((contents | {"lines": b"one-token\nanother\n", "nul": b"secret\0token"})[name])
    with pytest.raises(StartupError, match=r"the admin token cannot be kept there|holds no token") as refused:
        admin_token(EdgeSettings(policy_path=tmp_path / "policy.db"))
    assert str(refused.value).startswith(str(path))
