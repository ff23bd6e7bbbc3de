"""The scorer `json`: the same value, however it is written."""

import json
from collections.abc import Iterable
from decimal import Decimal, InvalidOperation
from typing import Any, NoReturn

from models.errors import InputError
from models.files import once_each
from models.scoring.words import unfenced

DEEPEST = 100  # lists and objects in each other


def same_json(answer: str, reference: str) -> float:
    """1 where both parse to the same value: numbers by value, objects in any order, texts and lists exactly.

    Code fences around an answer go. A key that stands twice, NaN, and more than DEEPEST levels are no JSON.
    Raises InputError where the reference is none.
    """
    try:
        wanted = _parsed(reference)
    except ValueError as error:
        raise InputError(f"the reference is not JSON: {error}") from error
    try:
        return float(_same(_parsed(unfenced(answer)), wanted))
    except ValueError:
        return 0.0


def _parsed(text: str) -> Any:
    """Raises ValueError."""
    try:
        value = json.loads(
            text,
            object_pairs_hook=once_each,
            parse_float=Decimal,
            parse_int=Decimal,  # int() refuses more than 4,300 digits
            parse_constant=_refuse,
        )
    except RecursionError:
        raise ValueError("its lists and objects lie too deep in each other") from None
    except InvalidOperation:
        raise ValueError("the exponent of a number is beyond all bounds") from None
    if _deeper(value):
        raise ValueError(f"its lists and objects lie more than {DEEPEST} deep in each other")
    return value


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _deeper(value: Any) -> bool:
    """Whether there are more than DEEPEST levels; level by level, for the value may be as deep as it likes."""
    level = [value]
    for _ in range(DEEPEST):
        level = [child for one in level for child in _children(one) if isinstance(child, dict | list)]
    return bool(level)


def _children(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):  # true is not 1
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)
