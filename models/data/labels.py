"""The order of labels, and labels that a reader would take for one.

Nothing is merged: what is served must be what the data and the large model say, and what divides two labels may mean
something - a zero-width joiner does in Persian and in emoji, case does where letters are classes.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping

_GROUPS_SHOWN = 3
_SPELLINGS_SHOWN = 4
_CHARS_SHOWN = 60
_MOST_DIGITS = 300  # of what is looked at as a number
# Letters of Cyrillic and Greek that are drawn as Latin ones.
_DRAWN_ALIKE = str.maketrans(
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0455\u0456\u0458\u03bf"
    "\u0410\u0412\u0415\u041a\u041c\u041d\u041e\u0420\u0421\u0422\u0425\u0405\u0406\u0408"
    "\u0391\u0392\u0395\u0396\u0397\u0399\u039a\u039c\u039d\u039f\u03a1\u03a4\u03a7",
    "aeopcyxsijoABEKMHOPCTXSIJABEZHIKMNOPTX",
)
_INVISIBLE = re.compile("[\ufe00-\ufe0f\u034f\u115f\u1160\u3164]")  # what is neither a letter nor a format character
_NUMBER = re.compile(r"([+-]?)0*(\d+?)(?:\.0*|(\.\d*?)0*)?")


def in_order(labels: Iterable[str]) -> tuple[str, ...]:
    """Sorted; whole numbers by their value, however long they are."""
    different = set(labels)
    if all(label.isdecimal() for label in different):
        return tuple(sorted(different, key=lambda label: (len(_digits(label)), _digits(label), label)))
    return tuple(sorted(different))


def _digits(label: str) -> str:
    """In ASCII, without leading zeros. Not int(): Python refuses more than 4,300 digits."""
    return "".join(str(unicodedata.decimal(digit)) for digit in label).lstrip("0")


def look(label: str) -> str:
    """What a reader sees: equal for labels that look alike, or that say the same number."""
    text = unicodedata.normalize("NFKC", label)
    text = "".join(character for character in text if unicodedata.category(character) not in {"Cf", "Cc"})
    text = _INVISIBLE.sub("", text).translate(_DRAWN_ALIKE).casefold().strip()
    text = "".join(str(unicodedata.decimal(character, character)) for character in text)
    if len(text) <= _MOST_DIGITS and (number := _NUMBER.fullmatch(text)):
        sign, whole, fraction = number.groups()
        return f"{sign.replace('+', '')}{whole}{fraction or ''}"
    return re.sub(r"(?<=\w)[\s_-]+(?=\w)", " ", text).rstrip(".")


def look_alikes(counts: Mapping[str, int]) -> str | None:
    """One sentence about labels that look alike, with how many rows each has; None: there are none."""
    groups: dict[str, list[str]] = defaultdict(list)
    for label in sorted(counts, key=lambda label: (-counts[label], label)):
        groups[look(label)].append(label)
    alike = [group for group in groups.values() if len(group) > 1]
    if not alike:
        return None
    shown = "; ".join(
        ", ".join(f"{shown_label(label)} ({counts[label]:,})" for label in group[:_SPELLINGS_SHOWN])
        + (f" and {len(group) - _SPELLINGS_SHOWN} more" if len(group) > _SPELLINGS_SHOWN else "")
        for group in alike[:_GROUPS_SHOWN]
    )
    more = f"; and {len(alike) - _GROUPS_SHOWN} more groups" if len(alike) > _GROUPS_SHOWN else ""
    return (
        f"these labels look alike and are classes of their own (rows in train): {shown}{more}. "
        "Where they mean one class, give them one spelling"
    )


def shown_label(label: str) -> str:
    """With everything that is not ASCII as its escape, so that two that look alike are seen to differ."""
    return ascii(label) if len(label) <= _CHARS_SHOWN else f"{label[:_CHARS_SHOWN]!a} ... of {len(label):,}"
