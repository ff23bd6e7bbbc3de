"""What may be certified, and how each is counted and tested."""

from collections.abc import Callable
from dataclasses import dataclass

from models.bundle import Calibration
from models.calibration.p_values import (
    PValue,
    binomial_p_value,
    hoeffding_bentkus_p_value,
    paired_graded_p_value,
    paired_p_value,
)
from models.calibration.tallies import Floats, Tally, joint_tally, loss_tally, selective_tally

Count = Callable[[Calibration, Floats], Tally]


@dataclass(frozen=True)
class Measure:
    """What is certified: its name, how it is counted, its least possible value, and the exact and the graded test."""

    name: str
    count: Count
    least: float
    exact: PValue
    exact_name: str
    graded: PValue


JOINT = Measure("joint accuracy", joint_tally, 0.0, binomial_p_value, "exact binomial", hoeffding_bentkus_p_value)
SELECTIVE = Measure(
    "selective accuracy", selective_tally, 0.0, binomial_p_value, "exact binomial", hoeffding_bentkus_p_value
)
LOSS = Measure(
    "joint accuracy minus the large model's",
    loss_tally,
    -1.0,
    paired_p_value,
    "paired trinomial",
    paired_graded_p_value,
)
