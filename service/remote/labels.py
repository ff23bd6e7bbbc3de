"""A server's labels compared with those of this edge's bundle: asked at first contact, then until they are the same."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence

from service.errors import RemoteBadAnswer, RemoteError
from service.remote.wire import ServerFacts

RETRY_S = (2.0, 60.0)  # the first time, then twice as long each time, up to that
ATTEMPTS = 10  # some minutes, at a server that answers something else; one that is away is asked for ever
EXAMPLE_CHARS = 80  # of a label, in a log

logger = logging.getLogger(__name__)


class LabelCheck:
    """Of one server. It notes in `facts` what the server tells, and logs where its labels differ.

    refuse: answers with foreign labels are refused, which the log then says.
    """

    def __init__(self, url: str, ours: Sequence[str], facts: ServerFacts, *, refuse: bool) -> None:
        self._url = url
        self._ours = ours
        self._facts = facts
        self._refuse = refuse

    async def run(self, ask: Callable[[], Awaitable[list[str]]]) -> None:
        """Ask the server for its labels until they are ours. `ask` raises RemoteError; RemoteBadAnswer without any."""
        retry_s, longest_s = RETRY_S
        bad_answers, told = 0, None
        while True:
            try:
                theirs = await ask()
            except RemoteBadAnswer as error:
                bad_answers += 1
                if bad_answers == ATTEMPTS:
                    logger.warning(
                        "the large model does not tell its labels: they are not compared, each answer's are checked",
                        extra={"url": self._url, "why": error.detail[:200]},
                    )
                    return
            except RemoteError:
                pass
            else:
                self._note(theirs)
                if theirs != told:
                    self._tell(theirs, before=told)
                told = theirs
                if self._facts.labels_match:
                    return
                bad_answers, retry_s = 0, longest_s  # another model may come in its place
            await asyncio.sleep(random.uniform(0.5, 1.0) * retry_s)
            retry_s = min(2 * retry_s, longest_s)

    def _note(self, theirs: list[str]) -> None:
        told, ours = set(theirs), set(self._ours)
        self._facts.labels_match = told == ours
        self._facts.labels_told, self._facts.labels_shared = len(theirs), len(told & ours)

    def _tell(self, theirs: list[str], before: list[str] | None) -> None:
        if self._facts.labels_match:
            if before is not None:
                logger.info("labels of the large model are this edge's now", extra={"url": self._url})
            return
        found: dict[str, object] = {"url": self._url, "ours": len(self._ours), "theirs": len(theirs)}
        found["shared"] = self._facts.labels_shared
        for name, some, others in (
            ("only_ours", self._ours, set(theirs)),
            ("only_theirs", theirs, set(self._ours)),
        ):
            if example := next((label for label in some if label not in others), None):
                found[name] = example[:EXAMPLE_CHARS]
        if self._refuse:
            then = "are refused (remote_bad_answer); GATEKEEPER_REMOTE_FOREIGN_LABELS=allow would let them through"
        else:
            then = "reach clients (GATEKEEPER_REMOTE_FOREIGN_LABELS=allow)"
        logger.warning(
            "labels of the large model differ: answers with those that this edge does not know %s. "
            "Set GATEKEEPER_REMOTE_URL to a model that was trained on the same labels",
            then,
            extra=found,
        )
