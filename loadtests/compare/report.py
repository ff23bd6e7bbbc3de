"""What is known at the end of one path's contest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loadtests.compare.contest import Contestant, Outcome
from loadtests.compare.summary import Row, peak_memory, rows
from loadtests.compare.wrk import Measurement

OURS = "gatekeeper"


@dataclass(frozen=True)
class PathReport:
    """`references`: every server, in the order of the table, with the one it is compared with.

    `missing`: peers without figures, or that dropped out under load, each with the reason. `failed` names the latter.
    """

    path: str
    answer_bytes: int
    references: Mapping[str, str | None]
    requests: Mapping[str, str]
    versions: Mapping[str, str]
    missing: Mapping[str, str]
    failed: tuple[str, ...]
    rows: Sequence[Row]
    peak_mib: Mapping[str, float]
    measurements: Sequence[Measurement]

    def row(self, server: str, connections: int) -> Row | None:
        """None where it has no figures."""
        found = (row for row in self.rows if (row.server, row.connections) == (server, connections))
        return next(found, None)


def path_report(
    path: str,
    contestants: Sequence[Contestant],
    outcome: Outcome,
    missing: Mapping[str, str],
    answer_bytes: int,
    versions: Mapping[str, str],
) -> PathReport:
    """The rows of everybody who was there to the end."""
    stayed = {one.name: one.reference for one in contestants if one.name not in outcome.failed}
    measured = [one for one in outcome.measurements if one.server in stayed]
    return PathReport(
        path=path,
        answer_bytes=answer_bytes,
        references=stayed,
        requests={one.name: f"POST {one.path} {one.body}" for one in contestants},
        versions=versions,
        missing={**missing, **outcome.failed},
        failed=tuple(outcome.failed),
        rows=rows(measured, stayed, OURS),
        peak_mib=peak_memory(measured),
        measurements=outcome.measurements,
    )
