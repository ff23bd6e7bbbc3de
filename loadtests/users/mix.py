"""How often each kind of request is sent: `easy=12,odd=3,list=4,malformed=1`."""

import re
from collections.abc import Mapping

KINDS = ("easy", "hard", "odd", "list", "file", "malformed")
MAX_WEIGHT = 1_000


class BadMix(Exception):
    """Nonsense. The message says what would not be."""


def parse(text: str) -> dict[str, int]:
    """The weights by kind; a kind that is not named is not sent. Raises BadMix."""
    weights: dict[str, int] = {}
    for part in text.split(","):
        found = re.fullmatch(r"\s*([a-z]+)\s*=\s*([0-9]{1,9})\s*", part)
        if found is None:
            raise BadMix(f"{part.strip()!r} in the mix {text!r} is no kind=weight, like easy=12,odd=3,malformed=1")
        kind, weight = found[1], int(found[2])
        if kind not in KINDS:
            raise BadMix(f"the mix {text!r} names {kind!r}, and there are {', '.join(KINDS)}")
        if kind in weights:
            raise BadMix(f"the mix {text!r} names {kind!r} twice")
        if weight > MAX_WEIGHT:
            raise BadMix(f"the mix {text!r} gives {kind!r} more than {MAX_WEIGHT:,}")
        weights[kind] = weight
    if not any(weights.values()):
        raise BadMix(f"the mix {text!r} sends nothing")
    return weights


def fitting(text: str | None, offered: Mapping[str, int], stock: str) -> dict[str, int]:
    """The weights for a stock: its own where no mix is given. Raises BadMix where a kind is not to be had."""
    if not text:
        return dict(offered)
    weights = parse(text)
    missing = [kind for kind, weight in weights.items() if weight and kind not in offered]
    if missing:
        raise BadMix(f"the mix {text!r} names {missing[0]!r}, and {stock} have {', '.join(offered)} only")
    return {kind: weight for kind, weight in weights.items() if weight}
