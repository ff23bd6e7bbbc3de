"""The judge's grade, with a stand-in that knows what it is asked."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from models.errors import InputError
from models.scoring.registry import scorer
from models.scoring.scorer import Reference


class StandIn:
    """A judge to whom an answer agrees with a reference where both stand in its prompt as equal lines."""

    def __init__(self) -> None:
        self.prompts: list[str] = []

    def __call__(self, prompts: Sequence[str], continuations: tuple[str, str]) -> NDArray[np.float64]:
        assert continuations == (" Same", " Different")
        self.prompts += prompts
        return np.array([(-1.0, -4.0) if self._agrees(prompt) else (-900.0, -1.0) for prompt in prompts])

    @staticmethod
    def _agrees(prompt: str) -> bool:
        lines = dict(line.split(": ", 1) for line in prompt.splitlines() if ": " in line)
        return lines["Reference answer"] == lines["Given answer"]


def test_the_grade_is_the_two_way_softmax_and_the_best_reference_counts() -> None:
    judge = StandIn()
    references = [Reference("What is it?", ("a cat", "a dog")), Reference("And this?", ("a cow",))]
    grades = scorer("judge", judge=judge)(["a dog", "a horse"], references)
    np.testing.assert_allclose(grades, [1 / (1 + np.exp(-3.0)), 0.0], atol=1e-300)
    assert len(judge.prompts) == 3
    assert "What is it?" in judge.prompts[0]
    assert judge.prompts[0].endswith("Reply:")


def test_a_long_answer_or_half_a_character_fits_the_judge() -> None:
    judge = StandIn()
    scorer("judge", judge=judge)(["y" * 50_000, "\ud800"], [Reference("", ("x",))] * 2)
    assert judge.prompts[0].count("y" * 2_000) == 1
    assert len(judge.prompts[0]) < 3_000
    assert judge.prompts[1].encode()


def test_without_a_judge_there_is_no_grade() -> None:
    with pytest.raises(InputError, match="needs a language model that judges"):
        scorer("judge")


@pytest.mark.parametrize(
    "told", [np.zeros((1, 3)), np.zeros((2, 2)), np.array([[np.nan, 0.0]]), np.array([[-np.inf, 0]])]
)
def test_a_judge_that_says_something_else_is_an_error(told: NDArray[np.float64]) -> None:
    with pytest.raises(InputError, match="no two finite log-likelihoods for each of 1 prompts"):
        scorer("judge", judge=lambda _prompts, _continuations: told)(["x"], [Reference("", ("y",))])
