"""The gatekeeper wire: what is sent, what its answers must look like, whose labels they have."""

import json
import math

import pytest
from support.faulty_server import Script, Turn, output, outputs, serving
from support.remotes import MAX_BYTES, Outcomes, answering, ask, asking, good, labels_of, refusing_url, remote_to

from service.errors import ForeignLabel, RemoteBadAnswer, RemoteError, RemoteUnavailable
from service.remote.large_model import RemoteAnswer

# --- what is sent, what comes back


async def test_answers_come_back_in_the_order_of_the_texts() -> None:
    async with serving(good) as server, remote_to(server.url) as remote:
        answers = await ask(remote, "one", "two", "three")
    assert answers == [RemoteAnswer(label, 0.9, (), degraded=False) for label in ("one", "two", "three")]


async def test_an_answer_carries_its_alternatives_and_whether_it_is_degraded() -> None:
    top = [{"label": "a", "score": 0.5}, {"label": "b", "score": 0.25}, {"label": "c", "score": 0.125}]
    items = [output("a", score=0.5, top=top), output("b", decision="degraded"), output("c", decision="deferred")]
    script = answering(200, json.dumps({"outputs": items}).encode())
    async with serving(script) as server, remote_to(server.url) as remote:
        answers = await ask(remote, "1", "2", "3", top_k=2)
    assert answers[0] == RemoteAnswer("a", 0.5, (("a", 0.5), ("b", 0.25)), degraded=False)
    assert [answer.degraded for answer in answers] == [False, True, False]


async def test_an_answer_that_was_degraded_two_edges_away_still_says_so() -> None:
    script = answering(200, outputs(["a"], decision="deferred", reason="remote_degraded"))
    async with serving(script) as server, remote_to(server.url) as remote:
        (answer,) = await ask(remote)
    assert answer.degraded


async def test_exactly_these_headers_are_sent() -> None:
    """Nothing of the client's goes along but what the contract names."""
    async with serving(good) as server, remote_to(server.url) as remote:
        await remote.answer(asking("hello", top_k=3, timeout_s=5.0, hops=2))
    (turn,) = server.requests
    time_left_ms = int(turn.headers.pop("x-request-timeout-ms"))
    assert 0 < time_left_ms <= 5_000
    assert turn.request_line == "POST /v1/classify HTTP/1.1"
    assert json.loads(turn.body) == {"inputs": ["hello"], "parameters": {"top_k": 3}}
    assert turn.headers == {
        "host": server.url.removeprefix("http://"),
        "accept": "application/json",
        "accept-encoding": "identity",
        "user-agent": "gatekeeper",
        "content-type": "application/json",
        "content-length": str(len(turn.body)),
        "x-gatekeeper-hops": "2",
        "x-request-id": "id-1",
    }


async def test_a_path_in_the_base_url_is_kept() -> None:
    async with serving(good) as server, remote_to(f"{server.url}/large/") as remote:
        await ask(remote)
    assert server.requests[0].request_line == "POST /large/v1/classify HTTP/1.1"


async def test_any_text_arrives_as_it_is() -> None:
    texts = ["", "naïve 日本 🎈", 'quote " and \\ and \n', "lone \ud800 surrogate"]
    async with serving(answering(200, outputs(["a"] * 4))) as server, remote_to(server.url) as remote:
        await ask(remote, *texts)
    assert server.requests[0].texts == texts


async def test_a_strange_request_id_cannot_add_a_header() -> None:
    async with serving(good) as server, remote_to(server.url) as remote:
        await remote.answer(asking("hello", request_id="a\r\nx-evil: é"))
    assert server.requests[0].headers["x-request-id"] == "a%0D%0Ax-evil:%20%C3%A9"
    assert "x-evil" not in server.requests[0].headers


# --- answers that are not the contract


