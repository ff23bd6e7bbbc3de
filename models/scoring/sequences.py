"""How far two sequences of words agree, in bounded work.

Rows of the table are bits of one integer (Myers 1999; Hyyrö 2001 and 2004): 10,000 words against 10,000 take some
20 ms. What lies behind MOST_WORDS counts as words that agree with nothing.
"""

from collections.abc import Sequence

MOST_WORDS = 10_000


def common(first: Sequence[str], second: Sequence[str]) -> int:
    """The length of the longest common subsequence."""
    first, second = first[:MOST_WORDS], second[:MOST_WORDS]
    places = _places(first)
    every = (1 << len(first)) - 1
    unmatched = every
    for word in second:
        matched = unmatched & places.get(word, 0)
        unmatched = ((unmatched + matched) | (unmatched - matched)) & every
    return len(first) - unmatched.bit_count()


def edits(first: Sequence[str], second: Sequence[str]) -> int:
    """The least number of insertions, deletions and replacements (Levenshtein) that make one of the other."""
    beyond = max(len(first) - MOST_WORDS, 0) + max(len(second) - MOST_WORDS, 0)
    first, second = first[:MOST_WORDS], second[:MOST_WORDS]
    if not first:
        return len(second) + beyond
    places = _places(first)
    every, last = (1 << len(first)) - 1, 1 << (len(first) - 1)
    more, less, distance = every, 0, len(first)  # where the column rises and falls by one, downwards
    for word in second:
        equal = places.get(word, 0)
        across = (((equal & more) + more) ^ more) | equal
        right_more, right_less = less | (every & ~(across | more)), more & across
        distance += bool(right_more & last) - bool(right_less & last)
        right_more = (right_more << 1) | 1
        equal |= less
        more, less = ((right_less << 1) | ~(equal | right_more)) & every, right_more & equal & every
    return distance + beyond


def _places(words: Sequence[str]) -> dict[str, int]:
    """Each word with a bit for every place where it stands."""
    places: dict[str, int] = {}
    for place, word in enumerate(words):
        places[word] = places.get(word, 0) | 1 << place
    return places
