"""The queue in front of the model where images are decoded: order, bounds, fairness, and clients that leave."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.waiting import eventually, until

from service.errors import Expired, InvalidRequest, Overloaded, TooLarge
from service.images.decoder import DecodeLimits, Decoder


class Reader:
    """Upper-cases; "bad" is refused; nothing is read while `gate` is closed. `seen`: what was begun, in order.

    Each image takes as many seconds on its clock as it has letters, or `slowness` times as many, and says so before;
    that is longer than a slice.
    """

    slowness = 1.0

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.seen: list[str] = []
        self.now_s = 0.0

    def clock(self) -> float:
        return self.now_s

    def seconds(self, encoded: str | bytes, where: str) -> float:
        if encoded == "unknown":
            raise InvalidRequest(f"{where}: unknown")
        return float(len(encoded))

    def __call__(self, encoded: str | bytes, where: str) -> str:
        assert isinstance(encoded, str)
        self.seen.append(encoded)
        assert self.gate.wait(10)
        self.now_s += len(encoded) * self.slowness
        if encoded == "bad":
            raise InvalidRequest(f"{where}: bad")
        return encoded.upper()


Open = Callable[..., Decoder]


@pytest.fixture
async def reader() -> Reader:
    return Reader()


@pytest.fixture
async def opened(reader: Reader) -> AsyncIterator[Open]:
    decoders: list[Decoder] = []

    def build(threads: int = 1, items: int = 100, size: int = 1_000, **limits_s: float) -> Decoder:
        decoders.append(Decoder(reader, DecodeLimits(threads, items, size, **limits_s), clock=reader.clock))
        return decoders[-1]

    yield build
    reader.gate.set()
    for decoder in decoders:
        await decoder.aclose()


@given(requests=st.lists(st.lists(st.text("abc", min_size=1, max_size=3), max_size=9), max_size=9), threads=st.just(3))
@settings(max_examples=30, deadline=None)
def test_every_request_has_its_own_images_in_order(requests: list[list[str]], threads: int) -> None:
    async def together() -> list[list[str]]:
        decoder = Decoder(Reader(), DecodeLimits(threads, max_queue_items=100, max_queue_bytes=1_000))
        try:
            return await asyncio.gather(*map(decoder.decode, requests))
        finally:
            await decoder.aclose()

    assert asyncio.run(together()) == [[text.upper() for text in request] for request in requests]


async def test_the_first_bad_image_fails_its_request_alone(opened: Open) -> None:
    decoder = opened()
    bad, good = await asyncio.gather(
        decoder.decode(["a", "bad", "b", "bad"]), decoder.decode(["c"]), return_exceptions=True
    )
    assert isinstance(bad, InvalidRequest)
    assert bad.detail == "inputs.1: bad"
    assert good == ["C"]


async def test_beyond_its_items_or_bytes_it_refuses_and_takes_again_later(opened: Open, reader: Reader) -> None:
    """Alone, a request may fill it all; else it leaves room for as much again."""
    decoder = opened(items=4, size=12)
    (first,) = await held_up(decoder, [["aaaa", "bbbb"]], reader)
    with pytest.raises(Overloaded):
        await decoder.decode(["a", "b"])
    with pytest.raises(Overloaded):
        await decoder.decode(["ccc"])
    second = asyncio.ensure_future(decoder.decode(["cc"]))
    await queued(decoder, 1)
    with pytest.raises(Overloaded):
        decoder.admit()
    reader.gate.set()
    assert await first == ["AAAA", "BBBB"]
    assert await second == ["CC"]
    decoder.admit()
    assert await decoder.decode(["dddd", "eeee", "f", "ggg"]) == ["DDDD", "EEEE", "F", "GGG"]
    with pytest.raises(Overloaded):
        await decoder.decode(["a"] * 5)


async def test_many_large_requests_leave_room_for_a_small_one(opened: Open, reader: Reader) -> None:
    decoder = opened(items=100)
    reader.gate.clear()
    large = [asyncio.create_task(decoder.decode(["a"] * 20)) for _ in range(30)]
    small = asyncio.create_task(decoder.decode(["b"]))
    await asyncio.to_thread(eventually, lambda: decoder.waiting, "the small one, and those that were taken")
    reader.gate.set()
    assert await small == ["B"]
    found = await asyncio.gather(*large, return_exceptions=True)
    assert [kind for kind in map(type, found) if kind is not list] == [Overloaded] * 26


async def test_of_a_request_that_is_given_up_nothing_more_is_decoded(opened: Open, reader: Reader) -> None:
    decoder = opened()
    left, waiting, gone = await held_up(decoder, [["a"] * 50, ["b"], ["c"]], reader)
    gone.cancel()
    left.cancel()
    await asyncio.gather(left, gone, return_exceptions=True)
    reader.gate.set()
    assert await waiting == ["B"]
    assert reader.seen == ["a", "b"]
    decoder.admit()


async def test_a_long_request_lets_others_in_between(opened: Open, reader: Reader) -> None:
    decoder = opened()
    reader.gate.clear()
    long = asyncio.ensure_future(decoder.decode(["a"] * 5))
    await asyncio.to_thread(eventually, lambda: reader.seen, "the first image")
    short = asyncio.ensure_future(decoder.decode(["b"]))
    await queued(decoder, 1)
    reader.gate.set()
    assert await short == ["B"]
    assert await long == ["A"] * 5
    assert reader.seen[:2] == ["a", "b"]


async def test_no_more_images_are_unpacked_at_once_than_there_are_threads(opened: Open, reader: Reader) -> None:
    decoder = opened(threads=2)
    reader.gate.clear()
    requests = [asyncio.ensure_future(decoder.decode([name])) for name in "abcde"]
    await asyncio.to_thread(eventually, lambda: len(reader.seen) == 2, "two images")
    reader.gate.set()
    assert await asyncio.gather(*requests) == [["A"], ["B"], ["C"], ["D"], ["E"]]


async def test_past_its_deadline_a_request_is_not_decoded(opened: Open, reader: Reader) -> None:
    decoder = opened()
    with pytest.raises(Expired):
        await decoder.decode(["a"], reader.now_s - 1)
    assert reader.seen == []
    assert await decoder.decode(["a"], reader.now_s + 60) == ["A"]


async def queued(decoder: Decoder, count: int) -> None:
    await asyncio.to_thread(eventually, lambda: decoder.waiting == count, f"{count} requests in the queue")


async def held_up(decoder: Decoder, requests: list[list[str]], reader: Reader) -> "list[asyncio.Task[list[str]]]":
    """The requests, each in the queue before the next comes; the first is begun, and held up."""
    reader.gate.clear()
    tasks = [asyncio.create_task(decoder.decode(requests[0]))]
    begun = len(reader.seen)
    await asyncio.to_thread(eventually, lambda: len(reader.seen) > begun, "the first image")
    for number, images in enumerate(requests[1:], 1):
        tasks.append(asyncio.create_task(decoder.decode(images)))
        await queued(decoder, number)
    return tasks


async def test_a_single_image_overtakes_the_many_of_another(opened: Open, reader: Reader) -> None:
    """Six requests of five long images each came before it: it waits for the image that is being unpacked, no more."""
    decoder = opened()
    flood = await held_up(decoder, [["x" * 5] * 5] * 6, reader)
    single = asyncio.ensure_future(decoder.decode(["a"]))
    await queued(decoder, 6)
    reader.gate.set()
    assert await single == ["A"]
    assert reader.seen[:2] == ["xxxxx", "a"]
    await asyncio.gather(*flood)


async def test_short_ones_do_not_keep_out_a_long_one(opened: Open, reader: Reader) -> None:
    """Half of the time is for those that are overtaken: after three seconds of others, an image of three seconds."""
    decoder = opened()
    tasks = await held_up(decoder, [["f"], ["lll", "lll"], *[["s"]] * 8], reader)
    reader.gate.set()
    await asyncio.gather(*tasks)
    assert reader.seen[:5] == ["f", *"sss", "lll"]


async def test_a_stream_of_short_ones_leaves_half_of_the_time_to_a_long_request(opened: Open, reader: Reader) -> None:
    """Also after its first turn: those that it waits behind then are none that it overtook."""
    decoder = opened()
    tasks = await held_up(decoder, [["f"], ["l1", "l2", "l3"], *[["s"]] * 30], reader)
    reader.gate.set()
    await asyncio.gather(*tasks)
    last = reader.seen.index("l3")
    assert reader.seen[: last + 1].count("s") <= 6, reader.seen


async def test_what_would_wait_too_long_is_refused_and_told_for_how_long(opened: Open, reader: Reader) -> None:
    decoder = opened(max_queue_wait_s=2.0)
    tasks = await held_up(decoder, [["a" * 3], ["b" * 3]], reader)
    with pytest.raises(Overloaded) as refused:  # 3 s of the first, 3 of the second
        await decoder.decode(["c" * 4])
    assert refused.value.retry_after_s == 6
    decoder.admit()  # a small one would go before the second
    small = asyncio.ensure_future(decoder.decode(["d"]))
    await queued(decoder, 2)
    reader.gate.set()
    assert await small == ["D"]
    await asyncio.gather(*tasks)
    assert reader.seen == ["aaa", "d", "bbb"]


async def test_behind_one_image_there_is_no_queue(opened: Open, reader: Reader) -> None:
    """Whoever is next is taken, however long the image in front of it takes."""
    decoder = opened(max_queue_wait_s=0.5)
    tasks = await held_up(decoder, [["a" * 9], ["b" * 9]], reader)
    reader.gate.set()
    assert await asyncio.gather(*tasks) == [["A" * 9], ["B" * 9]]


async def test_behind_a_request_of_many_there_is_one(opened: Open, reader: Reader) -> None:
    decoder = opened(max_queue_wait_s=4.0)
    (task,) = await held_up(decoder, [["a"] * 6], reader)
    with pytest.raises(Overloaded):
        await decoder.decode(["b"] * 7)
    shorter = asyncio.create_task(decoder.decode(["c"] * 5))
    await queued(decoder, 1)
    reader.gate.set()
    assert await shorter == ["C"] * 5
    await task
    assert (reader.seen[1], reader.seen[-1]) == ("c", "a")


async def test_what_cannot_be_there_by_its_deadline_is_refused_at_once(opened: Open, reader: Reader) -> None:
    decoder = opened()
    (task,) = await held_up(decoder, [["a" * 5]], reader)
    with pytest.raises(Overloaded, match="own deadline"):
        await decoder.decode(["bb"], reader.now_s + 6.0)
    other = asyncio.ensure_future(decoder.decode(["bb"], reader.now_s + 8.0))
    await queued(decoder, 1)
    reader.gate.set()
    assert await other == ["BB"]
    await task


async def test_a_request_over_its_budget_is_refused_and_nothing_of_it_unpacked(opened: Open, reader: Reader) -> None:
    decoder = opened(max_request_s=10.0, max_queue_wait_s=0.1)
    with pytest.raises(TooLarge, match=r"11\.0 s to unpack, and 10 s"):
        await decoder.decode(["a" * 5, "b" * 6])
    assert reader.seen == []
    assert await decoder.decode(["a" * 5, "b" * 5]) == ["A" * 5, "B" * 5]


async def test_a_header_that_is_refused_costs_no_image(opened: Open, reader: Reader) -> None:
    with pytest.raises(InvalidRequest, match=r"inputs\.1: unknown"):
        await opened().decode(["a", "unknown"])
    assert reader.seen == []


async def test_what_takes_longer_than_estimated_is_told_and_learnt(
    opened: Open, reader: Reader, caplog: pytest.LogCaptureFixture
) -> None:
    decoder = opened()
    reader.slowness = 10.0
    for _ in range(30):
        await decoder.decode(["a"])
    assert decoder.late > 0
    assert "far longer" in caplog.text
    tasks = await held_up(decoder, [["a"], ["b"]], reader)
    assert 15 < decoder.wait_s(1e9) < 20.5, "two images that say one second and take ten"
    reader.gate.set()
    await asyncio.gather(*tasks)


async def test_closing_cancels_what_waits(opened: Open, reader: Reader) -> None:
    decoder = opened()
    tasks = await held_up(decoder, [["a"], ["b"]], reader)
    closing = asyncio.ensure_future(decoder.aclose())
    await until(lambda: not decoder.waiting)
    reader.gate.set()
    await closing
    assert all(
        isinstance(found, asyncio.CancelledError) for found in await asyncio.gather(*tasks, return_exceptions=True)
    )
    assert reader.seen == ["a"]
