"""What the soak sends, and what must come back: each request is a case, and each answer is held against its case."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from loadtests.common.client import Reply
from loadtests.common.sentences import EASY, MALFORMED, ODD
from loadtests.stress.flapping import large_label

Cut = Literal["no", "in the head", "in the body", "after the body"]
# Of every 1,000 requests; the rest are easy sentences.
PER_MILLE = {"odd": 50, "list": 50, "options": 20, "deadline": 10, "chunked": 5, "malformed": 10, "cancelled": 10}
DECK_KINDS = frozenset({*PER_MILLE, "easy"})
TIMEOUT_MS = 300  # of the requests that bring a deadline
SAME_CONFIDENCE = 1e-4  # the order of summation differs between batches
MALFORMED_STATUS = {"not JSON": 400, "cut off": 400, "10,001 items": 413}  # the others: 422


@dataclass(frozen=True)
class Case:
    """A request without its id: `head` ends in the middle of the headers. `status`: what a malformed one must get."""

    kind: str
    head: bytes
    body: bytes
    texts: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    status: int = 200
    problem: bool = True  # whether the refusal is ours; else the HTTP server's own
    cut: Cut = "no"
    has_deadline: bool = False

    def request(self, request_id: str) -> bytes:
        """The bytes on the wire."""
        return b"%sx-request-id: %s\r\n\r\n%s" % (self.head, request_id.encode(), self.body)


@dataclass(frozen=True)
class Known:
    """What the small model said of a text when it was asked at the start."""

    label: str
    confidence: float


def deck(size: int, seed: int) -> list[Case]:
    """So many cases, in the shares of PER_MILLE, in the order in which they are sent again and again."""
    rng = random.Random(seed)
    makers = {"odd": _odd, "list": _list, "options": _options, "deadline": _deadline, "chunked": _chunked}
    kinds = [kind for kind, share in PER_MILLE.items() for _ in range(size * share // 1000)]
    cases = []
    for number, kind in enumerate([*kinds, *["easy"] * (size - len(kinds))]):
        if kind == "malformed":
            cases.append(_MALFORMED[number % len(_MALFORMED)])
        elif kind == "cancelled":
            text = rng.choice(EASY + ODD)
            cuts: tuple[Cut, ...] = ("in the head", "in the body", "after the body")
            cases.append(_case("cancelled", [text], cut=cuts[number % len(cuts)]))
        else:
            cases.append(makers.get(kind, _easy)(rng))
    rng.shuffle(cases)
    return cases


def _case(
    kind: str,
    texts: Sequence[str],
    parameters: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
    **fields: Any,
) -> Case:
    document: dict[str, Any] = {"inputs": list(texts) if len(texts) > 1 else texts[0]}
    if parameters:
        document["parameters"] = parameters
    body = json.dumps(document).encode()
    return Case(kind, head_of(len(body), headers), body, tuple(texts), parameters or {}, **fields)


def head_of(length: int, headers: Mapping[str, str] | None = None, first: str = "POST /v1/classify HTTP/1.1") -> bytes:
    """A request line and headers, without the blank line. `headers` replace those of the same name."""
    lines = {"host": "edge", "content-type": "application/json", "content-length": str(length), **(headers or {})}
    return (first + "\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())).encode()


def _easy(rng: random.Random) -> Case:
    return _case("easy", [rng.choice(EASY)])


def _odd(rng: random.Random) -> Case:
    return _case("odd", [rng.choice(ODD)])


def _list(rng: random.Random) -> Case:
    return _case("list", rng.choices(EASY + ODD, k=rng.randint(2, 8)))


def _options(rng: random.Random) -> Case:
    choices = ({"top_k": 3}, {"route": "small"}, {"route": "large"}, {"threshold": 0.5}, {"threshold": 0.999})
    return _case("options", rng.choices(EASY + ODD, k=rng.randint(1, 3)), rng.choice(choices))


def _deadline(rng: random.Random) -> Case:
    return _case("deadline", [rng.choice(ODD)], None, {"x-request-timeout-ms": str(TIMEOUT_MS)}, has_deadline=True)


def _chunked(rng: random.Random) -> Case:
    whole = _case("chunked", [rng.choice(EASY)])
    head = b"\r\n".join(line for line in whole.head.split(b"\r\n") if not line.startswith(b"content-length"))
    middle = len(whole.body) // 2
    parts = (whole.body[:middle], whole.body[middle:], b"")
    body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
    return Case("chunked", head[:-2] + b"\r\ntransfer-encoding: chunked\r\n", body, whole.texts)


def _malformed() -> list[Case]:
    """Bodies that must be refused, then good bodies with a wrong path, method or header."""
    cases = []
    for wrong, text in MALFORMED:
        body = text.encode()
        cases.append(Case("malformed", head_of(len(body)), body, status=MALFORMED_STATUS.get(wrong, 422)))
    body = json.dumps({"inputs": EASY[0]}).encode()

    def add(status: int, headers: Mapping[str, str] | None = None, problem: bool = True, **fields: str) -> None:
        cases.append(Case("malformed", head_of(len(body), headers, **fields), body, status=status, problem=problem))

    add(404, first="POST /v1/clasify HTTP/1.1")
    add(405, first="PUT /v1/classify HTTP/1.1")
    add(401, first="POST /admin/v1/policy/rollback HTTP/1.1")
    add(415, {"content-encoding": "gzip"})
    add(422, {"x-request-timeout-ms": "soon"})
    add(422, {"x-gatekeeper-hops": "-1"})
    add(508, {"x-gatekeeper-hops": "9"})
    add(400, {"content-length": "many"}, problem=False)
    add(400, {"bad header": "a blank in its name"}, problem=False)
    add(400, first="P?ST /v1/classify HTTP/1.1", problem=False)
    return cases


_MALFORMED = _malformed()


def what_is_wrong(
    case: Case, request_id: str, reply: Reply, known: Mapping[str, Known], thresholds: Mapping[int, float]
) -> str | None:
    """Why this is not the right answer to a case that expects 200 or a refusal of its own; None: it is right.

    `thresholds`: of the policy versions that are known.
    """
    if reply.status != case.status:
        return f"{reply.status} instead of {case.status}"
    if case.status != 200:
        return _wrong_problem(reply, request_id) if case.problem else None
    document = json.loads(reply.body)
    if document["id"] != request_id or b"\nx-request-id: %s\r" % request_id.encode() not in reply.head:
        return "the answer of another request"
    outputs, threshold = document["outputs"], document["threshold"]
    if len(outputs) != len(case.texts):
        return f"{len(outputs)} outputs for {len(case.texts)} inputs"
    override = case.parameters.get("threshold")
    expected = thresholds.get(document["policy_version"], threshold) if override is None else override
    if threshold != expected:
        return f"threshold {threshold} under a policy version that has {expected}"
    pairs = zip(case.texts, outputs, strict=True)
    return next(
        filter(None, (_wrong_output(case, text, output, threshold, known[text]) for text, output in pairs)), None
    )


def _wrong_output(case: Case, text: str, output: Mapping[str, Any], threshold: float, known: Known) -> str | None:
    decision, reason, label = output["decision"], output["reason"], output["label"]
    if output["small"]["label"] != known.label or abs(output["confidence"] - known.confidence) > SAME_CONFIDENCE:
        return f"the small model's answer to another text ({output['small']['label']} instead of {known.label})"
    if label != (large_label(text) if decision == "deferred" else known.label):
        return f"{decision}, with the label {label}"
    route = case.parameters.get("route", "auto")
    sure = output["confidence"] >= threshold
    if decision == "accepted":
        right = reason == ("forced" if route == "small" else None if sure else "deferral_off")
    else:
        right = route == "large" or (route == "auto" and not sure)
    if not right:
        return f"{decision} ({reason}), route {route}, {'at or above' if sure else 'below'} the threshold"
    top_k = case.parameters.get("top_k", 1)
    if top_k > 1 and decision != "deferred" and len(output["top"]) != top_k:
        return f"{len(output['top'])} labels in top instead of {top_k}"
    return None


def _wrong_problem(reply: Reply, request_id: str) -> str | None:
    if b"\ncontent-type: application/problem+json" not in reply.head:
        return f"a {reply.status} that is not application/problem+json"
    problem = json.loads(reply.body)
    if problem["status"] != reply.status or problem["request_id"] != request_id:
        return f"a {reply.status} whose problem document says otherwise"
    return None
