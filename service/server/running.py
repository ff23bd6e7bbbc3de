"""The service that runs behind the sockets, as far as the server has to know it."""

import time
from typing import Any, Protocol

from service.batching.batcher import Batcher
from service.telemetry.metrics import Metrics


class Lifecycle:
    """Since when a process serves, on time.monotonic's clock, and whether it is about to stop."""

    def __init__(self) -> None:
        self.started_at = time.monotonic()
        self.draining = False

    def uptime_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started_at


class Running(Protocol):
    """What has been opened at the start of the app; service.runtime makes it."""

    @property
    def lifecycle(self) -> Lifecycle: ...
    @property
    def metrics(self) -> Metrics: ...
    @property
    def batcher(self) -> Batcher[Any, Any]: ...


def running(app: Any) -> Running:
    """Once the app has started."""
    found: Running = app.state.runtime
    return found


def running_yet(app: Any) -> Running | None:
    """None until the app has started."""
    found: Running | None = getattr(app.state, "runtime", None)
    return found
