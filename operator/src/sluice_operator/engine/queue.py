"""The queue of objects to look at: each at most once at a time, each with its own back-off, sooner beats later.

An object that changes while it is being looked at is looked at once more afterwards; a thousand changes in the meantime
are still one look. That is what makes the operator level-triggered: it is told *that*, never *what*.
"""

import asyncio
import contextlib
import heapq
import itertools
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0
"""Seconds after the first failure in a row, and at most."""


class WorkQueue(Generic[K]):
    """Keys with the time at which each is due."""

    def __init__(self) -> None:
        self._due: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._sequence = itertools.count()
        self._busy: set[K] = set()
        self._failures: dict[K, int] = {}
        self._not_before: dict[K, float] = {}
        self._changed = asyncio.Event()

    def add(self, key: K, delay: float = 0.0) -> None:
        """Have `key` looked at in `delay` seconds, unless it will be sooner anyway."""
        due = max(asyncio.get_running_loop().time() + delay, self._not_before.get(key, 0.0))
        if key in self._due and self._due[key] <= due:
            return
        self._due[key] = due
        heapq.heappush(self._heap, (due, next(self._sequence), key))
        self._changed.set()

    async def get(self) -> K:
        """The next key that is due and not being looked at; waits for one."""
        loop = asyncio.get_running_loop()
        while True:
            wait = self._drop_stale(loop.time())
            if wait is not None and wait <= 0:
                _, _, key = heapq.heappop(self._heap)
                del self._due[key]
                self._not_before.pop(key, None)
                self._busy.add(key)
                return key
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                # Not wait_for: before Python 3.12 it loses a cancellation that comes together with its result, and a
                # worker that was to stop would go on.
                async with asyncio.timeout(wait):
                    await self._changed.wait()

    def done(self, key: K, again_in: float | None = None) -> None:
        """`key` was looked at and all went well; look again in `again_in` seconds, if given."""
        self._failures.pop(key, None)
        self._release(key, again_in)

    def failed(self, key: K) -> float:
        """Looking at `key` failed; it comes again after its own growing pause, which is returned in seconds."""
        count = self._failures[key] = self._failures.get(key, 0) + 1
        pause = min(FIRST_PAUSE * 2.0 ** min(count - 1, 20), LONGEST_PAUSE)
        self._release(key, pause)
        return pause

    def put_off(self, key: K, pause: float) -> None:
        """`key` was not looked at; it comes again in `pause` seconds and no sooner, whatever happens meanwhile."""
        self._due.pop(key, None)
        self._not_before[key] = asyncio.get_running_loop().time() + pause
        self._release(key, pause)

    def forget(self, key: K) -> None:
        """`key` is gone."""
        self._failures.pop(key, None)
        self._not_before.pop(key, None)
        self._due.pop(key, None)

    def __len__(self) -> int:
        """How many are due now or later."""
        return len(self._due)

    @property
    def ready(self) -> int:
        """How many are due now or being looked at."""
        now = asyncio.get_running_loop().time()
        return len(self._busy) + sum(1 for due in self._due.values() if due <= now)

    def _release(self, key: K, again_in: float | None) -> None:
        self._busy.discard(key)
        if key in self._due:  # it was added meanwhile; its entry may have been skipped as busy
            heapq.heappush(self._heap, (self._due[key], next(self._sequence), key))
            self._changed.set()
        if again_in is not None:
            self.add(key, again_in)

    def _drop_stale(self, now: float) -> float | None:
        """Drop entries that no longer count; seconds until the first that does, None without any."""
        while self._heap:
            due, _, key = self._heap[0]
            if self._due.get(key) != due or key in self._busy:
                heapq.heappop(self._heap)
                continue
            return due - now
        return None
