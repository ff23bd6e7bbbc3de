"""Runs a batch: on the event loop, or in a thread under a watchdog. An item that makes its batch fail fails alone."""

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Generic, TypeVar

from service.errors import GatekeeperError, ModelFailed

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")
Run = Callable[[list[Item]], Sequence[Result]]
OnResults = Callable[[list[Result | GatekeeperError]], None]


class InlineRunner(Generic[Item, Result]):
    """Runs a batch in the thread that starts it. Calls `on_results` with the results, `on_trouble` if there are none.

    A model that raises what is no Exception, such as SystemExit, has ended: from then on `trouble` says so.
    """

    def __init__(self, run: Run[Item, Result], on_results: OnResults[Result], on_trouble: Callable[[], None]) -> None:
        self._run = run
        self._on_results = on_results
        self._on_trouble = on_trouble
        self.trouble: str | None = None
        self.running = False

    def start(self, items: list[Item]) -> None:
        """Run a batch; the one before must have ended."""
        self._end(_outcome(self._run, items))

    def stop(self) -> None:
        """No batch will follow."""

    def _end(self, outcome: list[Result | GatekeeperError] | BaseException) -> None:
        if isinstance(outcome, BaseException):
            self.trouble = f"the model has ended with {type(outcome).__name__}"
            logger.critical("the model has ended", extra={"error": type(outcome).__name__})
            self._on_trouble()
        else:
            self._on_results(outcome)


class ThreadRunner(InlineRunner[Item, Result]):
    """Runs batches in a thread of its own, one at a time. After timeout_s of one batch `trouble` says that
    the model hangs, until that batch ends.

    The thread does not belong to an executor: Python waits for an executor's threads when it ends, so that a model that
    hangs would keep the process alive.
    """

    def __init__(
        self,
        run: Run[Item, Result],
        on_results: OnResults[Result],
        on_trouble: Callable[[], None],
        *,
        timeout_s: float,
    ) -> None:
        super().__init__(run, on_results, on_trouble)
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._watchdog: asyncio.TimerHandle | None = None
        self._batches: SimpleQueue[list[Item] | None] = SimpleQueue()
        threading.Thread(target=self._serve, name="model", daemon=True).start()

    def start(self, items: list[Item]) -> None:
        self.running = True
        self._watchdog = self._loop.call_later(self._timeout_s, self._declare_hanging)
        self._batches.put(items)

    def stop(self) -> None:
        """End the thread after the batch that runs."""
        self._batches.put(None)

    def _serve(self) -> None:
        while (items := self._batches.get()) is not None:
            outcome = _outcome(self._run, items)
            try:
                self._loop.call_soon_threadsafe(self._end, outcome)
            except RuntimeError:  # the event loop is closed: the process is ending
                return
            if isinstance(outcome, BaseException):
                return

    def _declare_hanging(self) -> None:
        self.trouble = f"the model has been at one batch for more than {self._timeout_s:g} s"
        logger.error("the model hangs", extra={"timeout_s": self._timeout_s})
        self._on_trouble()

    def _end(self, outcome: list[Result | GatekeeperError] | BaseException) -> None:
        self.running = False
        if self._watchdog is not None:
            self._watchdog.cancel()
        if self.trouble is not None:
            self.trouble = None
            logger.warning("the model answers again")
        super()._end(outcome)


def _outcome(run: Run[Item, Result], items: list[Item]) -> list[Result | GatekeeperError] | BaseException:
    """As many results as items, errors among them; or what ended the model."""
    try:
        return _isolated(run, items)
    except BaseException as error:  # noqa: BLE001  those who wait for the batch must hear of it, whatever it was
        return error


def _isolated(run: Run[Item, Result], items: list[Item]) -> list[Result | GatekeeperError]:
    """Run a batch; where it raises, halve it until the poisoned item stands alone with its error."""
    try:
        return [*_checked(run(items), len(items))]
    except Exception as error:  # noqa: BLE001  whatever a model raises on one input must not reach its neighbours
        if len(items) == 1:
            failure = ModelFailed("the model raised an error on this input")
            failure.__cause__ = error
            return [failure]
    middle = len(items) // 2
    return _isolated(run, items[:middle]) + _isolated(run, items[middle:])


def _checked(results: Sequence[Result], items: int) -> Sequence[Result]:
    if len(results) != items:
        raise RuntimeError(f"the model gave {len(results)} results for {items} items")
    return results
