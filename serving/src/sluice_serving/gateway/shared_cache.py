"""Kept answers that the pool's gateways share through a Redis: the cache's second level.

A help that must never hurt. A look-up has a deadline of some milliseconds; after a few failures in a row none is made
until a connection of its own, away from any request, has shown that the server answers in time again. Writing happens
behind the answer, from a bounded queue. What does not open (`sealing`) counts as absent.
"""

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable

from sluice_serving.gateway.cache_settings import RedisSettings
from sluice_serving.gateway.cached_answer import Kept
from sluice_serving.gateway.redis_link import RedisDown, RedisLink, RedisRefused
from sluice_serving.gateway.sealing import OVERHEAD, NotOurs, Sealer

logger = logging.getLogger("sluice.gateway")

CONNECTIONS = 6
MAX_WAITING = 64
"""Look-ups at a time. Beyond that the engine is asked without one: in line, it would take longer than is allowed."""
FAILURES = 3
"""In a row; then the server rests."""
CONNECT_SECONDS = 2.0
WRITE_SECONDS = 2.0
FIRST_REST = 1.0
LONGEST_REST = 30.0
STEADY_SECONDS = 30.0
"""A server that was used for so long is tried again after the first, short rest; one that fails sooner rests longer."""
MAX_ANSWER = 1 << 20
MAX_SEALED = MAX_ANSWER + OVERHEAD
MAX_QUEUED = 1000
MAX_QUEUED_BYTES = 16 << 20
BATCH_BYTES = 1 << 20
CLOCKS_APART = 60.0
"""How far gateways' clocks may differ: a value from further in the future is not believed."""


READS = ("hit", "miss", "timeout", "failed", "refused", "forged", "resting", "busy")
"""What comes of a look-up. At the last two none was made."""
WRITES = ("written", "failed", "refused", "dropped")
"""What comes of an answer. The last one found no room, or no server to write to."""


