"""Where models come from that are not ours: transformers, imported when needed; installed packages; the hub."""

import importlib.util
from pathlib import Path
from types import ModuleType

from huggingface_hub import snapshot_download

from models.bundle import WEIGHTS, Base, file_sha256
from models.errors import BundleError, InputError
from models.inference.packaged import locate

# Of a hub repository only what a classifier is made of, and no pickle.
PATTERNS = ["config.json", "model.safetensors", "model-*.safetensors", "model.safetensors.index.json"]
PATTERNS += ["tokenizer.json", "preprocessor_config.json", "README.md", "adapter_config.json"]
# What a tokenizer.json can be made of where there is none.
PATTERNS += ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt"]
PATTERNS += ["spiece.model", "spm.model", "sentencepiece.bpe.model", "tokenizer.model"]


def transformers_library() -> ModuleType:
    """The library, with our nets registered and without the bars that it draws into a service's log.

    Raises BundleError where it is not installed: an edge does without it, until a bundle needs it.
    """
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise BundleError("this model needs transformers: from the checkout, pip install -e '.[large]'") from error

    import models.inference.architectures  # noqa: F401  registers them with the Auto classes

    transformers.logging.disable_progress_bar()
    return transformers


def fetch(hub_id: str) -> Path:
    """The directory of a hub model's files, from the network or its cache. Raises BundleError."""
    try:
        return Path(snapshot_download(hub_id, allow_patterns=PATTERNS))
    except Exception as error:  # the hub's client raises a dozen types, all meaning: not to be had
        raise BundleError(f"the model {hub_id} cannot be had from the hub: {type(error).__name__}") from error


def locate_base(base: Base) -> Path:
    """The directory of a base's files, which are those that the bundle was made with. Raises BundleError."""
    directory = _found(base)
    for file, expected in ((WEIGHTS["transformers"], base.weights_sha256), ("tokenizer.json", base.tokenizer_sha256)):
        if not (directory / file).is_file():
            raise BundleError(f"{directory / file} is missing")
        if file_sha256(directory / file) != expected:
            raise BundleError(f"{directory / file} is not the file the bundle was made with (sha256 differs)")
    return directory


def _found(base: Base) -> Path:
    """What was fetched, the installed package's, else the hub's."""
    if base.fetch is not None:
        try:
            return locate(base.fetch)
        except InputError as error:
            raise BundleError(str(error)) from error
    if base.package is not None:
        spec = importlib.util.find_spec(base.package)  # of a top-level name this does not import it
        if spec is not None and spec.submodule_search_locations:
            return Path(next(iter(spec.submodule_search_locations))) / base.directory
    if base.hub_id is not None:
        try:
            return fetch(base.hub_id)
        except BundleError as error:
            wanted = f"pip install {base.distribution}" if base.distribution else "a network is needed"
            raise BundleError(f"{error}; {wanted}") from error
    raise BundleError(f"the base is not installed: pip install {base.distribution or base.package}")
