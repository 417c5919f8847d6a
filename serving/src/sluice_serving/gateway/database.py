"""The gateway's database: PostgreSQL, which several gateways share, or an SQLite file for one of them.

Both take the same SQL. Their ways to fail come out as two: the database is away (try again), or it refuses the data
(trying again will not help). Error texts of drivers may repeat the URL and so the password: only their class is kept.
"""

import asyncio
import logging
import re
import sqlite3
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote

import aiosqlite
import asyncpg

# Its debug log repeats every argument, and so what users say.
logging.getLogger("aiosqlite").setLevel(logging.INFO)

CONNECT_SECONDS = 10.0
COMMAND_SECONDS = 30.0
BUSY_SECONDS = 5.0
MAX_CONNECTIONS = 4
SETUP_LOCK = "SELECT pg_advisory_xact_lock(hashtext('sluice.ai_interactions'))"

SCHEMA = {
    "ai_interactions": """CREATE TABLE ai_interactions (
  id TEXT PRIMARY KEY, time {time} NOT NULL, tenant TEXT NOT NULL, pseudonym TEXT, model TEXT NOT NULL, version TEXT,
  lineage TEXT, context_reference TEXT, prompt_tokens INTEGER, output_tokens INTEGER, ttft DOUBLE PRECISION,
  latency DOUBLE PRECISION NOT NULL, finish_reason TEXT, route TEXT NOT NULL, outcome TEXT NOT NULL,
  cost DOUBLE PRECISION)""",
    "ai_interactions_time": "CREATE INDEX ai_interactions_time ON ai_interactions (time)",
    "ai_interactions_user": "CREATE INDEX ai_interactions_user ON ai_interactions (tenant, pseudonym, time, id)",
    # Apart, so that rights and backups can treat it otherwise; filled only for tenants that asked for it.
    "ai_interaction_content": """CREATE TABLE ai_interaction_content (
  id TEXT PRIMARY KEY, time {time} NOT NULL, tenant TEXT NOT NULL, pseudonym TEXT, prompt TEXT NOT NULL,
  answer TEXT NOT NULL)""",
    "ai_interaction_content_time": "CREATE INDEX ai_interaction_content_time ON ai_interaction_content (time)",
    "ai_interaction_content_user":
        "CREATE INDEX ai_interaction_content_user ON ai_interaction_content (tenant, pseudonym)",
    # Who was deleted and when: records from before that may still lie in some gateway's spool.
    "ai_deletions": """CREATE TABLE ai_deletions (
  tenant TEXT NOT NULL, pseudonym TEXT NOT NULL, time {time} NOT NULL, PRIMARY KEY (tenant, pseudonym))""",
    # Part of the keys of a tenant's kept answers; none from before a deletion can be found after it.
    "ai_cache_generations": """CREATE TABLE ai_cache_generations (
  tenant TEXT PRIMARY KEY, generation TEXT NOT NULL)""",
    # What readers thought of answers; gone with the record.
    "ai_feedback": """CREATE TABLE ai_feedback (
  id TEXT PRIMARY KEY, time {time} NOT NULL, tenant TEXT NOT NULL, pseudonym TEXT, day TEXT NOT NULL,
  feedback INTEGER NOT NULL, outcome TEXT)""",
    "ai_feedback_time": "CREATE INDEX ai_feedback_time ON ai_feedback (time)",
    "ai_feedback_user": "CREATE INDEX ai_feedback_user ON ai_feedback (tenant, pseudonym)",
    # Counts of days that run; of days that are over, small ones merged; and which batches of counts were added.
    "ai_drift_running": """CREATE TABLE ai_drift_running (
  pool TEXT NOT NULL, day TEXT NOT NULL, version TEXT NOT NULL, feature TEXT NOT NULL, bin TEXT NOT NULL,
  count BIGINT NOT NULL, PRIMARY KEY (pool, day, version, feature, bin))""",
    "ai_drift": """CREATE TABLE ai_drift (
  pool TEXT NOT NULL, day TEXT NOT NULL, version TEXT NOT NULL, feature TEXT NOT NULL, bin TEXT NOT NULL,
  count BIGINT NOT NULL, PRIMARY KEY (pool, day, version, feature, bin))""",
    "ai_drift_batches": "CREATE TABLE ai_drift_batches (id TEXT PRIMARY KEY, day TEXT NOT NULL)",
    "ai_contexts": """CREATE TABLE ai_contexts (
  tenant TEXT NOT NULL, pseudonym TEXT NOT NULL, reference TEXT NOT NULL, version INTEGER NOT NULL,
  content TEXT NOT NULL, created {time} NOT NULL, updated {time} NOT NULL, PRIMARY KEY (tenant, pseudonym))""",
    "ai_budgets": """CREATE TABLE ai_budgets (
  scope TEXT NOT NULL, span TEXT NOT NULL, starts BIGINT NOT NULL, replica TEXT NOT NULL, requests BIGINT NOT NULL,
  tokens BIGINT NOT NULL, money BIGINT NOT NULL, PRIMARY KEY (scope, span, starts, replica))""",
    "ai_budgets_starts": "CREATE INDEX ai_budgets_starts ON ai_budgets (starts)",
}  # fmt: skip
"""Every table and index by name. `{time}` is the back end's type for moments."""
ADDED = (("ai_interactions", "cost", "DOUBLE PRECISION"),)
"""Columns that tables made by earlier versions lack: table, column, type."""


