"""The last good policy in a file of its own, for a start while the store is down."""

import asyncio
import logging
import os
from pathlib import Path

from service.policy.document import MAX_DOCUMENT_BYTES, Policy, read_document

logger = logging.getLogger(__name__)


class LastGood:
    """One file; without a path nothing is kept."""

    def __init__(self, path: Path | None, gate_digest: str) -> None:
        self._path = path
        self._gate_digest = gate_digest
        self._saved: Policy | None = None

    def load(self) -> Policy | None:
        """The policy, if there is a readable one for this gate."""
        if self._path is None:
            return None
        try:
            with self._path.open("rb") as file:
                policy = read_document(file.read(MAX_DOCUMENT_BYTES + 1))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            logger.warning("the last good policy in %s is unreadable: %s", self._path, why)
            return None
        if policy.gate_digest != self._gate_digest:
            return None
        self._saved = policy
        return policy

    async def save(self, policy: Policy) -> None:
        """Keeps the policy. A failure is logged: the policy itself is safe in the store."""
        if self._path is None or policy == self._saved:
            return
        self._saved = policy
        try:
            # On one line: indented, a document of the greatest length would be too long to be read again.
            await asyncio.to_thread(_write_atomically, self._path, policy.model_dump_json())
        except OSError as error:
            logger.warning("cannot keep the last good policy in %s: %s", self._path, error.strerror)


def _write_atomically(path: Path, text: str) -> None:
    """A reader, or a start after a power cut, sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
