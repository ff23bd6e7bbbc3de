"""A classifier in a study: its logits, and the large model's."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from models.calibration.calibrate import fit_temperature
from models.inference.confidence import confidences
from models.study.compared import Compared, Floats
from models.training.gates import fit_posthoc_head, fit_quantile_gate

PLAIN_GATE = "max_softmax"
GATES = (PLAIN_GATE, "margin", "negative_entropy", "energy", "temperature", "post-hoc head", "quantile")


@dataclass(frozen=True)
class Answers(Compared):
    """One model of one seed beside the large model: logits (N, C), labels (N,), the large one's correctness (N,).

    large_logits: the large model's own (N, C), in the order of the small one's; None where it gives none.
    """

    gates: ClassVar[tuple[str, ...]] = GATES

    logits: Mapping[str, NDArray[np.float32]]
    labels: Mapping[str, NDArray[np.int64]]
    large: Mapping[str, Floats]
    large_logits: Mapping[str, NDArray[np.float32]] | None = None
    measured: dict[tuple[str, str], tuple[Floats, Floats]] = field(default_factory=dict, init=False, compare=False)

    def right(self, split: str) -> Floats:
        right: Floats = (self.logits[split].argmax(axis=1) == self.labels[split]).astype(np.float64)
        return right

    def confidence(self, gate: str, split: str) -> Floats:
        logits, known = self.logits[split], self.logits["calibrate"]
        if gate == "post-hoc head":
            return fit_posthoc_head(known, self.right("calibrate"))(logits)
        if gate == "quantile":
            return fit_quantile_gate(known, self.right("calibrate"))(logits)
        if gate == "temperature":
            temperature = fit_temperature(known.astype(np.float64), self.labels["calibrate"])
            return confidences(logits, temperature)[PLAIN_GATE]
        plain: Floats = confidences(logits, 1.0)[gate]
        return plain

    @property
    def merges(self) -> bool:
        return self.large_logits is not None

    def merged(self, weight: float) -> "Answers":
        """The same where a deferred item gets argmax(log p_L + weight log p_S): both know something about it.

        Each model at the temperature that fits it on `select`.
        """
        assert self.large_logits is not None
        known = self.labels["select"]
        parts = {}
        for name, logits in (("small", self.logits), ("large", self.large_logits)):
            temperature = fit_temperature(logits["select"].astype(np.float64), known)
            parts[name] = {split: log_softmax(rows / temperature, axis=1) for split, rows in logits.items()}
        right = {
            split: ((parts["large"][split] + weight * parts["small"][split]).argmax(axis=1) == labels).astype(
                np.float64
            )
            for split, labels in self.labels.items()
        }
        return replace(self, large=right)
