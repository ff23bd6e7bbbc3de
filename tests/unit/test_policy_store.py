"""Both policy stores: one contract, and which of them the settings mean. Real SQLite, real Redis."""

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest
from support.policies import DEADLINE_S, Medium, a_policy, documents, garbage, warnings

from service.errors import PolicyStoreDown, StartupError, VersionMismatch
from service.policy import reading
from service.policy.document import MAX_DOCUMENT_BYTES, MAX_VERSION, highest_believable
from service.policy.reading import PROBLEMS_TOLD, UNREADABLE_KEPT, VERSIONS_KEPT
from service.policy.redis import RedisPolicyStore
from service.policy.sqlite import SqlitePolicyStore
from service.policy.store import PolicyStore, open_policy_store
from service.settings import EdgeSettings

PASSWORD = "hunter2-secret"


class TestContract:
    """What holds for every store."""

    async def test_a_stale_expectation_is_refused_and_leaves_nothing_behind(self, store: PolicyStore) -> None:
        await store.append("bundle", a_policy(1), expected_version=None)
        for expected, version in ((None, 2), (2, 3)):
            with pytest.raises(VersionMismatch, match="at version 1"):
                await store.append("bundle", a_policy(version), expected_version=expected)
        with pytest.raises(VersionMismatch):
            await store.append("other bundle", a_policy(2), expected_version=1)
        assert await store.history("bundle", "gate-a", 10) == [a_policy(1)]

    async def test_a_version_is_never_given_twice_even_to_two_gates(self, store: PolicyStore) -> None:
        await store.append("bundle", a_policy(4), expected_version=None)
        with pytest.raises(VersionMismatch, match="4"):
            await store.append("bundle", a_policy(4, "gate-b"), expected_version=None)
        with pytest.raises(VersionMismatch):
            await store.append("bundle", a_policy(3), expected_version=4)
        assert await store.next_version("bundle") == 5
        assert await store.next_version("other bundle") == 1

    @pytest.mark.parametrize(
        "garbage",
        [
            b"not json",
            b"",
            b"\xff\xfe\x00",
            b'{"version": 2}',
            b"[" * 5_000,
            a_policy(2).model_dump_json().replace("0.25", "NaN").encode(),
            a_policy(2).model_dump_json().replace("0.25", '"0.5"').encode(),
            a_policy(3).model_dump_json().encode(),
            a_policy(2, "gate-b").model_dump_json().encode(),
            a_policy(2).model_dump_json()[:-1].encode() + b', "from_the_future": [NaN]}',
            a_policy(2).model_dump_json().replace("2026-01-02T00:00:00Z", "0001-01-01T00:00:00+14:00").encode(),
            a_policy(2).model_dump_json()[:-1].encode() + b', "a": 1' * MAX_DOCUMENT_BYTES + b"}",
        ],
    )
    async def test_an_unreadable_document_is_skipped_logged_once_and_written_past(
        self, store: PolicyStore, medium: Medium, garbage: bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        await store.append("bundle", a_policy(1), expected_version=None)
        await medium.plant("bundle", "gate-a", 2, garbage)
        for _ in range(3):
            assert await store.latest("bundle", "gate-a") == a_policy(1)
            assert await store.history("bundle", "gate-a", 10) == [a_policy(1)]
            assert await store.newest("bundle") == a_policy(1)
        assert await store.get("bundle", "gate-a", 2) is None
        assert [record.levelname for record in caplog.records if "unreadable policy" in record.message] == ["WARNING"]
        assert "from_the_future" not in caplog.text

        version = await store.next_version("bundle")
        await store.append("bundle", a_policy(version), expected_version=1)
        assert await store.latest("bundle", "gate-a") == a_policy(version)

    @pytest.mark.parametrize(
        "version", [MAX_VERSION, MAX_VERSION - 1, 2**53 - 2**20, 2**52, 10**14, 2**62, 0, -1, -(2**60)]
    )
    @pytest.mark.parametrize("readable", [False, True])
    async def test_a_version_that_cannot_be_is_ignored_and_told_once(
        self, store: PolicyStore, medium: Medium, version: int, readable: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        await store.append("bundle", a_policy(1), expected_version=None)
        text = a_policy(1).model_dump_json().replace('"version":1', f'"version":{version}') if readable else "garbage"
        await medium.plant("bundle", "gate-a", version, text.encode())
        for number in range(1, 4):
            assert await store.latest("bundle", "gate-a") == a_policy(number)
            assert await store.newest("bundle") == a_policy(number)
            assert await store.get("bundle", "gate-a", version) is None
            assert await store.next_version("bundle") == number + 1
            await store.append("bundle", a_policy(number + 1), expected_version=number)
        assert await store.history("bundle", "gate-a", 10) == [a_policy(number) for number in (4, 3, 2, 1)]
        assert len(warnings(caplog)) == 1
        assert "versions that cannot be" in caplog.text

    async def test_above_the_highest_believable_version_there_is_soon_a_next_one(
        self, store: PolicyStore, medium: Medium
    ) -> None:
        await store.append("bundle", a_policy(1), expected_version=None)
        version = highest_believable()
        await medium.plant("bundle", "gate-a", version, a_policy(version).model_dump_json().encode())
        assert await store.latest("bundle", "gate-a") == a_policy(version)
        with pytest.raises(PolicyStoreDown, match="not due yet"):
            await store.append("bundle", a_policy(MAX_VERSION), expected_version=version)
        async with asyncio.timeout(DEADLINE_S):
            while await store.latest("bundle", "gate-a") == a_policy(version):
                with suppress(PolicyStoreDown):
                    await store.append("bundle", a_policy(version + 1), expected_version=version)
        assert await store.history("bundle", "gate-a", 2) == [a_policy(version + 1), a_policy(version)]

    async def test_unreadable_entries_push_no_policy_out(
        self, store: PolicyStore, medium: Medium, caplog: pytest.LogCaptureFixture
    ) -> None:
        await store.append("bundle", a_policy(1), expected_version=None)
        await medium.plant_many("bundle", "gate-a", documents(range(2, VERSIONS_KEPT + 1)))
        await medium.plant_many("bundle", "gate-a", garbage(range(10_001, 13_001)))
        assert await store.latest("bundle", "gate-a") == a_policy(VERSIONS_KEPT)
        assert await medium.count("bundle", "gate-a") == VERSIONS_KEPT + UNREADABLE_KEPT, "nobody meets them again"
        history = await store.history("bundle", "gate-a", 2 * VERSIONS_KEPT)
        assert [policy.version for policy in history] == list(range(VERSIONS_KEPT, 0, -1))
        version = max(13_001, await store.next_version("bundle"))
        await store.append("bundle", a_policy(version), expected_version=VERSIONS_KEPT)
        history = await store.history("bundle", "gate-a", 2 * VERSIONS_KEPT)
        assert [policy.version for policy in history] == [version, *range(VERSIONS_KEPT, 1, -1)]
        assert await store.get("bundle", "gate-a", 2) == a_policy(2)
        assert 1 < len(warnings(caplog)) <= PROBLEMS_TOLD + 1

    async def test_unreadable_entries_below_the_newest_policy_are_not_read_twice(
        self, store: PolicyStore, medium: Medium
    ) -> None:
        await store.append("bundle", a_policy(1), expected_version=None)
        await medium.plant_many("bundle", "gate-a", garbage(range(2, 3_002)))
        await medium.plant_many("bundle", "gate-a", documents(range(3_002, 3_003)))
        assert [policy.version for policy in await store.history("bundle", "gate-a", 10)] == [3_002, 1]
        assert await medium.count("bundle", "gate-a") == UNREADABLE_KEPT + 2

    async def test_a_store_full_of_garbage_is_cleared_by_one_read_after_the_other(
        self, store: PolicyStore, medium: Medium, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(reading, "UNREADABLE_MET", 1_000)
        await store.append("bundle", a_policy(1), expected_version=None)
        await medium.plant_many("bundle", "gate-a", garbage(range(2, 3_002)))
        for _ in range(3):
            with pytest.raises(PolicyStoreDown, match="full of unreadable entries") as caught:
                await store.latest("bundle", "gate-a")
            assert caught.value.retry_after_s
        assert await store.latest("bundle", "gate-a") == a_policy(1)

    async def test_what_is_too_long_for_a_policy_is_removed_at_sight_and_the_rest_of_a_few_stays(
        self, store: PolicyStore, medium: Medium, caplog: pytest.LogCaptureFixture
    ) -> None:
        await store.append("bundle", a_policy(1), expected_version=None)
        long = [(version, b"%d" % version + b"x" * 2**20) for version in range(2, 12)]
        await medium.plant_many("bundle", "gate-a", long + garbage(range(12, 15)))
        for _ in range(3):
            assert await store.latest("bundle", "gate-a") == a_policy(1)
        assert await medium.count("bundle", "gate-a") == 1 + 3
        assert len(warnings(caplog)) == 13

    async def test_nothing_is_found_in_an_empty_store(self, store: PolicyStore) -> None:
        assert await store.latest("bundle", "gate-a") is None
        assert await store.newest("bundle") is None
        assert await store.history("bundle", "gate-a", 10) == []
        for version in (-1, 0, 1, MAX_VERSION, 10**30):
            assert await store.get("bundle", "gate-a", version) is None

    async def test_a_policy_comes_back_as_it_was_stored(self, store: PolicyStore) -> None:
        policy = a_policy(1, threshold=0.1 + 0.2, note='naïve \x00 \U0001f600 "quoted"', deferral="off")
        await store.append("bundle", policy, expected_version=None)
        assert await store.latest("bundle", "gate-a") == policy
        assert await store.get("bundle", "gate-a", 1) == policy

    async def test_history_is_newest_first_and_no_longer_than_asked(self, store: PolicyStore) -> None:
        for version in (1, 2, 5):
            await store.append("bundle", a_policy(version), expected_version={1: None, 2: 1, 5: 2}[version])
        assert [policy.version for policy in await store.history("bundle", "gate-a", 10)] == [5, 2, 1]
        assert [policy.version for policy in await store.history("bundle", "gate-a", 2)] == [5, 2]

    async def test_gates_of_one_name_are_apart_and_the_newest_of_them_is_known(self, store: PolicyStore) -> None:
        await store.append("bundle", a_policy(1, "gate-a"), expected_version=None)
        await store.append("bundle", a_policy(2, "gate-b"), expected_version=None)
        await store.append("bundle", a_policy(3, "gate-a"), expected_version=1)
        assert await store.latest("bundle", "gate-b") == a_policy(2, "gate-b")
        assert await store.newest("bundle") == a_policy(3, "gate-a")

    @pytest.mark.parametrize("name", ["a:b", "a}:b", "{a}", "a*", "a b\n", "é", "'; DROP TABLE policy_versions; --"])
    async def test_names_and_digests_cannot_reach_into_each_other(self, store: PolicyStore, name: str) -> None:
        await store.append(name, a_policy(1, name), expected_version=None)
        await store.append("a", a_policy(1, "b"), expected_version=None)
        assert await store.history(name, name, 10) == [a_policy(1, name)]
        assert await store.history("a", "b", 10) == [a_policy(1, "b")]
        assert await store.newest(name) == a_policy(1, name)

    async def test_a_thousand_versions_are_kept_for_each_gate(self, store: PolicyStore, medium: Medium) -> None:
        await store.append("bundle", a_policy(1, "gate-b"), expected_version=None)
        await store.append("bundle", a_policy(2), expected_version=None)
        await medium.plant_many("bundle", "gate-a", documents(range(3, VERSIONS_KEPT + 2)))
        for version in range(VERSIONS_KEPT + 2, VERSIONS_KEPT + 5):
            await store.append("bundle", a_policy(version), expected_version=version - 1)
        history = await store.history("bundle", "gate-a", 2 * VERSIONS_KEPT)
        assert [policy.version for policy in history] == list(range(VERSIONS_KEPT + 4, 4, -1))
        assert await store.get("bundle", "gate-a", 4) is None
        assert await store.latest("bundle", "gate-b") == a_policy(1, "gate-b")

    async def test_of_many_simultaneous_writers_one_wins_each_version(self, medium: Medium) -> None:
        stores = [medium.open_store() for _ in range(4)]

        async def write(store: PolicyStore, writer: int) -> int:
            done = 0
            while done < 10:
                latest = await store.latest("bundle", "gate-a")
                version = await store.next_version("bundle")
                policy = a_policy(version, note=f"{writer}/{done}")
                try:
                    await store.append("bundle", policy, expected_version=latest and latest.version)  # type: ignore[arg-type]
                    done += 1
                except (VersionMismatch, PolicyStoreDown):  # lost, or locked out for too long: nothing was written
                    continue
            return done

        await asyncio.wait_for(asyncio.gather(*(write(store, n) for n, store in enumerate(stores))), 20)
        history = await stores[0].history("bundle", "gate-a", 100)
        assert [policy.version for policy in history] == list(range(40, 0, -1))
        assert {policy.note for policy in history} == {f"{w}/{n}" for w in range(4) for n in range(10)}
        for store in stores:
            await store.close()

    async def test_waiting_ends_soon_after_another_writer_and_else_at_the_timeout(self, medium: Medium) -> None:
        ours, theirs = medium.open_store(), medium.open_store()
        await ours.wait_for_change(DEADLINE_S)  # the first one may end at once
        await asyncio.wait_for(ours.wait_for_change(0.05), DEADLINE_S)
        waiting = asyncio.create_task(ours.wait_for_change(60))
        await theirs.append("bundle", a_policy(1), expected_version=None)
        await asyncio.wait_for(waiting, DEADLINE_S)
        await ours.close()
        await theirs.close()

    async def test_a_closed_store_is_down_and_can_be_closed_again(self, medium: Medium) -> None:
        store = medium.open_store()
        await store.append("bundle", a_policy(1), expected_version=None)
        await store.close()
        await store.close()
        with pytest.raises(PolicyStoreDown, match="closed"):
            await store.latest("bundle", "gate-a")

    async def test_a_cancelled_write_is_whole_or_absent(self, medium: Medium, store: PolicyStore) -> None:
        version = 0
        for delay_s in (0, 0.0002, 0.0005, 0.001, 0.002, 0.005):
            latest = await store.latest("bundle", "gate-a")
            expected = None if latest is None else latest.version
            version = await store.next_version("bundle")
            writing = asyncio.create_task(store.append("bundle", a_policy(version), expected_version=expected))
            await asyncio.wait([writing], timeout=delay_s)
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            # A second store, so that nothing of the cancelled call can be in the way.
            other = medium.open_store()
            found = await other.latest("bundle", "gate-a")
            assert (None if found is None else found.version) in (expected, version)
            await other.close()
        assert version


class TestOpening:
    """Which store the settings mean."""

    async def test_redis_url_chooses_redis_and_nothing_chooses_the_file(self, tmp_path: Path) -> None:
        file = open_policy_store(
            EdgeSettings.model_validate({"policy_path": tmp_path / "policy.db", "redis_url": None})
        )
        server = open_policy_store(EdgeSettings.model_validate({"redis_url": "redis://127.0.0.1:1/0"}))
        assert isinstance(file, SqlitePolicyStore)
        assert isinstance(server, RedisPolicyStore)
        assert not list(tmp_path.iterdir()), "opening touches no disk"
        await file.close()
        await server.close()

    @pytest.mark.parametrize("options", ["no_such_option=1", "db=x", "socket_timeout=soon", "protocol=3"])
    def test_options_that_the_client_does_not_know_stop_the_start(self, options: str) -> None:
        with pytest.raises(StartupError) as caught:
            RedisPolicyStore(f"redis://:{PASSWORD}@127.0.0.1:6379/0?{options}", 1.0)
        assert PASSWORD not in caught.value.detail

    async def test_options_cannot_change_how_replies_are_read(self, redis_url: str) -> None:
        store = RedisPolicyStore(f"{redis_url}?decode_responses=true&socket_timeout=1000", 1.0)
        await store.append("bundle", a_policy(1), expected_version=None)
        await store.append("bundle", a_policy(2), expected_version=1)
        assert await store.history("bundle", "gate-a", 10) == [a_policy(2), a_policy(1)]
        await store.close()
