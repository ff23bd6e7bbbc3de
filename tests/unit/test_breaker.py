"""The breaker: opens after a run of failures, lets one probe through, never stays half-open for good."""

import pytest
from support.waiting import Clock

from service.remote.breaker import Breaker, Permit

OPEN_S = 2.0
LEASE_S = 5.0


@pytest.fixture
def clock() -> Clock:
    return Clock(100.0)


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(failures=3, open_s=OPEN_S, clock=clock)


def admitted(breaker: Breaker) -> Permit:
    permit = breaker.admit(LEASE_S)
    assert permit is not None
    return permit


def fail(breaker: Breaker, times: int) -> None:
    for _ in range(times):
        breaker.failed(admitted(breaker))


def half_open(breaker: Breaker, clock: Clock) -> Permit:
    """Open the breaker, wait, and return the probe."""
    fail(breaker, 3)
    clock.now += OPEN_S
    return admitted(breaker)


def test_a_new_breaker_admits_any_number_of_calls(breaker: Breaker) -> None:
    assert all(breaker.admit(LEASE_S) for _ in range(100))
    assert not breaker.is_open
    assert breaker.wait_s() == 0.0


def test_failures_in_a_row_open_it(breaker: Breaker) -> None:
    """The third failure opens a breaker of three, and that report alone says so."""
    assert [breaker.failed(admitted(breaker)) for _ in range(3)] == [False, False, True]
    assert breaker.is_open
    assert breaker.admit(LEASE_S) is None


def test_a_success_starts_the_count_again(breaker: Breaker) -> None:
    fail(breaker, 2)
    assert breaker.succeeded(admitted(breaker)) is False  # it was closed already
    fail(breaker, 2)
    assert not breaker.is_open


def test_a_withdrawn_call_neither_counts_nor_clears(breaker: Breaker) -> None:
    fail(breaker, 2)
    breaker.withdraw(admitted(breaker))
    assert not breaker.is_open
    fail(breaker, 1)
    assert breaker.is_open


def test_it_refuses_for_the_whole_time_and_says_how_long(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    assert breaker.wait_s() == pytest.approx(OPEN_S)
    clock.now += OPEN_S - 0.5
    assert breaker.wait_s() == pytest.approx(0.5)
    assert breaker.admit(LEASE_S) is None


def test_asking_how_long_does_not_take_the_probe(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now += OPEN_S
    assert breaker.wait_s() == 0.0
    assert breaker.wait_s() == 0.0
    assert breaker.admit(LEASE_S) is not None


def test_half_open_admits_exactly_one_probe(breaker: Breaker, clock: Clock) -> None:
    half_open(breaker, clock)
    assert breaker.is_open
    assert [breaker.admit(LEASE_S) for _ in range(10)] == [None] * 10


def test_a_successful_probe_closes_it(breaker: Breaker, clock: Clock) -> None:
    assert breaker.succeeded(half_open(breaker, clock)) is True
    assert not breaker.is_open
    fail(breaker, 2)  # the old count is forgotten
    assert not breaker.is_open


def test_a_failed_probe_opens_it_again_for_the_whole_time(breaker: Breaker, clock: Clock) -> None:
    assert breaker.failed(half_open(breaker, clock)) is False  # it was open already
    assert breaker.wait_s() == pytest.approx(OPEN_S)
    clock.now += OPEN_S
    assert breaker.succeeded(admitted(breaker)) is True


def test_a_withdrawn_probe_leaves_its_turn_to_the_next_call(breaker: Breaker, clock: Clock) -> None:
    breaker.withdraw(half_open(breaker, clock))
    assert breaker.is_open
    assert breaker.succeeded(admitted(breaker)) is True


def test_a_probe_that_never_reports_loses_its_turn_after_its_lease(breaker: Breaker, clock: Clock) -> None:
    half_open(breaker, clock)
    clock.now += LEASE_S - 0.1
    assert breaker.admit(LEASE_S) is None
    clock.now += 0.1
    assert breaker.succeeded(admitted(breaker)) is True


@pytest.mark.parametrize("report", ["succeeded", "failed", "withdraw"])
def test_a_probe_that_reports_after_its_lease_is_ignored(breaker: Breaker, clock: Clock, report: str) -> None:
    lost = half_open(breaker, clock)
    clock.now += LEASE_S
    probe = admitted(breaker)
    getattr(breaker, report)(lost)
    assert breaker.is_open
    assert breaker.admit(LEASE_S) is None  # the second probe is still out
    assert breaker.succeeded(probe) is True


@pytest.mark.parametrize("report", ["succeeded", "failed", "withdraw"])
def test_a_call_from_before_the_opening_changes_nothing(breaker: Breaker, clock: Clock, report: str) -> None:
    """64 calls run when the remote dies: the first few failures open the breaker, the rest are old news."""
    before = admitted(breaker)
    fail(breaker, 3)
    clock.now += OPEN_S / 2
    getattr(breaker, report)(before)
    assert breaker.is_open
    assert breaker.wait_s() == pytest.approx(OPEN_S / 2)


@pytest.mark.parametrize("report", ["succeeded", "failed", "withdraw"])
def test_a_call_from_before_the_opening_does_not_speak_for_the_probe(
    breaker: Breaker, clock: Clock, report: str
) -> None:
    before = admitted(breaker)
    half_open(breaker, clock)
    getattr(breaker, report)(before)
    assert breaker.is_open
    assert breaker.admit(LEASE_S) is None


def test_a_failure_from_before_the_opening_does_not_count_after_the_healing(breaker: Breaker, clock: Clock) -> None:
    late = [admitted(breaker) for _ in range(3)]
    breaker.succeeded(half_open(breaker, clock))
    assert [breaker.failed(permit) for permit in late] == [False, False, False]
    assert not breaker.is_open


def test_only_the_first_report_of_a_permit_counts(breaker: Breaker) -> None:
    permit = admitted(breaker)
    for _ in range(5):
        breaker.failed(permit)
    breaker.withdraw(permit)
    assert not breaker.is_open


def test_a_probe_that_failed_cannot_be_withdrawn(breaker: Breaker, clock: Clock) -> None:
    """`withdraw` stands in a finally: after a report it must do nothing."""
    probe = half_open(breaker, clock)
    breaker.failed(probe)
    breaker.withdraw(probe)
    assert breaker.wait_s() == pytest.approx(OPEN_S)
