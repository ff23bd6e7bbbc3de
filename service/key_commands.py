"""`gatekeeper keys new | list | remove`: make API keys, and keep the file that GATEKEEPER_API_KEYS_FILE names."""

import argparse
import fcntl
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.api_keys import KeyEntry, new_key, read_file
from service.errors import StartupError


def add_key_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register them with the command's parser."""
    parser = commands.add_parser("keys", help="make, list and remove API keys")
    actions = parser.add_subparsers(required=True, metavar="ACTION")

    new = actions.add_parser("new", help="a new key, shown this once")
    new.add_argument("name", help="who it is for: a-z, 0-9 and -; it shows in logs and metrics")
    new.add_argument("--scopes", default="classify", help="classify, or classify,override; default %(default)s")
    new.add_argument("--limit", help="items in any second, minute, hour or day: 100/second; default: none")
    new.add_argument("--file", type=Path, help="add the entry to this file; default: print it")
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
        with _rewriting(arguments.file, missing_is_empty=True) as entries:
            if any(entry.name == arguments.name for entry in entries):
                raise StartupError(
                    f"{arguments.file} has a key {arguments.name} already: remove it, or use another name"
                )
            key, entry = new_key(arguments.name, scopes, arguments.limit)
            entries.append(entry)
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
    """The file's entries, to be changed in place; written back at the end, as a whole, readable for its owner alone."""
    if path.suffix == ".toml":
        raise StartupError(f"{path}: a TOML file is edited by hand; without --file the entry is printed")
    try:
        folder = os.open(path.parent, os.O_RDONLY)
    except OSError as error:
        raise StartupError(f"{path.parent}: cannot be read ({error.strerror})") from None
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # two commands at once must not lose one's entry
        entries = [] if missing_is_empty and not path.exists() else read_file(path)
        yield entries
        _write(path, entries)
    finally:
        os.close(folder)


def _write(path: Path, entries: list[KeyEntry]) -> None:
    content = json.dumps({"keys": [entry.model_dump() for entry in entries]}, indent=2) + "\n"
    target = path.resolve()  # a link stays one
    beside = target.with_name(f".{target.name}.new")
    try:
        beside.unlink(missing_ok=True)
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(descriptor)
        beside.replace(target)
    except OSError as error:
        raise StartupError(f"{path}: cannot be written ({error.strerror})") from None
