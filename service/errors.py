"""Every error that this service raises on purpose. Foreign errors are translated where they enter
(policy/store.py, access/budgets.py, remote/, batching/batcher.py) and leave as problem+json (RFC 9457) in
api/problems.py.

    GatekeeperError
    ├── StartupError               one line for a person; the process does not start
    ├── RequestError               the caller can mend it
    │   ├── MalformedRequest       400  not JSON, not UTF-8, half a body
    │   │   └── MalformedForm      400  says that it is a form with files, and cannot be read as one
    │   ├── Unauthorized           401
    │   ├── Forbidden              403  an API key without the scope that this needs
    │   ├── CrossSite              403  sent by a page of another site
    │   ├── NotFound               404
    │   ├── GateDigestMismatch     409  a policy that names another gate digest
    │   ├── VersionMismatch        412  If-Match names another version
    │   ├── TooLarge               413  body, items or text over its limit
    │   ├── UnsupportedMediaType   415
    │   ├── ForeignHost            421  asked for by a name that is not the service's
    │   ├── InvalidRequest         422  JSON, but not what the contract says
    │   ├── PreconditionRequired   428  PUT without If-Match
    │   └── TooManyHops            508  edges forwarding to each other
    ├── ClientGone                 499  counted, seen by nobody
    ├── Overloaded                 429  the queue is full
    ├── RateLimited                429  the API key's budget is spent
    ├── ModelFailed                500  the model raised on this item or gave no finite confidence
    │   └── ModelDown              503  the model hangs or has ended: only a restart or another replica helps
    ├── Expired                    504  the client's own x-request-timeout-ms ran out in the queue
    ├── PolicyStoreDown            503  no write now; reads go on from the snapshot
    ├── LargeModelFailed           503  policy `fail`: the large model did not answer
    │   └── LargeModelLate         504
    └── RemoteError                inside only: why a deferral failed, `reason` is the contract's word
        ├── RemoteUnavailable      refused, reset, DNS, TLS, 5xx, our key refused
        ├── RemoteTimeout          no whole answer in the policy's remote_timeout_s
        ├── RemoteBadAnswer        not the contract: truncated, wrong schema, wrong count, too large
        │   └── ForeignLabel       a label that the bundle does not have
        ├── BreakerOpen            not tried: too many failures just now
        ├── RemoteLimit            not tried or told so: our concurrency limit, or the remote's 429
        └── DeadlineExceeded       the client's own x-request-timeout-ms has run out
"""

from typing import Any, ClassVar, Literal

RemoteReason = Literal[
    "remote_unavailable", "remote_timeout", "remote_bad_answer", "breaker_open", "remote_limit", "deadline"
]


class GatekeeperError(Exception):
    """Base class: `detail` is one sentence for the caller that says what to do."""

    status: ClassVar[int] = 500
    kind: ClassVar[str] = "internal-error"
    title: ClassVar[str] = "Internal error"

    def __init__(
        self,
        detail: str,
        *,
        retry_after_s: int | None = None,
        errors: list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after_s = retry_after_s
        self.errors = errors


class StartupError(GatekeeperError):
    kind = "startup"
    title = "Cannot start"


class RequestError(GatekeeperError):
    status = 400
    kind = "bad-request"
    title = "Bad request"


class MalformedRequest(RequestError):
    kind = "malformed-request"
    title = "The body is not JSON"


class MalformedForm(MalformedRequest):
    title = "The body is not a form"


class Unauthorized(RequestError):
    status = 401
    kind = "unauthorized"
    title = "Wrong or missing token"


class Forbidden(RequestError):
    status = 403
    kind = "forbidden"
    title = "Not with this key"


class CrossSite(RequestError):
    status = 403
    kind = "cross-site"
    title = "Sent by a page of another site"


class NotFound(RequestError):
    status = 404
    kind = "not-found"
    title = "Not found"


class GateDigestMismatch(RequestError):
    status = 409
    kind = "gate-digest-mismatch"
    title = "The policy belongs to another gate"


class VersionMismatch(RequestError):
    status = 412
    kind = "version-mismatch"
    title = "The policy has changed"


class TooLarge(RequestError):
    status = 413
    kind = "too-large"
    title = "Too large"


class UnsupportedMediaType(RequestError):
    status = 415
    kind = "unsupported-media-type"
    title = "Send plain JSON"


class ForeignHost(RequestError):
    status = 421
    kind = "foreign-host"
    title = "Asked for by another name"


class InvalidRequest(RequestError):
    status = 422
    kind = "invalid-request"
    title = "The request does not fit the contract"


class PreconditionRequired(RequestError):
    status = 428
    kind = "precondition-required"
    title = "If-Match is required"


class TooManyHops(RequestError):
    status = 508
    kind = "too-many-hops"
    title = "Edges forward to each other"


class ClientGone(GatekeeperError):
    status = 499
    kind = "client-gone"
    title = "The client left"


class Overloaded(GatekeeperError):
    status = 429
    kind = "overloaded"
    title = "Too many requests"


class RateLimited(GatekeeperError):
    """`rate_limit` is the value of the header RateLimit."""

    status = 429
    kind = "rate-limited"
    title = "The API key's budget is spent"

    def __init__(self, detail: str, *, retry_after_s: int, rate_limit: str) -> None:
        super().__init__(detail, retry_after_s=retry_after_s)
        self.rate_limit = rate_limit


class ModelFailed(GatekeeperError):
    kind = "model-failed"
    title = "The small model failed on this input"


class ModelDown(ModelFailed):
    status = 503
    kind = "model-down"
    title = "The model is down"


class Expired(GatekeeperError):
    status = 504
    kind = "expired"
    title = "The deadline has passed"


class PolicyStoreDown(GatekeeperError):
    status = 503
    kind = "policy-store-down"
    title = "The policy store is down"


class LargeModelFailed(GatekeeperError):
    status = 503
    kind = "large-model-failed"
    title = "The large model did not answer"


class LargeModelLate(LargeModelFailed):
    status = 504
    kind = "large-model-late"
    title = "The large model did not answer in time"


class RemoteError(GatekeeperError):
    """Why a deferral failed; `reason` is one of the closed set in the classify contract."""

    reason: ClassVar[RemoteReason]


class RemoteUnavailable(RemoteError):
    reason = "remote_unavailable"


class RemoteTimeout(RemoteError):
    reason = "remote_timeout"


class RemoteBadAnswer(RemoteError):
    """`fault` is one of a few words that this code has for what is wrong; `excerpt` is the server's, as it came."""

    reason = "remote_bad_answer"

    def __init__(
        self, detail: str, *, retry_after_s: int | None = None, fault: str = "other", excerpt: str = ""
    ) -> None:
        super().__init__(detail, retry_after_s=retry_after_s)
        self.fault = fault
        self.excerpt = excerpt


class ForeignLabel(RemoteBadAnswer):
    """A label that the edge's bundle does not have, of one item or of all that were asked."""


class BreakerOpen(RemoteError):
    reason = "breaker_open"


class RemoteLimit(RemoteError):
    reason = "remote_limit"


class DeadlineExceeded(RemoteError):
    reason = "deadline"
