"""Values counted in the bytes: never fewer than there are, and in time that is linear in the bytes."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.bounded_json import holds_more_values

DOCUMENTS = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.text(max_size=8), st.sampled_from(["[", ",", '"', "\\", "{}"])
    ),
    lambda inside: st.one_of(st.lists(inside, max_size=6), st.dictionaries(st.text(max_size=4), inside, max_size=6)),
    max_leaves=60,
)


def values(document: Any) -> int:
    inside = document.values() if isinstance(document, dict) else document if isinstance(document, list) else ()
    return 1 + sum(map(values, inside))


@given(DOCUMENTS)
def test_no_document_of_that_many_values_passes_for_one_of_fewer(document: Any) -> None:
    body = json.dumps(document).encode()
    count = values(document)
    assert not holds_more_values(body, 2 * count + 1), "a bracket counts besides the first value in it"
    if count > 1:
        assert holds_more_values(body + b" " * count, count // 2 - 1)


@pytest.mark.parametrize("between", [b"", b" ", b"\\", b":"])
def test_texts_with_nothing_between_them_are_counted_too(between: bytes) -> None:
    """They are no JSON, and were looked at one by one: two million in 0.8 s."""
    body = b'{"inputs":["' + b"," * 5_000 + b'"' + (b'""' + between) * 100_000
    assert holds_more_values(body, 4_864)


def test_a_text_may_hold_any_number_of_commas() -> None:
    assert not holds_more_values(json.dumps({"inputs": [',[{"\\' * 10_000] * 100}).encode(), 4_864)
