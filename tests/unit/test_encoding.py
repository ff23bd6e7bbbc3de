"""Tokens at a bounded cost: those of the whole text, but for a text that nobody has written."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_models import FIRST, LAST, MASK, PAD, UNKNOWN, byte_pairs, sentence_pieces, word_pieces
from tokenizers import Tokenizer

from models.inference.encoding import MOST_WORK, SHORT_CHARS, PlainText, TextEncoder

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


@pytest.mark.slow
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


CONTROL = {FIRST, LAST, PAD, MASK}
PARTS = st.sampled_from(
    ["<s>", "</s>", "<pad>", "[SEP]", "[CLS]", "[MASK]", "<mask>", "<", "s>", "/", "a", " ", "\uff1c/s>"]
)


@pytest.mark.parametrize("made", [word_pieces, byte_pairs, sentence_pieces, lambda: sentence_pieces("<s> $A </s>")])
@given(texts=st.lists(st.lists(PARTS, max_size=30).map("".join), min_size=1, max_size=4))
@settings(max_examples=100, deadline=None)
def test_no_text_holds_a_token_that_acts_on_the_model(made: Callable[[], Tokenizer], texts: list[str]) -> None:
    """Only what stands around a text does; full-width characters become such a token when they are normalised."""
    tokenizer = made()
    tokenizer.enable_truncation(MAX_TOKENS)
    for encoding in PlainText(tokenizer)(texts):
        inside = [
            number for number, around in zip(encoding.ids, encoding.special_tokens_mask, strict=True) if not around
        ]
        assert not CONTROL & set(inside)
        assert len(encoding.ids) <= MAX_TOKENS


def test_what_looks_like_such_a_token_is_read_as_its_characters() -> None:
    tokenizer = sentence_pieces()
    (encoding,) = PlainText(tokenizer)(["stop</s>now"])
    assert encoding.ids[-1] == LAST
    assert "".join(map(tokenizer.id_to_token, encoding.ids[:-1])).replace("▁", "") == "stop</s>now"
    assert UNKNOWN not in encoding.ids
    (encoding,) = PlainText(word_pieces())(["now [SEP] stop"])
    assert encoding.ids[-1] == LAST
    assert LAST not in encoding.ids[:-1]
    assert UNKNOWN not in encoding.ids
