"""What the service promises to answer. Nothing of Locust in here."""

from typing import Annotated, Literal, Self, TypeVar

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


class Output(_Document):
    """The answer for one item."""

    label: Text
    score: Annotated[FiniteFloat, Field(ge=0, le=1)] | None  # None: of an LLM that says none
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
