"""What bodies hold in memory while they arrive."""

from service.errors import Overloaded


class Intake:
    """What all bodies on their way hold in memory together: a connection may be one of thousands."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.bytes = 0

    def take(self, size: int) -> None:
        """Raises Overloaded above the limit."""
        self.bytes += size
        if self.bytes > self._max_bytes:
            raise Overloaded("too many large bodies are on their way at once: try again", retry_after_s=1)

    def release(self, size: int) -> None:
        self.bytes -= size
