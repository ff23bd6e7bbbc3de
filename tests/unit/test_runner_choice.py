"""Where the model runs, and how much of it at once: by what it takes at worst, measured at the start."""

from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any

import pytest

from service import runtime
from service.batching import probe
from service.batching.batcher import Batcher
from service.settings import EdgeSettings


class Timed:
    """A model of texts and its clock: `short_s` for an everyday text, `long_s` for one that is slow to tokenise."""

    prepare = None

    def __init__(self, short_s: float, long_s: float) -> None:
        self._short_s, self._long_s = short_s, long_s
        self.now = 0.0

    def predict(self, batch: list[str]) -> list[None]:
        self.now += sum(self._long_s if text.startswith("x" * 99) else self._short_s for text in batch)
        return [None] * len(batch)


def chosen(monkeypatch: pytest.MonkeyPatch, model: Timed, **settings: Any) -> Batcher[Any, Any]:
    monkeypatch.setattr(probe, "time", SimpleNamespace(perf_counter=lambda: model.now))
    nothing = lambda *_: None  # noqa: E731
    metrics = SimpleNamespace(observe_batch=nothing, observe_queue=nothing, watch_queue=nothing)
    bundle = SimpleNamespace(manifest=SimpleNamespace(max_tokens=128))
    return runtime._open_batcher(AsyncExitStack(), EdgeSettings(**settings), bundle, model, metrics)  # type: ignore[arg-type]


async def test_a_quick_model_runs_inline_with_few_long_texts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    batcher = chosen(monkeypatch, Timed(0.00002, 0.004))
    assert batcher.runner == "inline"
    assert batcher._limits.max_batch_items == 32
    assert batcher._limits.max_batch_tokens == 12 * 128, (
        "twelve texts of 4 ms fit into the 50 ms that the loop may be kept"
    )


async def test_a_model_that_one_text_can_keep_for_long_runs_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    batcher = chosen(monkeypatch, Timed(0.00002, 0.06))
    assert batcher.runner == "thread"
    assert batcher._limits.max_batch_tokens == EdgeSettings().max_batch_tokens


async def test_an_operator_who_wants_it_inline_is_warned(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    batcher = chosen(monkeypatch, Timed(0.00002, 0.06), runner="inline")
    assert (batcher.runner, batcher._limits.max_batch_tokens) == ("inline", 128)
    assert caplog.messages == ["one item may hold up the event loop: unset GATEKEEPER_RUNNER"]
