"""Counting what is asked and answered, off the request's path.

Of a request that is counted, the gateway keeps the body and a copy of the answer until the answer has ended; both then
wait in a short queue, are read in the pauses of the event loop, one by one, and are gone. What finds the queue full is
skipped and counted: a request never waits for this. What is left is a number in memory, that of the database a minute
later.
"""

import asyncio
import logging
import random
import secrets
from collections import Counter, deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sluice_contracts.drift import Drift
from sluice_contracts.routing import RoutingTable
from starlette.types import Message, Send

from sluice_serving.gateway.database import Database, DatabaseDown, DataRefused
from sluice_serving.gateway.drift import store
from sluice_serving.gateway.drift.cells import day_before
from sluice_serving.gateway.drift.features import MAX_BODY, Heard, Reader
from sluice_serving.gateway.drift.psi import Level
from sluice_serving.gateway.drift.report import Report, make_report, needed_from, spared
from sluice_serving.gateway.observations import Outcome

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from sluice_serving.gateway.exchange import Exchange

logger = logging.getLogger("sluice.gateway")

QUEUE = 512
QUEUE_BYTES = 8 << 20
READ_SECONDS = 0.25
FLUSH_SECONDS = 60.0
CLOSE_SECONDS = 600.0
LATE = timedelta(minutes=15)
"""How long after midnight a day is closed: gateways write every minute, and their clocks differ."""
IDLE_DAYS = 7
"""The last day with counts is shown in the metrics for so long."""
FINISH_SECONDS = 5.0
ANSWERED = frozenset({"ok", "cached"})
OWN = frozenset({"split", "failover", "cache"})
"""Routes on which a version of the pool answered."""
LEVELS = (Level.STABLE, Level.MODERATE, Level.MAJOR)


class Hearing:
    """One request that will be counted."""

    __slots__ = ("_counter", "_send", "answer", "request")

    def __init__(self, counter: "DriftCounter", body: bytes, send: Send) -> None:
        self._counter = counter
        self._send = send
        self.request = body if len(body) <= MAX_BODY else None
        self.answer: bytearray | None = bytearray()

    def send(self, message: Message) -> "Awaitable[None]":
        """The client's `send`, with a copy kept of what is said."""
        if self.answer is not None:
            self.answer += message.get("body", b"")
            if len(self.answer) > MAX_BODY:
                self.answer = None
        return self._send(message)

    def end(self, exchange: "Exchange", outcome: Outcome) -> None:
        """The request is over; count it if a version answered it."""
        if exchange.backend is None or exchange.visit is None:
            return
        if outcome.label not in ANSWERED or exchange.route not in OWN:
            return
        heard = Heard(
            exchange.kind,
            exchange.visit.completion.stream,
            self.request,
            bytes(self.answer) if self.answer is not None else None,
            outcome.prompt_tokens,
            outcome.output_tokens,
            outcome.finish_reason,
        )
        self._counter.take(exchange.backend.model_version, heard)


