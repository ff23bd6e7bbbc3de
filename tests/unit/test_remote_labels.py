"""A server's labels compared with this edge's: how long it is asked, what is told, and an edge that asks itself."""

import asyncio
import json
import logging
from collections.abc import Sequence

import pytest
from support.faulty_server import Turn, serving
from support.remotes import ask, good, remote_to

from service.errors import RemoteBadAnswer, RemoteError, RemoteUnavailable
from service.remote import labels
from service.remote.gatekeeper_wire import HANDSHAKE
from service.remote.labels import LabelCheck
from service.remote.wire import ServerFacts

OURS = ["a", "b", "c"]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(labels, "RETRY_S", (0.001, 0.002))
    caplog.set_level(logging.INFO)


class Server:
    """Answers each question with the next of what it was given; asked once more, it never answers."""

    def __init__(self, *answers: Sequence[str] | RemoteError) -> None:
        self.answers = list(answers)
        self.asked = 0
        self.at_the_end = asyncio.Event()

    async def __call__(self) -> list[str]:
        self.asked += 1
        if self.asked > len(self.answers):
            self.at_the_end.set()
            await asyncio.Event().wait()
        answer = self.answers[self.asked - 1]
        if isinstance(answer, RemoteError):
            raise answer
        return list(answer)


async def checked(server: Server, *, ends: bool, refuse: bool = True) -> ServerFacts:
    """The facts when the check has come to its end or, where it would go on, when it has heard all answers."""
    facts = ServerFacts()
    check = asyncio.create_task(LabelCheck("http://large", OURS, facts, refuse=refuse).run(server))
    async with asyncio.timeout(5.0):
        await (check if ends else server.at_the_end.wait())
    check.cancel()
    await asyncio.wait([check])
    return facts


async def test_the_same_labels_in_any_order_end_the_check_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    facts = await checked(Server(["c", "b", "a"]), ends=True)
    assert facts == ServerFacts(labels_match=True, labels_told=3, labels_shared=3)
    assert caplog.records == []


async def test_a_server_that_is_away_is_asked_until_it_comes(caplog: pytest.LogCaptureFixture) -> None:
    server = Server(*[RemoteUnavailable("away")] * 3 * labels.ATTEMPTS, OURS)
    assert (await checked(server, ends=True)).labels_match
    assert server.asked == 3 * labels.ATTEMPTS + 1
    assert caplog.records == []


async def test_a_server_that_tells_no_labels_is_left_alone_after_a_while(caplog: pytest.LogCaptureFixture) -> None:
    server = Server(*[RemoteBadAnswer("none")] * labels.ATTEMPTS)
    assert await checked(server, ends=True) == ServerFacts()
    (record,) = caplog.records
    assert "does not tell its labels" in record.getMessage()
    assert record.why == "none"  # type: ignore[attr-defined]


async def test_an_answer_in_between_begins_the_count_anew() -> None:
    bad = [RemoteBadAnswer("none")] * (labels.ATTEMPTS - 1)
    facts = await checked(Server(*bad, ["a"], *bad, OURS), ends=True)
    assert facts.labels_match


async def test_labels_that_differ_are_told_once_and_asked_for_again(caplog: pytest.LogCaptureFixture) -> None:
    facts = await checked(Server(*[["a", "x"]] * 5), ends=False)
    assert facts == ServerFacts(labels_match=False, labels_told=2, labels_shared=1)
    (record,) = caplog.records
    told = (record.ours, record.theirs, record.shared, record.only_ours, record.only_theirs)  # type: ignore[attr-defined]
    assert told == (3, 2, 1, "b", "x")


async def test_another_model_in_its_place_is_noticed_and_told(caplog: pytest.LogCaptureFixture) -> None:
    facts = await checked(Server(["x"], ["x"], ["a", "x"], OURS), ends=True)
    assert facts == ServerFacts(labels_match=True, labels_told=3, labels_shared=3)
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING", "INFO"]


@pytest.mark.parametrize(("refuse", "then"), [(True, "are refused"), (False, "reach clients")])
async def test_the_log_says_what_becomes_of_foreign_labels(
    refuse: bool, then: str, caplog: pytest.LogCaptureFixture
) -> None:
    await checked(Server(["x"]), ends=False, refuse=refuse)
    assert then in caplog.text


# --- the way of the question, and an edge that asks itself


async def large(turn: Turn) -> None:
    if turn.request_line == "GET /v1/models HTTP/1.1":
        await turn.answer(200, json.dumps({"data": [{"labels": OURS}]}).encode())
    else:
        await turn.classify()


async def test_a_pool_asks_each_server_when_it_starts_and_stops_asking_when_it_closes() -> None:
    async def away(turn: Turn) -> None:
        await turn.answer(503)

    async with (
        serving(large) as first,
        serving(away) as second,
        remote_to(f"{first.url},{second.url}", labels=OURS) as remote,
    ):
        assert first.requests == []
        remote.start()
        await second.until(lambda seen: len(seen.requests) > 2)
        await first.until(lambda seen: len(seen.requests) == 1)
        facts = [endpoint.wire.facts.labels_match for endpoint in remote.endpoints]
        await remote.aclose()
        await second.until(lambda seen: seen.open_connections == 0)
        asked = len(second.requests)
        await asyncio.sleep(0.02)  # ten times as long as it waits between two questions
    assert facts == [True, None]
    assert len(second.requests) == asked


async def test_who_is_asked_by_itself_is_no_large_model_and_is_not_called(caplog: pytest.LogCaptureFixture) -> None:
    async with (
        serving(large) as itself,
        serving(good) as other,
        remote_to(f"{itself.url},{other.url}", labels=OURS) as remote,
    ):
        remote.start()
        await itself.until(lambda seen: len(seen.requests) == 1)
        handshake = itself.requests[0].headers[HANDSHAKE]
        remote.was_asked("of another edge")
        assert not any(endpoint.wire.facts.is_self for endpoint in remote.endpoints)
        for _ in range(2):
            remote.was_asked(handshake)
        assert [endpoint.wire.facts.is_self for endpoint in remote.endpoints] == [True, False]
        await ask(remote, "a")
        remote.was_asked(other.requests[0].headers[HANDSHAKE])
        assert isinstance(remote.refusal(), RemoteUnavailable)
        with pytest.raises(RemoteUnavailable, match="leads back to this edge"):
            await ask(remote, "a")
    assert [turn.request_line.split()[0] for turn in itself.requests] == ["GET"]
    assert caplog.text.count("leads back to this edge") == 2
