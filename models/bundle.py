"""The bundle: the directory that the job writes and the edge loads. The contract between the two halves.

    gatekeeper.json        what it is (Manifest), with the sha256 of every other file but the card
    model.safetensors ...  runtime `transformers`: what the Auto classes load, and the tokenizer.json (text) or
                           preprocessor_config.json (images) beside it
    head.safetensors       runtime `head`: a linear head on a frozen base that is not in the bundle
    adapter_model.safetensors, adapter_config.json
                           runtime `peft`: a LoRA adapter on a frozen base that is not in the bundle; texts written
    calibration.parquet    one row per item of the calibrate split: confidence, small_correct, large_correct
    selection.parquet      the same of the select split, from which a certificate learns its order
    README.md              the model card

No pickle is ever read and no remote code is ever trusted.
"""

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from safetensors import SafetensorError

from models.errors import BundleError, InputError
from models.files import MIB, read_json
from models.generation import TEXT_SCORE_RANGES, TEXT_TASKS, Generation, TextTask
from models.operating_points import deferral_ratio, joint_accuracy
from models.parquet import read_parquet
from models.replacing import exchange, linked, tree_to_disk

Task = Literal["text-classification", "image-classification"]

FORMAT_VERSION = 1
MANIFEST = "gatekeeper.json"
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
CALIBRATION = "calibration.parquet"
SELECTION = "selection.parquet"
CARD = "README.md"
MOST_MANIFEST_BYTES = 16 * MIB
MOST_JSON_BYTES = 256 * MIB  # of a tokenizer, the largest of the files that are read as JSON
CALIBRATION_COLUMNS = ("confidence", "small_correct", "large_correct")
# What confidences and thresholds of each score lie between (confidence.py).
LABEL_SCORE_RANGES = {
    "max_softmax": (0.0, 1.0),
    "margin": (0.0, 1.0),
    "negative_entropy": (-1.0, 0.0),
    "energy": (-1e6, 1e6),
}
SCORE_RANGES = LABEL_SCORE_RANGES | TEXT_SCORE_RANGES
ENCODERS = {"text-classification": "tokenizer.json", "image-classification": "preprocessor_config.json"}
WEIGHTS = {"transformers": "model.safetensors", "head": "head.safetensors", "peft": "adapter_model.safetensors"}


class Base(BaseModel):
    """A frozen model that a head or an adapter stands on: files of an installed package, what `gatekeeper fetch` has
    converted, or a hub id where there is a network."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    package: str | None = Field(default=None, description="import name; its files are located without importing it")
    directory: str = Field(default="", description="where in the package the model lies")
    distribution: str | None = Field(default=None, description="what to install, for the error message")
    hub_id: str | None = None
    fetch: str | None = Field(default=None, description="its name for `gatekeeper fetch`")
    weights_sha256: str
    tokenizer_sha256: str


class Manifest(BaseModel):
    """gatekeeper.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: Literal[1]
    name: str = Field(pattern=f"^{NAME}$")
    task: Task | TextTask
    runtime: Literal["transformers", "head", "peft"]
    labels: tuple[str, ...] = Field((), description="two or more; none of a model that writes text")
    score: str
    temperature: float = Field(gt=0, allow_inf_nan=False)
    default_threshold: float = Field(allow_inf_nan=False)
    dtype: Literal["float32"]
    max_tokens: int | None = Field(None, ge=1, description="a longer text is cut to this many tokens; texts only")
    base: Base | None = None
    generation: Generation | None = Field(None, description="of a model that writes text")
    alpha: float | None = None
    loss: str | None = None
    seed: int | None = None
    dataset: str | None = None
    dataset_sha256: str | None = None
    code_commit: str | None = None
    training: dict[str, Any] = Field(default_factory=dict, description="everything else that shaped the weights")
    metrics: dict[str, float] = Field(default_factory=dict, description="headline numbers, measured")
    certificate: dict[str, Any] | None = Field(None, description="what is guaranteed of the default threshold")
    calibrated_on: str | None = Field(None, description="content hash of the dataset whose splits calibrated it")
    calibrated_with: str | None = Field(None, description="gate digest of the large model beside it then")
    files: dict[str, str] = Field(description="sha256 of every other file but the card, which people edit")

    @field_validator("labels")
    @classmethod
    def _labels_differ(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(labels)) != len(labels):
            raise ValueError("two labels are the same")
        return labels

    @property
    def writes_text(self) -> bool:
        """Whether it answers in text of its own, rather than with one of its labels."""
        return self.task in TEXT_TASKS

    @model_validator(mode="after")
    def _is_of_one_kind(self) -> "Manifest":
        """A classifier has labels and their scores, a model that writes text its generation and those of answers."""
        ranges = TEXT_SCORE_RANGES if self.writes_text else LABEL_SCORE_RANGES
        if self.score not in ranges:
            raise ValueError(f"score {self.score!r} is none of {self.task}; there is {', '.join(ranges)}")
        if self.writes_text == (self.generation is None) or self.writes_text == bool(self.labels):
            raise ValueError(f"{self.task} needs {'generation and no labels' if self.writes_text else 'labels'}")
        if not self.writes_text and len(self.labels) < 2:
            raise ValueError("labels: two or more are needed")
        if self.score == "quantile_rule" and (self.generation is None or self.generation.rule is None):
            raise ValueError("score quantile_rule needs generation.rule: calibrate the bundle")
        return self