class DatabaseDown(Exception):
    """The database cannot be used now. The text is the driver's class of error."""


class DataRefused(Exception):
    """The database works, and will never take these values. The text is the driver's class of error."""


class Session(Protocol):
    """One transaction. Parameters are `$1`, `$2`, …; moments are datetimes going in."""

    async def execute(self, sql: str, *args: Any) -> int:
        """Run one statement. Returns how many rows it changed."""

    async def many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        """Run one statement for each row."""

    async def fetch(self, sql: str, *args: Any) -> list[dict[str, Any]]:
        """The rows of a query."""

    async def lock(self, name: str, *, shared: bool = False) -> None:
        """Wait for a lock that the transaction's end releases."""


class Database(Protocol):
    """Where everything is kept."""

    shared: bool
    """Whether other gateways see the same."""

    def transaction(self) -> AbstractAsyncContextManager[Session]:
        """All or nothing. Connects, and makes the tables, when needed. Raises DatabaseDown, DataRefused."""

    async def close(self) -> None:
        """Disconnect."""


def open_database(url: str) -> Database:
    """The database at `url`; nothing is connected yet."""
    if url.startswith("sqlite:///"):
        return SqliteDatabase(Path(unquote(url.removeprefix("sqlite:///"))))
    return PostgresDatabase(url)


def moment(value: datetime | str) -> datetime:
    """A moment as read from either back end."""
    return datetime.fromisoformat(value) if isinstance(value, str) else value.astimezone(UTC)


def placeholders(first: int, count: int) -> str:
    """`$first, …`: so many."""
    return ", ".join(f"${i}" for i in range(first, first + count))


