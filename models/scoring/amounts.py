"""The scorer `number`: the same amount, however it is written."""

import re
import unicodedata
from dataclasses import dataclass
from decimal import Context, Decimal, DivisionByZero, InvalidOperation, Overflow, Underflow

from models.errors import InputError

TOLERANCE = Decimal("1e-6")  # relative
_LONGEST = 400  # characters of a number; a longer one equals nothing
_CONTEXT = Context(prec=60, traps=[DivisionByZero, InvalidOperation, Overflow, Underflow])
_SUPERSCRIPT = re.compile("[\u207a\u207b]?[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+")
_VULGAR = re.compile("[\u00bc-\u00be\u2150-\u215e\u2189]")  # one half, two thirds, ...
_PLAIN = {
    **dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2212"), "-"),
    **dict.fromkeys(map(ord, "\u00d7\u2022\u00b7\u22c5"), "*"),
    0x2044: "/",
    0x066B: ".",  # Arabic: decimal point, thousands, per cent
    0x066C: ",",
    0x066A: "%",
}
_THOUSANDS = re.compile("(?<=\\d)[\u2019\u00a0\u202f\u2009](?=\\d{3}(?!\\d))")
_DIGITS = r"(?:\d++(?:[,']\d++)*+(?:\.\d++)?+|\.\d++)"
_NUMBER = re.compile(
    # No part of a name (H2O, answer2), a version (1.2.3), a date or a power; the minus of 3-4 is a dash.
    r"(?<![A-Za-z_\d^])(?<!\d[.,'/])(?P<sign>(?<!\))[-+])?(?:[$\u20ac\u00a3\u00a5\u20b9](?P<sign_behind>-)?)?"
    rf"(?:(?P<whole>\d++)\ (?=\d++\ ?/\ ?\d))?+(?P<number>{_DIGITS})"
    r"(?:[eE](?P<exponent>[-+]?\d++)|\ ?[*x]\ ?10\^(?P<power>[-+]?\d++)|\^(?P<raised>[-+]?\d++)"
    rf"|\ ?/\ ?(?P<below>{_DIGITS})(?!/))?+(?P<percent>\ ?(?:%|percent\b|per\ cent\b))?+"
)
_FRACTION = re.compile(r"\\[dt]?frac\{([^{}]{1,50})\}\{([^{}]{1,50})\}")


@dataclass(frozen=True)
class Amount:
    """A number. value: what the digits say. percent: a sign of per cent stands behind it."""

    value: Decimal
    percent: bool = False


def same_number(answer: str, reference: str) -> float:
    """1 where the last number of both is the same. Raises InputError where the reference has none.

    Two whole numbers must be equal; others may differ by TOLERANCE of the reference. Where one of the two alone is per
    cent, it counts as both: 50 % is 50, as data sets leave out the sign, and 0.5.
    """
    wanted = last_amount(reference)
    if wanted is None:
        raise InputError(f"the reference {reference[:60]!r} has no number")
    said = last_amount(answer)
    if said is None:
        return 0.0
    pairs = [(said.value, wanted.value)]
    if said.percent and not wanted.percent:
        pairs.append((said.value.scaleb(-2, _CONTEXT), wanted.value))
    if wanted.percent and not said.percent:
        pairs.append((said.value, wanted.value.scaleb(-2, _CONTEXT)))
    return float(any(_close(*pair) for pair in pairs))


def last_amount(text: str) -> Amount | None:
    """The last number of a text in English notation; None where there is none, or where it is no amount.

    Thousands may be parted by commas, apostrophes and narrow spaces; commas between other digits part numbers. Signs,
    currencies, fractions (3/4, 1 3/4, \\frac{3}{4}), per cent, 1.5e3, 1.5 x 10^3, 10^6 and the digits of every script
    are read; words are not. A number of more than 400 characters, or divided by zero, is no amount.
    """
    found = None
    for found in _NUMBER.finditer(_plain(text)):  # noqa: B007  the last one is wanted
        pass
    if found is None or len(found[0]) > _LONGEST:
        return None
    try:
        return Amount(_value(found), found["percent"] is not None)
    except ArithmeticError:
        return None


def _plain(text: str) -> str:
    """The same numbers in the signs that the expression knows; superscripts would else become digits: 10\u00b3, 103."""
    if not text.isascii():
        text = _THOUSANDS.sub("'", text)
        text = _SUPERSCRIPT.sub(lambda found: "^" + unicodedata.normalize("NFKC", found[0]), text.translate(_PLAIN))
        text = _VULGAR.sub(lambda found: " " + unicodedata.normalize("NFKC", found[0]), text)
        # Character by character: composing is of no use to numbers, and takes the square of the length.
        text = "".join(one if one.isascii() else unicodedata.normalize("NFKC", one) for one in text).translate(_PLAIN)
    return _FRACTION.sub(r" \1/\2", text.replace("{,}", ","))


def _value(found: re.Match[str]) -> Decimal:
    """Raises ArithmeticError."""
    value = _decimal(found["number"])
    if found["exponent"] or found["power"]:
        value = _CONTEXT.multiply(value, _ten_to(found["exponent"] or found["power"]))
    elif found["raised"]:
        if value != 10:
            raise InvalidOperation
        value = _ten_to(found["raised"])
    elif found["below"]:
        value = _CONTEXT.divide(value, _decimal(found["below"]))
        if found["whole"]:
            value = _CONTEXT.add(_decimal(found["whole"]), value)
    return value.copy_negate() if "-" in (found["sign"], found["sign_behind"]) else value


def _ten_to(exponent: str) -> Decimal:
    return _CONTEXT.scaleb(Decimal(1), Decimal(int(exponent)))


def _decimal(digits: str) -> Decimal:
    """Thousands together; of a list (1,2,3) the last."""
    if re.fullmatch(r"\d{1,3}(?:[,']\d{3})+(?:\.\d+)?", digits):
        return Decimal(digits.replace(",", "").replace("'", ""))
    return Decimal(re.split("[,']", digits)[-1])


def _close(said: Decimal, wanted: Decimal) -> bool:
    if said == wanted:
        return True
    if _is_whole(said) and _is_whole(wanted):
        return False
    return bool(_CONTEXT.abs(_CONTEXT.subtract(said, wanted)) <= _CONTEXT.multiply(TOLERANCE, _CONTEXT.abs(wanted)))


def _is_whole(value: Decimal) -> bool:
    return value == value.to_integral_value()
