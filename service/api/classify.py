"""POST /v1/classify and GET /v1/models: texts or images in, labels out, the same on the edge and on the large service.

Bodies are parsed by pydantic from bytes, and answers written from plain dicts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fastapi import APIRouter, Request, Response
from pydantic_core import to_json
from starlette.types import Receive, Scope, Send

from service.api.body import Headers, parse_json, read_body
from service.api.callers import GUARDED, authenticated
from service.api.documents import (
    ClassifyImagesRequest,
    ClassifyRequest,
    ClassifyResponse,
    ModelList,
    Parameters,
    ServedModel,
)
from service.api.forms import FORM, Base64Files, form_parameters, is_form, read_form
from service.api.pipeline import Arrival, Pipeline
from service.api.problems import problem_responses
from service.api.state import runtime_of
from service.bounded_json import Model
from service.cascade.call import Answer, Call
from service.errors import InvalidRequest, RequestError, TooLarge
from service.outcomes import Outcome
from service.remote.gatekeeper_wire import HANDSHAKE
from service.remote.large_model import Ask, Input, RemoteAnswer
from service.runtime import Runtime

HARD_TEXT_FACTOR = 8  # a text this many times over the cut is a mistake, not a long text
VALUES_OF_AN_ITEM = 3  # an image: its object, the comma behind it, and that of a data URL
OTHER_VALUES = 4_096
FORWARDED_BYTES = 256
TAKES_TEXTS = 'this model takes texts: {"inputs": "a text"}'
TAKES_IMAGES = 'this model takes images: {"inputs": {"image": BASE64}}, or files in a form'

NONE_CUT: frozenset[int] = frozenset()


class Prediction(Protocol):
    """What the model says of one item, labels by number; models.inference.classifier.Prediction is one."""

    @property
    def label(self) -> int: ...
    @property
    def score(self) -> float: ...
    @property
    def confidence(self) -> float: ...
    def top(self, count: int) -> list[tuple[int, float]]: ...


@dataclass(slots=True, eq=False)
class ClassifyCall(Call[Any, Ask]):
    """`inputs` are the items as they travel to the large model; texts are the same. truncated: those cut short."""

    inputs: Sequence[Input] = ()
    top_k: int = 1
    truncated: frozenset[int] = NONE_CUT

    def question(self, positions: Sequence[int], deadline: float, own_deadline: bool) -> Ask:
        """See Call."""
        inputs = [self.inputs[position] for position in positions]
        return Ask(inputs, self.top_k, deadline, self.hops + 1, self.request_id, own_deadline)


class Classify:
    """The protocol: a classify request, and labels with their scores."""

    async def read(self, arrival: Arrival) -> ClassifyCall:
        """See RouteProtocol."""
        return await (_read_texts(arrival) if arrival.runtime.decoder is None else _read_images(arrival))

    def render(self, runtime: Runtime, call: ClassifyCall, answer: Answer[Prediction, RemoteAnswer]) -> bytes:
        """See RouteProtocol."""
        labels, gated = runtime.labels, answer.policy_version is not None
        outputs = [
            _output(outcome, labels, call.top_k, gated, position in call.truncated)
            for position, outcome in enumerate(answer.outcomes)
        ]
        body = {
            "id": call.request_id,
            "model": runtime.name,
            "policy_version": answer.policy_version,
            "threshold": answer.threshold,
            "outputs": outputs,
        }
        return to_json(body)


router = APIRouter()
classify = Pipeline(Classify())


class _Direct(Response):
    """What the documented route returns: the plain ASGI endpoint, in the place of a response."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await classify(scope, receive, send)


@router.post(
    "/v1/classify",
    response_model=ClassifyResponse,
    response_model_exclude_none=True,
    responses=problem_responses(400, 401, 403, 413, 415, 422, 429, 500, 503, 504, 508),
    openapi_extra={
        **GUARDED,
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {
                        "anyOf": [
                            {"$ref": "#/components/schemas/ClassifyRequest"},
                            {"$ref": "#/components/schemas/ClassifyImagesRequest"},
                        ]
                    }
                },
                FORM: {"schema": {"$ref": "#/components/schemas/ClassifyForm"}},
            },
        },
    },
)
async def documented(_: Request) -> Response:
    """Classify one item or several: the small model answers what it is sure of, the large model the rest.

    Texts or images, as the model takes them: `task` in GET /v1/models. Images also as files in a form.
    """
    # app.py hands requests for this path to `classify` before FastAPI sees them; this one is for an app that is mounted
    # under another path, and for the OpenAPI document.
    return _Direct()


@router.get("/v1/models", response_model=ModelList, responses=problem_responses(401, 403), openapi_extra=GUARDED)
async def list_models(request: Request) -> ModelList:
    """The model that this service serves, its labels and its gate digest."""
    runtime = runtime_of(request.scope)
    if (handshake := request.headers.get(HANDSHAKE)) is not None:
        runtime.was_asked(handshake)
    authenticated(request.scope)
    manifest = runtime.bundle.manifest
    served = ServedModel(
        id=manifest.name,
        role=runtime.role,
        task=manifest.task,
        runtime=manifest.runtime,
        gate_digest=runtime.bundle.gate_digest,
        labels=list(manifest.labels),
    )
    return ModelList(data=[served])