class SqliteDatabase:
    """A file; enough for one gateway."""

    shared = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection: aiosqlite.Connection | None = None
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Session]:
        async with self._turn:
            try:
                connection = await self._connected()
                await connection.execute("BEGIN IMMEDIATE")
                try:
                    yield _SqliteSession(connection)
                    await connection.execute("COMMIT")
                except BaseException:
                    await connection.execute("ROLLBACK")
                    raise
            except (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.InterfaceError, UnicodeEncodeError) as error:
                raise DataRefused(type(error).__name__) from None
            except (OSError, sqlite3.Error, OverflowError) as error:
                await self._forget()
                refused = isinstance(error, OverflowError | sqlite3.ProgrammingError)
                raise (DataRefused if refused else DatabaseDown)(type(error).__name__) from None

    async def _connected(self) -> aiosqlite.Connection:
        if self._connection is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            connection = await aiosqlite.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)
            try:
                await connection.execute("PRAGMA journal_mode=WAL")
                # What was committed must be on the disk: its spool is deleted next.
                await connection.execute("PRAGMA synchronous=FULL")
                for statement in SCHEMA.values():
                    made = statement.format(time="TEXT")
                    await connection.execute(re.sub(r"^CREATE (TABLE|INDEX)", r"CREATE \1 IF NOT EXISTS", made))
                for table, column, kind in ADDED:
                    async with connection.execute(f"SELECT name FROM pragma_table_info('{table}')") as names:
                        if all(name != column for (name,) in await names.fetchall()):
                            await connection.execute(f"ALTER TABLE {table} ADD COLUMN {column} {kind}")
            except BaseException:
                await connection.close()
                raise
            self._connection = connection
        return self._connection

    async def _forget(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def close(self) -> None:
        async with self._turn:
            await self._forget()


class _SqliteSession:
    """SQLite knows numbered parameters as `?1`, and has no type for moments."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection

    async def execute(self, sql: str, *args: Any) -> int:
        async with self._connection.execute(_numbered(sql), _texts(args)) as cursor:
            return max(0, cursor.rowcount)

    async def many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        await self._connection.executemany(_numbered(sql), [_texts(row) for row in rows])

    async def fetch(self, sql: str, *args: Any) -> list[dict[str, Any]]:
        async with self._connection.execute(_numbered(sql), _texts(args)) as cursor:
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in await cursor.fetchall()]

    async def lock(self, name: str, *, shared: bool = False) -> None:
        """Nothing to do: one transaction writes at a time."""


def _numbered(sql: str) -> str:
    return re.sub(r"\$(\d+)", r"?\1", sql)


def _texts(args: Iterable[Any]) -> list[Any]:
    return [a.astimezone(UTC).isoformat() if isinstance(a, datetime) else a for a in args]


class PostgresDatabase:
    """A server; several gateways share it."""

    shared = True

    def __init__(self, url: str) -> None:
        self._url = url
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        self._ready = False
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Session]:
        try:
            pool = await self._connected()
            async with pool.acquire(timeout=CONNECT_SECONDS) as connection, connection.transaction():
                yield _PostgresSession(connection)
        except asyncpg.DataError as error:
            raise DataRefused(type(error).__name__) from None
        except asyncpg.PostgresError as error:
            refused = (error.sqlstate or "")[:2] in {"22", "23"}  # data exceptions, constraint violations
            raise (DataRefused if refused else DatabaseDown)(type(error).__name__) from None
        except (OSError, asyncpg.InterfaceError, TimeoutError) as error:
            refused = isinstance(error, ValueError)  # the driver could not encode a value
            raise (DataRefused if refused else DatabaseDown)(type(error).__name__) from None

    async def _connected(self) -> "asyncpg.Pool[asyncpg.Record]":
        async with self._turn:
            if self._pool is None:
                self._pool = await asyncpg.create_pool(
                    self._url,
                    min_size=0,
                    max_size=MAX_CONNECTIONS,
                    timeout=CONNECT_SECONDS,
                    command_timeout=COMMAND_SECONDS,
                )
            if not self._ready:
                await self._set_up(self._pool)
                self._ready = True
            return self._pool

    async def _set_up(self, pool: "asyncpg.Pool[asyncpg.Record]") -> None:
        """Make what is missing. A role without the right to create will do where everything is there."""
        async with pool.acquire(timeout=CONNECT_SECONDS) as connection, connection.transaction():
            # Two gateways that start at once would both try to make the tables; the lock lets one after the other.
            await connection.execute(SETUP_LOCK)
            for name, statement in SCHEMA.items():
                if await connection.fetchval("SELECT to_regclass($1) IS NULL", name):
                    await connection.execute(statement.format(time="TIMESTAMPTZ"))
            for table, column, kind in ADDED:
                known = "SELECT 1 FROM pg_attribute WHERE attrelid = to_regclass($1) AND attname = $2"
                if not await connection.fetchval(known, table, column):
                    await connection.execute(f"ALTER TABLE {table} ADD COLUMN {column} {kind}")

    async def close(self) -> None:
        async with self._turn:
            pool, self._pool, self._ready = self._pool, None, False
            if pool is not None:
                try:
                    async with asyncio.timeout(5):
                        await pool.close()
                except (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.PostgresError):
                    pool.terminate()


class _PostgresSession:
    """One connection inside a transaction."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def execute(self, sql: str, *args: Any) -> int:
        status = await self._connection.execute(sql, *args)
        last = str(status).rpartition(" ")[2]
        return int(last) if last.isdecimal() else 0

    async def many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        await self._connection.executemany(sql, rows)

    async def fetch(self, sql: str, *args: Any) -> list[dict[str, Any]]:
        return [dict(row) for row in await self._connection.fetch(sql, *args)]

    async def lock(self, name: str, *, shared: bool = False) -> None:
        function = "pg_advisory_xact_lock_shared" if shared else "pg_advisory_xact_lock"
        await self._connection.execute(f"SELECT {function}(hashtext($1))", f"sluice.{name}")
