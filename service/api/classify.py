"""POST /v1/classify and GET /v1/models: the same route on the edge and on the large-model service.

The hot path: plain ASGI, the body parsed by pydantic from bytes and the answer written from plain dicts, because
FastAPI's own way to an endpoint and through a response model costs twice what the small model does. A test holds the
answers against the models.
"""

import logging
import re
import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

from fastapi import APIRouter, FastAPI, Request, Response
from pydantic import BaseModel, ConfigDict, Discriminator, Field, StringConstraints, Tag
from pydantic_core import to_json
from starlette.types import Receive, Scope, Send

from service.api.body import Headers, headers_of, parse_json, read_body
from service.api.callers import GUARDED, authenticated
from service.api.forms import FORM, Base64Files, ImageInputs, form_parameters, form_schema, is_form, read_form
from service.api.openapi import complete
from service.api.problems import Problem, problem_responses, refusal, unexpected
from service.bounded_json import Model
from service.cascade.cascade import MAX_HOPS, Answer, Call, Output
from service.cascade.gate import Reason, Route
from service.errors import ClientGone, GatekeeperError, InvalidRequest, RequestError, TooLarge, TooManyHops
from service.remote.gatekeeper_wire import HANDSHAKE
from service.remote.large_model import Input

logger = logging.getLogger(__name__)

HARD_TEXT_FACTOR = 8  # a text this many times over the cut is a mistake, not a long text
MAX_TIMEOUT_MS = 86_400_000
VALUES_OF_AN_ITEM = 3  # an image: its object, the comma behind it, and that of a data URL
OTHER_VALUES = 4_096
FORWARDED_BYTES = 256
TAKES_TEXTS = 'this model takes texts: {"inputs": "a text"}'
TAKES_IMAGES = 'this model takes images: {"inputs": {"image": BASE64}}, or files in a form'

Text = Annotated[str, StringConstraints(min_length=1)]


def _kind_of_inputs(value: object) -> str | None:
    return "text" if isinstance(value, str) else "texts" if isinstance(value, list) else None


# A plain union would report a bad text in a list as two errors, the first of them "not a string".
Inputs = Annotated[
    Annotated[Text, Tag("text")] | Annotated[list[Text], Field(min_length=1, fail_fast=True), Tag("texts")],
    Discriminator(
        _kind_of_inputs, custom_error_type="inputs_type", custom_error_message="must be a text or a list of texts"
    ),
]


class Parameters(BaseModel):
    """What a request may ask for beyond an answer."""

    # Frozen, and so hashable: pydantic would deep-copy it as a default for every request.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    top_k: int = Field(default=1, ge=1, le=1_000, description="how many labels; more than one adds `top`")
    threshold: float | None = Field(
        default=None, allow_inf_nan=False, description="instead of the policy's, for this request"
    )
    route: Route = Field(default="auto", description="small or large: do not ask the gate")


class ClassifyRequest(BaseModel):
    """One text or several."""

    model_config = ConfigDict(extra="forbid", strict=True)

    inputs: Inputs
    parameters: Parameters = Parameters()


class ClassifyImagesRequest(BaseModel):
    """One image or several, where the model takes images."""

    model_config = ConfigDict(extra="forbid", strict=True)

    inputs: ImageInputs
    parameters: Parameters = Parameters()


class LabelScore(BaseModel):
    """A label with its temperature-scaled probability."""

    model_config = ConfigDict(extra="forbid")

    label: str
    score: float


class ClassifyOutput(LabelScore):
    """The answer for one item: `label` and `score` from whoever answered."""

    confidence: float = Field(description="the small model's g(x), which the gate compared with the threshold")
    decision: Literal["accepted", "deferred", "degraded"]
    answered_by: Literal["small", "large"]
    reason: Reason | None
    small: LabelScore | None
    top: list[LabelScore] | None = None
    truncated: bool | None = None


class ClassifyResponse(BaseModel):
    """The answers in the order of the inputs."""

    model_config = ConfigDict(extra="forbid")

    id: str
    model: str
    policy_version: int | None
    threshold: float | None
    outputs: list[ClassifyOutput]


class ServedModel(BaseModel):
    """The model behind this service."""

    model_config = ConfigDict(extra="forbid")

    id: str
    role: Literal["edge", "large"]
    task: str
    runtime: str
    gate_digest: str
    labels: list[str]


class ModelList(BaseModel):
    """Always one."""

    object: Literal["list"] = "list"
    data: list[ServedModel]


router = APIRouter()