GOOD_BODY = outputs(["a"])


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"<html>hello</html>", id="a page"),
        pytest.param(GOOD_BODY[:-20], id="truncated JSON"),
        pytest.param(b"\xff\xfe" + GOOD_BODY, id="not UTF-8"),
        pytest.param(b"[" * 50_000, id="deeply nested"),
        pytest.param(b"null", id="null"),
        pytest.param(b'{"outputs": {}}', id="outputs is no list"),
        pytest.param(b'{"answers": []}', id="no outputs"),
        pytest.param(outputs([]), id="too few outputs"),
        pytest.param(outputs(["a", "b"]), id="too many outputs"),
        pytest.param(outputs([""]), id="empty label"),
        pytest.param(outputs(["a"], label=None), id="label is null"),
        pytest.param(outputs(["a"], label=7), id="label is a number"),
        pytest.param(outputs(["a"], score=math.nan), id="score is NaN"),
        pytest.param(outputs(["a"], score=math.inf), id="score is infinite"),
        pytest.param(outputs(["a"], score=1.000001), id="score above 1"),
        pytest.param(outputs(["a"], score=-0.1), id="score below 0"),
        pytest.param(outputs(["a"], score="0.9"), id="score is a string"),
        pytest.param(outputs(["a"], score=True), id="score is a boolean"),
        pytest.param(GOOD_BODY.replace(b"0.9", b"1e999"), id="score overflows"),
        pytest.param(outputs(["a"], decision="failed"), id="unknown decision"),
        pytest.param(outputs(["a"], top=[{"label": "a", "score": 2}]), id="a bad alternative"),
        pytest.param(outputs(["a" * MAX_BYTES]), id="too long"),
    ],
)
async def test_a_200_that_is_not_the_contract_is_a_bad_answer(body: bytes) -> None:
    outcomes = Outcomes()
    async with serving(answering(200, body)) as server, remote_to(server.url, outcomes) as remote:
        with pytest.raises(RemoteBadAnswer):
            await ask(remote)
    assert outcomes == ["remote_bad_answer"]
    assert len(server.requests) == 1


# --- labels that the bundle does not have


def labelled(*labels: str, top: list[str] | None = None) -> Script:
    async def script(turn: Turn) -> None:
        changes = {} if top is None else {"top": [{"label": label, "score": 0.5} for label in top]}
        await turn.answer(200, outputs(labels, **changes))

    return script


async def test_a_foreign_label_is_refused_for_its_item_alone() -> None:
    outcomes = Outcomes()
    async with (
        serving(labelled("a", "nobody", "b")) as server,
        remote_to(server.url, outcomes, failures=1, labels=["a", "b"]) as remote,
    ):
        first, second, third = await ask(remote, "x", "y", "z")
        assert not remote.breaker_open
    assert isinstance(first, RemoteAnswer)
    assert isinstance(second, ForeignLabel)
    assert isinstance(third, RemoteAnswer)
    assert outcomes == ["remote_bad_answer"]


@pytest.mark.parametrize(("shared", "opens"), [(None, False), (1, False), (0, True)])
async def test_foreign_labels_alone_open_the_breaker_only_where_none_is_shared(shared: int | None, opens: bool) -> None:
    """Of a set that is shared in part a client can choose texts that get the rest."""
    async with serving(labelled("nobody")) as server, remote_to(server.url, failures=1, labels=["a"]) as remote:
        remote.endpoints[0].wire.facts.labels_shared = shared
        with pytest.raises(ForeignLabel):
            await ask(remote)
        assert remote.breaker_open is opens


async def test_a_foreign_label_among_the_top_is_refused_too() -> None:
    async with (
        serving(labelled("a", top=["a", "nobody"])) as server,
        remote_to(server.url, labels=["a", "b"]) as remote,
    ):
        with pytest.raises(ForeignLabel):
            await ask(remote, top_k=2)


# --- answers that cost more than they are worth


@pytest.mark.parametrize(
    "body",
    [
        b'{"outputs":[' + b"0," * 20_000 + b"0]}",
        b'{"outputs":[{"label":"a","score":0.5,"decision":"accepted","top":[' + b"0," * 20_000 + b"0]}]}",
        b'{"x":' + b"[" * 20_000 + b"]" * 20_000 + b',"outputs":[]}',
        b"[" + b"{}," * 20_000 + b"{}]",
    ],
    ids=["outputs", "top", "depth", "objects"],
)
async def test_an_answer_of_many_values_is_not_parsed(body: bytes) -> None:
    async with serving(answering(200, body)) as server, remote_to(server.url) as remote:
        with pytest.raises(RemoteBadAnswer, match="more than 4,368 values"):
            await ask(remote)


