"""`ai_interactions`: one row a request, without content, written in batches off the request's path.

Records wait in a bounded buffer. When the database is away they wait longer; when the buffer is full the newest are
dropped and counted, since a request must never wait for its record.
"""

import asyncio
import hashlib
import hmac
import logging
from collections import deque
from dataclasses import astuple, dataclass, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote

import aiosqlite
import asyncpg

logger = logging.getLogger("sluice.gateway")

BUFFER = 20_000
BATCH = 500
FLUSH_SECONDS = 0.5
RETENTION_EVERY_SECONDS = 3600.0
BACKOFF_SECONDS = (0.5, 30.0)
CONNECT_SECONDS = 10.0
COMMAND_SECONDS = 30.0


@dataclass(frozen=True)
class Interaction:
    """One request. Times are in seconds. What was said is nowhere in it."""

    id: str
    time: datetime
    tenant: str
    user: str | None
    """A keyed hash of the tenant and the user's name."""
    model: str
    version: str | None
    lineage: str | None
    context_reference: str | None
    prompt_tokens: int | None
    output_tokens: int | None
    ttft: float | None
    latency: float
    finish_reason: str | None
    route: str
    """`stable` choice by weight: `split`; `failover`; `template`; `none` if it got no version."""
    outcome: str


COLUMNS = [f.name for f in fields(Interaction)]
# "user" is a reserved word in SQL.
SQL_COLUMNS = ["pseudonym" if name == "user" else name for name in COLUMNS]
TABLE = """CREATE TABLE IF NOT EXISTS ai_interactions (
  id TEXT PRIMARY KEY, time {time} NOT NULL, tenant TEXT NOT NULL, pseudonym TEXT, model TEXT NOT NULL, version TEXT,
  lineage TEXT, context_reference TEXT, prompt_tokens INTEGER, output_tokens INTEGER, ttft DOUBLE PRECISION,
  latency DOUBLE PRECISION NOT NULL, finish_reason TEXT, route TEXT NOT NULL, outcome TEXT NOT NULL)"""
INDEX = "CREATE INDEX IF NOT EXISTS ai_interactions_time ON ai_interactions (time)"


def pseudonym(key: bytes, tenant: str, user: str | None) -> str | None:
    """A stable name for a user that cannot be undone without `key`."""
    if user is None:
        return None
    return hmac.new(key, f"{tenant}\0{user}".encode(), hashlib.sha256).hexdigest()[:32]


class Database(Protocol):
    """Where interactions are kept."""

    async def open(self) -> None:
        """Connect, and make the table if it is not there."""

    async def insert(self, batch: list[Interaction]) -> None:
        """Write all of `batch`, or raise and write none. Rows that are there already stay as they are."""

    async def expire(self, before: datetime) -> int:
        """Delete what is older. Returns how many rows."""

    async def close(self) -> None:
        """Disconnect."""


