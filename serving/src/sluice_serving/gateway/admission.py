"""How many requests an engine works on at once, who waits, and who is turned away.

One lane per version. A request takes a slot, or waits in its key's line; freed slots go to the keys in turn, so that
one key's burst delays its own requests, not everyone's (fair queueing). The lines are bounded in length and in time.
Where they are full, a newcomer takes the place of the newest request of the longest line, if that leaves the lines more
even (longest queue drop: McKenney, Stochastic Fairness Queueing, 1990): whoever fills the queue is turned away, not
whoever comes after. A higher priority goes first, and is turned away last.
"""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable

SMOOTHING = 0.1
"""Weight of the newest request in the running mean of service times."""
UNKNOWN_SERVICE_SECONDS = 1.0
"""Taken for the mean until a first request was served."""
MAX_RETRY_AFTER = 60.0
NORMAL_PRIORITY = 5

Turn = asyncio.Future[None]


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
        self._bands: dict[int, OrderedDict[str, deque[Turn]]] = {}
        """By priority: each key's line, the next key to get a slot first."""
        self._service_seconds: float | None = None
        self._clock = clock
        self._closed = False

    async def acquire(self, key: str, patience: float, priority: int = NORMAL_PRIORITY) -> float:
        """Take a slot, waiting at most `patience` seconds. Returns when it was taken, for `release`.

        Raises Overloaded, LaneClosed.
        """
        if self._closed:
            raise LaneClosed
        if self.in_flight < self.capacity and not self.waiting:
            self.in_flight += 1
            return self._clock()
        if self.waiting >= self.queue and not self._make_room(key, priority):
            raise Overloaded("queue_full", "the queue is full", self.expected_wait(key, priority))
        turn: Turn = asyncio.get_running_loop().create_future()
        self._bands.setdefault(priority, OrderedDict()).setdefault(key, deque()).append(turn)
        self.waiting += 1
        try:
            async with asyncio.timeout(patience):
                await turn
        except TimeoutError:
            if not _granted(turn):
                self._leave(key, priority, turn)
                wait = self.expected_wait(key, priority)
                raise Overloaded("queue_timeout", f"waited {patience:g} s in the queue", wait) from None
        except asyncio.CancelledError:
            if _granted(turn):
                self._free()
            else:
                self._leave(key, priority, turn)
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
        for lines in self._bands.values():
            for line in lines.values():
                for turn in line:
                    if not turn.done():
                        turn.set_exception(LaneClosed())
        self._bands.clear()
        self.waiting = 0

    def expected_wait(self, key: str = "", priority: int = NORMAL_PRIORITY) -> float:
        """Seconds until a request of that key that came now would get its slot, by the observed rate; 1 to 60.

        With all slots taken, one becomes free every mean service time / capacity (Little's law). Before the request go
        those of higher priority, those of its own line, and from every other line as many as it has turns to wait for.
        """
        mean = UNKNOWN_SERVICE_SECONDS if self._service_seconds is None else self._service_seconds
        lines = self._bands.get(priority) or OrderedDict()
        turns = len(lines.get(key, ())) + 1
        ahead = sum(len(line) for p, band in self._bands.items() if p > priority for line in band.values())
        ahead += sum(min(len(line), turns) for k, line in lines.items() if k != key)
        return min(MAX_RETRY_AFTER, max(1.0, (ahead + turns) * mean / max(1, self.capacity)))

    def _free(self) -> None:
        self.in_flight -= 1
        self._grant()

    def _grant(self) -> None:
        while self.waiting and self.in_flight < self.capacity:
            band = max(self._bands)
            lines = self._bands[band]
            key, line = next(iter(lines.items()))
            turn = line.popleft()
            del lines[key]
            if line:
                lines[key] = line  # to the end: the next slot is another key's
            if not lines:
                del self._bands[band]
            self.waiting -= 1
            if not turn.done():
                self.in_flight += 1
                turn.set_result(None)

    def _make_room(self, key: str, priority: int) -> bool:
        """Turn away the request that has least claim to its place, if that is not the newcomer."""
        if not self.waiting:
            return False
        band = min(self._bands)
        if band > priority:
            return False
        lines = self._bands[band]
        longest = max(lines, key=lambda k: len(lines[k]))
        if band == priority and len(lines[longest]) <= len(lines.get(key, ())) + 1:
            return False
        turn = lines[longest][-1]
        self._leave(longest, band, turn)
        if not turn.done():
            reason = "the queue is full and others have fewer requests in it"
            turn.set_exception(Overloaded("queue_full", reason, self.expected_wait(longest, band)))
        return True

    def _leave(self, key: str, priority: int, turn: Turn) -> None:
        lines = self._bands.get(priority, OrderedDict())
        line = lines.get(key)
        if line is not None and turn in line:
            line.remove(turn)
            self.waiting -= 1
            if not line:
                del lines[key]
            if not lines:
                del self._bands[priority]


def _granted(turn: Turn) -> bool:
    return turn.done() and not turn.cancelled() and turn.exception() is None
