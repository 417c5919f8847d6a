"""Engines that sleep: whether one is awake, waking it, and how long that takes.

Ray Serve holds a request for a deployment without replicas and starts one. So one question to the engine, asked for all
who wait, both wakes it and tells when it is up; the requests themselves stay here, where they are few enough, take
turns, and have a deadline. (Seen with Ray 2.60: the question is held, a replica is started within about 10 s, and the
answer comes when it is up; a question that is broken off no longer counts as a request.)
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sluice_contracts.routing import Waking

from sluice_serving.gateway.backends import Look

logger = logging.getLogger("sluice.gateway")

QUESTION = "/v1/models"
"""Answered by a replica, in no time."""
AWAKE_SECONDS = 15.0
"""So long after an answer an engine is taken to be awake. Ray Serve samples what goes on, so that short answers may not
delay its sleep at all: this is to be short, and asking costs milliseconds."""
GRACE_SECONDS = 1.0
"""An engine that has not answered by then is asleep."""
ATTEMPT_SECONDS = 60.0
"""One question's time: a connection whose other end vanished must not be waited on for ever."""
PAUSE_SECONDS = (0.2, 5.0)
LEAST_SECONDS = 60.0
"""Waking goes on for so long even if nobody waits: those who were told to come again will."""
NEWEST = 0.5
"""Weight of the newest cold start in the mean: nodes, images and models change."""


class Asleep(Exception):
    """The engine does not wake in time; `retry_after` is when it should be up, in seconds."""

    def __init__(self, retry_after: float) -> None:
        super().__init__("the engine is waking")
        self.retry_after = retry_after


class ColdStart:
    """How long waking takes: what was seen, the newest most; before that, what the pool's owner believes."""

    def __init__(self) -> None:
        self.believed = 1.0
        self.seen: float | None = None

    @property
    def seconds(self) -> float:
        """A whole cold start."""
        return self.believed if self.seen is None else self.seen

    def observe(self, took: float) -> None:
        """One engine woke."""
        self.seen = took if self.seen is None else self.seen + NEWEST * (took - self.seen)

    def left(self, elapsed: float) -> float:
        """What is left of one that began so long ago. One that is late takes a tenth of it longer, again and again."""
        return max(self.seconds - elapsed, self.seconds / 10)


@dataclass
class _Engine:
    awake_until: float = float("-inf")
    began: float = 0.0
    waking: "asyncio.Task[None] | None" = None


class Sleepers:
    """The engines that may sleep, by URL.

    `waiting` says how many requests are held for one; `changed` is called when one falls asleep or wakes.
    """

    def __init__(
        self,
        look: Look,
        waiting: Callable[[str], int],
        changed: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.cold_start = ColdStart()
        self.wakes: Counter[str] = Counter()
        """By result."""
        self._look = look
        self._waiting = waiting
        self._changed = changed
        self._clock = clock
        self._waking = Waking()
        self._engines: dict[str, _Engine] = {}

    def follow(self, urls: Iterable[str], waking: Waking) -> None:
        """These may sleep, and no others."""
        wanted = set(urls)
        self._waking = waking
        self.cold_start.believed = waking.cold_start_seconds
        for url in self._engines.keys() - wanted:
            _cancel(self._engines.pop(url))
        for url in wanted - self._engines.keys():
            self._engines[url] = _Engine()

    def held(self, url: str) -> bool:
        """Whether requests wait because the engine has not said that it is awake."""
        engine = self._engines.get(url)
        return engine is not None and engine.waking is not None

    def asleep(self, url: str) -> bool:
        """Whether it is known to sleep, or to be waking: it has been asked, and is slow to answer."""
        engine = self._engines.get(url)
        return engine is not None and engine.waking is not None and self._elapsed(engine) >= GRACE_SECONDS

    def rouse(self, url: str, *, busy: bool) -> float | None:
        """Make sure that an engine is awake. None if it is; else it has been asked, and this is how long a request that
        comes now may wait. Raises Asleep if that would be in vain."""
        engine = self._engines.get(url)
        if engine is None or (engine.waking is None and (busy or self._clock() < engine.awake_until)):
            return None
        if engine.waking is None:
            engine.began = self._clock()
            engine.waking = asyncio.create_task(self._wake(url, engine))
            self._changed()
        if self.left(url) <= self._waking.timeout_seconds:
            return self._waking.timeout_seconds
        # Too long to wait, if it sleeps at all: that it does not answer at once is still to be seen.
        patience = GRACE_SECONDS - self._elapsed(engine)
        if patience <= 0:
            raise Asleep(self.left(url))
        return patience

    def left(self, url: str) -> float:
        """Seconds until the engine should be awake."""
        engine = self._engines.get(url)
        return 0.0 if engine is None or engine.waking is None else self.cold_start.left(self._elapsed(engine))

    def answered(self, url: str) -> None:
        """It has just answered somebody."""
        if (engine := self._engines.get(url)) is not None:
            engine.awake_until = self._clock() + AWAKE_SECONDS

    def close(self) -> None:
        """Wake nobody any more."""
        for engine in self._engines.values():
            _cancel(engine)

    def _elapsed(self, engine: _Engine) -> float:
        return self._clock() - engine.began

    async def _wake(self, url: str, engine: _Engine) -> None:
        last = engine.began + max(LEAST_SECONDS, self._waking.timeout_seconds, 2 * self.cold_start.seconds)
        pause, woke = PAUSE_SECONDS[0], False
        while not woke and (self._clock() < last or self._waiting(url)):
            asked = self._clock()
            woke = await self._look(url.rstrip("/") + QUESTION, ATTEMPT_SECONDS) == 200
            # After a long wait it is asked anew at once: Ray Serve must not think that nobody asks.
            if not woke and self._clock() - asked < ATTEMPT_SECONDS / 2:
                await asyncio.sleep(pause)
                pause = min(PAUSE_SECONDS[1], pause * 2)
        took = self._elapsed(engine)
        engine.waking = None
        if woke:
            self.answered(url)
            if took >= GRACE_SECONDS:
                self.cold_start.observe(took)
                self.wakes["woke"] += 1
                logger.info("%s is awake after %.1f s", url, took)
        else:
            self.wakes["gave_up"] += 1
            logger.warning("%s has not woken within %.0f s, and nobody waits for it now", url, took)
        self._changed()


def _cancel(engine: _Engine) -> None:
    if engine.waking is not None:
        engine.waking.cancel()
        engine.waking = None
