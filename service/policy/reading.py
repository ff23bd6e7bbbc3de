"""What both stores share: reading documents that anybody may have put there, and what a write must fulfil."""

import hashlib
import logging

from service.errors import PolicyStoreDown, VersionMismatch
from service.policy.document import MAX_DOCUMENT_BYTES, Policy, highest_believable, read_document

logger = logging.getLogger(__name__)

VERSIONS_KEPT = 1_000
UNREADABLE_KEPT = 100  # of those a read meets; they are read every time
UNREADABLE_MET = 10_000  # by one read, which then gives up
PROBLEMS_TOLD = 20
RETRY_AFTER_S = 2


class DocumentReader:
    """Reads stored documents. One that is unreadable is logged once, however often it is met."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._known: set[bytes] = set()
        self._told = 0

    def read(self, document: bytes, gate_digest: bytes, version: float) -> Policy | None:
        """The policy, or None if the document is not one or is not what it is stored as."""
        whose = f"version {version:.17g} of gate {gate_digest[:200]!r}"
        if len(document) > MAX_DOCUMENT_BYTES:
            self.report(whose.encode(), f"{whose}: it has more than {MAX_DOCUMENT_BYTES:,} bytes")
            return None
        fingerprint = hashlib.sha256(document + whose.encode()).digest()
        if fingerprint in self._known:
            return None
        try:
            policy = read_document(document)
        except ValueError as error:
            problem = str(error)
        else:
            if (policy.gate_digest.encode(), policy.version) == (gate_digest, version):
                return policy
            problem = "it names another gate digest or version"
        self._tell(fingerprint, f"{whose}: {problem}")
        return None

    def report(self, content: bytes, problem: str) -> None:
        """Logs the problem, unless it was reported for this content before, but not the content: it is untrusted."""
        self._tell(hashlib.sha256(content).digest(), problem)

    def _tell(self, fingerprint: bytes, problem: str) -> None:
        if fingerprint in self._known:
            return
        if len(self._known) >= 2 * VERSIONS_KEPT:
            self._known.clear()
        self._known.add(fingerprint)
        self._told += 1
        if self._told <= PROBLEMS_TOLD:
            logger.warning("unreadable policy in %s, %s", self._label, problem)
        elif self._told == PROBLEMS_TOLD + 1:
            logger.warning("more unreadable policies in %s: no further ones are told", self._label)


class Reading:
    """One read, newest first: the policies found, and which of the unreadable entries met are to be removed."""

    def __init__(self, documents: DocumentReader, label: str, limit: int) -> None:
        self.found: list[Policy] = []
        self._documents = documents
        self._label = label
        self._limit = limit
        self._read: set[bytes] = set()
        self._unreadable = 0

    @property
    def complete(self) -> bool:
        return len(self.found) >= self._limit

    def meet(self, document: bytes, gate_digest: bytes, version: float) -> bool:
        """Whether the entry may stay."""
        if document in self._read:
            return True  # once more, as somebody writes while we read
        policy = self._documents.read(document, gate_digest, version)
        if policy is not None:
            if not self.found or policy.version < self.found[-1].version:
                self.found.append(policy)
                self._read.add(document)
                return True
            self._documents.report(document, f"version {policy.version}: there is another one of that number")
        self._unreadable += 1
        if self._unreadable == UNREADABLE_KEPT + 1:
            self._documents.report(b"too many", f"more than {UNREADABLE_KEPT} of them: all but the newest are removed")
        return self._unreadable <= UNREADABLE_KEPT and len(document) <= MAX_DOCUMENT_BYTES

    def require_readable(self) -> None:
        """Raises PolicyStoreDown after so many unreadable entries that going on would hold up everything else."""
        if self._unreadable >= UNREADABLE_MET:
            detail = f"The policy store ({self._label}) is full of unreadable entries, which are being removed."
            raise PolicyStoreDown(detail, retry_after_s=RETRY_AFTER_S)


def require_next(policy: Policy, *, latest: Policy | None, expected_version: int | None, highest: int) -> None:
    """The compare of compare-and-set. Raises VersionMismatch."""
    found = None if latest is None else latest.version
    if found != expected_version:
        raise VersionMismatch(f"The policy is at version {found}, not {expected_version}: read it again.")
    if policy.version <= highest:
        raise VersionMismatch(f"Version {policy.version} is not above {highest}, the highest: read it again.")


def text_of(policy: Policy, label: str) -> str:
    """The document to store, which this replica and all others will read again. Raises PolicyStoreDown."""
    if policy.version > highest_believable():
        detail = (
            f"The policy store ({label}) holds a version so high that the next one, {policy.version}, is not due yet."
        )
        raise PolicyStoreDown(detail, retry_after_s=RETRY_AFTER_S)
    text = policy.model_dump_json()
    if len(text.encode()) > MAX_DOCUMENT_BYTES:
        detail = (
            f"The policy would have more than {MAX_DOCUMENT_BYTES:,} bytes, with what later releases have put there."
        )
        raise PolicyStoreDown(detail)
    return text


def first(policies: list[Policy]) -> Policy | None:
    return policies[0] if policies else None
