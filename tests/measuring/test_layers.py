"""The profile by layers: which layer a sample belongs to, and how the table adds up."""

import pytest

from loadtests.common.servers import BenchFailed
from loadtests.compare.layers import Profile, layer_of, shares, table

LOOP = "main (service/cli.py);run (asyncio/runners.py)"
ROUTE = f"{LOOP};classify (service/api/classify.py)"


@pytest.mark.parametrize(
    ("stack", "layer"),
    [
        (LOOP, "event loop, sockets"),
        (ROUTE, "endpoint: parse, check, write"),
        (
            f"{ROUTE};__call__ (models/inference/folded.py);embedding_bag (torch/nn/functional.py)",
            "model: tokens, forward, softmax",
        ),
        (f"{ROUTE};observe (prometheus_client/metrics.py)", "metrics"),
        (f"{LOOP};send (aiohttp/client.py)", "the way to the large model"),
        (f"{ROUTE};<lambda> (a_library.py)", "endpoint: parse, check, write"),
        ("start (somewhere.py)", "other"),
    ],
)
def test_a_sample_belongs_to_the_innermost_layer_that_is_known(stack: str, layer: str) -> None:
    assert layer_of(stack) == layer


def test_shares_leave_out_threads_that_wait() -> None:
    raw = f"{LOOP} 30\n{ROUTE} 10\nrun (threading.py);_worker (concurrent/futures/thread.py) 500\n"
    assert shares(raw) == {"event loop, sockets": 0.75, "endpoint: parse, check, write": 0.25}


def test_a_profile_without_samples_is_an_error() -> None:
    with pytest.raises(BenchFailed):
        shares("")


def test_the_table_shares_out_the_time_of_a_request() -> None:
    lines = table([Profile("accept", 200.0, {"metrics": 0.25, "other": 0.75})]).splitlines()
    assert lines[2:] == ["| metrics | 50 |", "| other | 150 |", "| **all** | **200** |"]
