"""JSON that others have sent, parsed at a bounded cost.

pydantic collects an error for every value that does not fit, and builds them all when it is asked for one: two million
zeros in 4 MiB, where texts belong, are 11 s and 2.4 GB. So values are counted in the bytes, before anything is built.
"""

import re
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

Model = TypeVar("Model", bound=BaseModel)

ERRORS_TOLD = 20
# Possessive, and with an end that may be missing: linear in the bytes whatever they are.
_TEXT = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)


class TooManyValues(Exception):
    """The document holds more values than anybody may send in it."""


class DoesNotFit(Exception):
    """The first errors, at most ERRORS_TOLD, without the values: an answer or a log must not repeat them."""

    def __init__(self, errors: list[ErrorDetails]) -> None:
        super().__init__()
        self.errors = errors

    @property
    def is_no_json(self) -> bool:
        return self.errors[0]["type"] == "json_invalid"


def parse(model: type[Model], body: bytes, most_values: int, *, of_base64: bool = False) -> Model:
    """The body as that document. Raises TooManyValues or DoesNotFit.

    of_base64: its texts hold no commas and brackets worth mentioning, so that none need be told from the others.
    """
    if holds_more_values(body, most_values, of_base64=of_base64):
        raise TooManyValues
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise DoesNotFit(first_errors(error)) from None


def first_errors(error: ValidationError) -> list[ErrorDetails]:
    """What pydantic found wrong in a document that is bounded by itself."""
    return error.errors(include_url=False, include_input=False, include_context=False)[:ERRORS_TOLD]


def holds_more_values(body: bytes, most: int, *, of_base64: bool = False) -> bool:
    """Whether there are more values in this JSON: a comma or a bracket outside of a text stands for one."""
    if len(body) <= most or _separators(body, 0, len(body)) < most:
        return False
    if of_base64:
        return True
    values, end = 1, 0
    for texts, text in enumerate(_TEXT.finditer(body)):
        values += _separators(body, end, text.start())
        if values > most or texts > 2 * most:  # a value has a name at most, and is a text itself
            return True
        end = text.end()
    return values + _separators(body, end, len(body)) > most


def _separators(body: bytes, start: int, end: int) -> int:
    return body.count(b",", start, end) + body.count(b"[", start, end) + body.count(b"{", start, end)