async def test_an_answer_with_many_labels_and_fields_of_its_own_is_read() -> None:
    """What a newer server may add."""
    top = [{"label": f"label {number}", "score": 0.001, "extra": [number] * 5} for number in range(150)]
    body = outputs(["a"] * 8, top=top, extra={f"field {number}": number for number in range(20)})
    async with serving(answering(200, body)) as server, remote_to(server.url, max_bytes=2**20) as remote:
        answer = (await ask(remote, *"abcdefgh", top_k=150))[7]
    assert isinstance(answer, RemoteAnswer)
    assert len(answer.top) == 150


@pytest.mark.parametrize("extra", [{"probabilities": [0.001] * 150}, {"top": [{"label": "a", "score": 0.1}] * 150}])
async def test_an_item_may_say_much_that_nobody_asked_for(extra: dict[str, object]) -> None:
    script = answering(200, outputs(["a"] * 8, **extra))
    async with serving(script) as server, remote_to(server.url, max_bytes=2**20) as remote:
        assert [answer.label for answer in await ask(remote, *"abcdefgh")] == ["a"] * 8


async def test_more_outputs_than_any_call_has_items_are_not_built() -> None:
    body = outputs(["a"] * 1).replace(b"[{", b"[" + b'{"label":"a","score":0.5,"decision":"accepted"},' * 1_000 + b"{")
    async with serving(answering(200, body)) as server, remote_to(server.url) as remote:
        with pytest.raises(RemoteBadAnswer, match="answered 1001 of 1 items"):
            await ask(remote)


async def test_a_label_of_more_than_10_000_characters_is_no_label() -> None:
    async with serving(answering(200, outputs(["a" * 10_001]))) as server, remote_to(server.url) as remote:
        with pytest.raises(RemoteBadAnswer, match="at most 10000 characters"):
            await ask(remote)


# --- the labels that a server tells


@pytest.mark.parametrize(
    ("body", "labels"),
    [
        ({"data": [{"id": "large", "labels": ["a", "b"]}]}, ["a", "b"]),
        ({"data": [{"id": "large", "labels": ["a"]}, {"id": "alias", "labels": ["a"]}, {"id": "base"}]}, ["a"]),
        ({"data": [{"id": "large", "labels": ["a"]}, {"id": "other", "labels": ["b"]}]}, None),
        ({"data": [{"id": "large"}]}, None),
        ({"data": []}, None),
        ({"data": [{"labels": [1, 2]}]}, None),
        ({"models": []}, None),
    ],
)
async def test_labels_are_told_only_when_there_is_one_answer(body: object, labels: list[str] | None) -> None:
    async with serving(answering(200, json.dumps(body).encode())) as server, remote_to(server.url) as remote:
        if labels is None:
            with pytest.raises(RemoteBadAnswer):
                await labels_of(remote)
        else:
            assert await labels_of(remote) == labels
    assert server.requests[0].request_line == "GET /v1/models HTTP/1.1"
    assert server.requests[0].body == b""


@pytest.mark.parametrize("status", [404, 429, 500, 503])
async def test_labels_cannot_be_told_by_a_remote_that_fails(status: int) -> None:
    """That is no reason for the breaker, nor for the metrics of the defer path."""
    outcomes = Outcomes()
    async with serving(answering(status)) as server, remote_to(server.url, outcomes, failures=1) as remote:
        with pytest.raises(RemoteError):
            await labels_of(remote)
        assert not remote.breaker_open
    assert outcomes == []


async def test_labels_cannot_be_told_by_a_remote_that_is_away() -> None:
    with refusing_url() as url:
        async with remote_to(url) as remote:
            with pytest.raises(RemoteUnavailable):
                await labels_of(remote)