async def _read_texts(arrival: Arrival) -> ClassifyCall:
    headers, runtime = arrival.headers, arrival.runtime
    body = await read_body(headers, arrival.receive, _max_bytes(headers, runtime), runtime.intake)
    try:
        asked = _parsed(ClassifyRequest, body, runtime.settings.max_items)
    except RequestError as error:
        if is_form(headers):
            raise InvalidRequest(f"{TAKES_TEXTS}, and no form") from None
        raise _of_the_other_kind(error, TAKES_TEXTS) from None
    texts, truncated = _texts(asked.inputs, runtime.settings.max_items, runtime.settings.max_text_chars)
    return _call(arrival, texts, texts, asked.parameters, truncated)


async def _read_images(arrival: Arrival) -> ClassifyCall:
    headers, runtime = arrival.headers, arrival.runtime
    assert runtime.decoder is not None
    runtime.decoder.admit()
    max_items = runtime.settings.max_items
    if is_form(headers):
        form = await read_form(headers, arrival.receive, runtime.max_body_bytes, max_items, runtime.intake)
        return _call(arrival, form.files, Base64Files(form.files), form_parameters(Parameters, form.fields))
    body = await read_body(headers, arrival.receive, _max_bytes(headers, runtime), runtime.intake)
    try:
        asked = _parsed(ClassifyImagesRequest, body, max_items, of_base64=True)
    except InvalidRequest as error:
        raise _of_the_other_kind(error, TAKES_IMAGES) from None
    images = asked.inputs if isinstance(asked.inputs, list) else [asked.inputs]
    _check_count(len(images), max_items)
    encoded = [image.image for image in images]
    return _call(arrival, encoded, [{"image": image} for image in encoded], asked.parameters)


def _call(
    arrival: Arrival,
    items: Sequence[Any],
    inputs: Sequence[Input],
    parameters: Parameters,
    truncated: frozenset[int] = NONE_CUT,
) -> ClassifyCall:
    return ClassifyCall(
        items,
        arrival.request_id,
        parameters.threshold,
        parameters.route,
        arrival.deadline,
        arrival.hops,
        inputs,
        min(parameters.top_k, len(arrival.runtime.labels)),
        truncated,
    )


def _max_bytes(headers: Headers, runtime: Runtime) -> int:
    """A little more from an edge: what its client has sent it in so many bytes is not longer for being sent on."""
    most = runtime.max_body_bytes
    return most + FORWARDED_BYTES if b"x-gatekeeper-hops" in headers else most


def _parsed(model: type[Model], body: bytes, max_items: int, *, of_base64: bool = False) -> Model:
    """The items are counted before anything is made of them, roughly: a few too many are told their number later."""
    most = f"{max_items:,} items is the most in one request: send several"
    max_values = OTHER_VALUES + VALUES_OF_AN_ITEM * max_items
    return parse_json(model, body, max_values=max_values, advice=most, of_base64=of_base64)


def _of_the_other_kind(error: RequestError, takes: str) -> RequestError:
    """The same refusal, which also says what this model takes where the input is of another kind."""
    wrong_kind = error.errors and error.errors[0]["type"] in ("string_type", "model_type", "inputs_type")
    return InvalidRequest(f"{error.detail}; {takes}", errors=error.errors) if wrong_kind else error


def _texts(inputs: str | list[str], max_items: int, max_chars: int) -> tuple[list[str], frozenset[int]]:
    """The texts, cut to max_chars, and the positions of those that were."""
    texts = [inputs] if isinstance(inputs, str) else inputs
    _check_count(len(texts), max_items)
    long = [position for position, text in enumerate(texts) if len(text) > max_chars]
    if not long:
        return texts, NONE_CUT
    texts = list(texts)
    for position in long:
        if len(texts[position]) > HARD_TEXT_FACTOR * max_chars:
            raise TooLarge(
                f"inputs.{position}: {len(texts[position]):,} characters; the model reads the first {max_chars:,}, "
                f"and above {HARD_TEXT_FACTOR * max_chars:,} a text is refused: send less"
            )
        texts[position] = texts[position][:max_chars]
    return texts, frozenset(long)


def _check_count(items: int, max_items: int) -> None:
    if items > max_items:
        raise TooLarge(f"{items:,} items, and {max_items:,} is the most in one request: send several")


def _output(
    outcome: Outcome[Prediction, RemoteAnswer], labels: Sequence[str], top_k: int, gated: bool, truncated: bool
) -> dict[str, Any]:
    draft, answer = outcome.draft, outcome.answer
    small_label = labels[draft.label]
    document: dict[str, Any] = {
        "label": small_label if answer is None else answer.label,
        "score": draft.score if answer is None else answer.score,
        "confidence": draft.confidence,
        "decision": outcome.decision,
        "answered_by": outcome.answered_by,
        "reason": outcome.reason,
        "small": {"label": small_label, "score": draft.score} if gated else None,
    }
    if top_k > 1:
        if answer is None:
            top: Sequence[tuple[str, float]] = [(labels[label], score) for label, score in draft.top(top_k)]
        else:
            top = answer.top[:top_k]
        document["top"] = [{"label": label, "score": score} for label, score in top]
    if truncated:
        document["truncated"] = True
    return document
