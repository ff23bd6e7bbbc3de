"""Policies in a Redis server, for any number of hosts. Redis' errors end here.

There is, for each bundle name, a sorted set `gatekeeper:policy:{name}` of gate digests by their highest version, and
for each gate `gatekeeper:policy:{name}:digest`, a sorted set of documents by version; the braces put the keys of one
name into one slot of a cluster.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import cast
from urllib.parse import quote

from redis import exceptions as redis_errors
from redis.asyncio import Redis
from redis.asyncio.client import PubSub

from service.errors import PolicyStoreDown, VersionMismatch
from service.policy.document import Policy, highest_believable
from service.policy.reading import (
    RETRY_AFTER_S,
    VERSIONS_KEPT,
    DocumentReader,
    Reading,
    first,
    require_next,
    text_of,
)
from service.redis_connection import label_of, open_pool, reason_of

logger = logging.getLogger(__name__)

MEMBERS_AT_ONCE = 64
GATES_TRIED = 10_000
MAX_DIGEST_BYTES = 800
CHANGE_CHECK_S = 0.1
MESSAGES_AT_ONCE = 100  # more of them within CHANGE_CHECK_S are no changes
CHANNEL = "gatekeeper:policy:changes"


class RedisPolicyStore:
    """A Redis server, 6.2 or later, that any number of replicas share. A call gives up after `timeout_s`; cleaning up
    after it may take as long again."""

    def __init__(self, url: str, timeout_s: float) -> None:
        """Connects on first use. Raises StartupError for options in the URL that the client does not know."""
        self._timeout_s = timeout_s
        self._label = label_of(url)
        self._documents = DocumentReader(self._label)
        self._closed = False
        self._subscription: PubSub | None = None
        self._woken_at = 0.0
        self._flood_told = False
        self._redis = Redis.from_pool(open_pool(url, timeout_s))

    async def latest(self, name: str, gate_digest: str) -> Policy | None:
        return first(await self.history(name, gate_digest, 1))

    async def newest(self, name: str) -> Policy | None:
        """Of the newest 10,000 gates that the index names."""
        async with self._connected() as redis:
            for start in range(0, GATES_TRIED, MEMBERS_AT_ONCE):
                members = await self._members(redis, _index_key(name), start, MEMBERS_AT_ONCE)
                for gate_digest in await self._existing(redis, name, [digest for digest, _ in members]):
                    if policies := await self._history(redis, name, gate_digest, 1):
                        return policies[0]
                if len(members) < MEMBERS_AT_ONCE:
                    break
        return None

    async def next_version(self, name: str) -> int:
        async with self._connected() as redis:
            return 1 + await self._highest(redis, name)

    async def get(self, name: str, gate_digest: str, version: int) -> Policy | None:
        if not 1 <= version <= highest_believable():
            return None
        async with self._connected() as redis:
            return first(await self._history(redis, name, gate_digest.encode(), 1, version))

    async def history(self, name: str, gate_digest: str, limit: int) -> list[Policy]:
        async with self._connected() as redis:
            return await self._history(redis, name, gate_digest.encode(), limit)

    async def append(self, name: str, policy: Policy, *, expected_version: int | None) -> None:
        text = text_of(policy, self._label)
        index, gate, gate_digest = _index_key(name), _gate_key(name, policy.gate_digest), policy.gate_digest.encode()
        async with self._connected() as redis, redis.pipeline() as transaction:
            # Before the watch, as it removes unreadable members. Who writes to this gate in between makes the claim
            # below a false one.
            kept = await self._history(redis, name, gate_digest, VERSIONS_KEPT - 1)
            await transaction.watch(index, gate)
            latest = first(await self._history(transaction, name, gate_digest, 1))
            highest = max(await self._highest(transaction, name), latest.version if latest else 0)
            require_next(policy, latest=latest, expected_version=expected_version, highest=highest)
            strangers = [key for key in (index, gate) if not await self._is_ours(transaction, key)]
            transaction.multi()  # type: ignore[no-untyped-call]  # redis leaves it untyped
            for key in strangers:
                transaction.rename(key, f"{key}:unreadable")
            transaction.zadd(gate, {text: policy.version})
            if len(kept) == VERSIONS_KEPT - 1:
                transaction.zremrangebyscore(gate, "-inf", f"({kept[-1].version}")
            transaction.zadd(index, {policy.gate_digest: policy.version})
            transaction.publish(CHANNEL, name)
            try:
                await transaction.execute()
            except redis_errors.WatchError as error:
                raise VersionMismatch("The policy was changed at the same moment: read it again.") from error

    async def wait_for_change(self, timeout_s: float) -> None:
        """Woken by a message, the first one at once and those of the next CHANGE_CHECK_S together; returns at once
        after subscribing, for what was missed until then. A flood of messages ends the subscription and leaves the
        caller to poll, since reading it would cost more than the polling."""
        subscription = self._subscription
        try:
            if subscription is None:
                await self._subscribe()
            elif await self._flooded(subscription, timeout_s):
                if not self._flood_told:
                    self._flood_told = True
                    logger.warning("a flood of messages on %s in %s: we poll instead", CHANNEL, self._label)
                await self._unsubscribe()
                await asyncio.sleep(timeout_s)
        except (redis_errors.RedisError, OSError, PolicyStoreDown):
            await self._unsubscribe()
            # A subscription that breaks is news; one that is refused leaves the caller to poll.
            await asyncio.sleep(timeout_s if subscription is None else min(timeout_s, CHANGE_CHECK_S))

    async def _flooded(self, subscription: PubSub, timeout_s: float) -> bool:
        """Waits for a message and takes those that have come as well; whether that was a flood."""
        clock = asyncio.get_running_loop().time
        wake_at = clock() + timeout_s
        await asyncio.sleep(min(timeout_s, max(0.0, self._woken_at + CHANGE_CHECK_S - clock())))
        if await subscription.get_message(timeout=max(0.0, wake_at - clock())) is None:
            return False
        self._woken_at = clock()
        for _ in range(MESSAGES_AT_ONCE):
            if await subscription.get_message(timeout=0.0) is None:
                return False
        return True

    async def close(self) -> None:
        self._closed = True
        await self._unsubscribe()
        await self._redis.aclose()

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Redis]:
        if self._closed:
            raise PolicyStoreDown(f"The policy store ({self._label}) is closed.")
        try:
            async with asyncio.timeout(self._timeout_s):
                yield self._redis
        except (redis_errors.RedisError, OSError) as error:
            detail = f"The policy store ({self._label}) failed: {reason_of(error)}."
            raise PolicyStoreDown(detail, retry_after_s=RETRY_AFTER_S) from error

    async def _subscribe(self) -> None:
        async with self._connected() as redis:
            self._subscription = redis.pubsub()
            await self._subscription.subscribe(CHANNEL)
            # The server's confirmation: a change made from now on is certain to wake us.
            await self._subscription.get_message(timeout=None)

    async def _unsubscribe(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            with suppress(redis_errors.RedisError, OSError):
                await subscription.aclose()  # type: ignore[no-untyped-call]  # redis leaves it untyped

    async def _is_ours(self, redis: Redis, key: str) -> bool:
        """Whether it is a sorted set, or nothing yet. Tells of versions in it that cannot be: no read meets them."""
        kind = await redis.type(key)
        if kind not in (b"zset", b"none"):
            self._documents.report(key.encode(), f"key {key!r}: it is a {kind!r}")
            return False
        if await redis.zcount(key, f"({highest_believable()}", "+inf") or await redis.zcount(key, "-inf", "(1"):
            self._documents.report(f"impossible {key}".encode(), f"key {key!r}: it has versions that cannot be")
        return True

    async def _members(self, redis: Redis, key: str, start: int, count: int) -> list[tuple[bytes, float]]:
        """With their scores, highest first; none of a key that is not a sorted set."""
        if not await self._is_ours(redis, key):
            return []
        members = await redis.zrevrangebyscore(key, highest_believable(), 1, start=start, num=count, withscores=True)
        return cast("list[tuple[bytes, float]]", members)

    async def _existing(self, redis: Redis, name: str, gate_digests: list[bytes]) -> list[bytes]:
        """Those gates that have anything: an index full of names of nothing must not cost a read for each."""
        possible = [gate_digest for gate_digest in gate_digests if len(gate_digest) <= MAX_DIGEST_BYTES]
        async with redis.pipeline(transaction=False) as pipeline:
            for gate_digest in possible:
                pipeline.exists(_gate_key(name, gate_digest))
            exist = await pipeline.execute()
        return [gate_digest for gate_digest, exists in zip(possible, exist, strict=True) if exists]

    async def _history(
        self, redis: Redis, name: str, gate_digest: bytes, limit: int, version: int | None = None
    ) -> list[Policy]:
        """Removes what a read must not meet again, but not as part of a transaction."""
        key = _gate_key(name, gate_digest)
        if not await self._is_ours(redis, key):
            return []
        low, high = (1, highest_believable()) if version is None else (version, version)
        reading = Reading(self._documents, self._label, limit)
        start, count = 0, min(limit + 4, 16)
        while not reading.complete:
            found = await redis.zrevrangebyscore(key, high, low, start=start, num=count, withscores=True)
            members = cast("list[tuple[bytes, float]]", found)
            surplus = []
            for document, score in members:
                if not reading.meet(document, gate_digest, score):
                    surplus.append(document)
                if reading.complete:
                    break
            removed = 0 if redis is not self._redis else await self._remove(key, surplus)
            if len(members) < count:
                break
            reading.require_readable()
            start += len(members) - removed
            count = min(2 * count, MEMBERS_AT_ONCE)
        return reading.found

    async def _remove(self, key: str, documents: list[bytes]) -> int:
        """How many of them are gone: a server that takes no writes can still be read."""
        if documents:
            with suppress(redis_errors.ResponseError):
                await self._redis.zrem(key, *documents)
                return len(documents)
        return 0

    async def _highest(self, redis: Redis, name: str) -> int:
        return max([int(score) for _, score in await self._members(redis, _index_key(name), 0, 1)], default=0)


def _index_key(name: str) -> str:
    """Percent-encoded, so that no name can reach another name's keys."""
    return f"gatekeeper:policy:{{{quote(name, safe='')}}}"


def _gate_key(name: str, gate_digest: str | bytes) -> str:
    return f"{_index_key(name)}:{quote(gate_digest, safe='')}"
