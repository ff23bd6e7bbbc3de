"""s_o, the overlap of two confidence densities, fast enough to be bootstrapped over a million rows."""

import numpy as np

from models.numbers.bootstrap import Groups
from models.numbers.predictions import Floats

POINTS = 4096


def overlapping_share(groups: Groups) -> float:
    """Equation 9 by binned density estimates: rows spread linearly over a grid, the kernel applied by Fourier
    transform. A bandwidth below one step of the grid counts as one step.
    """
    classes = (groups.small, groups.rows - groups.small)
    if min(np.count_nonzero(weight) for weight in classes) < 2:
        return np.nan
    bandwidths = [_bandwidth(groups.confidence, weight) for weight in classes]
    low, high = groups.confidence[0] - 4.0 * max(bandwidths), groups.confidence[-1] + 4.0 * max(bandwidths)
    if high - low < 1e-12:  # confidences, at most 1 here, that differ by rounding
        return np.nan
    step = (high - low) / (POINTS - 1)
    position = (groups.confidence - low) / step
    left = position.astype(np.int64)
    frequency = 2.0 * np.pi * np.fft.rfftfreq(POINTS, step)
    densities = []
    for weight, bandwidth in zip(classes, bandwidths, strict=True):
        beyond = weight * (position - left)
        mass = np.bincount(left, weight - beyond, POINTS)
        mass[1:] += np.bincount(left, beyond, POINTS)[:-1]
        kernel = np.exp(-0.5 * (frequency * max(bandwidth, step)) ** 2)
        densities.append(np.fft.irfft(np.fft.rfft(mass) * kernel, POINTS) / weight.sum())
    return float(np.minimum(*densities).sum())


def _bandwidth(confidence: Floats, weight: Floats) -> float:
    """Scott's rule, as scipy's gaussian_kde has it."""
    count = weight.sum()
    mean = (weight * confidence).sum() / count
    squares = (weight * (confidence - mean) ** 2).sum()
    return float(np.sqrt(squares / (count - 1.0)) * count**-0.2)
