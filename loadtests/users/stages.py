"""What a shape asks of the users, stage by stage. Nothing of Locust in here: loadtests/shapes.py carries it out."""

from argparse import ArgumentTypeError
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loadtests.common.options import between

RAMP_STAGES = 5
SPIKE_FACTOR = 10
DEFAULT_SECONDS = 60.0
LARGE_PORT = 8001
THRESHOLDS = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
# The shapes, each with the title of its stages.
SHAPES = {
    "steady": "phase",
    "ramp": "phase",
    "spike": "phase",
    "threshold-sweep": "threshold",
    "large-model-outage": "phase",
}


@dataclass(frozen=True)
class Stage:
    """So many users for so long; then perhaps a threshold, or no large model."""

    name: str
    users: int
    seconds: float
    threshold: float | None = None
    outage: bool = False


def steady(users: int, seconds: float) -> list[Stage]:
    """The same users all the time."""
    return [Stage("steady", users, seconds)]


def ramp(users: int, seconds: float) -> list[Stage]:
    """In a few equal steps up to all users."""
    counts = sorted({max(1, round(users * step / RAMP_STAGES)) for step in range(1, RAMP_STAGES + 1)})
    return [Stage(f"{count} users", count, seconds / len(counts)) for count in counts]


def spike(users: int, seconds: float) -> list[Stage]:
    """A tenth of the users, all of them for a fifth of the time, a tenth again."""
    few = max(1, users // SPIKE_FACTOR)
    return [
        Stage("before", few, seconds * 0.4),
        Stage("spike", users, seconds * 0.2),
        Stage("after", few, seconds * 0.4),
    ]


def threshold_sweep(users: int, seconds: float, thresholds: Sequence[float]) -> list[Stage]:
    """All users all the time, under one threshold after the other."""
    share = seconds / len(thresholds)
    return [Stage(f"{threshold:g}", users, share, threshold=threshold) for threshold in thresholds]


def large_model_outage(users: int, seconds: float) -> list[Stage]:
    """All users all the time, and no large model in the second third of it."""
    third = seconds / 3
    return [
        Stage("before", users, third),
        Stage("during", users, third, outage=True),
        Stage("after", users, third),
    ]


def thresholds(text: str) -> tuple[float, ...]:
    """`0.5,0.9` as numbers; raises ValueError with a line for an operator."""
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{text!r} is no list of thresholds like 0.5,0.9") from None
    if not all(abs(threshold) < float("inf") for threshold in found):  # NaN is not, either
        raise ValueError(f"{text!r} has a threshold that is no finite number")
    if len(set(found)) < len(found):
        raise ValueError(f"{text!r} has a threshold twice")
    return found


def add_arguments(parser: Any, **hidden: bool) -> None:
    """The options of single shapes, to Locust's parser or to our own; `hidden`: how Locust keeps one from its page."""
    parser.add_argument(
        "--thresholds",
        type=_thresholds_type,
        metavar="0.5,0.9",
        help=f"of a threshold sweep; default {','.join(f'{threshold:g}' for threshold in THRESHOLDS)}",
    )
    parser.add_argument("--admin-url", help="of the edge's admin API, where it has a port of its own", **hidden)
    parser.add_argument(
        "--large-port", type=between(1, 65_535, int), help=f"of the local large model; default {LARGE_PORT}", **hidden
    )
    parser.add_argument("--outage-command", help="takes the large model away, instead of stopping it", **hidden)
    parser.add_argument("--recovery-command", help="brings it back", **hidden)


def _thresholds_type(text: str) -> str:
    """The text itself, if it is a list of thresholds."""
    try:
        thresholds(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None
    return text