@dataclass(frozen=True)
class Calibration:
    """Columns of calibration.parquet, each (N,). Correctness is in [0, 1]; large_correct is None where unknown."""

    confidence: NDArray[np.float64]
    small_correct: NDArray[np.float64]
    large_correct: NDArray[np.float64] | None

    def deferral_ratio(self, threshold: float) -> float:
        """Share of the calibration items that the gate would defer at this threshold."""
        return deferral_ratio(self.confidence, threshold)

    def shares_up_to(self, bounds: Sequence[float]) -> list[float]:
        """The share of the calibration items with a confidence at or below each bound."""
        ordered = np.sort(self.confidence)
        return [float(rank) / len(ordered) for rank in np.searchsorted(ordered, bounds, side="right")]

    def joint_accuracy(self, threshold: float) -> float | None:
        """Accuracy of the cascade on the calibration items; None where the large model's answers are unknown."""
        if self.large_correct is None:
            return None
        return joint_accuracy(threshold, self.confidence, self.small_correct, self.large_correct)


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose files have been checked against its manifest."""

    directory: Path
    manifest: Manifest
    gate_digest: str

    def read_calibration(self, file: str = CALIBRATION) -> Calibration | None:
        """The rows of calibration.parquet, or of SELECTION; None where there are none. Raises BundleError."""
        path = self.directory / file
        if file not in self.manifest.files:
            return None
        try:
            table = read_parquet(path, lambda names: [name for name in CALIBRATION_COLUMNS if name in names])
            columns = {name: table.column(name).to_numpy().astype(np.float64) for name in table.column_names}
            large = columns.get("large_correct")
            calibration = Calibration(
                columns["confidence"],
                columns["small_correct"],
                None if large is None or np.isnan(large).any() else large,
            )
        except InputError as error:
            raise BundleError(str(error)) from error
        except (OSError, KeyError, ValueError, pa.ArrowException) as error:
            raise BundleError(f"{path}: cannot be read as calibration data ({error})") from error
        if not len(calibration.confidence) or not np.isfinite(calibration.confidence).all():
            raise BundleError(f"{path}: no rows, or a confidence that is not finite")
        return calibration


def load_bundle(directory: Path) -> Bundle:
    """Read the manifest and check every file it names. Raises BundleError with the file's name."""
    if not directory.is_dir():
        raise BundleError(f"{directory}: no such bundle directory")
    path = directory / MANIFEST
    try:
        content = read_json(path, MOST_MANIFEST_BYTES)
    except FileNotFoundError:
        raise BundleError(f"{path} is missing: {directory} is not a bundle") from None
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise BundleError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise BundleError(f"{path} is no JSON object")
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise BundleError(f"{path}: format version {version!r} is unknown, this version reads {FORMAT_VERSION}")
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"{path}: {where}: {first['msg']}") from error
    _check_files(directory, manifest)
    return Bundle(directory, manifest, gate_digest(manifest))


