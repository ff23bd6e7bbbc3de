"""Texts as they are compared: what a reader takes for the same is the same, in any language."""

import re
import sys
import unicodedata
from functools import cache

_LONGEST_PIECE = 2_000
# Marks that a keyboard and a typesetter write differently, and that Unicode's normalisation keeps apart.
_PLAIN = {
    **dict.fromkeys(map(ord, "\u2018\u2019\u201a\u201b\u2032"), "'"),
    **dict.fromkeys(map(ord, "\u201c\u201d\u201e\u201f\u2033"), '"'),
    **dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2212"), "-"),
}
_ENDS = frozenset(".,;:!?\u2026\u3002\u3001\u060c\u061b\u061f\u0964")  # of sentences and clauses, after NFKC
_PAIRS = {'"': '"', "'": "'", "`": "`", "*": "*", "\u00ab": "\u00bb", "\u300c": "\u300d", "\u300e": "\u300f"}
_ARTICLES = frozenset({"a", "an", "the"})
# Chinese characters and kana: these languages write no spaces, so that each counts as a word.
_UNSPACED = re.compile(r"([\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003fffd])")


def compatible(text: str) -> str:
    """Unicode's NFKC, words parted by one space.

    Word by word, for CPython's takes the square of the length on runs of accents: 8 s for 100,000. A word of more than
    2,000 characters is cut, which may part a letter from its accent there.
    """
    if text.isascii():
        return " ".join(text.split())
    pieces = (
        "".join(
            unicodedata.normalize("NFKC", word[start : start + _LONGEST_PIECE])
            for start in range(0, len(word), _LONGEST_PIECE)
        )
        for word in text.split()
    )
    return " ".join(" ".join(pieces).split())


def folded(text: str) -> str:
    """NFKC, without upper case, quotes and dashes as a keyboard has them, words parted by one space."""
    return compatible(compatible(text).casefold()).translate(_PLAIN)


def normalised(text: str) -> str:
    """`folded`, without what stands around an answer: quotes and marks in pairs, ends of sentences, one article.

    Brackets, signs and units stay, for they tell answers apart. What is nothing else stays whole: "?" is not "".
    """
    whole = folded(text)
    start, end = 0, len(whole)
    while start < end:
        if whole[end - 1] in _ENDS or whole[end - 1] == " ":
            end -= 1
        elif whole[start] == " ":
            start += 1
        elif end - start > 1 and _PAIRS.get(whole[start]) == whole[end - 1]:
            start, end = start + 1, end - 1
        else:
            break
    inner = whole[start:end]
    article, _, rest = inner.partition(" ")
    # "a b c" may be a list of letters: an article stands before a word.
    if article in _ARTICLES and len(rest.partition(" ")[0]) > 1:
        inner = rest
    return inner or whole


def squad_words(text: str) -> list[str]:
    """The words as SQuAD compares them (Rajpurkar et al. 2016): no punctuation, no article, no upper case.

    For ASCII texts this is the official script. Beyond it punctuation is Unicode's, and each Chinese character and kana
    is a word, as in MLQA (Lewis et al. 2020).
    """
    return [word for word in _parted(folded(text).translate(_punctuation(None))) if word not in _ARTICLES]


def rouge_words(text: str) -> list[str]:
    """The words as ROUGE compares them: punctuation parts them; no stemming."""
    return _parted(folded(text).translate(_punctuation(" ")))


def _parted(text: str) -> list[str]:
    return (text if text.isascii() else _UNSPACED.sub(r" \1 ", text)).split()


@cache
def _punctuation(replacement: str | None) -> dict[int, str | None]:
    """For str.translate: string.punctuation, which has signs such as $ and +, and all that Unicode calls so."""
    every = (code for code in range(128, sys.maxunicode + 1) if unicodedata.category(chr(code)).startswith("P"))
    ascii_ones = (code for code in range(33, 127) if not chr(code).isalnum())
    return dict.fromkeys([*ascii_ones, *every], replacement)


def unfenced(text: str) -> str:
    """What stands between two fences (```) where that is all; else the text. White space around it goes."""
    stripped = text.strip()
    opening, newline, inner = stripped.partition("\n")
    if newline and opening.startswith("```") and "`" not in opening[3:] and inner.find("```") == len(inner) - 3:
        return inner[:-3].strip()
    return stripped