class SharedCache:
    """One gateway's view of the shared level. One event loop."""

    def __init__(self, settings: RedisSettings, sealer: Sealer, now: Callable[[], float] = time.time) -> None:
        self.reads = Counter(dict.fromkeys(READS, 0))
        self.writes = Counter(dict.fromkeys(WRITES, 0))
        self._settings = settings
        self._sealer = sealer
        self._now = now
        self._link: RedisLink | None = None
        self._failures = 0
        self._tripped = asyncio.Event()
        self._waiting = 0
        self._queue: deque[tuple[bytes, Kept, float, float]] = deque()
        self._queued_bytes = 0
        self._queued = asyncio.Event()
        self._told = ""

    @property
    def up(self) -> bool:
        """Whether the server is asked at all."""
        return self._link is not None

    async def get(self, key: bytes, ttl: float) -> tuple[Kept, float] | None:
        """The answer kept under the cache's `key` and its age in seconds, if there is one that is no older than `ttl`.
        Takes no longer than the deadline, and raises nothing."""
        link = self._link
        if link is None:
            self.reads["resting"] += 1
            return None
        if self._waiting >= MAX_WAITING:
            self.reads["busy"] += 1
            return None
        self._waiting += 1
        try:
            async with asyncio.timeout(self._settings.timeout):
                value = await link.read(self._sealer.name(key), MAX_SEALED)
        except TimeoutError:
            self._failed(link, self.reads, "timeout")
            return None
        except RedisDown as error:
            self._failed(link, self.reads, "failed", str(error))
            return None
        except RedisRefused as error:
            self._refused(self.reads, 1, str(error))
            return None
        finally:
            self._waiting -= 1
        self._failures = 0
        if not value:
            self.reads["miss"] += 1
            return None
        return self._opened(key, value, ttl)

    def _opened(self, key: bytes, value: bytes, ttl: float) -> tuple[Kept, float] | None:
        try:
            answer, made = self._sealer.open(key, value)
        except NotOurs:
            if not self.reads["forged"]:
                logger.error("a kept answer in Redis was not made by this pool's gateways: somebody else writes there, "
                             "or they differ in their pseudonym key; such answers are not given")  # fmt: skip
            self.reads["forged"] += 1
            return None
        age = self._now() - made
        if not -CLOCKS_APART <= age <= ttl:
            self.reads["miss"] += 1  # put back after its time, or made by a clock that is wrong
            return None
        self.reads["hit"] += 1
        return answer, max(0.0, age)

    def put(self, key: bytes, answer: Kept, ttl: float) -> None:
        """Have the answer written soon. Takes no I/O; what there is no room for is dropped."""
        full = len(self._queue) >= MAX_QUEUED or self._queued_bytes + answer.size > MAX_QUEUED_BYTES
        if self._link is None or full or len(answer.body) > MAX_ANSWER:
            self.writes["dropped"] += 1
            return
        self._queue.append((key, answer, self._now(), ttl))
        self._queued_bytes += answer.size
        self._queued.set()

    async def run(self) -> None:
        """Keep a connection to the server, and write to it. Ends when cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._stay_connected())
            tasks.create_task(self._write())

    async def _stay_connected(self) -> None:
        rest = FIRST_REST
        while True:
            link = await self._connected()
            if link is not None:
                began = time.monotonic()
                self._tripped.clear()
                self._failures, self._link = 0, link
                logger.info("kept answers are shared through Redis")
                try:
                    await self._tripped.wait()
                finally:
                    self._link = None
                    await link.close()
                if time.monotonic() - began >= STEADY_SECONDS:
                    rest = FIRST_REST
            await asyncio.sleep(rest)
            rest = min(LONGEST_REST, 2 * rest)

    async def _connected(self) -> RedisLink | None:
        """A link that answers as fast as requests need it."""
        link: RedisLink | None = None
        try:
            address = await asyncio.to_thread(self._settings.address)
            link = RedisLink(address, self._settings.ca_file, CONNECTIONS)
            async with asyncio.timeout(CONNECT_SECONDS):
                await link.open()
            async with asyncio.timeout(self._settings.timeout):
                await link.ping()
        except (RedisDown, RedisRefused, TimeoutError, ValueError, OSError) as error:
            # A driver's text may hold the address, and ValueError's is ours.
            own = isinstance(error, RedisDown | RedisRefused | ValueError)
            self._tell(f"{type(error).__name__}: {error}" if own else type(error).__name__)
        except BaseException:
            if link is not None:
                await link.close()
            raise
        else:
            self._told = ""
            return link
        if link is not None:
            await link.close()
        return None

    def _tell(self, why: str) -> None:
        """Once for each reason: it is tried again and again."""
        if why != self._told:
            logger.warning("answers are not shared through Redis for now (%s)", why)
            self._told = why

    async def _write(self) -> None:
        while True:
            await self._queued.wait()
            batch = self._take()
            link = self._link
            if link is None:
                self.writes["dropped"] += len(batch)
                continue
            sealed = [
                (self._sealer.name(key), self._sealer.seal(key, answer, made), ttl) for key, answer, made, ttl in batch
            ]
            try:
                async with asyncio.timeout(WRITE_SECONDS):
                    await link.write(sealed)
            except (TimeoutError, RedisDown) as error:
                self.writes["failed"] += len(batch) - 1
                self._failed(link, self.writes, "failed", str(error) or type(error).__name__)
            except RedisRefused as error:
                self._refused(self.writes, len(batch), str(error))
            else:
                self.writes["written"] += len(batch)

    def _take(self) -> list[tuple[bytes, Kept, float, float]]:
        batch: list[tuple[bytes, Kept, float, float]] = []
        size = 0
        while self._queue and (not batch or size + self._queue[0][1].size <= BATCH_BYTES):
            item = self._queue.popleft()
            size += item[1].size
            batch.append(item)
        self._queued_bytes -= size
        if not self._queue:
            self._queued.clear()
        return batch

    def _failed(self, link: RedisLink, counts: Counter[str], how: str, why: str = "") -> None:
        counts[how] += 1
        if link is not self._link:
            return  # it rests already
        self._failures += 1
        if self._failures >= FAILURES:
            self._link = None
            self._tripped.set()
            self._tell(why or "too slow")

    def _refused(self, counts: Counter[str], n: int, why: str) -> None:
        """The server is there and fast, so it is asked on: one key may be at fault, or its memory be full."""
        counts["refused"] += n
        self._tell(f"it refuses commands: {why}")


def shared_cache(settings: RedisSettings, secret: bytes, pool: str) -> SharedCache:
    """The shared level of a pool whose gateways have `secret` in common."""
    return SharedCache(settings, Sealer(secret, pool))
