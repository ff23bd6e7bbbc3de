"""How sure a model that writes text is along its answers: the mean entropy of each token's place, right and wrong."""

from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from models.evaluation.report.canvas import Picture, finished, report_figure
from models.numbers.predictions import Floats
from models.plotting import PALETTE, legend_below

NAME = "entropy"
FEWEST = 5  # answers that reach a place, for a mean that says something


def entropy_picture(entropy: Sequence[Floats], right: NDArray[np.bool_], names: Sequence[str]) -> Picture | None:
    """entropy: of each of N answers (T,), in nats. names: of the two groups, right first. None: too few answers."""
    groups = list(zip(("right", "wrong"), (right, ~right), names, strict=True))
    lines = {
        name: _means([row for row, inside in zip(entropy, group, strict=True) if inside]) for name, group, _ in groups
    }
    if not all(len(line) for line in lines.values()):
        return None
    with report_figure() as figure:
        axes = figure.subplots()
        axes.set_title("mean entropy of a token, in nats")
        axes.set_xlabel("place in the answer")
        for name, group, called in groups:
            places, label = np.arange(1, len(lines[name]) + 1), f"{called} ({group.sum():,})"
            axes.plot(places, lines[name], color=PALETTE[name], marker="o", markersize=4, label=label)
        axes.set_ylim(bottom=0.0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend_below(figure, 2)
        means = {
            called: float(np.mean([row.mean() for row, inside in zip(entropy, group, strict=True) if inside]))
            for _, group, called in groups
        }
        said = " and ".join(f"{value:.2f} nats in answers that are {called}" for called, value in means.items())
        return finished(NAME, "Entropy along the answers", f"Mean entropy by place: on average {said}.", figure)


def _means(rows: Sequence[Floats]) -> Floats:
    """The mean at each place that FEWEST answers reach."""
    found = []
    for place in range(max(map(len, rows), default=0)):
        reached = [row[place] for row in rows if len(row) > place]
        if len(reached) < FEWEST:
            break
        found.append(float(np.mean(reached)))
    return np.array(found)
