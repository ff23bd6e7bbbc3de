"""Compare models that write text: untuned, control, Gatekeeper over alpha, two instructions, all scores, learned gates.

    gatekeeper compare --data arc-easy --data-dir DIR --large oracle --output runs/study

As for labels (study.py): one stage 1 a seed, gates are fitted on `calibrate`, choices are made on `select`, and `test`
is only reported. What is drafted lies in OUTPUT/drafts, so a killed run goes on in the middle of a split.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.calibration.text.calibrate import correctness
from models.calibration.text.drafts import Writer
from models.calibration.text.large import TextLargeAnswers
from models.data.prompts.examples import Example, PromptDataset
from models.errors import InputError
from models.generation import Message
from models.inference.generation.text_model import Draft, TextModel
from models.progress import Waiting
from models.scoring.scorer import Scorer
from models.study.compared import Floats
from models.study.findings import CONTROL, UNTUNED, Findings, find
from models.study.results import write_findings
from models.study.text_answers import TextAnswers
from models.training.stage import Machine, world
from models.training.text.nets import NETS
from models.training.text.objective import TokenLoss
from models.training.text.tune import TextRecipe, TextTuning, open_text_tuning
from models.training.work import locked

Say = Callable[[str], None]
SPLITS = ("select", "calibrate", "test")
DECLINED = "N"
# The paper's prompting baselines, asked of the untuned model; the words are ours.
REDUCE, DECLINE = "reduce confidence", f"answer {DECLINED}"
INSTRUCTIONS = {
    REDUCE: "Reduce your confidence if you are not sure of the answer.",
    DECLINE: f"If you are not sure of the answer, answer only {DECLINED}.",
}


@dataclass(frozen=True)
class TextStudy:
    """What is compared: a small model under every method and seed, beside one large model."""

    data: PromptDataset
    large: TextLargeAnswers
    scorer: Scorer
    recipe: TextRecipe
    alphas: Sequence[float]
    seeds: Sequence[int]

    @property
    def methods(self) -> dict[str, TokenLoss | None]:
        """By name; None: stage 1 is all."""
        # A net that has read nothing else follows no instruction.
        untuned = (UNTUNED,) if self.recipe.model in NETS else (UNTUNED, *INSTRUCTIONS)
        loss = self.recipe.loss
        tuned = {f"gatekeeper {alpha:g}": replace(loss, alpha=alpha) for alpha in self.alphas}
        return {**dict.fromkeys(untuned), CONTROL: replace(loss, alpha=None), **tuned}


def run_text_study(study: TextStudy, output: Path, machine: Machine, say: Say) -> Findings:
    """Train and draft what is missing, then find. Raises InputError; a kill loses the stage that was running."""
    if world()[1] > 1:
        raise InputError("compare runs in one process: its trainings are small and many")
    with locked(output / "work"):
        findings = _run(study, output, machine, say)
    write_findings(output, findings)
    return findings


def _run(study: TextStudy, output: Path, machine: Machine, say: Say) -> Findings:
    large = {split: study.large.correct(study.data, split, study.scorer) for split in SPLITS}
    found: dict[str, list[TextAnswers]] = {name: [] for name in study.methods}
    total = len(study.seeds) * len(study.methods)
    for seed in study.seeds:
        work = output / "work" / f"seed-{seed}"
        tuning = open_text_tuning(study.data, replace(study.recipe, seed=seed), work, machine, say)
        for name, loss in study.methods.items():
            found[name].append(_Method(study, tuning, name, loss, output / "drafts").answers(large))
            if loss is not None:
                shutil.rmtree(tuning.second_directory(loss), ignore_errors=True)  # its answers are all that is wanted
            say(f"{sum(map(len, found.values()))} of {total} done ({name}, seed {seed})")
    with Waiting("comparing the methods, with their intervals"):
        return find(found, tuple(study.alphas))


class _Method:
    """One method of one seed. Its model is trained, or taken, when something of it is missing."""

    def __init__(
        self, study: TextStudy, tuning: TextTuning, name: str, loss: TokenLoss | None, directory: Path
    ) -> None:
        self._study, self._tuning, self._name, self._loss, self._directory = study, tuning, name, loss, directory
        place = tuning.first_directory if loss is None else tuning.second_directory(loss)
        self._key = f"{place.name}-{name.replace(' ', '-')}" if name in INSTRUCTIONS else place.name

    def answers(self, large: Mapping[str, Floats]) -> TextAnswers:
        """On every split."""
        data = self._study.data
        asked = {split: _instructed(getattr(data, split), INSTRUCTIONS.get(self._name)) for split in SPLITS}
        writer = Writer(self._name, self._key, self._text_model, self._directory, states=True)
        drafts = {split: writer.drafts(asked[split], split, data.content_hash) for split in SPLITS}
        return TextAnswers(
            {split: [draft.trace for draft in some] for split, some in drafts.items()},
            {split: correctness(some, getattr(data, split), self._study.scorer) for split, some in drafts.items()},
            large,
            {split: np.array([draft.trace.state for draft in some]) for split, some in drafts.items()},
            {split: _declined(some) for split, some in drafts.items()} if self._name == DECLINE else None,
        )

    def _text_model(self) -> TextModel:
        return self._tuning.train(self._loss).text_model()


def _instructed(examples: Sequence[Example], instruction: str | None) -> Sequence[Example]:
    """The same prompts with the instruction at their end."""
    if instruction is None:
        return examples
    found = []
    for example in examples:
        *before, last = example.messages
        turn = Message(last.role, f"{last.content}\n{instruction}")
        found.append(replace(example, messages=(*before, turn)))
    return found


def _declined(drafts: Sequence[Draft]) -> NDArray[np.bool_]:
    return np.array([draft.answer.strip(" .\"'") == DECLINED for draft in drafts])
