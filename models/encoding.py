"""Texts to tokens at a bounded cost: a fast tokenizer reads a whole text, and the model takes the first few tokens."""

import re
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Encoding, PreTokenizedString, Tokenizer
from tokenizers.models import WordPiece

from models.errors import BundleError

SHORT_CHARS = 200  # nothing that is so short takes long
# WordPiece looks for the longest piece, and so takes the square of a word's length: four words of 99 letters are
# enough, no text that somebody has written comes near it.
MOST_WORK = 40_000
_WORD = re.compile(r"\S+")
_LETTER = re.compile(r"[^\W_]")
# Before it is normalised: a letter that is not ASCII may become three.
_LONG_WORD = re.compile(r"[^\s!-/:-@\[-`{-~]{17}|[^\x00-\x7f]{6}")


class TextEncoder:
    """A tokenizer.json that cuts at max_tokens, special ones included, and pads a batch to its longest text."""

    def __init__(self, path: Path, max_tokens: int, pad_id: int) -> None:
        self._path = path
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.enable_truncation(max_tokens)
        self._tokenizer.enable_padding(pad_id=pad_id)
        self._max_tokens, self._pad_id = max_tokens, pad_id
        model = self._tokenizer.model
        self._longest_word = model.max_input_chars_per_word if isinstance(model, WordPiece) else 0

    def check_ids(self, rows: int, others: Sequence[int]) -> None:
        """Raise BundleError where the model's embedding of so many rows lacks an id: a text that has it would fail.

        others: ids that are put in without the tokenizer.
        """
        # The tokens around every text have their ids in a template of their own.
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        ids = [*vocabulary.values(), *self._tokenizer.encode("").ids, self._pad_id, *others]
        beyond = [token for token in (min(ids), max(ids)) if not 0 <= token < rows]
        if beyond:
            raise BundleError(
                f"{self._path}: the token id {beyond[-1]} is none of the model's {rows}: they do not fit together"
            )

    def __call__(self, texts: Sequence[str]) -> list[Encoding]:
        """One encoding a text, in their order. Not for two threads at once."""
        return self._tokenizer.encode_batch_fast([self._useful(text) for text in texts])

    def _useful(self, text: str) -> str:
        """The text without what cannot reach the model, or would take too long on its way there."""
        if len(text) <= SHORT_CHARS:
            return text
        text = _first_words(text, self._max_tokens)
        return self._quick(text) if self._longest_word and _LONG_WORD.search(text) else text

    def _quick(self, text: str) -> str:
        """The words up to MOST_WORK, as the tokenizer itself divides the text."""
        normalizer, divider = self._tokenizer.normalizer, self._tokenizer.pre_tokenizer
        words = PreTokenizedString(text)
        if normalizer is not None:
            words.normalize(normalizer.normalize)
        if divider is not None:
            divider.pre_tokenize(words)
        work = 0
        for word, (start, _), _ in words.get_splits(offset_referential="original", offset_type="char"):
            if len(word) <= self._longest_word:  # a longer one is not looked at
                work += len(word) ** 2
            if work > MOST_WORK:
                return text[:start]
        return text


def _first_words(text: str, count: int) -> str:
    """Up to the end of so many words, each of which is a token at least."""
    left = count
    for word in _WORD.finditer(text):
        if _LETTER.search(text, word.start(), word.end()):
            left -= 1
            if not left:
                return text[: word.end()]
    return text
