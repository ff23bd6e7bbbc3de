"""The scorer `choice`: which of the choices an answer names, read strictly."""

import re
from collections.abc import Sequence

from models.errors import InputError
from models.scoring.scorer import Reference
from models.scoring.words import folded, normalised

_NUMBER = r"(?:answer|option|choice) ?(?P<number>[1-9][0-9]{0,3})(?!\w|\.\d)"
_LEAD = r"(?<!\w)(?:answer|option|choice)(?: is)?:? "
# A label that is the whole answer, behind marks that `normalised` has taken.
_ALONE = re.compile(rf"\(?(?P<letter>[a-z])\)?|{_LEAD}\(?(?P<named>[a-z])\)?|{_NUMBER}")
# Labels that nothing else looks like, within a line: answer2; (b); b); "b." that opens it; "the answer is b."
_LABELS = re.compile(
    rf"(?<!\w){_NUMBER}|(?<![\w(])\(?(?P<bracketed>[a-z])\)(?!\w)|\A(?P<opening>[a-z])[.:](?= |\Z)"
    rf"|{_LEAD}\**(?P<led>[a-z])\**(?=[.;:!?]|\Z| because | since )"
)
_BEHIND_LEAD = re.compile(rf"{_LEAD}(?P<text>.+)\Z")
_BEHIND_LABEL = re.compile(r"\A(?:\(?[a-z]\)|[a-z][.:]|(?:answer|option|choice) ?[1-9][0-9]{0,3}[).:]?) (?P<text>.+)\Z")


def right_choice(answer: str, reference: Reference) -> float:
    """1 where answer and reference name the same choice. Raises InputError where the reference names none."""
    if not reference.choices:
        raise InputError("the scorer choice needs the choices; there are none")
    wanted = {choose(one, reference.choices) for one in reference.answers}
    if None in wanted:
        raise InputError(f"the reference {reference.answers[0][:60]!r} names none of the choices, or several")
    return float(choose(answer, reference.choices) in wanted)


def choose(text: str, choices: Sequence[str]) -> int | None:
    """The index of the choice that a text names; None where it names none, several, or one that is not there.

    A choice's own text comes first, then its label: "B", "(b)", "answer2", "option 2", by its place from A and from 1.
    Longer texts count by labels that nothing else looks like, by "the answer is ..." and by a choice's text behind its
    label or on a line of its own. To mention a choice's words is not to name it: "not Paris" is no vote for Paris.
    """
    texts = [normalised(choice) for choice in choices]
    lines = text.splitlines()
    named = _named_by(text, texts) if len(lines) > 1 and normalised(text) in texts else set()
    named = named or {place for line in lines for place in _named_by(line, texts)}
    return named.pop() if len(named) == 1 and None not in named else None


def _named_by(line: str, texts: Sequence[str]) -> set[int | None]:
    """The places of all choices that a line names; None stands for one that is not there."""
    spoken = normalised(line)
    if spoken in texts:
        return {_place_of(spoken, texts)}
    if alone := _ALONE.fullmatch(spoken):
        return {_labelled(alone, len(texts))}
    whole = folded(line)
    named = {_labelled(found, len(texts)) for found in _LABELS.finditer(whole)}
    led = _BEHIND_LEAD.search(whole)
    for said in (whole, led["text"] if led else ""):
        behind = _BEHIND_LABEL.search(said)
        named |= {_place_of(one, texts) for one in _spoken(said, behind) if one in texts}
    return named


def _spoken(said: str, behind: re.Match[str] | None) -> list[str]:
    return [normalised(said), *([normalised(behind["text"])] if behind else [])]


def _place_of(spoken: str, texts: Sequence[str]) -> int | None:
    """Where one text stands, which two choices may not share."""
    return texts.index(spoken) if texts.count(spoken) == 1 else None


def _labelled(found: re.Match[str], count: int) -> int | None:
    """The place of a label, where there are so many choices."""
    number = found["number"]
    letter = next(filter(None, (value for name, value in found.groupdict().items() if name != "number")), None)
    place = int(number) - 1 if number else ord(letter or "") - ord("a")
    return place if place < count else None
