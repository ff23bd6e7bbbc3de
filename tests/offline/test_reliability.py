"""The calibration error against torchmetrics, and its interval."""

import numpy as np
import pytest

from models.numbers.reliability import calibration_error, calibration_error_interval


def test_ece_is_torchmetrics() -> None:
    import torch
    from torchmetrics.classification import BinaryCalibrationError, MulticlassCalibrationError

    generator = np.random.default_rng(0)
    logits = 2.0 * generator.normal(size=(5_000, 4))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = generator.integers(0, 4, 5_000)
    probability, small = probabilities.max(axis=1), (probabilities.argmax(axis=1) == labels).astype(np.float64)
    binary = BinaryCalibrationError(n_bins=15)(torch.from_numpy(probability), torch.from_numpy(small.astype(int)))
    several = MulticlassCalibrationError(4, n_bins=15)(torch.from_numpy(probabilities), torch.from_numpy(labels))
    assert calibration_error(probability, small) == pytest.approx(float(binary), abs=1e-6)
    assert calibration_error(probability, small) == pytest.approx(float(several), abs=1e-6)


def test_the_ends_of_the_unit_interval_have_a_bin() -> None:
    assert calibration_error(np.array([0.0, 1.0]), np.array([0.0, 1.0])) == 0.0
    assert calibration_error(np.array([0.0, 1.0]), np.array([1.0, 0.0])) == 1.0


def test_the_interval_of_a_small_calibration_error_is_not_above_it() -> None:
    """Percentiles would be: a resample adds noise to the noise of the sample."""
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(40):
        probability = generator.beta(5.0, 1.2, 4_000)
        stated = np.clip(probability - 0.03, 0.0, 1.0)
        small = (generator.uniform(size=4_000) < stated).astype(np.float64)
        low, high = calibration_error_interval(probability, small, 60, 0)
        covered += low <= 0.03 <= high
    assert covered >= 34
