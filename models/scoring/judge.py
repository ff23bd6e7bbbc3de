"""The scorer `judge`: a factuality score, by a language model that compares an answer with its reference.

The grade is the two-way softmax of the judge's log-likelihoods of "Same" and "Different" after a prompt that shows
question, reference and answer (the paper's factuality score for captions; the wording of the prompt is ours). It is no
better than its judge: this project claims no factuality number, for none was measured with a judge worth the name. A
judge also obeys what an answer tells it, so that no grade of this kind is safe against answers made to please it.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from models.errors import InputError
from models.scoring.scorer import Item, Scorer

CONTINUATIONS = (" Same", " Different")
# (prompts (N), two continuations) -> their log-likelihoods (N, 2) in nats after each prompt
Judge = Callable[[Sequence[str], tuple[str, str]], NDArray[np.floating]]
_MOST_SHOWN = 2_000  # characters of an answer, so that one that has run away fits the judge's context
_PROMPT = """\
Do the two answers to the question say the same?

Question: {question}
Reference answer: {reference}
Given answer: {answer}

Reply with Same if the given answer agrees with the reference answer, and with Different if it does not.
Reply:"""


def judge_scorer(judge: Judge) -> Scorer:
    """A scorer by this judge. Raises InputError while grading where the judge's numbers cannot be used."""

    def grade(items: Sequence[Item]) -> Iterable[float]:
        shown = [(item, reference) for item in items for reference in item.reference.answers]
        if not shown:
            return []
        told = np.asarray(judge([prompt(item, one) for item, one in shown], CONTINUATIONS), np.float64)
        if told.shape != (len(shown), 2) or not np.isfinite(told).all():
            raise InputError(f"the judge gave no two finite log-likelihoods for each of {len(shown)} prompts")
        grades = dict.fromkeys((item.row for item in items), 0.0)
        for (item, _), value in zip(shown, same_probability(told), strict=True):
            grades[item.row] = max(grades[item.row], float(value))
        return grades.values()

    return Scorer("judge", graded=True, grade=grade)


def same_probability(log_likelihoods: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, 2), of "Same" and "Different", to (N,): exp(s) / (exp(s) + exp(d))."""
    same, different = log_likelihoods.T
    probability: NDArray[np.float64] = np.exp(-np.logaddexp(0.0, different - same))
    return probability


def prompt(item: Item, reference: str) -> str:
    """What the judge reads of an answer and one of its references; of the answer the first 2,000 characters."""
    answer = item.answer[:_MOST_SHOWN]
    return _PROMPT.format(
        question=_writable(item.reference.prompt), reference=_writable(reference), answer=_writable(answer)
    )


def _writable(text: str) -> str:
    """A tokenizer takes no half of a surrogate pair."""
    return text.encode("utf-8", "replace").decode("utf-8")