def _check_files(directory: Path, manifest: Manifest) -> None:
    if WEIGHTS[manifest.runtime] not in manifest.files:
        raise BundleError(f"{directory / MANIFEST}: runtime {manifest.runtime} needs {WEIGHTS[manifest.runtime]}")
    if manifest.runtime == "head" and (manifest.base is None or manifest.task != "text-classification"):
        raise BundleError(f"{directory / MANIFEST}: runtime head needs a base and classifies texts")
    if manifest.runtime == "peft" and (manifest.base is None or not manifest.writes_text):
        raise BundleError(f"{directory / MANIFEST}: runtime peft needs a base and writes text")
    if manifest.task == "text-classification" and manifest.max_tokens is None:
        raise BundleError(f"{directory / MANIFEST}: text-classification needs max_tokens")
    for name, expected in manifest.files.items():
        path = directory / name
        if Path(name).name != name:
            raise BundleError(f"{directory / MANIFEST}: {name!r} is not a plain file name")
        _check_file(path, expected)
    encoder = ENCODERS.get(manifest.task, "tokenizer.json")
    if manifest.runtime == "transformers" and encoder not in manifest.files:
        raise BundleError(f"{directory / MANIFEST}: {manifest.task} needs {encoder}")


def _check_file(path: Path, expected: str) -> None:
    try:
        if not path.is_file():
            raise BundleError(f"{path} is missing")
        if path.suffix == ".json" and path.stat().st_size > MOST_JSON_BYTES:
            raise BundleError(f"{path} is larger than {MOST_JSON_BYTES // MIB} MiB")
        digest = file_sha256(path)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from error
    if digest != expected:
        raise BundleError(f"{path} is damaged: its sha256 is not the one in {MANIFEST}")


def gate_digest(manifest: Manifest) -> str:
    """What a threshold belongs to: sha256 over all that decides a confidence, as canonical JSON."""
    if manifest.writes_text:
        return _digest(_of_drafts(manifest) | {"score": manifest.score, "rule": _rule(manifest)})
    own = manifest.files
    base = manifest.base
    document: dict[str, Any] = {
        "weights": [own[WEIGHTS[manifest.runtime]], own.get("config.json"), base and base.weights_sha256],
        "tokenizer": base.tokenizer_sha256 if base else own.get(ENCODERS[manifest.task]),
        "max_tokens": manifest.max_tokens,
        "labels": manifest.labels,
        "score": manifest.score,
        "temperature": manifest.temperature,
        "runtime": manifest.runtime,
        "dtype": manifest.dtype,
    }
    return _digest(document)


def draft_digest(manifest: Manifest) -> str:
    """What the answers of a model that writes text belong to: all of the gate digest but the choice of a score."""
    return _digest(_of_drafts(manifest))


def _of_drafts(manifest: Manifest) -> dict[str, Any]:
    assert manifest.generation is not None  # Manifest has checked it
    return {
        "files": {name: digest for name, digest in manifest.files.items() if name not in {CALIBRATION, SELECTION}},
        "base": manifest.base and [manifest.base.weights_sha256, manifest.base.tokenizer_sha256],
        "generation": manifest.generation.model_dump(exclude={"rule"}),
        **{name: getattr(manifest, name) for name in ("task", "runtime", "dtype", "temperature")},
    }


def _rule(manifest: Manifest) -> Any:
    """The quantile rule, where it is the score."""
    if manifest.score != "quantile_rule" or manifest.generation is None or manifest.generation.rule is None:
        return None
    return manifest.generation.rule.model_dump()


