"""API keys: what is configured, who gets in, and a file that changes while the service runs.

One file because all of it is about one file of keys while a service follows it.
"""

import asyncio
import fcntl
import hashlib
import json
import logging
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr
from support.processes import ROOT
from support.waiting import eventually, until

from service.access import keys as api_keys
from service.access.keys import ANYONE, ApiKeys, KeyEntry, RateLimit, new_key, parse_line, read_file
from service.cli import main
from service.errors import Forbidden, StartupError, Unauthorized

SECRET = "s" * 43
KEY = f"gk_acme_{SECRET}"
HASH = hashlib.sha256(KEY.encode()).hexdigest()
SOURCE = "GATEKEEPER_API_KEYS"


def opened(line: str | None = f"acme:{HASH}", path: Path | None = None) -> ApiKeys:
    return ApiKeys(None if line is None else SecretStr(line), path, source=SOURCE, on_names=lambda _: None)


def bearer(key: str | bytes, scheme: bytes = b"Bearer ") -> list[tuple[bytes, bytes]]:
    return [(b"host", b"x"), (b"authorization", scheme + (key.encode() if isinstance(key, str) else key))]


def written(path: Path, *entries: KeyEntry | dict[str, object]) -> Path:
    """As an editor does: another file takes the place."""
    documents = [entry.model_dump() if isinstance(entry, KeyEntry) else entry for entry in entries]
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps({"keys": documents}))
    beside.replace(path)
    return path


# ---- who gets in


def test_without_keys_everybody_may_do_everything() -> None:
    keys = opened(None)
    assert keys.authenticate([]) is ANYONE
    ANYONE.check_overrides(0.5, "large")


@pytest.mark.parametrize(
    "headers",
    [
        bearer(KEY),
        bearer(KEY, b"bearer "),
        bearer(KEY, b"BEARER   "),
        bearer(KEY + "  "),
        [(b"x-api-key", KEY.encode())],
        [(b"x-api-key", b" " + KEY.encode()), (b"authorization", b"Basic Zm9vOmJhcg==")],
    ],
)
def test_a_key_gets_in_by_either_header(headers: list[tuple[bytes, bytes]]) -> None:
    assert opened().authenticate(headers).name == "acme"


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        ([], "send your API key"),
        ([(b"authorization", b"")], "send your API key"),
        (bearer("Zm9vOmJhcg==", b"Basic "), "send your API key"),
        (bearer(KEY, b""), "send your API key"),
        (bearer(""), "no API key"),
        ([(b"x-api-key", b"")], "no API key"),
        (bearer("a-token-for-tests"), "no API key"),
        (bearer("gk_acme_ключ".encode()), "not known"),
        (bearer(b"gk_\xff_\xfe"), "not known"),
        (bearer("gk_"), "not known"),
        (bearer("gk_acme"), "not known"),
        (bearer("gk_acme_"), "not known"),
        (bearer(KEY[:-1]), "not known"),
        (bearer(KEY + "s"), "not known"),
        (bearer(KEY.upper()), "no API key"),
        (bearer(f"gk_other_{SECRET}"), "not known"),
        (bearer(HASH), "no API key"),
        (bearer("gk_acme_" + "x" * 100_000), "no API key"),
        ([*bearer(KEY), *bearer(KEY)], "more than one"),
        ([*bearer(KEY), (b"x-api-key", KEY.encode())], "more than one"),
    ],
)
def test_what_is_not_a_key_is_told_what_to_do(headers: list[tuple[bytes, bytes]], says: str) -> None:
    with pytest.raises(Unauthorized, match=says) as refused:
        opened().authenticate(headers)
    assert SECRET not in str(refused.value)


def test_an_override_needs_its_scope() -> None:
    caller = opened().authenticate(bearer(KEY))
    caller.check_overrides(None, "auto")
    for threshold, route in ((0.5, "auto"), (0.0, "auto"), (None, "large"), (None, "small")):
        with pytest.raises(Forbidden, match="override"):
            caller.check_overrides(threshold, route)
    opened(f"acme:{HASH}:classify+override").authenticate(bearer(KEY)).check_overrides(0.5, "large")


def test_a_key_of_another_scope_does_not_classify() -> None:
    with pytest.raises(Forbidden, match="`classify`"):
        opened(f"acme:{HASH}:override").authenticate(bearer(KEY))


