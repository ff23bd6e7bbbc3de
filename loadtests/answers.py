"""What the service promises to answer, and a tally of what became of the items. Nothing of Locust in here."""

import csv
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, TextIO, TypeVar

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, StringConstraints, ValidationError, model_validator

Text = Annotated[str, StringConstraints(min_length=1)]


class ContractBroken(Exception):
    """The service answered, and not what it promises. The message repeats nothing that differs between requests."""


class _Document(BaseModel):
    # A field that may be null must still be there; one that is new is no harm.
    model_config = ConfigDict(strict=True, extra="ignore")


class LabelScore(_Document):
    """A label with its probability."""

    label: Text
    score: Annotated[FiniteFloat, Field(ge=0, le=1)]


class Output(LabelScore):
    """The answer for one item."""

    confidence: FiniteFloat
    decision: Literal["accepted", "deferred", "degraded"]
    answered_by: Literal["small", "large"]
    reason: Text | None
    small: LabelScore | None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.decision != "accepted":
            if self.answered_by != {"deferred": "large", "degraded": "small"}[self.decision]:
                raise ValueError(f"{self.decision}, and answered by the {self.answered_by} model")
            if self.reason is None:
                raise ValueError(f"{self.decision} without a reason")
        return self


class Answer(_Document):
    """The body of a 200. policy_version and threshold are null from a model without a gate."""

    id: Text
    model: Text
    policy_version: int | None
    threshold: FiniteFloat | None
    outputs: list[Output]


class Problem(_Document):
    """The body of a refusal (RFC 9457)."""

    type: Text
    title: Text
    status: int
    detail: Text


Document = TypeVar("Document", bound=_Document)


def read_answer(body: bytes | None, items: int) -> Answer:
    """The answer in a 200's body, which must hold as many outputs as the request had items. Raises ContractBroken."""
    answer = _read(Answer, body)
    if len(answer.outputs) != items:
        raise ContractBroken("the number of outputs is not the number of inputs")
    return answer


def read_refusal(status: int, content_type: str | None, body: bytes | None) -> Problem:
    """The problem document of a request that must be refused with a 4xx. Raises ContractBroken."""
    if not 400 <= status < 500:
        raise ContractBroken(f"a malformed request was answered with {status}")
    if (content_type or "").partition(";")[0].strip() != "application/problem+json":
        raise ContractBroken(f"a {status} that is not application/problem+json")
    problem = _read(Problem, body)
    if problem.status != status:
        raise ContractBroken(f"a {status} whose body gives another status")
    return problem


def _read(document: type[Document], body: bytes | None) -> Document:
    try:
        return document.model_validate_json(body or b"")
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        if first["type"] == "json_invalid":
            raise ContractBroken("the body is not JSON") from None
        where = ".".join("*" if isinstance(part, int) else part for part in first["loc"])
        raise ContractBroken(f"{where or 'the body'}: {first['msg']}") from None


class Row(NamedTuple):
    """One line of the table: the items of one kind of request. The ratios are None before the first item."""

    name: str
    items: int
    accepted: int
    deferred: int
    degraded: int
    deferral_ratio: float | None
    degraded_share: float | None


class Tally:
    """Items by kind of request, decision and reason. Sums of tallies are tallies, so that workers report to a master.

    As on the edge, a degraded item counts as deferred in the ratio: the gate had chosen to. The items of a request
    that failed as a whole are not in here, because its body does not tell them apart; it is among Locust's failures.
    """

    def __init__(self) -> None:
        self._items: Counter[tuple[str, str, str]] = Counter()

    def add(self, kind: str, outputs: Iterable[Output]) -> None:
        """Count the items of one answer."""
        self._items.update((kind, output.decision, output.reason or "none") for output in outputs)

    def take(self) -> list[list[str | int]]:
        """What has been counted since the last take, as plain lists; the tally is empty afterwards."""
        taken: list[list[str | int]] = [[*key, count] for key, count in self._items.items()]
        self._items.clear()
        return taken

    def merge(self, taken: Iterable[list[Any]]) -> None:
        """Add what another tally gave in take()."""
        for kind, decision, reason, count in taken:
            self._items[kind, decision, reason] += count

    def clear(self) -> None:
        """Start again."""
        self._items.clear()

    def rows(self) -> list[Row]:
        """A row for each kind of request, then one for all."""
        kinds = sorted({kind for kind, _, _ in self._items})
        return [*(self._row(kind, [kind]) for kind in kinds), self._row("all", kinds)]

    def summary(self) -> str:
        """One line: `deferral ratio 0.23 (1,234 of 5,365 items), degraded 0`."""
        total = self.rows()[-1]
        ratio = "unknown" if total.deferral_ratio is None else f"{total.deferral_ratio:.2f}"
        reasons: Counter[str] = Counter()
        for (_, decision, reason), count in self._items.items():
            if decision == "degraded":
                reasons[reason] += count
        why = ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common())
        return (
            f"deferral ratio {ratio} ({total.deferred + total.degraded:,} of {total.items:,} items), "
            f"degraded {total.degraded:,}{f' ({why})' if why else ''}"
        )

    def write_csv(self, stream: TextIO) -> None:
        """The rows under a header."""
        writer = csv.writer(stream)
        writer.writerow(Row._fields)
        for row in self.rows():
            writer.writerow("" if cell is None else f"{cell:.6f}" if isinstance(cell, float) else cell for cell in row)

    def save_csv(self, path: Path) -> None:
        """write_csv into a file."""
        with path.open("w", newline="", encoding="utf-8") as stream:
            self.write_csv(stream)

    def _row(self, name: str, kinds: list[str]) -> Row:
        decisions: Counter[str] = Counter()
        for (kind, decision, _), count in self._items.items():
            if kind in kinds:
                decisions[decision] += count
        items, degraded = decisions.total(), decisions["degraded"]
        deferred = decisions["deferred"]
        return Row(
            name,
            items,
            decisions["accepted"],
            deferred,
            degraded,
            (deferred + degraded) / items if items else None,
            degraded / items if items else None,
        )
