"""Tokens at a bounded cost: those of the whole text, but for a text that nobody has written."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from models.encoding import MOST_WORK, SHORT_CHARS, TextEncoder

MAX_TOKENS = 16


@pytest.fixture(scope="module")
def path(bundles: Path) -> Path:
    return bundles / "clinc150-small" / "tokenizer.json"


@pytest.fixture(scope="module")
def whole(path: Path) -> Tokenizer:
    """The same tokenizer, which reads everything."""
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.enable_padding(pad_id=0)
    return tokenizer


LETTERS = st.text(alphabet=st.characters(exclude_categories=("Cs",)), max_size=40)
WORDS = st.sampled_from(
    ["rain", "e\u0301a\u0301", "\uac00\ub098", "don't", "x" * 130, "—", "\u0301", "\u4e2d\u6587", "_", "a_b", "12"]
)


@given(
    st.lists(st.one_of(LETTERS, WORDS), min_size=1, max_size=300), st.sampled_from([" ", "", "\n\t", "\u00a0", ". "])
)
@settings(max_examples=300, deadline=None)
def test_what_the_model_takes_is_what_the_whole_text_gives(
    path: Path, whole: Tokenizer, parts: list[str], between: str
) -> None:
    texts = [between.join(parts), "rain"]
    read = TextEncoder(path, MAX_TOKENS, 0)(texts)
    assert [one.ids for one in read] == [one.ids for one in whole.encode_batch_fast(texts)]


def test_a_letter_that_becomes_three_counts_as_three(path: Path) -> None:
    useful = TextEncoder(path, 128, 0)._useful(("\uac01" * 16 + "!") * 480)
    assert useful.count("!") * 48**2 <= MOST_WORK


def test_a_long_word_does_not_change_how_others_are_read(bundles: Path, path: Path, whole: Tokenizer) -> None:
    """A text that is not cut goes to the tokenizer as it is: what is marked in it is found before it is normalised."""
    text = "internationalization please [SEP] Cancel my card " * 6
    assert TextEncoder(path, MAX_TOKENS, 0)._useful(text) in text


@pytest.mark.parametrize("end", [" ", "_", ". ", "\u0301 "])
def test_words_that_take_the_square_of_their_length_are_few(path: Path, end: str) -> None:
    encoder = TextEncoder(path, 128, 0)
    useful = encoder._useful(("x" * 99 + end) * 81)
    assert useful.count("x" * 99) * 99**2 <= MOST_WORK
    assert len(encoder([("x" * 99 + end) * 81])[0].ids) > 1


def test_long_prose_is_read_as_far_as_the_tokens_reach(path: Path) -> None:
    text = "could you move my dentist appointment from tuesday to the week after " * 100
    useful = TextEncoder(path, 128, 0)._useful(text)
    assert text.startswith(useful)
    assert len(useful.split()) == 128


def test_a_short_text_is_not_looked_at(path: Path) -> None:
    text = "x" * SHORT_CHARS
    assert TextEncoder(path, 128, 0)._useful(text) is text
