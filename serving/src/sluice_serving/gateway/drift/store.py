"""The counts in the database, shared by all gateways of a pool.

The days that are not over are in `ai_drift_running`: sums that every gateway adds to. A gateway adds a batch of counts
under a random id, in one transaction with the id: a batch whose answer was lost is sent again and counts once. A day
that is over is moved to `ai_drift`, small counts merged, once: whoever moves it holds a lock that nobody adds under.
What comes later still (a gateway that had no database over midnight) is added in the same way."""

from collections.abc import Mapping, Sequence

from sluice_serving.gateway.database import Database, Session
from sluice_serving.gateway.drift.cells import Cell, publishable

LOCK = "drift"
MAX_CELLS = 500_000
"""Read at once at most: some 1,100 days of three versions with every bin of every feature."""
BATCH_DAYS = 3
"""Ids of batches are kept for so long; what could not be sent in that time is given up."""
ADD = """INSERT INTO ai_drift_running (pool, day, version, feature, bin, count) VALUES ($1, $2, $3, $4, $5, $6)
  ON CONFLICT (pool, day, version, feature, bin) DO UPDATE SET count = ai_drift_running.count + excluded.count"""
KEEP = "INSERT INTO ai_drift (pool, day, version, feature, bin, count) VALUES ($1, $2, $3, $4, $5, $6)"
COLUMNS = "day, version, feature, bin, count"

Key = tuple[str, str, str, str]
"""Day, version, feature, bin."""


async def add(database: Database, pool: str, batch: str, today: str, counts: Mapping[Key, int]) -> None:
    """Add a batch, unless it was added before. Raises DatabaseDown, DataRefused."""
    async with database.transaction() as session:
        await session.lock(LOCK, shared=True)
        new = await session.execute(
            "INSERT INTO ai_drift_batches (id, day) VALUES ($1, $2) ON CONFLICT (id) DO NOTHING", batch, today
        )
        if new:
            # In one order everywhere: two gateways that wait for each other's rows would wait for ever.
            await session.many(ADD, [(pool, *key, n) for key, n in sorted(counts.items())])


async def move(session: Session, pool: str, day: str, version: str, feature: str, old: str | None, new: str) -> None:
    """Within a transaction that counts something once: from one bin to another, or a new one."""
    await session.lock(LOCK, shared=True)
    if old is not None:
        await session.execute(
            "UPDATE ai_drift_running SET count = count - 1 WHERE pool = $1 AND day = $2 AND version = $3 "
            "AND feature = $4 AND bin = $5 AND count > 0",
            pool, day, version, feature, old,
        )  # fmt: skip
    await session.execute(ADD, pool, day, version, feature, new, 1)


async def close_days(database: Database, pool: str, before: str, least: int) -> int:
    """Move the days before `before` to where they are kept, merged. Returns how many there were. Raises DatabaseDown,
    DataRefused."""
    async with database.transaction() as session:
        await session.lock(LOCK)
        over = _cells(
            await session.fetch(
                f"SELECT {COLUMNS} FROM ai_drift_running WHERE pool = $1 AND day < $2 ORDER BY day LIMIT {MAX_CELLS}",
                pool,
                before,
            )
        )
        days = sorted({cell.day for cell in over})
        for day in days:
            kept = _cells(
                await session.fetch(f"SELECT {COLUMNS} FROM ai_drift WHERE pool = $1 AND day = $2", pool, day)
            )
            await session.execute("DELETE FROM ai_drift WHERE pool = $1 AND day = $2", pool, day)
            await session.execute("DELETE FROM ai_drift_running WHERE pool = $1 AND day = $2", pool, day)
            whole = publishable([*kept, *(cell for cell in over if cell.day == day)], least)
            await session.many(KEEP, [(pool, c.day, c.version, c.feature, c.bin, c.count) for c in whole])
        return len(days)


async def expire(
    database: Database, pool: str, before: str, batches_before: str, spare: tuple[str, str] | None
) -> None:
    """Delete days before `before`, but for those from the first to the last of `spare`, and old ids of batches. Raises
    DatabaseDown, DataRefused."""
    first, last = spare or ("", "")
    async with database.transaction() as session:
        await session.execute(
            "DELETE FROM ai_drift WHERE pool = $1 AND day < $2 AND NOT (day >= $3 AND day <= $4)",
            pool,
            before,
            first,
            last,
        )
        await session.execute("DELETE FROM ai_drift_batches WHERE day < $1", batches_before)


async def read(database: Database, pool: str, first: str, spare: tuple[str, str] | None = None) -> list[Cell]:
    """The kept cells from the day `first` on, and those of `spare`. Raises DatabaseDown, DataRefused."""
    low, high = spare or ("", "")
    async with database.transaction() as session:
        return _cells(
            await session.fetch(
                f"SELECT {COLUMNS} FROM ai_drift WHERE pool = $1 AND (day >= $2 OR (day >= $3 AND day <= $4)) "
                f"ORDER BY day DESC LIMIT {MAX_CELLS}",
                pool,
                first,
                low,
                high,
            )
        )


async def pools(database: Database) -> list[str]:
    """Those with kept counts, as `namespace/name`. Raises DatabaseDown, DataRefused."""
    async with database.transaction() as session:
        return [str(row["pool"]) for row in await session.fetch("SELECT DISTINCT pool FROM ai_drift ORDER BY pool")]


async def last_day(database: Database, pool: str) -> str | None:
    """The last day with kept counts. Raises DatabaseDown, DataRefused."""
    async with database.transaction() as session:
        (row,) = await session.fetch("SELECT MAX(day) AS day FROM ai_drift WHERE pool = $1", pool)
    return None if row["day"] is None else str(row["day"])


def _cells(rows: Sequence[Mapping[str, object]]) -> list[Cell]:
    return [
        Cell(str(r["day"]), str(r["version"]), str(r["feature"]), str(r["bin"]), int(str(r["count"]))) for r in rows
    ]
