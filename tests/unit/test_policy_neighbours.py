"""This release beside a later one, which has one operator field more, on one Redis and on one SQLite file.

`cap` is the field that is not known here. The later release is this one with one line more, so that these tests also
show what a new field needs.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from redis.asyncio import Redis
from support.later_release import LaterRelease, copy_with_one_field_more
from support.policies import a_policy
from support.redis_server import RedisServer
from support.replicas import eventually_stored, replica
from support.waiting import until

from service.errors import PolicyStoreDown
from service.policy.document import Policy, PolicyPatch, PolicyReplacement
from service.policy.redis import RedisPolicyStore
from service.policy.sqlite import SqlitePolicyStore
from service.policy.store import PolicyStore

CAP, OTHER_CAP = {"day": 5.5, "month": 100.0}, {"day": 9.0}


@pytest.fixture(scope="session")
def later_code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_with_one_field_more(tmp_path_factory.mktemp("later"))


@pytest.fixture(params=["sqlite", "redis"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    if request.param == "redis":
        return "redis", request.getfixturevalue("redis_url")
    return "sqlite", str(tmp_path / "policy.db")


@pytest.fixture
def open_store(where: tuple[str, str]) -> Callable[[], PolicyStore]:
    kind, place = where
    return lambda: RedisPolicyStore(place, 5.0) if kind == "redis" else SqlitePolicyStore(Path(place))


@pytest.fixture
def later(later_code: Path, where: tuple[str, str]) -> Iterator[LaterRelease]:
    with LaterRelease(later_code, *where) as process:
        yield process


def as_json(policy: Policy) -> Any:
    return json.loads(policy.model_dump_json())


class TestNothingIsLost:
    """Of what the later release wrote, by what this one does."""

    async def test_a_patch_passes_on_what_it_does_not_know(
        self, later: LaterRelease, open_store: Callable[[], PolicyStore]
    ) -> None:
        theirs = await later.do("patch", fields={"cap": CAP, "note": "by them"})
        async with replica(open_store()) as live:
            assert as_json(live.snapshot) == theirs
            ours = await live.set(threshold=0.8, note="by us")
            seen = await later.do("follow", version=ours.version)
            assert (
                seen
                == as_json(ours)
                == theirs
                | {
                    "version": theirs["version"] + 1,
                    "threshold": 0.8,
                    "note": "by us",
                    "updated_at": seen["updated_at"],
                    "updated_by": "operator",
                }
            )
            assert seen["cap"] == CAP

    async def test_history_and_rollback_keep_it_in_older_versions_too(
        self, later: LaterRelease, open_store: Callable[[], PolicyStore]
    ) -> None:
        with_cap = await later.do("patch", fields={"cap": CAP})
        async with replica(open_store()) as live:
            await live.set(threshold=0.8)
            await later.do("follow", version=live.snapshot.version)
            await later.do("patch", fields={"cap": OTHER_CAP})
            back = await live.rollback(with_cap["version"], updated_by="operator")
            seen = await later.do("follow", version=back.version)
            assert (seen["cap"], seen["threshold"]) == (CAP, with_cap["threshold"])
            history = [as_json(policy) for policy in await live.history(100)]
            assert history == await later.do("history")
            assert [policy.get("cap") for policy in history] == [CAP, OTHER_CAP, CAP, CAP, {}]

    @pytest.mark.slow
    @pytest.mark.parametrize("who", ["this", "later"])
    async def test_back_to_a_version_of_before_the_field_is_at_its_default_whoever_does_it(
        self, later: LaterRelease, open_store: Callable[[], PolicyStore], who: str
    ) -> None:
        async with replica(open_store()) as live:
            before = await live.replace(PolicyReplacement(threshold=0.8), updated_by="operator", if_match=1)
            await later.do("follow", version=before.version)
            with_cap = await later.do("patch", fields={"cap": CAP})
            await until(lambda: live.snapshot.version == with_cap["version"])
            if who == "this":
                await live.rollback(before.version, updated_by="operator")
            else:
                await later.do("rollback", version=before.version)
            seen = await later.do("follow", version=with_cap["version"] + 1)
            assert (seen["cap"], seen["threshold"]) == ({}, 0.8)
            again = await live.rollback(with_cap["version"], updated_by="operator")
            assert (await later.do("follow", version=again.version))["cap"] == CAP, "history still has it"

    async def test_a_new_gate_inherits_it(self, later: LaterRelease, open_store: Callable[[], PolicyStore]) -> None:
        await later.do("patch", fields={"cap": CAP, "remote_timeout_s": 3})
        async with replica(open_store(), gate_digest="gate-b") as live:
            assert live.snapshot.model_extra == {"cap": CAP}
            assert live.snapshot.remote_timeout_s == 3.0

    async def test_an_emptied_redis_gets_it_back(self, later_code: Path, redis: Redis, redis_url: str) -> None:
        with LaterRelease(later_code, "redis", redis_url) as later:
            theirs = await later.do("patch", fields={"cap": CAP})
        async with replica(RedisPolicyStore(redis_url, 1.0), poll_s=0.02) as live:
            await redis.flushall()
            await eventually_stored(redis, live.snapshot)
        with LaterRelease(later_code, "redis", redis_url) as later:
            assert await later.do("follow", version=1) == theirs

    async def test_a_last_good_copy_keeps_it(self, later_code: Path, tmp_path: Path) -> None:
        path = tmp_path / "last-good.json"
        with RedisServer() as server:
            with LaterRelease(later_code, "redis", server.url) as later:
                theirs = await later.do("patch", fields={"cap": CAP})
            async with replica(RedisPolicyStore(server.url, 1.0), last_good_path=path):
                pass
            server.stop()
            async with replica(RedisPolicyStore(server.url, 1.0), last_good_path=path) as live:
                assert as_json(live.snapshot) == theirs
                server.start()
                await until(lambda: live.store_up)
                assert [as_json(policy) for policy in await live.history(10)] == [theirs]


class TestReplacement:
    """PUT says everything, so what it leaves out takes its default, known here or not."""

    async def test_a_replacement_here_means_what_the_same_one_means_there(
        self, later: LaterRelease, open_store: Callable[[], PolicyStore]
    ) -> None:
        await later.do("patch", fields={"cap": CAP})
        async with replica(open_store()) as live:
            version = live.snapshot.version
            ours = await live.replace(PolicyReplacement(threshold=0.8), updated_by="us", if_match=version)
            seen_of_ours = await later.do("follow", version=ours.version)
            await later.do("patch", fields={"cap": CAP})
            theirs = await later.do("replace", fields={"threshold": 0.8})
            same = theirs.keys() - {"version", "updated_at", "updated_by"}
            assert {name: seen_of_ours[name] for name in same} == {name: theirs[name] for name in same}
            assert seen_of_ours["cap"] == {}

    @pytest.mark.parametrize("body", [PolicyPatch, PolicyReplacement])
    def test_only_the_later_release_takes_the_field_itself(self, body: type[PolicyPatch | PolicyReplacement]) -> None:
        with pytest.raises(ValidationError, match="cap"):
            body.model_validate({"threshold": 0.5, "cap": CAP})


class TestAcrossReleases:
    """What was written before is read and means the same."""

    async def test_a_store_of_before_is_taken_over_and_handed_back(
        self, later: LaterRelease, open_store: Callable[[], PolicyStore]
    ) -> None:
        """A document without the field means its default, and is not written anew for it."""
        async with replica(open_store()) as live:
            first = await live.set(threshold=0.8)
            seen = await later.do("follow", version=first.version)
            assert seen == as_json(first) | {"cap": {}}
            assert len(await later.do("history")) == len(await live.history(10)) == 2
            assert live.snapshot == first


async def test_a_document_that_would_be_too_long_to_be_read_again_is_not_stored(
    open_store: Callable[[], PolicyStore],
) -> None:
    store = open_store()
    long = Policy.model_validate(a_policy(1).model_dump() | {"cap": "x" * 65_000})
    await store.append("bundle", long, expected_version=None)
    with pytest.raises(PolicyStoreDown, match="more than 65,536 bytes"):
        await store.append("bundle", long.model_copy(update={"version": 2, "note": "n" * 500}), expected_version=1)
    assert await store.history("bundle", "gate-a", 10) == [long]
    await store.close()
