"""The documents of POST /v1/classify and GET /v1/models. Requests are parsed by them."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, StringConstraints, Tag

from service.api.forms import ImageInputs
from service.outcomes import AnsweredBy, Reason, Route

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


class ClassifyOutput(BaseModel):
    """The answer for one item: `label` and `score` from whoever answered."""

    model_config = ConfigDict(extra="forbid")

    label: str
    score: float | None = Field(description="null where the large model is an LLM that says none")
    confidence: float = Field(description="the small model's g(x), which the gate compared with the threshold")
    decision: Literal["accepted", "deferred", "degraded"]
    answered_by: AnsweredBy
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
