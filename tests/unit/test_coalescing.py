"""Calls of one moment travel together, and none suffers for its neighbours."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
from support.faulty_server import FaultyServer, Script, Turn, head, outputs, serving
from support.remotes import PATIENT_S, Outcomes, answering, asking, good, never, remote_to

from service.errors import RemoteBadAnswer, RemoteError, RemoteTimeout, RemoteUnavailable
from service.remote.coalescing import PACK_CHARS, PACKED_TEXT_CHARS, Coalescer
from service.remote.gatekeeper_wire import divided
from service.remote.large_model import RemoteAnswer
from service.remote.latency import ENOUGH_S


@asynccontextmanager
async def packing_before(
    script: Script,
    *,
    max_items: int = 8,
    max_bytes: int = 65_536,
    outcomes: Outcomes | None = None,
    failures: int = 1_000,
) -> AsyncIterator[tuple[Coalescer, FaultyServer]]:
    async with serving(script) as server, remote_to(server.url, outcomes, slots=64, failures=failures) as remote:
        yield Coalescer(remote, max_items, partial(divided, max_bytes=max_bytes)), server


async def ask(
    remote: Coalescer, *texts: str, timeout_s: float = PATIENT_S, top_k: int = 1, hops: int = 1, own: bool = False
) -> list[str]:
    call = asking(
        *texts, timeout_s=timeout_s, top_k=top_k, hops=hops, request_id=f"id-{texts[0][:9]}", own_deadline=own
    )
    return [answer.label for answer in await remote.answer(call) if isinstance(answer, RemoteAnswer)]


def sizes(server: FaultyServer) -> list[int]:
    return sorted(len(turn.texts) for turn in server.requests)


async def test_calls_of_one_moment_are_one_request_and_each_gets_its_own_answers() -> None:
    async with packing_before(good) as (remote, server):
        answers = await asyncio.gather(ask(remote, "a", "b"), ask(remote, "c"), ask(remote, "d", "e", "f"))
    assert answers == [["a", "b"], ["c"], ["d", "e", "f"]]
    (turn,) = server.requests
    assert turn.texts == ["a", "b", "c", "d", "e", "f"]
    assert not turn.headers["x-request-id"].startswith("id-")  # it is no single client's


async def test_a_call_of_its_own_travels_as_it_is() -> None:
    async with packing_before(good) as (remote, server):
        for text in ("a", "b"):
            assert await ask(remote, text) == [text]
    assert [turn.headers["x-request-id"] for turn in server.requests] == ["id-a", "id-b"]


async def test_a_pack_holds_no_more_items_than_it_may() -> None:
    async with packing_before(good, max_items=8) as (remote, server):
        answers = await asyncio.gather(*(ask(remote, f"{n}", f"{n}!", f"{n}?") for n in range(20)))
    assert answers == [[f"{n}", f"{n}!", f"{n}?"] for n in range(20)]
    assert sizes(server) == [6] * 10


async def test_with_room_for_one_item_nothing_is_packed() -> None:
    async with packing_before(good, max_items=1) as (remote, server):
        await asyncio.gather(*(ask(remote, f"{n}") for n in range(4)))
    assert sizes(server) == [1] * 4


async def test_calls_that_want_something_else_travel_apart() -> None:
    async with packing_before(good) as (remote, server):
        kinds = [{}, {"top_k": 2}, {"hops": 2}, {"timeout_s": 9.0}]
        await asyncio.gather(*(ask(remote, f"{n}", **kind) for n, kind in enumerate(kinds * 2)))
    assert sizes(server) == [2] * 4
    sent = {(turn.headers["x-gatekeeper-hops"], b'"top_k":2' in turn.body) for turn in server.requests}
    assert sent == {("1", False), ("2", False), ("1", True)}


async def test_a_deadline_of_its_own_and_a_long_text_travel_alone() -> None:
    async with packing_before(good) as (remote, server):
        long = "x" * (PACKED_TEXT_CHARS + 1)
        await asyncio.gather(ask(remote, "a"), ask(remote, "b"), ask(remote, long), ask(remote, "c", own=True))
    assert sizes(server) == [1, 1, 2]


async def test_a_client_with_little_time_is_not_kept_by_its_neighbours() -> None:
    async def script(turn: Turn) -> None:
        await (never(turn) if len(turn.texts) > 1 else turn.classify())

    async with packing_before(script) as (remote, _):
        packed = [asyncio.create_task(ask(remote, text)) for text in "ab"]
        assert await ask(remote, "c", own=True) == ["c"]
        for call in packed:
            call.cancel()
        await asyncio.wait(packed)


@pytest.mark.parametrize(
    "failure",
    [
        answering(400),
        answering(413),
        answering(422),
        answering(500),
        answering(200, b"{"),
        answering(200, b'{"outputs":[]}'),
    ],
    ids=["400", "413", "422", "500", "garbage", "too few"],
)
async def test_a_failure_that_may_be_one_items_fault_is_repeated_alone_by_each(failure: Script) -> None:
    async def script(turn: Turn) -> None:
        await (failure(turn) if "bad" in turn.texts else turn.classify())

    async with packing_before(script) as (remote, server):
        answers = await asyncio.gather(*(ask(remote, text) for text in ("a", "bad", "b")), return_exceptions=True)
    assert (answers[0], answers[2]) == (["a"], ["b"])
    assert isinstance(answers[1], RemoteBadAnswer | RemoteUnavailable)
    assert sizes(server) == [1, 1, 1, 3]


async def test_an_answer_that_is_too_long_for_all_together_is_asked_for_one_by_one() -> None:
    async def script(turn: Turn) -> None:
        await turn.classify({"x-filler": "y"}) if len(turn.texts) == 1 else await turn.answer(200, b" " * 70_000)

    async with packing_before(script) as (remote, _):
        assert await asyncio.gather(ask(remote, "a"), ask(remote, "b")) == [["a"], ["b"]]


@pytest.mark.parametrize("status", [429, 501, 504])
async def test_another_failure_is_everybodys_and_nothing_is_repeated(status: int) -> None:
    outcomes = Outcomes()
    async with packing_before(answering(status), outcomes=outcomes) as (remote, server):
        answers = await asyncio.gather(*(ask(remote, text) for text in "abc"), return_exceptions=True)
    assert len({id(error) for error in answers}) == 3  # an error carries its traceback: each has one of its own
    assert [error.reason for error in answers if isinstance(error, RemoteError)] == outcomes * 3
    assert sizes(server) == [3]


async def test_a_moment_between_two_calls_does_not_part_them() -> None:
    async with packing_before(good) as (remote, server):
        await asyncio.gather(ask(remote, "a"), ask(remote, "b", timeout_s=PATIENT_S - 0.03))
    assert sizes(server) == [2]


async def test_who_asks_again_alone_has_no_more_time_than_is_left() -> None:
    async def script(turn: Turn) -> None:
        if len(turn.texts) == 1:
            await turn.classify()
            return
        await asyncio.sleep(0.1)  # what the pack takes is gone for those who were in it
        await turn.answer(500)

    async with packing_before(script) as (remote, server):
        assert await asyncio.gather(ask(remote, "a"), ask(remote, "b")) == [["a"], ["b"]]
    told_ms = [int(turn.headers["x-request-timeout-ms"]) for turn in server.requests]
    assert max(told_ms[1:]) <= PATIENT_S * 1_000 - 100


async def test_a_pack_is_late_for_everybody_at_once() -> None:
    async with packing_before(never) as (remote, server):
        answers = await asyncio.gather(*(ask(remote, text, timeout_s=0.2) for text in "abc"), return_exceptions=True)
        await server.until(lambda seen: seen.open_connections == 0)
    assert [type(answer) for answer in answers] == [RemoteTimeout] * 3


async def test_who_leaves_before_the_pack_is_sent_is_not_in_it() -> None:
    async with packing_before(good) as (remote, server):
        calls = [asyncio.create_task(ask(remote, text)) for text in "abc"]
        asyncio.get_running_loop().call_soon(calls[1].cancel)
        answers = await asyncio.gather(*calls, return_exceptions=True)
    assert (answers[0], answers[2]) == (["a"], ["c"])
    assert isinstance(answers[1], asyncio.CancelledError)
    assert sizes(server) == [2]


async def test_who_leaves_while_the_pack_is_under_way_does_not_disturb_it() -> None:
    leave = asyncio.Event()

    async def script(turn: Turn) -> None:
        await leave.wait()
        await turn.classify()

    async with packing_before(script) as (remote, server):
        calls = [asyncio.create_task(ask(remote, text)) for text in "abc"]
        await server.until(lambda seen: seen.running_scripts == 1)
        calls[0].cancel()
        await asyncio.wait(calls[:1])
        leave.set()
        assert await asyncio.gather(*calls[1:]) == [["b"], ["c"]]
    assert len(server.requests) == 1


async def test_when_everybody_has_left_the_call_is_cancelled_and_its_connection_closed() -> None:
    async def script(turn: Turn) -> None:
        await turn.send(head(200, {"content-length": "100"}))
        await never(turn)

    async with packing_before(script) as (remote, server):
        calls = [asyncio.create_task(ask(remote, text)) for text in "abc"]
        await server.until(lambda seen: seen.running_scripts == 1)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        await server.until(lambda seen: seen.open_connections == 0)


async def test_a_whole_burst_counts_once_for_the_breaker() -> None:
    async with packing_before(answering(504), failures=2) as (remote, _):
        await asyncio.gather(*(ask(remote, text) for text in "abcdef"), return_exceptions=True)
        assert remote.refusal() is None


async def test_images_travel_alone() -> None:
    outputs = b'{"outputs": [{"label": "a", "score": 0.5, "decision": "accepted"}]}'
    async with packing_before(answering(200, outputs)) as (remote, server):
        image = {"image": "aGVsbG8="}
        calls = (remote.answer(asking(image, request_id=f"id-{n}")) for n in range(2))
        assert await asyncio.gather(*calls) == [[RemoteAnswer("a", 0.5, (), degraded=False)]] * 2
    assert len(server.requests) == 2


# --- too much for one call


async def test_a_call_is_divided_where_its_body_would_be_too_long() -> None:
    texts = [f"{number} " + "请把我的酒店预订改到下周" * 40 for number in range(30)]
    async with packing_before(good, max_bytes=8_192) as (remote, server):
        assert await ask(remote, *texts) == texts
    assert len(server.requests) > 1
    assert max(len(turn.body) for turn in server.requests) <= 8_192
    assert [text for turn in server.requests for text in turn.texts] == texts


async def test_texts_travel_in_utf_8_and_fit_where_escapes_would_not() -> None:
    texts = [f"{number} " + "请把我的酒店预订改到下周" * 40 for number in range(5)]
    async with packing_before(good, max_bytes=8_192) as (remote, server):
        assert await ask(remote, *texts) == texts
    (turn,) = server.requests
    assert len(turn.body) < 8_192 < len(json.dumps(texts))


def taking(most_items: int) -> Script:
    async def script(turn: Turn) -> None:
        await (turn.classify() if len(turn.texts) <= most_items else turn.answer(413))

    return script


async def test_what_a_server_finds_too_large_is_halved_until_it_passes() -> None:
    texts = [f"text {number}" for number in range(30)]
    async with packing_before(taking(8)) as (remote, server):
        assert await ask(remote, *texts) == texts
    passed = [len(turn.texts) for turn in server.requests if len(turn.texts) <= 8]
    assert sum(passed) == 30


async def test_one_item_that_a_server_finds_too_large_fails_and_opens_no_breaker() -> None:
    async with packing_before(taking(0), failures=1) as (remote, server):
        for _ in range(3):
            with pytest.raises(RemoteBadAnswer, match="413"):
                await ask(remote, "a")
    assert len(server.requests) == 3


async def test_a_part_that_runs_out_of_time_opens_no_breaker() -> None:
    """What is left for it after the others says nothing of the large model, if it is too short for anybody."""
    taken: list[int] = []

    async def slow_in_the_end(turn: Turn) -> None:
        taken.append(len(turn.texts))
        await (turn.classify() if len(taken) < 3 else never(turn))

    texts = [f"{number} " + "please " * 400 for number in range(9)]
    async with packing_before(slow_in_the_end, max_bytes=10_000, failures=1) as (remote, _):
        with pytest.raises(RemoteTimeout):
            await ask(remote, *texts, timeout_s=0.9 * ENOUGH_S)
        assert remote.refusal() is None


async def test_a_pack_holds_no_more_characters_than_it_may() -> None:
    texts = ["x" * PACKED_TEXT_CHARS] * (2 * PACK_CHARS // PACKED_TEXT_CHARS)

    async def briefly(turn: Turn) -> None:
        await turn.answer(200, outputs(["a"] * len(turn.texts)))

    async with packing_before(briefly, max_items=10_000, max_bytes=2**20) as (remote, server):
        await asyncio.gather(*(ask(remote, text) for text in texts))
    assert [len(turn.texts) for turn in server.requests] == [PACK_CHARS // PACKED_TEXT_CHARS] * 2