class DriftCounter(Collector):
    """The counts of one gateway, and what they say."""

    def __init__(
        self,
        settings: Drift,
        database: Database,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.settings = settings
        self.pool = ""
        """Namespace and name, once there is a table."""
        self.counted = 0
        self.skipped: Counter[str] = Counter()
        self.report: Report | None = None
        """Of the last day that is over; None until it was first read."""
        self._database, self._now, self._draw = database, now, draw
        self._share = settings.sample_percent / 100
        self._reader = Reader(settings)
        self._queue: deque[tuple[str, str, Heard]] = deque()
        self._queued = 0
        self._counts: Counter[store.Key] = Counter()
        self._pending: tuple[str, Counter[store.Key]] | None = None
        self._finished = False

    @property
    def today(self) -> str:
        """The day that runs."""
        return self._now().date().isoformat()

    def follow(self, table: RoutingTable) -> None:
        """Take the pool's name."""
        self.pool = f"{table.namespace}/{table.pool}"

    def listen(self, exchange: "Exchange", body: bytes, send: Send) -> Send:
        """The `send` to use for this request, which is now listened to if it is one of those counted."""
        if exchange.kind == "embeddings" or exchange.visit is None or not exchange.visit.recorded:
            return send
        if self._share < 1 and self._draw() >= self._share:
            return send
        exchange.hearing = Hearing(self, body, send)
        return exchange.hearing.send

    def take(self, version: str, heard: Heard) -> None:
        """Queue one answered request; returns at once."""
        size = len(heard.request or b"") + len(heard.answer or b"")
        if len(self._queue) >= QUEUE or self._queued + size > QUEUE_BYTES:
            self.skipped["queue_full"] += 1
            return
        if heard.request is None or heard.answer is None:
            self.skipped["too_long"] += 1  # for the features that are in the text
        self._queued += size
        self._queue.append((self.today, version, heard))

    async def run(self) -> None:
        """Read, write and compare, until cancelled."""
        loop = asyncio.get_running_loop()
        flush_at, close_at, down = loop.time() + FLUSH_SECONDS, loop.time(), False
        while not self._finished:
            await self.read_queue()
            if loop.time() >= flush_at:
                flush_at = loop.time() + FLUSH_SECONDS
                down = await self._try(self.flush, down)
            if loop.time() >= close_at and self.pool:
                close_at = loop.time() + CLOSE_SECONDS
                down = await self._try(self.close_days, down)
            await asyncio.sleep(READ_SECONDS)

    async def _try(self, work: "Callable[[], Awaitable[None]]", down: bool) -> bool:
        """Do it, or log once that the database is away. Returns whether it is."""
        try:
            await work()
        except (DatabaseDown, DataRefused) as error:
            if not down:
                logger.error("drift: cannot use the database (%s); counts wait in memory", error)
            return True
        return False

    async def finish(self) -> None:
        """Write what is left, within a few seconds."""
        self._finished = True
        try:
            async with asyncio.timeout(FINISH_SECONDS):
                await self.read_queue()
                await self.flush()
                await self.flush()  # the first may have sent a batch that had been waiting
        except (DatabaseDown, DataRefused, TimeoutError) as error:
            logger.error("drift: the last counts are lost (%s)", type(error).__name__)

    async def read_queue(self) -> None:
        """Turn what is queued into counts, leaving the loop to others after each."""
        while self._queue:
            day, version, heard = self._queue.popleft()
            self._queued -= len(heard.request or b"") + len(heard.answer or b"")
            try:
                found = self._reader.bins(heard)
            except Exception as error:  # no request may end the counting of all others; its text may be in the error's
                self.skipped["unreadable"] += 1
                logger.error("drift: a request cannot be read (%s)", type(error).__name__)
                continue
            for feature, name in found.items():
                self._counts[day, version, feature, name] += 1
            self.counted += 1
            await asyncio.sleep(0)

    async def flush(self) -> None:
        """Add the counts to the database's. Raises DatabaseDown, DataRefused; they then wait."""
        if self._pending is None and self._counts and self.pool:
            self._pending = secrets.token_hex(16), self._counts
            self._counts = Counter()
        if self._pending is None:
            return
        pending = batch, counts = self._pending
        if min(key[0] for key in counts) < day_before(self.today, store.BATCH_DAYS - 1):
            # Its id may be forgotten where it was added after all: rather too few than twice.
            self.skipped["database_down"] += max(Counter(key[2] for key in counts.elements()).values())
            self._pending = None
            return
        await store.add(self._database, self.pool, batch, self.today, counts)
        if self._pending is pending:  # and not the next one already, where the gateway stops meanwhile
            self._pending = None

    async def close_days(self) -> None:
        """Close the days that are over, forget old ones, and compare the last. Raises DatabaseDown, DataRefused."""
        settings, today = self.settings, (self._now() - LATE).date().isoformat()
        kept = spared(settings)
        if closed := await store.close_days(self._database, self.pool, today, settings.min_cell):
            logger.info("drift: closed %d days", closed)
        oldest = day_before(today, settings.retention_days)
        await store.expire(self._database, self.pool, oldest, day_before(today, store.BATCH_DAYS + 1), kept)
        first = needed_from(day_before(today), settings, IDLE_DAYS)
        cells = await store.read(self._database, self.pool, first, kept)
        recent = [cell for cell in cells if cell.day >= day_before(today, IDLE_DAYS)]
        last = max((cell.day for cell in recent), default=None)
        self.report = make_report(self.pool, cells, settings, last=last, trend=0) if last else Report(self.pool, None)

    def collect(self) -> Iterator[Metric]:
        """The metrics of docs/drift.md."""
        labels = ["version", "feature"]
        index = GaugeMetricFamily("sluice_drift_psi", "How far the last day is from the reference.", labels=labels)
        level = GaugeMetricFamily("sluice_drift_level", "0 stable, 1 moderate, 2 major.", labels=labels)
        for one in self.report.findings if self.report else ():
            if one.comparison.psi is not None:
                index.add_metric([one.version, one.feature], one.comparison.psi)
                level.add_metric([one.version, one.feature], LEVELS.index(one.comparison.level))
        day = GaugeMetricFamily("sluice_drift_last_day_timestamp_seconds", "Beginning of the last day compared.")
        if self.report is not None and self.report.last_day is not None:
            day.add_metric([], datetime.fromisoformat(self.report.last_day).replace(tzinfo=UTC).timestamp())
        yield from (index, level, day)
        yield CounterMetricFamily("sluice_drift_counted", "Requests that were counted.", self.counted)
        skipped = CounterMetricFamily("sluice_drift_skipped", "Requests not (wholly) counted.", labels=["reason"])
        for reason, n in sorted(self.skipped.items()):
            skipped.add_metric([reason], n)
        yield skipped