def _digest(document: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_bundle(directory: Path, manifest: dict[str, Any], write_files: Callable[[Path], None]) -> Bundle:
    """Write a whole bundle or nothing: write_files fills a directory beside it, which then takes its place.

    manifest: the fields of Manifest but format_version and files. What stood at `directory` is replaced only if it
    is a bundle or empty. Raises BundleError.
    """
    directory = directory.resolve()  # whoever stands in it must not be moved away with it
    check_output(directory)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{directory.name}-", dir=directory.parent) as scratch:
            new = Path(scratch) / "new"
            new.mkdir()
            write_files(new)
            files = {path.name: file_sha256(path) for path in sorted(new.iterdir()) if path.name != CARD}
            checked = Manifest.model_validate({**manifest, "format_version": FORMAT_VERSION, "files": files})
            (new / MANIFEST).write_text(checked.model_dump_json(indent=2, exclude_none=True) + "\n", encoding="utf-8")
            for path in new.iterdir():
                path.chmod(0o644)  # safetensors writes 0600, and the edge may run as another user
            tree_to_disk(new)
            _keep_what_is_not_ours(directory, new)
            exchange(new, directory)
    except (OSError, SafetensorError) as error:  # a full disk is either, by who meets it
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BundleError(f"{directory} cannot be written: {reason}") from error
    return load_bundle(directory)


def _keep_what_is_not_ours(old: Path, new: Path) -> None:
    """A person's notes beside the manifest stay; what the old manifest named is gone for good."""
    if not (old / MANIFEST).is_file():
        return
    try:
        named = set(read_json(old / MANIFEST, MOST_MANIFEST_BYTES)["files"])
    except (OSError, ValueError, LookupError, TypeError):  # then nobody knows what was ours
        named = set()
    ours = {MANIFEST, CARD, *named}
    for path in old.iterdir():
        if path.name not in ours and not (new / path.name).exists():
            linked(path, new / path.name)


def check_output(directory: Path) -> None:
    """Raise BundleError where write_bundle would: before minutes of training, not after."""
    directory = directory.resolve()
    if not re.fullmatch(NAME, directory.name):
        raise BundleError(f"{directory.name!r} names the bundle: letters, digits, '.', '_' and '-' only")
    if directory.exists() and not directory.is_dir():
        raise BundleError(f"{directory} is a file: name a directory for the bundle")
    try:
        if directory.is_dir() and any(directory.iterdir()) and not (directory / MANIFEST).exists():
            raise BundleError(f"{directory} holds something that is not a bundle: name an empty or a new directory")
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory.parent):
            pass
    except OSError as error:
        raise BundleError(f"{directory} cannot be written: {error.strerror}") from error


def rewrite_bundle(bundle: Bundle, changes: dict[str, Any], write_files: Callable[[Path], None]) -> Bundle:
    """The same bundle with other manifest fields and some files written anew."""
    return _rewrite(bundle, changes, write_files, bundle.directory)


def _rewrite(bundle: Bundle, changes: dict[str, Any], write_files: Callable[[Path], None], directory: Path) -> Bundle:
    kept = bundle.manifest.model_dump(exclude={"format_version", "files"})

    def write(new: Path) -> None:
        for name in (*bundle.manifest.files, CARD):
            if (bundle.directory / name).exists():
                shutil.copyfile(bundle.directory / name, new / name)
        write_files(new)

    return write_bundle(directory, {**kept, **changes}, write)


def copy_bundle(bundle: Bundle, directory: Path) -> Bundle:
    """The same bundle, under its own name, in another directory."""
    if directory.exists() and directory.resolve() == bundle.directory.resolve():
        return bundle
    return _rewrite(bundle, {}, lambda _: None, directory)


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Write the rows as calibration.parquet holds them. Raises BundleError for a number that is none."""
    for name in CALIBRATION_COLUMNS:
        column = getattr(calibration, name)
        if column is not None and not np.isfinite(column).all():
            row = int(np.flatnonzero(~np.isfinite(column))[0]) + 1
            raise BundleError(f"{path.name}: {name} in row {row} is not a finite number; nothing was written")
    large = calibration.large_correct
    table = pa.table(
        {
            "confidence": calibration.confidence,
            "small_correct": calibration.small_correct,
            "large_correct": pa.array(large) if large is not None else pa.nulls(len(calibration.confidence)),
        }
    )
    pq.write_table(table, path)


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
