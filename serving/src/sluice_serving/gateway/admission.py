"""How many requests an engine works on at once, who waits, and who is turned away.

One lane per version. A request takes a slot, or waits in its tenant's line; freed slots go to the tenants in turn, so
that one tenant's burst delays its own requests, not everyone's. The lines are bounded in length and in time.
"""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable

SMOOTHING = 0.1
"""Weight of the newest request in the running mean of service times."""
MAX_RETRY_AFTER = 60.0


class Overloaded(Exception):
    """There is no room; `retry_after` is when there should be, in seconds. `kind` is the reason's name in metrics."""

    def __init__(self, kind: str, reason: str, retry_after: float) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason
        self.retry_after = retry_after


class LaneClosed(Exception):
    """The version left the routing table while the request waited: choose another."""


class Lane:
    """The slots and lines of one version. Not thread-safe; lives in one event loop."""

    def __init__(self, capacity: int, queue: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.capacity = capacity
        self.queue = queue
        self.in_flight = 0
        self.waiting = 0
        self._lines: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._service_seconds: float | None = None
        self._clock = clock
        self._closed = False

    async def acquire(self, tenant: str, patience: float) -> float:
        """Take a slot, waiting at most `patience` seconds. Returns when it was taken, for `release`.

        Raises Overloaded, LaneClosed.
        """
        if self._closed:
            raise LaneClosed
        if self.in_flight < self.capacity and not self.waiting:
            self.in_flight += 1
            return self._clock()
        if self.waiting >= self.queue:
            raise Overloaded("queue_full", "the queue is full", self.expected_wait())
        turn = asyncio.get_running_loop().create_future()
        self._lines.setdefault(tenant, deque()).append(turn)
        self.waiting += 1
        try:
            async with asyncio.timeout(patience):
                await turn
        except TimeoutError:
            if not _granted(turn):
                self._leave(tenant, turn)
                raise Overloaded("queue_timeout", f"waited {patience:g} s in the queue", self.expected_wait()) from None
        except asyncio.CancelledError:
            if _granted(turn):
                self._free()
            else:
                self._leave(tenant, turn)
            raise
        return self._clock()

    def release(self, taken_at: float, *, served: bool) -> None:
        """Give the slot back. Only requests that were served tell how long service takes."""
        if served:
            took = self._clock() - taken_at
            mean = self._service_seconds
            self._service_seconds = took if mean is None else mean + SMOOTHING * (took - mean)
        self._free()

    def resize(self, capacity: int, queue: int) -> None:
        """New limits; waiting requests take slots that appear."""
        self.capacity, self.queue = capacity, queue
        self._grant()

    def close(self) -> None:
        """The version is gone: those who wait must choose again. Running requests go on."""
        self._closed = True
        for line in self._lines.values():
            for turn in line:
                if not turn.done():
                    turn.set_exception(LaneClosed())
        self._lines.clear()
        self.waiting = 0

    def expected_wait(self) -> float:
        """Seconds until a request that came now would be served, by the observed rate; 1 to 60."""
        mean = 1.0 if self._service_seconds is None else self._service_seconds
        return min(MAX_RETRY_AFTER, max(1.0, (self.waiting + 1) * mean / max(1, self.capacity)))

    def _free(self) -> None:
        self.in_flight -= 1
        self._grant()

    def _grant(self) -> None:
        while self.waiting and self.in_flight < self.capacity:
            tenant, line = next(iter(self._lines.items()))
            turn = line.popleft()
            del self._lines[tenant]
            if line:
                self._lines[tenant] = line  # to the end: the next slot is another tenant's
            self.waiting -= 1
            if not turn.done():
                self.in_flight += 1
                turn.set_result(None)

    def _leave(self, tenant: str, turn: asyncio.Future[None]) -> None:
        line = self._lines.get(tenant)
        if line is not None and turn in line:
            line.remove(turn)
            self.waiting -= 1
            if not line:
                del self._lines[tenant]


def _granted(turn: asyncio.Future[None]) -> bool:
    return turn.done() and not turn.cancelled() and turn.exception() is None
