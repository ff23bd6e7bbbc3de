"""Scorers of plain text: exact, token-f1, rouge-l, phoneme."""

from collections import Counter

from models.scoring.sequences import common, edits
from models.scoring.words import normalised, rouge_words, squad_words


def exact(answer: str, reference: str) -> float:
    """1 where both are the same after `normalised`."""
    return float(answer == reference or normalised(answer) == normalised(reference))


def token_f1(answer: str, reference: str) -> float:
    """SQuAD's F1 of the bags of words (Rajpurkar et al. 2016, section 6.1): 1 where both have none, as in SQuAD 2."""
    said, wanted = squad_words(answer), squad_words(reference)
    if not said or not wanted:
        return float(said == wanted)
    return _f1((Counter(said) & Counter(wanted)).total(), len(said), len(wanted))


def rouge_l(answer: str, reference: str) -> float:
    """ROUGE-L (Lin 2004, section 3.1) with beta = 1: F1 by the longest common subsequence of words, not stemmed."""
    said, wanted = rouge_words(answer), rouge_words(reference)
    if not said or not wanted:
        return float(said == wanted)
    return _f1(common(said, wanted), len(said), len(wanted))


def phoneme(answer: str, reference: str) -> float:
    """1 - the phoneme error rate, at least 0: edits by the reference's number of symbols, which white space parts.

    Symbols are compared as they stand: case and stress count.
    """
    said, wanted = answer.split(), reference.split()
    if not wanted:
        return float(not said)
    return max(0.0, 1.0 - edits(wanted, said) / len(wanted))


def _f1(shared: int, said: int, wanted: int) -> float:
    return 2 * shared / (said + wanted)