class SqliteDatabase:
    """A file; enough for one gateway."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection: aiosqlite.Connection | None = None

    async def open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._connection = await aiosqlite.connect(self.path, timeout=COMMAND_SECONDS)
        await self._connection.execute("PRAGMA journal_mode=WAL")
        await self._connection.execute("PRAGMA synchronous=NORMAL")
        await self._connection.execute(TABLE.format(time="TEXT"))
        await self._connection.execute(INDEX)
        await self._connection.commit()

    async def insert(self, batch: list[Interaction]) -> None:
        assert self._connection is not None
        marks = ", ".join("?" * len(COLUMNS))
        await self._connection.executemany(
            f"INSERT OR IGNORE INTO ai_interactions ({', '.join(SQL_COLUMNS)}) VALUES ({marks})",
            [_sqlite_row(i) for i in batch],
        )
        await self._connection.commit()

    async def expire(self, before: datetime) -> int:
        assert self._connection is not None
        cursor = await self._connection.execute("DELETE FROM ai_interactions WHERE time < ?", [before.isoformat()])
        await self._connection.commit()
        return cursor.rowcount

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()
            self._connection = None


def _sqlite_row(interaction: Interaction) -> tuple[Any, ...]:
    return tuple(v.isoformat() if isinstance(v, datetime) else v for v in astuple(interaction))


class PostgresDatabase:
    """A server; several gateways share it."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: asyncpg.Connection | None = None

    async def open(self) -> None:
        self._connection = await asyncpg.connect(self._url, timeout=CONNECT_SECONDS, command_timeout=COMMAND_SECONDS)
        # Two gateways that start at once would both try to make the table; the lock lets one after the other.
        async with self._connection.transaction():
            await self._connection.execute("SELECT pg_advisory_xact_lock(hashtext('sluice.ai_interactions'))")
            await self._connection.execute(TABLE.format(time="TIMESTAMPTZ"))
            await self._connection.execute(INDEX)

    async def insert(self, batch: list[Interaction]) -> None:
        assert self._connection is not None
        marks = ", ".join(f"${i + 1}" for i in range(len(COLUMNS)))
        await self._connection.executemany(
            f"INSERT INTO ai_interactions ({', '.join(SQL_COLUMNS)}) VALUES ({marks}) ON CONFLICT (id) DO NOTHING",
            [astuple(i) for i in batch],
        )

    async def expire(self, before: datetime) -> int:
        assert self._connection is not None
        status = await self._connection.execute("DELETE FROM ai_interactions WHERE time < $1", before)
        return int(status.rpartition(" ")[2])

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close(timeout=5)
            self._connection = None


def open_database(url: str) -> Database:
    """The database at `url`; nothing is connected yet."""
    if url.startswith("sqlite:///"):
        return SqliteDatabase(Path(unquote(url.removeprefix("sqlite:///"))))
    return PostgresDatabase(url)


class InteractionLog:
    """The buffer and the task that empties it."""

    def __init__(self, database: Database, retention: float, buffer: int = BUFFER) -> None:
        self.database = database
        self.retention = timedelta(seconds=retention)
        self.dropped = 0
        self._buffer: deque[Interaction] = deque()
        self._limit = buffer
        self._closing = asyncio.Event()

    @property
    def waiting(self) -> int:
        """Records not yet written."""
        return len(self._buffer)

    def add(self, interaction: Interaction) -> None:
        """Keep one record; returns at once."""
        if len(self._buffer) >= self._limit:
            self.dropped += 1
            return
        self._buffer.append(interaction)

    async def run(self) -> None:
        """Write until `close` is called and the buffer is empty, or until cancelled. Reconnects after failures."""
        pause = BACKOFF_SECONDS[0]
        while True:
            try:
                await self.database.open()
                await self._write()
                return
            except (OSError, aiosqlite.Error, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError) as error:
                # The error's text may repeat the URL and so the password: its class has to do.
                logger.error(
                    "cannot write interactions (%s); %d wait, again in %.1f s",
                    type(error).__name__,
                    self.waiting,
                    pause,
                )
            finally:
                await self._disconnect()
            if self._closing.is_set():
                logger.error("%d interactions were not written before the end", self.waiting)
                return
            await _sleep_or(self._closing, pause)
            pause = min(BACKOFF_SECONDS[1], pause * 2)

    def close(self) -> None:
        """Ask `run` to write what is left and return."""
        self._closing.set()

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        expire_at = loop.time()
        while not (self._closing.is_set() and not self._buffer):
            while self._buffer:
                batch = [self._buffer[i] for i in range(min(BATCH, len(self._buffer)))]
                await self.database.insert(batch)
                for _ in batch:
                    self._buffer.popleft()
            if loop.time() >= expire_at:
                await self.database.expire(datetime.now(UTC) - self.retention)
                expire_at = loop.time() + RETENTION_EVERY_SECONDS
            await _sleep_or(self._closing, FLUSH_SECONDS)

    async def _disconnect(self) -> None:
        try:
            await self.database.close()
        except (OSError, aiosqlite.Error, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError):
            logger.debug("closing the database failed")


async def _sleep_or(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
