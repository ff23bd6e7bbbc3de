"""Make a bundle of a classifier that somebody has fine-tuned already, with its own labels; nothing is trained.

gatekeeper import ./my-distilbert --output runs/small
gatekeeper calibrate runs/small --data mails.csv --large runs/large
"""

import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.bundle import CARD, ENCODERS, MANIFEST, NAME, Bundle, Task, copy_bundle, load_bundle, write_bundle
from models.errors import BundleError, InputError
from models.files import MIB, read_bounded
from models.inference.classifier import load_classifier
from models.training.pretrained import (
    TOKENIZER,
    TRIAL_TEXTS,
    Opened,
    check_answers,
    locate_model,
    longest_text,
    open_model,
    open_tokenizer,
    read_config,
    said_limit,
    tasks_of,
)

MOST_TOKENS = 512  # of a model that would read whole books: an answer must not take minutes
_NUMBERED = re.compile(r"LABEL_\d+")
_LICENCE = re.compile(r"^license:[ \t]*([\w.+-]{1,80})[ \t]*$", re.MULTILINE)


def import_model(
    source: str,
    output: Path,
    name: str | None = None,
    labels: str | None = None,
    max_tokens: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Bundle:
    """The bundle of a fine-tuned model, whole or not at all. Raises InputError.

    labels: their names with commas between them, or the file that holds them; None: the model's own.
    """
    name = output.resolve().name if name is None else name
    directory = _source(source, output, name, max_tokens)
    config = read_config(directory)
    task = _task(directory, config)
    names = _labels(directory, config, labels)
    changes = {"id2label": dict(enumerate(names)), "label2id": {label: place for place, label in enumerate(names)}}
    opened = open_model(directory, config, task, **changes)
    _check_head(directory, opened, len(names))
    if labels is None and all(_NUMBERED.fullmatch(label) for label in names):
        say(f"note: the labels are only numbered ({names[0]}, ...); if you know their names, give --labels A,B,C")
    given = getattr(config, "dtype", None)
    if given is not None and str(given) not in {"float32", "torch.float32"}:
        say(f"note: its weights are {str(given).removeprefix('torch.')}, the bundle's are float32")
    limit = _limit(directory, opened, max_tokens, say) if task == "text-classification" else None
    licence = _licence(directory)
    manifest: dict[str, Any] = {
        "name": name,
        "task": task,
        "runtime": "transformers",
        "labels": names,
        "score": "max_softmax",
        "temperature": 1.0,
        "default_threshold": 0.5,
        "dtype": "float32",
        "max_tokens": limit,
        "training": {"imported_from": directory.name, "kind": config.model_type, "licence": licence},
    }
    tokenizer = open_tokenizer(directory, limit) if limit is not None else None

    def write_files(new: Path) -> None:
        opened.model.save_pretrained(new)
        if tokenizer is not None:
            tokenizer.save(str(new / TOKENIZER), pretty=False)
        else:
            shutil.copyfile(directory / ENCODERS[task], new / ENCODERS[task])
        (new / CARD).write_text(_card(name, source, config.model_type, licence, names), encoding="utf-8")

    output = output.resolve()
    # It is tried as the edge will use it, before anything stands at the output.
    with tempfile.TemporaryDirectory(prefix=".import-", dir=output.parent) as scratch:
        bundle = write_bundle(Path(scratch) / output.name, manifest, write_files)
        try:
            classifier = load_classifier(bundle)
        except BundleError as error:
            raise InputError(str(error).replace(str(bundle.directory), str(directory))) from error
        check_answers(str(directory), lambda items: torch.from_numpy(classifier.engine.logits(items)), _trial(limit))
        copy_bundle(bundle, output)
    count = sum(parameter.numel() for parameter in opened.model.parameters())
    say(
        f"{config.model_type}, {count / 1e6:,.1f} million parameters, {len(names)} labels"
        f"{f', {limit} tokens' if limit is not None else ''}; licence {licence or 'unknown: nothing here tells it'}"
    )
    return load_bundle(output)


def _source(source: str, output: Path, name: str, max_tokens: int | None) -> Path:
    """The model's directory, when all that is asked for can be."""
    if not re.fullmatch(NAME, name):
        raise InputError(f"{name!r} names the bundle: letters, digits, '.', '_' and '-' only")
    if max_tokens is not None and max_tokens < 1:
        raise InputError(f"--max-tokens must be 1 or more, not {max_tokens}")
    if (output / MANIFEST).exists():
        raise InputError(f"{output} is a bundle already: name another directory, or remove it")
    directory = locate_model(source, "")
    if (directory / MANIFEST).is_file():
        raise InputError(f"{directory} is a bundle already: gatekeeper calibrate takes it as it is")
    return directory


def _trial(limit: int | None) -> Sequence[Any]:
    if limit is not None:
        return [*TRIAL_TEXTS, TRIAL_TEXTS[0] * limit]
    grey, colours = np.zeros((32, 32), dtype=np.uint8), np.full((48, 40, 3), 255, dtype=np.uint8)
    return [grey, colours]


def _task(directory: Path, config: Any) -> Task:
    """Of a kind that classifies both, the file that is there decides."""
    if getattr(config, "auto_map", None):
        raise InputError(
            f"{directory / 'config.json'} names code of its own (auto_map), which is never run; remove auto_map where "
            f"transformers' own {config.model_type} is the same"
        )
    tasks = tasks_of(config)
    if not tasks:
        raise InputError(f"{directory} is a {config.model_type}: transformers has no classifier of this kind")
    fitting = [task for task in tasks if (directory / ENCODERS[task]).is_file()]
    task = (fitting or tasks)[0]
    if task == "image-classification" and not fitting:
        raise InputError(
            f"{directory / ENCODERS[task]} is missing: it says how images become numbers; "
            "AutoImageProcessor.from_pretrained(BASE).save_pretrained(DIR) writes that of the model it was tuned from"
        )
    return task


def _labels(directory: Path, config: Any, given: str | None) -> list[str]:
    path = directory / "config.json"
    if config.problem_type == "multi_label_classification":
        raise InputError(f"{path}: it gives any number of labels at once (multi-label); the gate compares one")
    count = config.num_labels
    if config.problem_type == "regression" or count == 1:
        raise InputError(f"{path}: it gives a number and no label (regression, or one output): nothing to classify")
    if given is not None:
        names = _given_labels(given)
        if len(names) != count:
            raise InputError(f"--labels has {len(names)} names, and the model has {count} outputs")
    else:
        known = config.id2label or {}
        if sorted(known) != list(range(count)):
            raise InputError(f"{path}: id2label does not number the labels 0 to {count - 1}: give --labels")
        odd = [known[place] for place in range(count) if not isinstance(known[place], str | int)]
        if odd:
            raise InputError(f"{path}: the label {odd[0]!r} is no text: give --labels")
        names = [str(known[place]) for place in range(count)]
    where, remedy = (path, "give --labels") if given is None else ("--labels", "name each output")
    if not all(name.strip() for name in names):
        raise InputError(f"{where}: a label is empty: {remedy}")
    broken = [name for name in names if any("\ud800" <= letter <= "\udfff" for letter in name)]
    if broken:
        raise InputError(f"{where}: the label {broken[0]!r} holds half a character: {remedy}")
    twice = [name for place, name in enumerate(names) if name in names[:place]]
    if twice:
        raise InputError(f"{where}: two labels are {twice[0]!r}: {remedy}")
    return names


def _given_labels(given: str) -> list[str]:
    path = Path(given)
    try:
        if not path.is_file():
            if "," not in given:
                raise InputError(f"--labels {given}: no such file, and no names with commas between them")
            return [name.strip() for name in given.split(",")]
        return read_bounded(path, 16 * MIB).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"--labels {given} is not UTF-8: save it as that, one label a line") from None
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"--labels cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _check_head(directory: Path, opened: Opened, labels: int) -> None:
    if opened.fresh:
        first = min(opened.fresh)
        kind = (getattr(opened.model.config, "architectures", None) or ["a model"])[0]
        raise InputError(
            f"{directory} is no classifier with {labels} outputs: its weights lack {first}"
            f"{f' and {len(opened.fresh) - 1} more' if len(opened.fresh) > 1 else ''} (it was saved as {kind}); "
            "fine-tune it first, or let gatekeeper tune --model do it"
        )


def _limit(directory: Path, opened: Opened, wanted: int | None, say: Callable[[str], None]) -> int:
    own = longest_text(opened.model, wanted or min(said_limit(directory) or MOST_TOKENS, MOST_TOKENS))
    if wanted is not None and own < wanted:
        say(f"note: the model has places for {own} tokens, fewer than --max-tokens {wanted}")
    return own


def _licence(directory: Path) -> str | None:
    """The licence that a model card in the directory names, as the hub's cards do between their first lines of ---."""
    try:
        card = read_bounded(directory / CARD, MIB).decode("utf-8-sig")
    except (OSError, ValueError):
        return None
    parts = card.split("---", 2)
    found = _LICENCE.search(parts[1].replace("\r", "")) if len(parts) == 3 and not parts[0].strip() else None
    return found and found.group(1)


def _card(name: str, source: str, kind: str, licence: str | None, labels: Sequence[str]) -> str:
    return (
        f"# {name}\n\nImported from {Path(source).name} ({kind}, {len(labels)} labels), fine-tuned elsewhere. "
        f"Licence: {licence or 'unknown'}. Training data: unknown. Not evaluated yet: run `gatekeeper evaluate "
        "--write-card`.\n"
    )