async def classify(scope: Scope, receive: Receive, send: Send) -> None:
    """Classify one item or several: the small model answers what it is sure of, the large model the rest."""
    try:
        body, headers = await _classify(scope, receive)
    except GatekeeperError as error:
        await refusal(scope, error)(scope, receive, send)
    except Exception:  # the top of a request: whatever it was, its client gets an answer
        logger.exception("request failed", extra={"request_id": scope["gatekeeper.request_id"]})
        await refusal(scope, unexpected())(scope, receive, send)
    else:
        headers += ((b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


async def _classify(scope: Scope, receive: Receive) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """(body, headers) of the answer."""
    runtime = scope["app"].state.runtime
    caller = authenticated(scope)
    runtime.rate_limits.check(caller)
    headers = headers_of(scope)
    try:
        deadline = _deadline(headers)
        runtime.batcher.admit(1, deadline)
        hops = _hops(headers)
        read = _read_texts if runtime.decoder is None else _read_images
        inputs, items, parameters, truncated = await read(headers, receive, runtime)
        caller.check_overrides(parameters.threshold, parameters.route)
        _check_threshold(parameters.threshold, runtime.threshold_range)
    except (RequestError, ClientGone):
        await runtime.rate_limits.charge(caller)
        raise
    await runtime.rate_limits.spend(caller, len(items))
    call = Call(
        inputs,
        items,
        scope["gatekeeper.request_id"],
        min(parameters.top_k, len(runtime.labels)),
        parameters.threshold,
        parameters.route,
        deadline,
        hops,
    )

    async def disconnected() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    answer = await runtime.classifier.classify(call, disconnected)
    return _answer(answer, call, runtime.name, truncated)


def _check_threshold(threshold: float | None, bounds: tuple[float, float]) -> None:
    low, high = bounds
    if threshold is not None and not low <= threshold <= high:
        raise InvalidRequest(f"parameters.threshold: must be between {low:g} and {high:g}, this score's range")


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
    runtime = request.app.state.runtime
    if (handshake := request.headers.get(HANDSHAKE)) is not None:
        runtime.meet(handshake)
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


class _Asked(NamedTuple):
    """inputs and items as in Call; truncated: the positions of the texts that were cut."""

    inputs: Sequence[Input]
    items: Sequence[Any]
    parameters: Parameters
    truncated: frozenset[int] = frozenset()


async def _read_texts(headers: Headers, receive: Receive, runtime: Any) -> _Asked:
    body = await read_body(headers, receive, _max_bytes(headers, runtime), runtime.intake)
    try:
        asked = _parsed(ClassifyRequest, body, runtime.settings.max_items)
    except RequestError as error:
        if is_form(headers):
            raise InvalidRequest(f"{TAKES_TEXTS}, and no form") from None
        raise _of_the_other_kind(error, TAKES_TEXTS) from None
    texts, truncated = _texts(asked.inputs, runtime.settings.max_items, runtime.settings.max_text_chars)
    return _Asked(texts, texts, asked.parameters, truncated)


async def _read_images(headers: Headers, receive: Receive, runtime: Any) -> _Asked:
    runtime.decoder.admit()
    max_items = runtime.settings.max_items
    if is_form(headers):
        form = await read_form(headers, receive, runtime.max_body_bytes, max_items, runtime.intake)
        return _Asked(Base64Files(form.files), form.files, form_parameters(Parameters, form.fields))
    body = await read_body(headers, receive, _max_bytes(headers, runtime), runtime.intake)
    try:
        asked = _parsed(ClassifyImagesRequest, body, max_items, of_base64=True)
    except InvalidRequest as error:
        raise _of_the_other_kind(error, TAKES_IMAGES) from None
    images = asked.inputs if isinstance(asked.inputs, list) else [asked.inputs]
    _check_count(len(images), max_items)
    encoded = [image.image for image in images]
    return _Asked([{"image": image} for image in encoded], encoded, asked.parameters)


def _max_bytes(headers: Headers, runtime: Any) -> int:
    """A little more from an edge: what its client has sent it in so many bytes is not longer for being sent on."""
    most: int = runtime.max_body_bytes
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
        return texts, frozenset()
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


def _hops(headers: Headers) -> int:
    value = headers.get(b"x-gatekeeper-hops")
    if value is None:
        return 0
    value = value.strip()  # httptools leaves the white space behind it
    if not re.fullmatch(rb"[0-9]{1,4}", value):
        raise InvalidRequest("x-gatekeeper-hops must be a small whole number")
    if int(value) > MAX_HOPS:
        raise TooManyHops(f"more than {MAX_HOPS} edges in a row: check for a remote URL that leads back here")
    return int(value)


def _deadline(headers: Headers) -> float | None:
    """When the client stops waiting, on time.monotonic's clock."""
    value = headers.get(b"x-request-timeout-ms")
    if value is None:
        return None
    value = value.strip()
    if not re.fullmatch(rb"[0-9]{1,9}", value) or not 1 <= int(value) <= MAX_TIMEOUT_MS:
        raise InvalidRequest(f"x-request-timeout-ms must be a whole number between 1 and {MAX_TIMEOUT_MS}")
    return time.monotonic() + int(value) / 1000


def _answer(
    answer: Answer, call: Call, name: str, truncated: frozenset[int]
) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    outputs = [_output(output, call.top_k, position in truncated) for position, output in enumerate(answer.outputs)]
    body = {
        "id": call.request_id,
        "model": name,
        "policy_version": answer.policy_version,
        "threshold": answer.threshold,
        "outputs": outputs,
    }
    timing = ", ".join([f"{name};dur={seconds * 1000:.3f}" for name, seconds in answer.timings_s.items()])
    headers = [(b"server-timing", timing.encode())]
    if answer.policy_version is not None:
        headers.append((b"x-gatekeeper-policy-version", b"%d" % answer.policy_version))
    return to_json(body), headers


def _output(output: Output, top_k: int, truncated: bool) -> dict[str, Any]:
    small = output.small
    document: dict[str, Any] = {
        "label": output.answer.label,
        "score": output.answer.score,
        "confidence": output.confidence,
        "decision": output.decision,
        "answered_by": output.answered_by,
        "reason": output.reason,
        "small": None if small is None else {"label": small.label, "score": small.score},
    }
    if top_k > 1:
        document["top"] = _label_scores(output.top)
    if truncated:
        document["truncated"] = True
    return document


def _label_scores(top: Sequence[tuple[str, float]]) -> list[dict[str, Any]]:
    return [{"label": label, "score": score} for label, score in top]


def add_schemas(app: FastAPI) -> None:
    """Name the documents that the routes read by themselves in the OpenAPI document."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        for model in (ClassifyRequest, ClassifyImagesRequest, Problem, *app.state.request_documents):
            schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas |= schema.pop("$defs", {})
            schemas[model.__name__] = schema
        schemas["ClassifyForm"] = form_schema(schemas["Parameters"]["properties"])
        complete(document)
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the document
