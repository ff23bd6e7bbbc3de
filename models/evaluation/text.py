"""Measure a cascade whose small model writes text, on the test split.

gatekeeper evaluate BUNDLE --data questions.jsonl --large oracle --output DIR
"""

from pathlib import Path
from typing import Any

import numpy as np

from models.bundle import Bundle
from models.calibration.text.calibrate import check_text_task, correctness
from models.calibration.text.drafts import bundle_writer
from models.calibration.text.large import TextLargeAnswers
from models.data.prompts.examples import PromptDataset
from models.evaluation.evaluate import certified, made
from models.evaluation.results import Evaluation
from models.inference.generation.traces import scores_of
from models.numbers.metrics import measure
from models.numbers.predictions import Answers, Predictions
from models.progress import Waiting
from models.scoring.scorer import Scorer


def evaluate_text(
    bundle: Bundle, data: PromptDataset, large: TextLargeAnswers | None, scorer: Scorer, work: Path, seed: int = 0
) -> Evaluation:
    """Write the test split's answers and measure; `oracle` holds the numbers beside a perfect large model.

    Raises InputError.
    """
    check_text_task(bundle, data)
    generation = bundle.manifest.generation
    assert generation is not None  # of a bundle that writes text
    drafts = bundle_writer(bundle, work).drafts(data.test, "test", data.content_hash)
    traces = [draft.trace for draft in drafts]
    scores = scores_of(traces, generation.rule)
    predictions = Predictions(
        confidence=scores[bundle.manifest.score],
        small_correct=correctness(drafts, data.test, scorer),
        large_correct=None if large is None else large.correct(data, "test", scorer),
        scores=scores,
        items=[example.question for example in data.test],
        answers=Answers(
            prompt_id=tuple(example.id for example in data.test),
            answer=tuple(draft.answer for draft in drafts),
            reference=tuple(example.answers[0] for example in data.test),
            tokens=np.array([len(trace.tokens) for trace in traces]),
            entropy=tuple(trace.entropy for trace in traces),
        ),
    )
    threshold = bundle.manifest.default_threshold
    with Waiting(f"measuring {len(drafts):,} answers, with 200 resamples"):
        numbers = measure(predictions, threshold, seed)
        numbers["oracle"] = _beside_oracle(predictions, threshold, seed)
    lengths = [len(trace.tokens) for trace in traces]
    numbers["certificate"] = bundle.manifest.certificate
    numbers["scorer"] = scorer.name
    numbers["answer_tokens"] = {"mean": float(np.mean(lengths)), "most": max(lengths)}
    numbers["cut_answers"] = sum(not trace.ended for trace in traces)
    return Evaluation(predictions, numbers)


def _beside_oracle(predictions: Predictions, threshold: float, seed: int) -> dict[str, Any]:
    """What the gate's order is worth by itself: s_d and joint accuracies beside a large model that is always right."""
    perfect = Predictions(
        predictions.confidence, predictions.small_correct, np.ones(len(predictions.confidence)), predictions.scores
    )
    found = measure(perfect, threshold, seed)
    kept = ("s_d", "joint_accuracy", *(name for name in found if name.startswith("joint_accuracy_at")))
    by_score = {
        name: {key: value for key, value in values.items() if key == "s_d"}
        for name, values in found["by_score"].items()
    }
    return {name: found[name] for name in kept if name in found} | {"by_score": by_score}


def about_text_bundle(
    bundle: Bundle, data: PromptDataset, large: TextLargeAnswers | None, scorer: Scorer, seed: int
) -> dict[str, str]:
    """What a report says of where its numbers come from."""
    manifest = bundle.manifest
    return {
        "Small model": f"{manifest.name} ({made(manifest)})",
        "Large model": large.name if large else "unknown",
        "Data": f"{data.name}, test split of {len(data.test):,} prompts; {data.licence}",
        "Right": f"by the scorer {scorer.name}{', graded' if scorer.graded else ''}",
        "Gate": f"{manifest.score}, threshold {manifest.default_threshold:g}",
        "Certificate": certified(manifest.certificate),
        "Gate digest": bundle.gate_digest,
        "Bootstrap": f"200 resamples of the prompts, seed {seed}",
    }
