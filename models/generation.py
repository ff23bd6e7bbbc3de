"""How a bundle that writes text is asked and how its answers are read. All of it decides a confidence.

The gate digest covers these documents (bundle.py), so they hold no more than that.
"""

import re
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

TextTask = Literal["text-generation", "text2text-generation", "image-text-to-text"]
TEXT_TASKS: tuple[TextTask, ...] = ("text-generation", "text2text-generation", "image-text-to-text")
PLACE = "{prompt}"
# What the confidences of each score of an answer lie between. Natural logarithms.
TEXT_SCORE_RANGES = {
    "negative_predictive_entropy": (-20.0, 0.0),
    "sum_log_prob": (-1e6, 0.0),
    "mean_log_prob": (-1e3, 0.0),
    "min_log_prob": (-1e3, 0.0),
    "first_max_softmax": (0.0, 1.0),
    "quantile_rule": (0.0, 1.0),
}


@dataclass(frozen=True)
class Message:
    """One turn of a conversation. role: system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True)
class Prompt:
    """What a model is asked: a conversation whose last turn is not the assistant's. image: uint8 (H, W[, 3])."""

    messages: tuple[Message, ...]
    image: Any | None = None

    @property
    def text(self) -> str:
        """The turns for a reader, and for models that know no turns."""
        return "\n".join(message.content for message in self.messages)


class QuantileRule(BaseModel):
    """The learned rule of Gupta et al. 2024: logistic regression on quantiles of an answer's token log-probabilities.

    confidence = sigmoid(intercept + sum_i coefficients[i] * (x_i - mean_i) / scale_i), where x is the quantiles, then
    the logarithm of the answer's length.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    quantiles: tuple[float, ...] = Field(min_length=1)
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    coefficients: tuple[float, ...]
    intercept: float = Field(allow_inf_nan=False)

    @model_validator(mode="after")
    def _fit_together(self) -> "QuantileRule":
        if {len(self.mean), len(self.scale), len(self.coefficients)} != {len(self.quantiles) + 1}:
            raise ValueError("mean, scale and coefficients are one longer than quantiles")
        if not all(0.0 <= quantile <= 1.0 for quantile in self.quantiles) or not all(part > 0 for part in self.scale):
            raise ValueError("quantiles lie in [0, 1], scales above 0")
        return self


class Generation(BaseModel):
    """Greedy decoding of an answer: the prompt's form, where it ends, and which part of it is the answer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: Literal["chat", "plain"] = Field(description="the chat template of the tokenizer, or `template`")
    template: str | None = Field(None, description="plain: the text around {prompt}")
    vocabulary: int = Field(ge=2, description="entries of the output that are tokens; what lies beyond is padding")
    end_tokens: tuple[int, ...] = Field(min_length=1)
    stop: tuple[str, ...] = Field((), description="texts that end an answer and are no part of it")
    extract: str | None = Field(None, description="regular expression: its first group is the answer; None: all of it")
    max_prompt_tokens: int = Field(ge=1)
    max_new_tokens: int = Field(ge=1, description="a longer answer is cut, and said to be")
    rule: QuantileRule | None = None

    @field_validator("stop")
    @classmethod
    def _stops_are_texts(cls, stop: tuple[str, ...]) -> tuple[str, ...]:
        if not all(stop):
            raise ValueError("a stop text is empty")
        return stop

    @field_validator("extract")
    @classmethod
    def _pattern(cls, extract: str | None) -> str | None:
        if extract is not None:
            try:
                groups = re.compile(extract).groups
            except re.error as error:
                raise ValueError(f"extract is no regular expression: {error}") from error
            if groups < 1:
                raise ValueError("extract needs a group (...) around the answer")
        return extract

    @model_validator(mode="after")
    def _has_a_place(self) -> "Generation":
        if (self.prompt == "plain") != (self.template is not None):
            raise ValueError("template belongs to prompt plain")
        if self.template is not None and self.template.count(PLACE) != 1:
            raise ValueError(f"template needs {PLACE} once")
        return self

    def answer_of(self, text: str) -> str:
        """The answer in what the model wrote: up to a stop text, what `extract` finds, without white space around."""
        for stop in self.stop:
            text = text.partition(stop)[0]
        if self.extract is not None:
            found = re.search(self.extract, text)
            text = (found.group(1) or "") if found else ""
        return text.strip()
