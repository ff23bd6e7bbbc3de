"""How the report and its pictures write numbers and texts from outside."""

import unicodedata


def percent(share: float, digits: int = 1) -> str:
    """0.955 -> 95.5 %, with a space that does not break."""
    return f"{100 * share:.{digits}f}\u00a0%"


def compact(count: int) -> str:
    """12,345 -> 12k, where there is little room."""
    for size, unit in ((1_000_000, "M"), (1_000, "k")):
        if count >= size:
            return f"{count / size:.{0 if count >= 10 * size else 1}f}{unit}"
    return str(count)


def four_digits(value: float | None) -> str:
    """0.93119 -> 0.9312; None is a number that does not exist for the data."""
    return "does not exist" if value is None else f"{value:.4f}"


def with_interval(entry: dict[str, float | None], digits: int = 3) -> str:
    """An entry of metrics.json: 0.931 [0.918, 0.942]"""
    value, low, high = entry["value"], entry["low"], entry["high"]
    if value is None:
        return "does not exist"
    return f"{value:.{digits}f}" + ("" if low is None else f" [{low:.{digits}f},\u00a0{high:.{digits}f}]")


def percent_with_interval(entry: dict[str, float | None]) -> str:
    """An entry of metrics.json that exists: 95.5 % [94.9, 96.1]"""
    value, low, high = entry["value"], entry["low"], entry["high"]
    assert value is not None
    return percent(value) + ("" if low is None or high is None else f" [{100 * low:.1f},\u00a0{100 * high:.1f}]")


def one_line(text: str, length: int) -> str:
    """A text as one line of at most this many characters, without control characters."""
    line = " ".join("".join(c if unicodedata.category(c)[0] != "C" else " " for c in text).split())
    return (line if len(line) <= length else line[: length - 1].rstrip() + "…") or "(no name)"
