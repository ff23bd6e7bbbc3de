"""A model that writes text in a study: its answers' traces under every gate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from models.calibration.text.rule import fit_rule
from models.inference.generation.traces import SCORES, Trace, apply_rule, features
from models.study.compared import Compared, Floats
from models.training.gates import fit_head

LEARNED = ("quantile_rule", "post-hoc head")


@dataclass(frozen=True)
class TextAnswers(Compared):
    """Of one model of one seed, on each split: traces (N,), correctness (N,), the large model's correctness (N,).

    states: (N, E), the mean hidden state that the output layer made each answer of, on which the post-hoc head of
    Narasimhan et al. 2022 stands. declined: (N,), whether the answer is that there is none: these are deferred first.
    """

    gates: ClassVar[tuple[str, ...]] = (*SCORES, *LEARNED)
    writes_text: ClassVar[bool] = True

    traces: Mapping[str, Sequence[Trace]]
    correct: Mapping[str, Floats]
    large: Mapping[str, Floats]
    states: Mapping[str, Floats]
    declined: Mapping[str, NDArray[np.bool_]] | None = None
    measured: dict[tuple[str, str], tuple[Floats, Floats]] = field(default_factory=dict, init=False, compare=False)

    def right(self, split: str) -> Floats:
        return self.correct[split]

    def confidence(self, gate: str, split: str) -> Floats:
        found = self._confidence(gate, split)
        if self.declined is None:
            return found
        return np.where(self.declined[split], found - (np.ptp(found) + 1.0), found)

    def _confidence(self, gate: str, split: str) -> Floats:
        traces, known = self.traces[split], self.correct["calibrate"]
        if gate == "quantile_rule":
            rule = fit_rule(self.traces["calibrate"], known)
            return np.zeros(len(traces)) if rule is None else apply_rule(rule, features(traces))
        if gate == "post-hoc head":
            return fit_head(self.states["calibrate"], known)(self.states[split])
        return np.array([SCORES[gate](trace) for trace in traces], dtype=np.float64)
