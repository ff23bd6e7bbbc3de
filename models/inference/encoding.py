"""Texts to tokens at a bounded cost: a fast tokenizer reads a whole text, and the model takes the first few tokens."""

import re
from collections.abc import Sequence
from contextlib import suppress
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

_NOBODYS = "\U0010fffd"  # a character that no vocabulary has
_PASSES = 3


class PlainText:
    """A tokenizer for what people write: a text that says [SEP] or </s> means these characters, not the end of itself.

    Such a token acts on the model: it ends a text before its end, hides what follows, or ends in an error (BART counts
    them). Tuning and serving both read texts through this class.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """The tokenizer's truncation and padding stay the caller's to set."""
        self._tokenizer = tokenizer
        tokenizer.encode_special_tokens = True
        special = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        with suppress(Exception):  # a model that knows no "unknown" raises nothing more special
            special -= {token.id for token in tokenizer.model.tokenize(_NOBODYS)}
        self._control = frozenset(special)

    def __call__(self, texts: Sequence[str]) -> list[Encoding]:
        """One encoding a text, in their order."""
        encodings = self._tokenizer.encode_batch_fast(list(texts))
        # Some vocabularies have the control tokens among their pieces, and make them out of plain characters.
        if self._control and any(self._places(encoding) for encoding in encodings):
            plain = [
                self._harmless(text) if self._places(encoding) else text
                for text, encoding in zip(texts, encodings, strict=True)
            ]
            encodings = self._tokenizer.encode_batch_fast(plain)
        return encodings

    def _places(self, encoding: Encoding) -> list[int]:
        """Where the text itself, and not what stands around every text, has become a control token."""
        return [
            place
            for place, (number, around) in enumerate(zip(encoding.ids, encoding.special_tokens_mask, strict=True))
            if number in self._control and not around
        ]

    def _harmless(self, text: str) -> str:
        """The text with such pieces broken by a space; what resists that is left out."""
        attempt = 0
        while True:
            encoding = self._tokenizer.encode(text)  # only this one tells where in the text a token lies
            places = self._places(encoding)
            if not places:
                return text
            parts, done = [], 0
            for start, end in (encoding.offsets[place] for place in places):
                broken = f"{text[start : start + 1]} {text[start + 1 : end]}" if attempt < _PASSES else ""
                parts += [text[done:start], broken]
                done = max(done, end)
            # What lies behind the last token is not read now, and is not when there are more.
            shorter = "".join([*parts, text[done : max(end for _, end in encoding.offsets)]])
            if attempt >= _PASSES and len(shorter) >= len(text):
                return ""
            text, attempt = shorter, attempt + 1


class TextEncoder:
    """A tokenizer.json that cuts at max_tokens, special ones included, and pads a batch to its longest text."""

    def __init__(self, path: Path, max_tokens: int, pad_id: int) -> None:
        self._path = path
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.enable_truncation(max_tokens)
        self._tokenizer.enable_padding(pad_id=pad_id)
        self._plain = PlainText(self._tokenizer)
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
        return self._plain([self._useful(text) for text in texts])

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