def test_a_short_secret_never_gets_in_even_when_its_hash_is_configured() -> None:
    """A plain SHA-256 is enough for random secrets alone."""
    weak = "gk_acme_hunter2"
    with pytest.raises(Unauthorized):
        opened(f"acme:{hashlib.sha256(weak.encode()).hexdigest()}").authenticate(bearer(weak))


def test_new_keys_are_random_and_their_entry_lets_them_in() -> None:
    key, entry = new_key("my-app-2", ["classify"], "100/second")
    assert new_key("my-app-2", ["classify"], None)[0] != key
    assert key.startswith("gk_my-app-2_")
    assert len(key.split("_", 2)[2]) >= 32
    line = f"{entry.name}:{entry.sha256}::{entry.limit}"
    caller = opened(line).authenticate(bearer(key))
    assert (caller.name, caller.limit) == ("my-app-2", RateLimit(100, 1))
    assert caller.headers == ((b"ratelimit-policy", b'"items";q=100;w=1;qu="items"'),)


# ---- what is configured


def test_the_line_takes_commas_blanks_scopes_and_limits() -> None:
    entries = parse_line(f" a:{HASH}, b:{HASH.upper()}:classify+override\nc:{HASH}::5/minute ,", SOURCE)
    assert [(entry.name, entry.sha256, entry.scopes, entry.limit) for entry in entries] == [
        ("a", HASH, ["classify"], None),
        ("b", HASH, ["classify", "override"], None),
        ("c", HASH, ["classify"], "5/minute"),
    ]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "holds no entry"),
        (" ,\n", "holds no entry"),
        (KEY, "entry 1: must be name:sha256"),
        (f"acme:{KEY}", r"entry 1 \(acme\): sha256: must be 64 .*sha256sum"),
        (f"acme:{HASH}, b:{HASH[1:]}", r"entry 2 \(b\): sha256"),
        (f"Acme:{HASH}", "entry 1: name: must be 1 to 32"),
        (f"{'a' * 33}:{HASH}", "entry 1: name"),
        (f"a_b:{HASH}", "entry 1: name"),
        (f"acme:{HASH}:admin", r"\(acme\): scopes: "),
        (f"acme:{HASH}:classify:fast", r"\(acme\): limit: must be items/window, like 100/second"),
        (f"acme:{HASH}:classify:0/second", "limit"),
        (f"acme:{HASH}:classify:1/second:x", "entry 1: must be"),
        (f"acme:{HASH},acme:{HASH}", r"entry 2 \(acme\): the name is taken"),
    ],
)
def test_a_bad_line_is_told_by_entry_and_fault_and_not_repeated(line: str, says: str) -> None:
    with pytest.raises(StartupError, match=says) as refused:
        opened(line)
    assert str(refused.value).startswith(SOURCE)
    assert "sss" not in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is no JSON"),
        ("{\n'keys'", "is no JSON, line 2"),
        ("[" * 100_000, "is no JSON"),
        ("[]", 'must be {"keys"'),
        ('{"keys": {}}', 'must be {"keys"'),
        ('{"keys": [], "more": 1}', 'must be {"keys"'),
        ('{"keys": []}', "holds no key"),
        ('{"keys": [7]}', "entry 1: must be an object"),
        ('{"keys": [{}]}', "entry 1: name: Field required"),
        (f'{{"keys": [{{"name": "acme", "key": "{KEY}"}}]}}', r"entry 1 \(acme\): `key`: only its hash belongs here"),
        (f'{{"keys": [{{"name": "acme", "sha256": "{HASH}", "{SECRET}": 1}}]}}', "a field that an entry does not have"),
        (f'{{"keys": [{{"name": "{KEY}", "sha256": "{HASH}"}}]}}', "entry 1: name: must be"),
        (f'{{"keys": [{{"name": "acme", "sha256": "{HASH}", "scopes": []}}]}}', "scopes"),
        (f'{{"keys": [{{"name": "acme", "sha256": "{HASH}", "limit": 5}}]}}', "limit"),
    ],
)
def test_a_bad_file_is_told_by_entry_and_fault_and_not_repeated(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(content)
    with pytest.raises(StartupError, match=says) as refused:
        opened(None, path)
    assert str(refused.value).startswith(str(path))
    assert "sss" not in str(refused.value)


def test_a_missing_file_and_a_folder_are_told(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(StartupError, match="cannot be read"):
            opened(None, path)


def test_toml_is_read_and_both_sources_count(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    other = f"gk_other_{SECRET}"
    digest = hashlib.sha256(other.encode()).hexdigest()
    path.write_text(f'[[keys]]\nname = "other"\nsha256 = "{digest}"\nscopes = ["classify", "override"]\n')
    keys = opened(path=path)
    assert keys.authenticate(bearer(KEY)).name == "acme"
    assert keys.authenticate(bearer(other)).scopes == {"classify", "override"}
    with pytest.raises(StartupError, match="other is taken"):
        opened(f"other:{HASH}", path)


# ---- a file that changes


@pytest.fixture
def quick_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_keys, "CHECK_INTERVAL_S", 0.01)
    monkeypatch.setattr(api_keys, "LOCK_WAIT_S", 0.01)


def gets_in(keys: ApiKeys, key: str) -> bool:
    try:
        return keys.authenticate(bearer(key)).name is not None
    except Unauthorized:
        return False


async def test_keys_come_and_go_with_the_file(
    tmp_path: Path, quick_checks: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    (first, first_entry), (second, second_entry) = (new_key(name, ["classify"], None) for name in ("one", "two"))
    path = written(tmp_path / "keys.json", first_entry)
    heard: list[list[str]] = []
    keys = ApiKeys(None, path, source=SOURCE, on_names=lambda names: heard.append(list(names)))
    following = asyncio.create_task(keys.follow())
    try:
        written(path, first_entry, second_entry)
        await until(lambda: gets_in(keys, second))
        assert gets_in(keys, first)

        path.write_text('{"keys": [')  # half of an editor's work
        await until(lambda: "not reloaded" in caplog.text)
        await asyncio.sleep(0.1)  # ten more looks at the file
        assert caplog.text.count("not reloaded") == 1, "one line for one broken version"
        assert gets_in(keys, first)
        path.unlink()
        await until(lambda: caplog.text.count("not reloaded") == 2)
        assert gets_in(keys, first)

        written(path, second_entry)
        await until(lambda: not gets_in(keys, first))
        assert gets_in(keys, second)

        written(path)  # the last key taken away: closed, not open to all
        await until(lambda: not gets_in(keys, second))
        with pytest.raises(Unauthorized):
            keys.authenticate([])
    finally:
        following.cancel()
    assert heard == [["one"], ["one", "two"], ["two"], []]
    assert "gk_" not in caplog.text


@pytest.mark.parametrize("name", ["folder", "pipe", "pipe.toml", "huge", "deep.toml", "nul", "latin", "loop"])
def test_what_is_no_file_of_keys_is_told_and_never_waited_for(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
    elif name.startswith("pipe"):
        os.mkfifo(path)
    elif name == "loop":
        path.symlink_to(path)
    elif name == "huge":
        with path.open("wb") as stream:
            stream.truncate(10 * 2**30)  # no block of it is there
    else:
        path.write_bytes({"deep.toml": b"keys = " + b"[" * 50_000, "nul": b'{"keys": [\0]}', "latin": b"\xe4"}[name])
    with pytest.raises(StartupError, match=r"cannot be read \(|is no (JSON|TOML)") as refused:
        opened(None, path)
    assert len(str(refused.value).splitlines()) == 1


def test_as_many_keys_as_fit_are_read_without_comparing_each_with_each(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"keys": [{"name": f"k{number}", "sha256": HASH} for number in range(30_000)]}))
    assert len(read_file(path)) == 30_000


async def test_a_file_that_cannot_be_read_is_tried_again_until_it_can(
    tmp_path: Path, quick_checks: None, caplog: pytest.LogCaptureFixture
) -> None:
    """What stops it here, a writer's lock, leaves mode, size and times as they are: nothing tells that it has ended."""
    (first, first_entry), (second, second_entry) = (new_key(name, ["classify"], None) for name in ("one", "two"))
    path = written(tmp_path / "keys.json", first_entry)
    current: list[bool] = []
    keys = ApiKeys(None, path, source=SOURCE, on_names=lambda _: None, on_current=current.append)
    following = asyncio.create_task(keys.follow())
    try:
        with path.open("r+") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            stream.write(json.dumps({"keys": [second_entry.model_dump()]}).ljust(path.stat().st_size))
            stream.flush()
            await until(lambda: current[-3:] == [False] * 3)
            assert gets_in(keys, first)
        await until(lambda: gets_in(keys, second))
    finally:
        following.cancel()
    assert not gets_in(keys, first)
    assert current[0]
    assert current[-1]
    assert caplog.text.count("not reloaded") == 1, "once, not every time it is tried"
    assert "another program holds a lock on it" in caplog.records[0].__dict__["why"]


async def test_reloads_under_load_never_refuse_a_key_that_stays(tmp_path: Path, quick_checks: None) -> None:
    kept, kept_entry = new_key("kept", ["classify"], None)
    path = written(tmp_path / "keys.json", kept_entry)
    reloads: list[object] = []
    keys = ApiKeys(None, path, source=SOURCE, on_names=reloads.append)
    following = asyncio.create_task(keys.follow())
    try:
        async with asyncio.timeout(10.0):
            round_ = 0
            while len(reloads) < 10:
                round_ += 1
                written(path, kept_entry, new_key(f"other-{round_}", ["classify"], None)[1])
                for _ in range(20):
                    assert gets_in(keys, kept)
                    await asyncio.sleep(0.001)  # together two looks at the file
    finally:
        following.cancel()


# ---- the commands


def test_keys_are_made_listed_and_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys.json"
    assert main(["keys", "new", "acme", "--file", str(path), "--limit", "100/second"]) == 0
    printed = capsys.readouterr()
    key = printed.out.strip()
    assert key not in printed.err
    assert key not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert main(["keys", "new", "other", "--file", str(path), "--scopes", "classify,override"]) == 0
    capsys.readouterr()
    assert opened(None, path).authenticate(bearer(key)).limit == RateLimit(100, 1)

    before = path.read_bytes()
    assert main(["keys", "new", "acme", "--file", str(path)]) == 2
    assert "has a key acme already" in capsys.readouterr().err
    assert main(["keys", "new", "new", "--file", str(path), "--scopes", "admin"]) == 2
    assert main(["keys", "new", "Not A Name", "--file", str(path)]) == 2
    assert main(["keys", "remove", "nobody", "--file", str(path)]) == 2
    assert path.read_bytes() == before
    capsys.readouterr()

    assert main(["keys", "list", "--file", str(path)]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["acme", "classify", "100/second"],
        ["other", "classify,override", "no", "limit"],
    ]
    assert main(["keys", "remove", "acme", "--file", str(path)]) == 0
    assert [entry.name for entry in read_file(path)] == ["other"]
    assert [entry.name for entry in path.parent.iterdir()] == ["keys.json"]


def test_without_a_file_the_printed_line_lets_the_printed_key_in(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "new", "acme", "--scopes", "classify,override", "--limit", "5/minute"]) == 0
    printed = capsys.readouterr()
    line = next(line for line in printed.err.splitlines() if SOURCE in line).split("=", 1)[1]
    caller = opened(line).authenticate(bearer(printed.out.strip()))
    assert (caller.scopes, caller.limit) == ({"classify", "override"}, RateLimit(5, 60))


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "new", "acme", "--file", str(tmp_path / "none" / "keys.json")]) == 2
    assert main(["keys", "new", "acme", "--file", str(tmp_path / "keys.toml")]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "edited by hand" in printed.err


def test_two_commands_at_once_keep_both_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    command = [sys.executable, "-m", "service.cli", "keys", "new"]
    running = [
        subprocess.Popen([*command, f"key-{number}", "--file", str(path)], cwd=ROOT, stdout=subprocess.DEVNULL)
        for number in range(3)
    ]
    assert [process.wait(30) for process in running] == [0, 0, 0]
    eventually(lambda: len(read_file(path)) == 3, "three keys")


def test_the_keys_commands_load_no_torch() -> None:
    """And no Redis, no FastAPI: they start in a moment."""
    code = (
        "import sys; from service.cli import main; main(['keys', 'new', 'acme']); "
        "sys.exit(len({'torch', 'limits', 'redis', 'fastapi', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
