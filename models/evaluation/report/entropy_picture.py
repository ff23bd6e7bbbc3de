"""How sure a model that writes text is along its answers: the mean entropy of each token's place, right and wrong."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.evaluation.report.canvas import PALETTE, Picture, add_axes, finished, new_figure
from models.evaluation.report.lettering import Labels
from models.numbers.predictions import Floats

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
    longest = max(map(len, lines.values()))
    with new_figure() as figure:
        axes = add_axes(figure, left=48)
        axes.set_xlim(0.5, longest + 0.5)
        axes.set_ylim(0.0, 1.25 * max(0.01, *(float(line.max()) for line in lines.values())))
        axes.set_title("mean entropy of a token, in nats")
        axes.set_xlabel("place in the answer")
        labels = Labels(axes)
        for name, line in lines.items():
            places = np.arange(1, len(line) + 1)
            axes.plot(places, line, color=PALETTE[name], linewidth=2.0, marker="o", markersize=4)
            labels.line(name, (places.astype(np.float64), line))
        for name, group, called in groups:
            labels.write(f"{called} ({group.sum():,})", name, f"{name}_text")
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
