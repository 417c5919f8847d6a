"""`ai_interactions`: one record a request, written in batches off the request's path.

A record waits in memory for at most half a second, is then written to a spool on disk, and from there to the database.
From the moment it is on disk it is acknowledged: neither a crash nor an outage of the database loses it, within the
spool's bound. What finds the memory or the spool full is dropped and counted, since a request must never wait for its
record.
"""

import asyncio
import json
import logging
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

from sluice_serving.gateway.database import Database, DatabaseDown, DataRefused
from sluice_serving.gateway.records import Content, Interaction, Record, expire, insert
from sluice_serving.gateway.spool import Spool

logger = logging.getLogger("sluice.gateway")

BUFFER = 20_000
BUFFER_CHARACTERS = 64 << 20
BATCH = 500
FLUSH_SECONDS = 0.5
RETENTION_EVERY_SECONDS = 3600.0
BACKOFF_SECONDS = (0.5, 30.0)


class InteractionLog:
    """The buffer, the spool, and the tasks that empty them."""

    def __init__(self, database: Database, spool: Spool, retention: float, buffer: int = BUFFER) -> None:
        self.database = database
        self.spool = spool
        self.retention = timedelta(seconds=retention)
        self.written = 0
        self.lost: Counter[str] = Counter()
        """Records that were dropped, by reason."""
        self._buffer: deque[Record] = deque()
        self._characters = 0
        self._limit = buffer
        self._closing = asyncio.Event()
        self._spooled_all = asyncio.Event()
        self._arrived = asyncio.Event()

    @property
    def waiting(self) -> int:
        """Records that are not in the database yet."""
        return len(self._buffer) + self.spool.waiting

    @property
    def dropped(self) -> int:
        """Records that were lost, for whatever reason."""
        return self.lost.total() + self.spool.corrupt

    def add(self, interaction: Interaction, content: Content | None = None) -> None:
        """Keep one record; returns at once."""
        size = len(content.prompt) + len(content.answer) if content else 0
        if len(self._buffer) >= self._limit or self._characters + size > BUFFER_CHARACTERS:
            self.lost["buffer_full"] += 1
            return
        self._characters += size
        self._buffer.append((interaction, content))

    async def run(self) -> None:
        """Write until `close` was called and all is on disk, and in the database if that is there. Raises OSError if
        the spool cannot be opened."""
        await asyncio.to_thread(self.spool.open)
        spooling = asyncio.create_task(self._fill_spool())
        try:
            await self._drain_spool()
            await spooling
        finally:
            spooling.cancel()
            await asyncio.gather(spooling, return_exceptions=True)
            await self.database.close()
            self.spool.close()

    def close(self) -> None:
        """Ask `run` to write what is left and return."""
        self._closing.set()

    async def _fill_spool(self) -> None:
        """Memory to disk."""
        while True:
            closing = self._closing.is_set()
            while self._buffer:
                batch = [self._buffer[i] for i in range(min(BATCH, len(self._buffer)))]
                try:
                    taken = await asyncio.to_thread(self._append, batch)
                except OSError as error:
                    logger.error("cannot write to the spool %s: %s; %d records wait in memory", self.spool.folder,
                                 error.strerror, len(self._buffer))  # fmt: skip
                    break
                for _ in batch:
                    _, content = self._buffer.popleft()
                    self._characters -= len(content.prompt) + len(content.answer) if content else 0
                self.lost["spool_full"] += len(batch) - taken
                self._arrived.set()
            if closing:
                self._spooled_all.set()
                return
            await sleep_or(self._closing, FLUSH_SECONDS)

    def _append(self, batch: Sequence[Record]) -> int:
        return self.spool.append([encode(record) for record in batch])

    async def _drain_spool(self) -> None:
        """Disk to database. Tries again after failures; what it did not get to stays on disk."""
        loop = asyncio.get_running_loop()
        pause, expire_at = BACKOFF_SECONDS[0], loop.time()
        while True:
            last_try = self._spooled_all.is_set()
            self._arrived.clear()
            try:
                while await self._drain_batch():
                    pause = BACKOFF_SECONDS[0]
                await asyncio.to_thread(self.spool.trim)
                if last_try:
                    return
                if loop.time() >= expire_at:
                    await expire(self.database, datetime.now(UTC) - self.retention)
                    expire_at = loop.time() + RETENTION_EVERY_SECONDS
            except Exception as error:  # drivers have errors of their own too; whatever it is, the records wait
                known = isinstance(error, DatabaseDown | DataRefused)
                why = error.strerror if isinstance(error, OSError) else error if known else type(error).__name__
                if last_try:
                    logger.error("%d interactions stay in the spool %s (%s)", self.waiting, self.spool.folder, why)
                    return
                logger.error("cannot write interactions (%s); %d wait, again in %.1f s", why, self.waiting, pause)
                await sleep_or(self._spooled_all, pause)
                pause = min(BACKOFF_SECONDS[1], pause * 2)
                continue
            if not self._spooled_all.is_set():
                await first_of(FLUSH_SECONDS * 4, self._arrived, self._spooled_all)

    async def _drain_batch(self) -> bool:
        """Write the oldest records. False if there are none."""
        lines, mark = await asyncio.to_thread(self.spool.read, BATCH)
        if not lines and not mark.lines:
            return False
        batch = [record for line in lines if (record := decode(line)) is not None]
        self.lost["refused"] += len(lines) - len(batch)
        try:
            await insert(self.database, batch)
            self.written += len(batch)
        except DataRefused:
            await self._insert_singly(batch)
        await asyncio.to_thread(self.spool.commit, mark)
        return True

    async def _insert_singly(self, batch: Sequence[Record]) -> None:
        """One record that the database will not take must not hold up the others for ever."""
        for record in batch:
            try:
                await insert(self.database, [record])
                self.written += 1
            except DataRefused as error:
                self.lost["refused"] += 1
                logger.error("the database refuses interaction %s (%s)", record[0].id, error)


def encode(record: Record) -> bytes:
    """A record as one line."""
    interaction, content = record
    line: dict[str, Any] = vars(interaction).copy()  # all its fields are plain: `asdict` would copy each deeply
    line["time"] = interaction.time.isoformat()
    if content is not None:
        line["content"] = asdict(content)
    return json.dumps(line, separators=(",", ":")).encode()


def decode(line: bytes) -> Record | None:
    """The record in a line; None if another version of the program wrote it in a form that cannot be read."""
    try:
        fields = json.loads(line)
        content = fields.pop("content", None)
        fields["time"] = datetime.fromisoformat(fields["time"])
        cleaned = {name: _clean(value) for name, value in fields.items()}
        return Interaction(**cleaned), Content(**{k: _clean(v) for k, v in content.items()}) if content else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _clean(value: Any) -> Any:
    """Text without what databases refuse: NUL, and halves of surrogate pairs."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode().replace("\0", "")
    return value


async def sleep_or(event: asyncio.Event, seconds: float) -> None:
    """Wait for the event, at most so long."""
    await first_of(seconds, event)


async def first_of(seconds: float, *events: asyncio.Event) -> None:
    """Wait for any of the events, at most so long."""
    waiting = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()
