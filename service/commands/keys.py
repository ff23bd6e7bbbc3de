"""`gatekeeper keys new | list | remove`: make API keys, and keep the file that GATEKEEPER_API_KEYS_FILE names."""

import argparse
import fcntl
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from service.access.keys import KeyEntry, lock, new_key, read_file
from service.errors import StartupError


def add_key_commands(commands: "argparse._SubParsersAction[Any]") -> None:
    """Register them with the command's parser."""
    parser = commands.add_parser("keys", help="make, list and remove API keys")
    actions = parser.add_subparsers(required=True, metavar="ACTION")

    new = actions.add_parser("new", help="a new key, shown this once")
    new.add_argument("name", help="whose key it is: a-z, 0-9 and -; logs and metrics show it")
    new.add_argument("--scopes", default="classify", help="classify, or classify,override; default %(default)s")
    new.add_argument(
        "--limit", help="how many items in any second, minute, hour or day, such as 100/second; default: no limit"
    )
    new.add_argument("--file", type=Path, help="add the hash of the key to this file; default: print it")
    new.set_defaults(run=run_new)

    listed = actions.add_parser("list", help="the names, scopes and limits in a file")
    listed.add_argument("--file", type=Path, required=True)
    listed.set_defaults(run=run_list)

    remove = actions.add_parser("remove", help="take a key out of a file; running services follow within seconds")
    remove.add_argument("name")
    remove.add_argument("--file", type=Path, required=True)
    remove.set_defaults(run=run_remove)


def run_new(arguments: argparse.Namespace) -> int:
    """The key alone goes to stdout, for a script to take; what to do with it to stderr."""
    scopes = [scope.strip() for scope in arguments.scopes.split(",")]
    if arguments.file is None:
        key, entry = new_key(arguments.name, scopes, arguments.limit)
        _print_entry(entry)
    else:
        created = not os.path.exists(arguments.file)  # noqa: PTH110  Path.exists raises where a folder is closed
        with _rewriting(arguments.file, missing_is_empty=True) as entries:
            if any(entry.name == arguments.name for entry in entries):
                raise StartupError(
                    f"{arguments.file} has a key {arguments.name} already: remove it, or use another name"
                )
            key, entry = new_key(arguments.name, scopes, arguments.limit)
            entries.append(entry)
        if created:
            whose = f"only user {os.geteuid()} can read {arguments.file}"
            print(f"{whose}: where the service runs as another, give it the file with chown", file=sys.stderr)
        print(f"added to {arguments.file}; this is the only time that the key is shown:", file=sys.stderr)
    print(key)
    return 0


def run_list(arguments: argparse.Namespace) -> int:
    """One line a key."""
    for entry in read_file(arguments.file):
        print(f"{entry.name:32}  {','.join(entry.scopes):18}  {entry.limit or 'no limit'}")
    return 0


def run_remove(arguments: argparse.Namespace) -> int:
    """The others stay as they are."""
    with _rewriting(arguments.file) as entries:
        kept = [entry for entry in entries if entry.name != arguments.name]
        if len(kept) == len(entries):
            raise StartupError(f"{arguments.file} has no key {arguments.name}: `gatekeeper keys list` shows the names")
        entries[:] = kept
    print(f"removed from {arguments.file}; services that use the file refuse it within seconds", file=sys.stderr)
    return 0


def _print_entry(entry: KeyEntry) -> None:
    line = f"{entry.name}:{entry.sha256}:{'+'.join(entry.scopes)}" + (f":{entry.limit}" if entry.limit else "")
    print("configure this, which holds no secret, on the service:", file=sys.stderr)
    print(f"  GATEKEEPER_API_KEYS={line}", file=sys.stderr)
    print(f'or in a file: {{"keys": [{entry.model_dump_json()}]}}', file=sys.stderr)
    print("and give this key to the caller; it is not shown again:", file=sys.stderr)


@contextmanager
def _rewriting(path: Path, *, missing_is_empty: bool = False) -> Iterator[list[KeyEntry]]:
    """The file's entries, to be changed in place and written back at the end. Raises StartupError."""
    if path.suffix == ".toml":
        raise StartupError(f"{path}: a TOML file is edited by hand; without --file the entry is printed")
    target = Path(os.path.realpath(path))  # a link stays one
    try:
        folder = os.open(target.parent, os.O_RDONLY)
    except OSError as error:
        raise StartupError(f"{target.parent}: cannot be read ({error.strerror})") from None
    try:
        try:
            lock(folder, fcntl.LOCK_EX)  # two commands at once must not lose one's entry
        except OSError as error:
            raise StartupError(f"{path.parent}: {error.strerror}") from None
        missing = not os.path.lexists(target)
        entries = [] if missing and missing_is_empty else read_file(path)
        yield entries
        content = (json.dumps({"keys": [entry.model_dump() for entry in entries]}, indent=2) + "\n").encode()
        try:
            if missing:
                _create(target, content)
            else:
                _overwrite(target, content)
        except PermissionError as error:
            owner = (target.parent if missing else target).stat().st_uid
            who = f"run this as user {owner}, to whom {'its folder' if missing else 'it'} belongs, or as root"
            if owner == os.geteuid():
                who = f"give yourself the right: chmod u+w {target.parent if missing else target}"
            raise StartupError(f"{path}: cannot be written ({error.strerror}); {who}") from None
        except OSError as error:
            raise StartupError(f"{path}: cannot be written ({error.strerror})") from None
    finally:
        os.close(folder)


def _create(path: Path, content: bytes) -> None:
    """A whole file or none, readable for its owner alone."""
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(descriptor)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _overwrite(path: Path, content: bytes) -> None:
    """The file stays the file that it is: its owner, mode and ACL, its hard links, and where it is mounted.

    Another file in its place would be one that a service under another user cannot read, or never sees: a container
    that mounts the file goes on reading the old one. Raises OSError; the former content stands there then.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb+", buffering=0) as stream:
        lock(stream, fcntl.LOCK_EX)  # a service reads it before or after, see api_keys.py
        former = stream.readall()
        try:
            # Blanks up to the former end first: whenever this process is killed, what stands there is whole.
            _put(descriptor, content.ljust(len(former)))
            os.ftruncate(descriptor, len(content))
        except OSError:  # the disk is full: what was there fitted
            _put(descriptor, former)
            os.ftruncate(descriptor, len(former))
            raise
        os.fsync(descriptor)


def _put(descriptor: int, content: bytes) -> None:
    written = 0
    while written < len(content):
        written += os.pwrite(descriptor, content[written:], written)
