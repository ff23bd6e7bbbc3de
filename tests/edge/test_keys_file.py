"""The keys file between users: what `gatekeeper keys` leaves of it, and a service under another user that follows it.

Needs root, to become somebody else.
"""

import json
import os
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support.processes import ROOT, Service, eventually, free_port, stopping

from service.access.keys import new_key, read_file

OWNER, SOMEBODY = 65_534, 65_533
COMMAND = [sys.executable, "-m", "tests.support.another_user"]

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user"),
    pytest.mark.timeout(120),
]


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that every user can enter, which pytest's own are not."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def written(path: Path, *names: str) -> dict[str, str]:
    """A file of keys, and the keys."""
    made = {name: new_key(name, ["classify"], None) for name in names}
    path.write_text(json.dumps({"keys": [entry.model_dump() for _, entry in made.values()]}))
    return {name: key for name, (key, _) in made.items()}


def keys(*arguments: str | Path, user: int = 0) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, str(user), "keys", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def names_in(path: Path) -> list[str]:
    return [entry.name for entry in read_file(path)]


def acl(*entries: tuple[int, int, int]) -> bytes:
    """As Linux keeps a POSIX ACL: (tag, permissions, id) each."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


@pytest.mark.parametrize("link", [False, True])
def test_owner_group_mode_and_attributes_stay(folder: Path, link: bool) -> None:
    path = folder / "keys.json"
    written(path, "acme", "other")
    os.chown(path, OWNER, SOMEBODY)
    path.chmod(0o640)
    nobody = 2**32 - 1
    access = acl((1, 6, nobody), (2, 4, 4_242), (4, 4, nobody), (16, 4, nobody), (32, 0, nobody))
    try:
        os.setxattr(path, "system.posix_acl_access", access)
        os.setxattr(path, "user.note", b"ours")
    except OSError as error:
        pytest.skip(f"this file system keeps no ACL: {error}")
    before = path.stat()
    named = path
    if link:
        named = folder / "link.json"
        named.symlink_to(path)
    assert keys("remove", "acme", "--file", named).returncode == 0
    assert keys("new", "third", "--file", named).returncode == 0
    after = path.stat()
    assert (after.st_uid, after.st_gid, after.st_mode) == (OWNER, SOMEBODY, before.st_mode)
    assert os.getxattr(path, "system.posix_acl_access") == access
    assert os.getxattr(path, "user.note") == b"ours"
    assert names_in(path) == ["other", "third"]
    assert named.is_symlink() == link
    assert sorted(entry.name for entry in folder.iterdir()) == sorted({"keys.json", named.name})


def test_every_name_of_the_file_sees_the_removal(folder: Path) -> None:
    """A hard link, and with it what a container sees of a file that it mounts: the same file, by another way."""
    path, other = folder / "keys.json", folder / "seen-elsewhere.json"
    written(path, "acme", "other")
    os.link(path, other)
    assert keys("remove", "acme", "--file", path).returncode == 0
    assert names_in(other) == ["other"]


def test_a_file_that_is_a_mount_can_be_changed(folder: Path) -> None:
    """As in a container that mounts this one file; another file cannot take its place (EBUSY)."""
    path, mounted = folder / "keys.json", folder / "mounted.json"
    written(path, "acme", "other")
    mounted.touch()
    mount = f"mount --bind {path} {mounted} || exit 77; exec {' '.join(COMMAND)} 0 keys remove acme --file {mounted}"
    done = subprocess.run(["unshare", "-m", "sh", "-c", mount], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"nothing can be mounted here: {done.stderr}")
    assert done.returncode == 0, done.stderr
    assert names_in(path) == ["other"]


def test_its_owner_may_change_it_in_a_folder_of_somebody_else(folder: Path) -> None:
    path = folder / "keys.json"
    written(path, "acme", "other")
    os.chown(path, OWNER, OWNER)
    assert keys("remove", "acme", "--file", path, user=OWNER).returncode == 0
    assert names_in(path) == ["other"]


def test_who_may_not_change_it_is_told_who_may_and_nothing_is_changed(folder: Path) -> None:
    path = folder / "keys.json"
    written(path, "acme", "other")
    os.chown(path, OWNER, OWNER)
    before = path.read_bytes()
    folder.chmod(0o777)  # another file could take its place, of another owner
    path.chmod(0o644)
    done = keys("remove", "acme", "--file", path, user=SOMEBODY)
    assert done.returncode == 2
    assert done.stderr == (
        f"gatekeeper: {path}: cannot be written (Permission denied); "
        f"run this as user {OWNER}, to whom it belongs, or as root\n"
    )
    path.chmod(0o600)
    done = keys("remove", "acme", "--file", path, user=SOMEBODY)
    assert done.returncode == 2
    assert f"this process runs as user {SOMEBODY}: let that user read the file" in done.stderr
    folder.chmod(0o755)
    done = keys("new", "acme", "--file", folder / "new.json", user=SOMEBODY)
    assert done.returncode == 2
    assert "run this as user 0, to whom its folder belongs" in done.stderr
    assert done.stdout == "", "no key that nothing knows"
    assert path.read_bytes() == before
    assert [entry.name for entry in folder.iterdir()] == ["keys.json"]


def test_a_new_file_is_its_makers_alone_and_says_so(folder: Path) -> None:
    folder.chmod(0o2777)  # a setgid folder gives its group, not the mode
    path = folder / "keys.json"
    done = keys("new", "acme", "--file", path, user=OWNER)
    assert done.returncode == 0, done.stderr
    assert (path.stat().st_uid, stat.S_IMODE(path.stat().st_mode)) == (OWNER, 0o600)
    assert f"only user {OWNER} can read {path}" in done.stderr
    assert "only user" not in keys("new", "other", "--file", path, user=OWNER).stderr


def test_a_full_disk_leaves_the_file_as_it_was(folder: Path) -> None:
    """As a limit on the size of files: what is written beyond it fails in the same way."""
    path = folder / "keys.json"
    written(path, *(f"key-{number}" for number in range(40)))
    before = path.read_bytes()
    code = (
        "import resource, signal, sys; from service.cli import main; "
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before)}, {len(before)})); "
        f"sys.exit(main(['keys', 'new', 'more', '--file', {str(path)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "cannot be written (File too large)" in done.stderr
    assert done.stdout == ""
    assert path.read_bytes() == before


@pytest.fixture
def edge(folder: Path) -> Iterator[tuple[Service, Path, dict[str, str]]]:
    """An edge under another user, its file of keys, and the keys."""
    home = folder / "home"
    home.mkdir()
    path = folder / "keys.json"
    made = written(path, "acme", "other")
    for owned in (home, path):
        os.chown(owned, OWNER, OWNER)
    path.chmod(0o600)
    settings = {
        "GATEKEEPER_API_KEYS_FILE": str(path),
        "GATEKEEPER_POLICY_PATH": str(home / "policy.db"),
        "GATEKEEPER_REMOTE_URL": "http://127.0.0.1:9",
        "GATEKEEPER_DRAIN_S": "0",
        "HOME": str(home),
    }
    port = free_port()
    with (folder / "edge.log").open("ab") as log:
        process = subprocess.Popen(
            [*COMMAND, str(OWNER), "serve", "--port", str(port)],
            env={key: value for key, value in os.environ.items() if not key.startswith("GATEKEEPER_")} | settings,
            cwd=ROOT,
            stdout=log,
            stderr=log,
        )
    service = Service(process, port, folder / "edge.log")
    with stopping(service):
        service.wait_ready()
        yield service, path, made


def status(service: Service, key: str) -> int:
    answer = httpx.post(f"{service.url}/v1/classify", json={"inputs": "hello"}, headers={"x-api-key": key}, timeout=20)
    return answer.status_code


def shows(service: Service, sample: str) -> bool:
    return sample in httpx.get(f"{service.url}/metrics", timeout=20).text


@pytest.mark.slow
def test_a_key_that_root_removes_is_refused_by_a_service_of_another_user(
    edge: tuple[Service, Path, dict[str, str]],
) -> None:
    service, path, made = edge
    assert status(service, made["acme"]) == 200
    assert keys("remove", "acme", "--file", path).returncode == 0
    eventually(lambda: status(service, made["acme"]) == 401, "the removed key is refused", within_s=20)
    assert status(service, made["other"]) == 200
    assert shows(service, "gatekeeper_api_keys_current 1.0")


@pytest.mark.slow
def test_a_file_out_of_reach_is_shown_and_taken_up_when_it_is_back(
    edge: tuple[Service, Path, dict[str, str]],
) -> None:
    """Taken away by its owner alone, and given back: neither changes its content or its mtime."""
    service, path, made = edge
    os.chown(path, 0, 0)
    eventually(lambda: shows(service, "gatekeeper_api_keys_current 0.0"), "the metric falls", within_s=20)
    assert status(service, made["acme"]) == 200, "the old keys stay"
    assert f"runs as user {OWNER}: let that user read the file" in service.log.read_text()
    assert keys("remove", "acme", "--file", path).returncode == 0
    os.chown(path, OWNER, OWNER)
    eventually(lambda: status(service, made["acme"]) == 401, "the removed key is refused", within_s=20)
    assert shows(service, "gatekeeper_api_keys_current 1.0")
    path.parent.chmod(0o700)
    eventually(lambda: shows(service, "gatekeeper_api_keys_current 0.0"), "a closed folder is the same", within_s=20)
    path.parent.chmod(0o755)
    eventually(lambda: shows(service, "gatekeeper_api_keys_current 1.0"), "and so is its opening", within_s=20)
