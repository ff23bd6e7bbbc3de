"""What the state machines of the policy draw from, and the medium that one run of them has for itself."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from redis import Redis
from support.redis_server import RedisServer

from service.policy.redis import RedisPolicyStore
from service.policy.sqlite import SqlitePolicyStore
from service.policy.store import PolicyStore

KEPT = 3  # instead of 1,000, so that a short run reaches it
NAMES = st.sampled_from(["bundle", "b:{undle}"])
GATES = st.sampled_from(["gate-a", "gate-b", "gate-c"])
FIELDS = {
    "threshold": st.floats(0.0, 1.0),
    "deferral": st.sampled_from(["on", "off"]),
    "on_remote_failure": st.sampled_from(["degrade", "fail"]),
    "remote_timeout_s": st.floats(0.001, 600.0),
    "note": st.text(max_size=20),
}
CHANGES = st.fixed_dictionaries({}, optional=FIELDS)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values, max_size=3),
    max_leaves=6,
)
# What a document of a later release may say besides.
STORED = st.fixed_dictionaries({}, optional=FIELDS | {"cap": JSON, "": JSON})

DEFAULT = settings(
    max_examples=10,
    stateful_step_count=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
DEEP = settings(DEFAULT, max_examples=25, stateful_step_count=40, derandomize=False, database=None, print_blob=True)
DEPTHS = [
    pytest.param(DEFAULT, id="default"),
    pytest.param(DEEP, id="deep", marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
]


class Run:
    """Where the stores of one run keep their policies; empty at first."""

    loses_everything = False

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="policy-")
        self.folder = Path(self._folder.name)

    def open_store(self) -> PolicyStore:
        return SqlitePolicyStore(self.folder / "policy.db")

    def close(self) -> None:
        self._folder.cleanup()


class RedisRun(Run):
    """A Redis server that the runs share, one after the other."""

    loses_everything = True

    def __init__(self, server: RedisServer) -> None:
        super().__init__()
        self._url = server.url
        self.empty()

    def open_store(self) -> PolicyStore:
        return RedisPolicyStore(self._url, 5.0)

    def empty(self) -> None:
        """As after a restart that has lost everything."""
        with Redis.from_url(self._url) as redis:
            redis.flushall()

    def lose(self, gate_digest: str, version: int) -> None:
        """One version, and that it was the newest."""
        with Redis.from_url(self._url) as redis, redis.pipeline() as transaction:
            transaction.zremrangebyscore(f"gatekeeper:policy:{{bundle}}:{gate_digest}", version, version)
            transaction.zadd("gatekeeper:policy:{bundle}", {gate_digest: version - 1})
            transaction.execute()
