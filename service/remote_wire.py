"""What travels to a large model that speaks the classify contract, and what its answers must look like."""

import json
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.errors import RemoteBadAnswer

# One item as it travels: a text, or {"image": base64}.
Input = str | Mapping[str, str]


@dataclass(frozen=True, slots=True)
class RemoteAnswer:
    """The large model's answer to one item. `score` is in [0, 1]; `degraded`: its own large model was out of reach."""

    label: str
    score: float
    top: tuple[tuple[str, float], ...]
    degraded: bool


class _Wire(BaseModel):
    # Fields that a newer remote adds are not our business; those we read must be exactly right.
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


class _Scored(_Wire):
    label: Annotated[str, Field(min_length=1)]
    score: Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]


class _Output(_Scored):
    decision: Literal["accepted", "deferred", "degraded"]
    top: list[_Scored] | None = None


class _Outputs(_Wire):
    outputs: list[_Output]


class _Model(_Wire):
    labels: list[str] | None = None


class _Models(_Wire):
    data: list[_Model]


Parsed = TypeVar("Parsed", bound=_Wire)

# ASCII escapes carry what UTF-8 cannot: a lone surrogate in a client's text.
_encoded = json.JSONEncoder(ensure_ascii=True).encode
_is_plain = re.compile(r"[!-~]*").fullmatch


def question(inputs: Sequence[Input], top_k: int) -> bytes:
    """The body of POST /v1/classify."""
    items = ",".join([_encoded(item if isinstance(item, str) else dict(item)) for item in inputs])
    return f'{{"inputs":[{items}],"parameters":{{"top_k":{top_k}}}}}'.encode("ascii")


def header_value(text: str) -> str:
    """A client's own id can hold anything; quoted, it stays one header of ASCII."""
    return text if _is_plain(text) else quote(text, safe=string.punctuation, errors="replace")


def answers(body: bytes, items: int, top_k: int) -> list[RemoteAnswer]:
    """One answer per item, in order. Raises RemoteBadAnswer."""
    outputs = _parsed(_Outputs, body).outputs
    if len(outputs) != items:
        raise RemoteBadAnswer(f"the large model answered {len(outputs)} of {items} items")
    return [
        RemoteAnswer(
            label=output.label,
            score=output.score,
            top=tuple([(scored.label, scored.score) for scored in output.top[:top_k]]) if output.top else (),
            degraded=output.decision == "degraded",
        )
        for output in outputs
    ]


def labels(body: bytes) -> list[str] | None:
    """The labels in an answer of GET /v1/models; None if its models differ. Raises RemoteBadAnswer."""
    told = [model.labels for model in _parsed(_Models, body).data if model.labels is not None]
    return told[0] if told and all(labels == told[0] for labels in told) else None


def _parsed(model: type[Parsed], body: bytes) -> Parsed:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "body"
        raise RemoteBadAnswer(f"the large model's answer does not fit the contract: {where}: {first['msg']}") from None
