"""Whether nearly all deferrals degrade: when the state begins, when it ends, and what is logged."""

import logging

import pytest
from support.outcomes import settle
from support.waiting import Clock

from service.telemetry.outage import FEWEST, FOR_S, LAST, TELL_EVERY_S, WITHIN_S, Deferrals


@pytest.fixture
def clock() -> Clock:
    return Clock(1_000.0)


@pytest.fixture
def deferrals(clock: Clock) -> Deferrals:
    return Deferrals(clock)


def outage(deferrals: Deferrals, clock: Clock, reason: str = "deadline", requests: int = LAST) -> None:
    """As many requests as are looked at, over twice the time that it takes."""
    for _ in range(requests):
        deferrals.note(reason)
        clock.now += 2 * FOR_S / requests


@pytest.mark.parametrize("reason", ["deadline", "remote_limit", "breaker_open", "remote_bad_answer", "remote_degraded"])
def test_it_begins_whatever_the_reason(reason: str, deferrals: Deferrals, clock: Clock) -> None:
    assert deferrals.degrading() is None
    outage(deferrals, clock, reason)
    state = deferrals.degrading()
    assert state is not None
    assert (state.requests, state.reasons) == (LAST, {reason: LAST})


def test_few_requests_and_a_moment_are_no_outage(deferrals: Deferrals, clock: Clock) -> None:
    for _ in range(100):
        deferrals.note("remote_timeout")
    assert deferrals.degrading() is None, "a moment"
    clock.now += WITHIN_S + 1
    outage(deferrals, clock, requests=FEWEST - 1)
    assert deferrals.degrading() is None, "too few"


def test_it_is_seen_where_little_is_deferred(deferrals: Deferrals, clock: Clock) -> None:
    for _ in range(FEWEST):
        deferrals.note("deadline")
        clock.now += 10.0
    assert deferrals.degrading() is not None


def test_a_tenth_that_is_answered_is_not_enough_more_ends_it(deferrals: Deferrals, clock: Clock) -> None:
    outage(deferrals, clock)
    for _ in range(LAST // 10):
        deferrals.note(None)
    assert deferrals.degrading() is not None
    deferrals.note(None)
    assert deferrals.degrading() is None


def test_without_requests_it_ends_by_itself(deferrals: Deferrals, clock: Clock) -> None:
    outage(deferrals, clock)
    clock.now += WITHIN_S
    assert deferrals.degrading() is None


def test_the_log_has_one_line_when_it_begins_and_one_when_it_ends(
    deferrals: Deferrals, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    outage(deferrals, clock)
    outage(deferrals, clock, "remote_limit")
    assert len(caplog.records) == 1
    for _ in range(LAST):
        deferrals.note(None)
    begins, ends = caplog.records
    assert begins.levelname == "WARNING"
    assert set(begins.reasons) == {"deadline"}  # type: ignore[attr-defined]
    assert ends.reasons == {"deadline": LAST, "remote_limit": LAST}  # type: ignore[attr-defined]
    assert "answers again" in ends.getMessage()


def test_a_state_that_comes_and_goes_fills_no_log(
    deferrals: Deferrals, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    began = clock.now
    while clock.now < began + 10 * TELL_EVERY_S:
        outage(deferrals, clock)
        for _ in range(LAST):
            deferrals.note(None)
    assert 2 <= len(caplog.records) <= 2 * 11


def test_a_request_is_lost_when_the_large_model_answered_none_of_its_items(deferrals: Deferrals, clock: Clock) -> None:
    """Of a request the last reason is kept; what the gate accepted says nothing."""
    for _ in range(FEWEST):
        settle(deferrals.on_settled, (0.9, "accepted"))
        settle(
            deferrals.on_settled,
            (0.9, "accepted"),
            (0.1, "degraded", "remote_bad_answer"),
            (0.2, "deferred", "remote_degraded"),
        )
        clock.now += FOR_S
    state = deferrals.degrading()
    assert state is not None
    assert (state.requests, state.reasons) == (FEWEST, {"remote_degraded": FEWEST})
    settle(deferrals.on_settled, (0.1, "deferred", "below_threshold"), (0.2, "failed", "remote_bad_answer"))
    assert deferrals.degrading() is None, "one of its items was answered"
