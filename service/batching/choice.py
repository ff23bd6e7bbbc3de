"""Which of the waiting items share the next batch: a pure function of their lengths, in tokens."""

from collections.abc import Sequence


def fits(lengths: Sequence[int], max_items: int, max_tokens: int) -> bool:
    """Whether all of them go into one batch: as many rows, each padded to the longest."""
    return len(lengths) <= max_items and max(lengths) * len(lengths) <= max_tokens


def choose(lengths: Sequence[int], overdue: int, max_items: int, max_tokens: int) -> list[int]:
    """Positions of the items that make the next batch, out of those waiting, oldest first.

    The oldest is always in it, and alone where it is longer than max_tokens. After it come the first `overdue` items,
    which have been passed over too often, in the order of their arrival; the rest of the batch is filled with those
    nearest to the oldest in length, so that little of it is padding.
    """
    oldest = lengths[0]
    nearest = sorted(range(max(overdue, 1), len(lengths)), key=lambda position: abs(lengths[position] - oldest))
    chosen, longest = [0], oldest
    for position in (*range(1, overdue), *nearest):
        if len(chosen) == max_items:
            break
        padded = max(longest, lengths[position])
        if padded * (len(chosen) + 1) <= max_tokens:
            chosen.append(position)
            longest = padded
    return chosen
