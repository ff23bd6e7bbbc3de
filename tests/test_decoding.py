"""The queue in front of the model where images are decoded: order, bounds, fairness, and clients that leave."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import eventually

from service.decoding import Decoder
from service.errors import Expired, InvalidRequest, Overloaded


class Reader:
    """Upper-cases; "bad" is refused; nothing is read while `gate` is closed. `seen`: what was begun, in order.

    Each image takes a second on its clock, which is longer than a slice.
    """

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.seen: list[str] = []
        self.now_s = 0.0

    def clock(self) -> float:
        return self.now_s

    def __call__(self, encoded: str | bytes, where: str) -> str:
        assert isinstance(encoded, str)
        self.seen.append(encoded)
        assert self.gate.wait(10)
        self.now_s += 1.0
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

    def build(threads: int = 1, items: int = 100, size: int = 1_000) -> Decoder:
        decoders.append(
            Decoder(reader, threads=threads, max_queue_items=items, max_queue_bytes=size, clock=reader.clock)
        )
        return decoders[-1]

    yield build
    reader.gate.set()
    for decoder in decoders:
        await decoder.aclose()


@given(requests=st.lists(st.lists(st.text("abc", min_size=1, max_size=3), max_size=9), max_size=9), threads=st.just(3))
@settings(max_examples=30, deadline=None)
def test_every_request_has_its_own_images_in_order(requests: list[list[str]], threads: int) -> None:
    async def together() -> list[list[str]]:
        decoder = Decoder(Reader(), threads=threads, max_queue_items=100, max_queue_bytes=1_000)
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
    decoder = opened(items=3, size=10)
    reader.gate.clear()
    first = asyncio.ensure_future(decoder.decode(["aaaa", "bbbb"]))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await decoder.decode(["a", "b"])
    with pytest.raises(Overloaded):
        await decoder.decode(["ccc"])
    second = asyncio.ensure_future(decoder.decode(["cc"]))
    await asyncio.sleep(0)
    assert decoder.full
    reader.gate.set()
    assert await first == ["AAAA", "BBBB"]
    assert await second == ["CC"]
    assert not decoder.full
    assert await decoder.decode(["dddd", "eeee", "ff"]) == ["DDDD", "EEEE", "FF"]


async def test_of_a_request_that_is_given_up_nothing_more_is_decoded(opened: Open, reader: Reader) -> None:
    decoder = opened()
    reader.gate.clear()
    left = asyncio.ensure_future(decoder.decode(["a"] * 50))
    waiting = asyncio.ensure_future(decoder.decode(["b"]))
    await asyncio.to_thread(eventually, lambda: reader.seen, "the first image")
    gone = asyncio.ensure_future(decoder.decode(["c"]))
    await asyncio.sleep(0)
    gone.cancel()
    left.cancel()
    await asyncio.gather(left, gone, return_exceptions=True)
    reader.gate.set()
    assert await waiting == ["B"]
    assert reader.seen == ["a", "b"]
    assert not decoder.full


async def test_a_long_request_lets_others_in_between(opened: Open, reader: Reader) -> None:
    decoder = opened()
    reader.gate.clear()
    long = asyncio.ensure_future(decoder.decode(["a"] * 5))
    await asyncio.to_thread(eventually, lambda: reader.seen, "the first image")
    short = asyncio.ensure_future(decoder.decode(["b"]))
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
