"""Certified thresholds: the guarantee by simulation, and the answers where there is none."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest

from models.bundle import Calibration
from models.calibration.certificate import Certificate
from models.calibration.certify import (
    certify_accuracy_loss,
    certify_joint_accuracy,
    certify_selective_accuracy,
)
from models.calibration.thresholds import threshold_for_accuracy
from models.errors import InputError, NoThreshold

Certify = Callable[[Calibration, Calibration, float, float, str], Certificate]

DRAWS, ITEMS = 1_000, 600


def draw(generator: np.random.Generator, probability: np.ndarray) -> np.ndarray:
    return (generator.uniform(size=len(probability)) < probability).astype(np.float64)


@dataclass(frozen=True)
class Population:
    """So many items that their accuracy at any threshold is the truth. Calibration sets are drawn from them."""

    confidence: np.ndarray
    small: np.ndarray
    large: np.ndarray
    target: float
    slack: float
    certify: Certify = certify_joint_accuracy
    draws: int = DRAWS

    def sample(self, generator: np.random.Generator) -> Calibration:
        rows = generator.integers(0, len(self.confidence), ITEMS)
        return Calibration(self.confidence[rows], self.small[rows], self.large[rows])

    def curve(self) -> tuple[np.ndarray, np.ndarray]:
        """The accuracy after deferring the k least confident, k = 0..N, and the sorted confidences."""
        order = np.argsort(self.confidence)
        deferred = np.concatenate([[0.0], self.large[order].cumsum()])
        accepted = np.concatenate([self.small[order][::-1].cumsum()[::-1], [0.0]])
        count = len(order)
        if self.certify is certify_selective_accuracy:
            return accepted / np.maximum(count - np.arange(count + 1), 1), self.confidence[order]
        if self.certify is certify_accuracy_loss:
            return (deferred + accepted) / count - self.large.mean(), self.confidence[order]
        return (deferred + accepted) / count, self.confidence[order]


def crossing() -> Population:
    """The curve rises from 0.81 through the target to a large model of 0.94."""
    generator = np.random.default_rng(1)
    g = generator.beta(5, 1.2, 100_000)
    return Population(g, draw(generator, g), draw(generator, 0.9 + 0.05 * g), 0.9, slack=0.2)


def not_monotone() -> Population:
    """The large model is the worse one on easy items: 0.86, then 0.94, then 0.87 where everything is deferred."""
    generator = np.random.default_rng(2)
    g = generator.beta(5, 1.2, 100_000)
    return Population(g, draw(generator, g**0.7), draw(generator, np.where(g > 0.85, 0.8, 0.93)), 0.88, slack=0.2)


def dip() -> Population:
    """The curve crosses the target three times: 0.81, 0.90 at a deferral ratio of 0.2, 0.81 at 0.5, 0.885."""
    generator = np.random.default_rng(8)
    g = generator.uniform(size=100_000)
    small = np.select([g < 0.2, g < 0.5], [0.5, 0.95], 0.85)
    large = np.select([g < 0.2, g < 0.5], [0.95, 0.65], 1.0)
    return Population(g, draw(generator, small), draw(generator, large), 0.85, slack=0.2)


def ties() -> Population:
    """Eleven different confidences, the target just above the accuracy at one of them."""
    generator = np.random.default_rng(3)
    g = np.round(generator.beta(3, 1, 100_000), 1)
    return Population(g, draw(generator, 0.6 + 0.4 * g), draw(generator, 0.95 + 0 * g), 0.921, slack=0.2)


def graded() -> Population:
    """Correctness between 0 and 1, as a judge gives it."""
    generator = np.random.default_rng(4)
    g = generator.uniform(size=100_000)
    small, large = generator.beta(1 + 4 * g, 1.0), generator.beta(8.0, 1.0, len(g))
    return Population(g, small, large, 0.8, slack=0.25)


def selective() -> Population:
    """The accuracy among accepted items."""
    generator = np.random.default_rng(5)
    g = generator.beta(5, 1.2, 100_000)
    nothing = np.zeros(len(g))
    return Population(g, draw(generator, g), nothing, 0.88, slack=0.25, certify=certify_selective_accuracy)


def loss() -> Population:
    """Three points of accuracy may be lost: both models are often wrong on the same items."""
    generator = np.random.default_rng(7)
    g = generator.beta(5, 1.2, 100_000)
    hard = generator.uniform(size=len(g)) < 0.1
    large = draw(generator, np.where(hard, 0.1, 0.97))
    return Population(g, draw(generator, np.where(hard, 0.1, g)), large, 0.03, 0.2, certify_accuracy_loss, 300)


def graded_loss() -> Population:
    """The same where correctness is graded, at a tenth."""
    return replace(graded(), target=0.1, slack=0.6, certify=certify_accuracy_loss)


@dataclass(frozen=True)
class Outcome:
    certified: float
    broken: float
    deferral_ratio: float
    least: float


def simulate(population: Population, choose: Callable[[Calibration, Calibration], float]) -> Outcome:
    """Choose a threshold from each of 1,000 selection and calibration sets, and hold it against the population."""
    accuracy, ordered = population.curve()
    parted = np.concatenate([[True], ordered[1:] > ordered[:-1], [True]])
    target = -population.target if population.certify is certify_accuracy_loss else population.target
    reached = np.flatnonzero((accuracy >= target) & parted)
    generator = np.random.default_rng(0)
    thresholds = []
    for _ in range(population.draws):
        selection, calibration = population.sample(generator), population.sample(generator)
        try:
            thresholds.append(choose(selection, calibration))
        except NoThreshold:
            continue
    deferred = np.searchsorted(ordered, thresholds)
    outcome = Outcome(
        certified=len(thresholds) / population.draws,
        broken=float((accuracy[deferred] < target).sum()) / population.draws,
        deferral_ratio=float(deferred.mean()) / len(ordered),
        least=float(reached[0]) / len(ordered) if len(reached) else 1.0,
    )
    print(outcome)
    return outcome


@pytest.mark.parametrize(
    "make",
    [
        crossing,
        *(
            pytest.param(make, marks=pytest.mark.slow)
            for make in (selective, loss, not_monotone, dip, ties, graded, graded_loss)
        ),
    ],
)
def test_the_guarantee_is_broken_in_at_most_one_draw_in_twenty(make: Callable[[], Population]) -> None:
    """And not by refusing, or by deferring everything: the answer is near the least that the truth allows."""
    population = make()
    outcome = simulate(
        population, lambda one, other: population.certify(one, other, population.target, 0.95, "max_softmax").threshold
    )
    assert outcome.broken <= 0.05
    assert outcome.certified > 0.9
    assert outcome.deferral_ratio - outcome.least < population.slack


def test_a_plain_choice_breaks_the_same_guarantee() -> None:
    """Else the simulation above would prove nothing."""
    population = crossing()
    outcome = simulate(
        population, lambda _, other: threshold_for_accuracy(other, population.target, "max_softmax").threshold
    )
    assert outcome.broken > 0.4


@pytest.mark.parametrize("certify_accuracy", [certify_joint_accuracy, certify_selective_accuracy])
def test_the_certainty_is_used_up_where_every_threshold_is_a_hair_too_low(certify_accuracy: Certify) -> None:
    """The worst case: whatever is certified breaks the guarantee, and one threshold's errors say little of another's.

    An order that has seen the calibration data, or a test that goes on after its first failure, certifies far more.
    1,000 draws show 0.05 to two standard errors of 0.007.
    """
    generator = np.random.default_rng(6)
    right = np.full(400_000, 0.8985)
    flat = Population(
        generator.uniform(size=len(right)), draw(generator, right), draw(generator, right), 0.9, 1.0, certify_accuracy
    )
    outcome = simulate(flat, lambda one, other: certify_accuracy(one, other, 0.9, 0.95, "max_softmax").threshold)
    assert 0.005 < outcome.broken < 0.05 + 2 * (0.05 * 0.95 / DRAWS) ** 0.5


def sample(count: int = 1_500, seed: int = 0) -> Calibration:
    generator = np.random.default_rng(seed)
    g = generator.beta(5, 1, count)
    return Calibration(g, draw(generator, g), draw(generator, np.full(count, 0.95)))


def test_an_accuracy_loss_is_certified_where_the_accuracy_itself_is_not() -> None:
    """Half the items are hopeless for both: the joint accuracy is known to three points, the loss to half a one."""
    generator = np.random.default_rng(3)

    def rows() -> Calibration:
        hopeless = generator.uniform(size=1_500) < 0.5
        g = np.where(hopeless, generator.uniform(0.0, 0.5, 1_500), generator.uniform(0.5, 1.0, 1_500))
        right = (~hopeless).astype(np.float64)
        return Calibration(g, right, right)

    selection, calibration = rows(), rows()
    certificate = certify_accuracy_loss(selection, calibration, 0.01, 0.95, "max_softmax")
    assert (certificate.deferral_ratio, certificate.accuracy, certificate.target) == (0.0, 0.0, -0.01)
    assert -0.01 <= certificate.lower_bound < 0
    with pytest.raises(NoThreshold):
        certify_joint_accuracy(selection, calibration, calibration.large_correct.mean() - 0.01, 0.95, "max_softmax")


def test_deferring_everything_loses_nothing_but_that_does_not_prove_a_gain() -> None:
    hopeless = Calibration(np.linspace(0.1, 0.9, 300), np.zeros(300), np.ones(300))
    assert certify_accuracy_loss(hopeless, hopeless, 0.02, 0.95, "max_softmax").deferral_ratio > 0.98
    with pytest.raises(NoThreshold, match="an accuracy loss of 0 against the large model with") as refusal:
        certify_accuracy_loss(hopeless, hopeless, 0.0, 0.95, "max_softmax")
    assert "a larger loss or better models would" in str(refusal.value)
    assert str(refusal.value).endswith("; deferring everything loses nothing")


def test_a_certificate_says_what_the_calibration_data_show() -> None:
    selection, calibration = sample(seed=1), sample(seed=2)
    found = certify_joint_accuracy(selection, calibration, 0.87, 0.9, "max_softmax")
    assert found.deferral_ratio == calibration.deferral_ratio(found.threshold)
    assert found.accuracy == pytest.approx(calibration.joint_accuracy(found.threshold))
    assert (found.target, found.certainty, found.items) == (0.87, 0.9, 1_500)
    assert found.target <= found.lower_bound < found.accuracy
    assert found.method == "learn-then-test, fixed sequence, exact binomial"


def test_more_certainty_and_a_higher_target_defer_more() -> None:
    selection, calibration = sample(seed=1), sample(seed=2)
    ratios = [
        certify_joint_accuracy(selection, calibration, target, certainty, "max_softmax").deferral_ratio
        for target, certainty in ((0.86, 0.6), (0.86, 0.95), (0.88, 0.95), (0.88, 0.999))
    ]
    assert ratios == sorted(set(ratios))


@pytest.mark.parametrize("certify_accuracy", [certify_joint_accuracy, certify_selective_accuracy])
@pytest.mark.parametrize("decimals", [0, 1, 17])
def test_the_order_of_the_rows_changes_nothing(certify_accuracy: Certify, decimals: int) -> None:
    """Nor does running it again: 0/1 correctness, one with tenths, whose sums are inexact, and a continuous one."""
    generator = np.random.default_rng(0)

    def some() -> Calibration:
        g = generator.uniform(size=2_000)
        return Calibration(
            np.round(g, 2), np.round(g**0.2, decimals), np.round(generator.uniform(0.8, 1, 2_000), decimals)
        )

    def shuffled(data: Calibration) -> Calibration:
        rows = generator.permutation(2_000)
        assert data.large_correct is not None
        return Calibration(data.confidence[rows], data.small_correct[rows], data.large_correct[rows])

    selection, calibration = some(), some()
    first = certify_accuracy(selection, calibration, 0.85, 0.95, "max_softmax")
    for _ in range(5):
        assert certify_accuracy(shuffled(selection), shuffled(calibration), 0.85, 0.95, "max_softmax") == first


@pytest.mark.parametrize("certify_accuracy", [certify_joint_accuracy, certify_selective_accuracy])
def test_a_target_that_the_small_model_meets_alone_defers_nothing(certify_accuracy: Certify) -> None:
    for score, low in (("max_softmax", 0.0), ("negative_entropy", -1.0), ("energy", -1e6)):
        found = certify_accuracy(sample(seed=1), sample(seed=2), 0.7, 0.95, score)
        assert (found.threshold, found.deferral_ratio) == (low, 0.0)


def test_where_only_the_large_model_meets_it_everything_is_deferred() -> None:
    useless = Calibration(np.full(200, 0.5), np.zeros(200), np.ones(200))
    found = certify_joint_accuracy(useless, useless, 0.95, 0.95, "max_softmax")
    assert (found.threshold, found.deferral_ratio, found.accuracy) == (1.0, 1.0, 1.0)


def test_selective_accuracy_needs_no_large_model() -> None:
    unknown = [replace(sample(seed=seed), large_correct=None) for seed in (1, 2)]
    found = certify_selective_accuracy(unknown[0], unknown[1], 0.9, 0.95, "max_softmax")
    accepted = unknown[1].confidence >= found.threshold
    assert found.accuracy == pytest.approx(unknown[1].small_correct[accepted].mean())
    graded_large = replace(sample(seed=2), large_correct=np.full(1_500, 0.5))
    assert certify_selective_accuracy(sample(seed=1), graded_large, 0.9, 0.95, "max_softmax") == found


def test_out_of_reach_is_an_answer_that_says_what_is_certain() -> None:
    with pytest.raises(NoThreshold, match=r"accuracy of 0\.99 .* certainly at least 0\.\d{4}; more items would not"):
        certify_joint_accuracy(sample(seed=1), sample(seed=2), 0.99, 0.95, "max_softmax")
    with pytest.raises(NoThreshold, match="accuracy of 1 with certainty"):
        certify_selective_accuracy(sample(seed=1), sample(seed=2), 1.0, 0.95, "max_softmax")


def test_a_target_that_more_items_would_certify_says_how_many() -> None:
    """And that many, alike, do."""
    right = np.repeat([1.0, 0.0], [93, 7])
    few = Calibration(np.full(100, 0.5), right, right)
    with pytest.raises(NoThreshold, match=r"about (\d+) items would be needed") as refusal:
        certify_joint_accuracy(few, few, 0.9, 0.95, "max_softmax")
    needed = int(str(refusal.value).split("about ")[1].split(" ")[0].replace(",", ""))
    copies = round(1.2 * needed / 100)
    many = Calibration(np.full(100 * copies, 0.5), np.tile(right, copies), np.tile(right, copies))
    assert certify_joint_accuracy(few, many, 0.9, 0.95, "max_softmax").deferral_ratio == 0.0


def test_one_item_certifies_next_to_nothing() -> None:
    one = Calibration(np.array([0.5]), np.ones(1), np.ones(1))
    assert certify_joint_accuracy(one, one, 0.04, 0.95, "max_softmax").deferral_ratio == 0.0
    with pytest.raises(NoThreshold, match="on 1 calibration items"):
        certify_joint_accuracy(one, one, 0.06, 0.95, "max_softmax")


def test_no_accepted_item_is_no_evidence() -> None:
    sure = Calibration(np.repeat([0.1, 0.9], 50), np.repeat([0.0, 1.0], 50), None)
    unsure = Calibration(np.full(100, 0.2), np.ones(100), None)
    with pytest.raises(NoThreshold, match=r"at 0\.5, the most promising, no calibration item is accepted"):
        certify_selective_accuracy(sure, unsure, 0.9, 0.95, "max_softmax")


NAN = float("nan")
GOOD = sample(50)


@pytest.mark.parametrize(
    ("selection", "calibration", "target", "certainty", "message"),
    [
        (GOOD, GOOD, 0.0, 0.95, "--target-accuracy must be above 0"),
        (GOOD, GOOD, 1.01, 0.95, "--target-accuracy"),
        (GOOD, GOOD, NAN, 0.95, "--target-accuracy"),
        (GOOD, GOOD, 0.9, 0.5, "--certainty must be above 0.5"),
        (GOOD, GOOD, 0.9, 1.0, "--certainty"),
        (GOOD, GOOD, 0.9, NAN, "--certainty"),
        (GOOD, replace(GOOD, large_correct=None), 0.9, 0.95, "calibration data do not know the large model: run"),
        (replace(GOOD, large_correct=None), GOOD, 0.9, 0.95, "selection data do not know the large model"),
        (Calibration(*[np.zeros(0)] * 3), GOOD, 0.9, 0.95, "selection data have no rows"),
        (GOOD, Calibration(*[np.zeros(0)] * 3), 0.9, 0.95, "calibration data have no rows"),
        (GOOD, replace(GOOD, confidence=np.full(50, NAN)), 0.9, 0.95, "confidence in row 0 is nan, not finite"),
        (replace(GOOD, small_correct=np.full(50, 1.5)), GOOD, 0.9, 0.95, r"small_correct in row 0 is 1.5, not in \[0"),
        (GOOD, replace(GOOD, large_correct=np.full(50, NAN)), 0.9, 0.95, "large_correct in row 0 is nan"),
        (GOOD, replace(GOOD, small_correct=np.ones(49)), 0.9, 0.95, "small_correct has 49 rows, confidence 50"),
    ],
)
def test_what_makes_no_sense_is_refused(
    selection: Calibration, calibration: Calibration, target: float, certainty: float, message: str
) -> None:
    with pytest.raises(InputError, match=message) as refusal:
        certify_joint_accuracy(selection, calibration, target, certainty, "max_softmax")
    assert not isinstance(refusal.value, NoThreshold)
    assert "\n" not in str(refusal.value)
