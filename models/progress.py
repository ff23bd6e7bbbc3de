"""What a person sees while something takes long: a bar on a terminal, elsewhere a line now and then. On stderr."""

import os
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

from models.printing import printable

TERMINAL_FIRST_S = 2.0
FIRST_S, EVERY_S = 10.0, 30.0  # where nobody looks on: in a log


class Waiting:
    """`with Waiting("predicting", 1500, "items") as progress: ... progress(64)`; quiet where it is over soon.

    total 0: how much there is to do is not known, and that it goes on is all that is said. A thread speaks, because
    many a wait is a single call of a library.
    """

    def __init__(
        self, what: str, total: int = 0, unit: str = "items", *, first_s: float = FIRST_S, every_s: float = EVERY_S
    ) -> None:
        self._what, self._total, self._unit = printable(what), total, unit
        self._first_s, self._every_s = first_s, every_s
        self._done = 0
        self._over = threading.Event()
        silent = os.environ.get("RANK", "0") != "0"  # one voice, of however many processes train together
        speak = self._draw if sys.stderr.isatty() else self._tell
        self._thread = None if silent else threading.Thread(target=speak, name="progress", daemon=True)

    def __enter__(self) -> Callable[[int], None]:
        if self._thread is not None:
            self._thread.start()
        return self._count

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def _count(self, done: int) -> None:
        self._done += done

    def _tell(self) -> None:
        began, pause_s = time.monotonic(), self._first_s
        while not self._over.wait(pause_s):
            print(self._line(time.monotonic() - began), file=sys.stderr, flush=True)
            pause_s = self._every_s

    def _line(self, seconds: float) -> str:
        if not self._total:
            return f"{self._what}: {_clock(seconds)} so far"
        left = seconds / self._done * (self._total - self._done) if self._done else None
        return f"{self._what}: {self._done:,} of {self._total:,} {self._unit}" + (
            "" if left is None else f", about {_clock(left)} left"
        )

    def _draw(self) -> None:
        if self._over.wait(TERMINAL_FIRST_S):
            return
        from tqdm import tqdm  # noqa: PLC0415  not needed where no wait is long

        known = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {unit} [{elapsed}<{remaining}]"
        with tqdm(
            total=self._total or None,
            initial=self._done,
            desc=self._what,
            unit=self._unit,
            file=sys.stderr,
            leave=False,
            bar_format=known if self._total else "{desc}: {elapsed}",
        ) as bar:
            while not self._over.wait(0.5):
                bar.n = self._done
                bar.refresh()


def _clock(seconds: float) -> str:
    return f"{int(seconds // 60)}:{int(seconds % 60):02}"
