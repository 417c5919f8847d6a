"""What is kept of requests, in SQL: writing, expiring, and one user's rights to a copy and to be forgotten."""

import hashlib
import hmac
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any

from sluice_serving.gateway.database import Database, Session, moment, placeholders

EXPIRE_ROWS = 5000
"""Rows deleted in one transaction, so that nobody waits long for a lock."""
EXPIRE_ROUNDS = 2000
PAGE = 500
INTERACTIONS_LOCK = "interactions"


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
    """Which version of the user's context was added."""
    prompt_tokens: int | None
    output_tokens: int | None
    ttft: float | None
    latency: float
    finish_reason: str | None
    route: str
    """By weight: `split`; another version: `failover`; another pool's: `model`; `template:<name>@<version>`; `cache`;
    `none` if nothing answered."""
    outcome: str
    cost: float | None = None
    """By the version's price; None where it has none, or what it is for was not counted."""


@dataclass(frozen=True)
class Content:
    """What was asked and answered; kept only for tenants that asked for it."""

    prompt: str
    answer: str


Record = tuple[Interaction, Content | None]

COLUMNS = [f.name for f in fields(Interaction)]
# "user" is a reserved word in SQL.
SQL_COLUMNS = ["pseudonym" if name == "user" else name for name in COLUMNS]
INSERT = (
    f"INSERT INTO ai_interactions ({', '.join(SQL_COLUMNS)}) VALUES ({placeholders(1, len(COLUMNS))}) "
    "ON CONFLICT (id) DO NOTHING"
)
INSERT_CONTENT = (
    "INSERT INTO ai_interaction_content (id, time, tenant, pseudonym, prompt, answer) "
    "VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (id) DO NOTHING"
)
TABLES = ("ai_interactions", "ai_interaction_content", "ai_feedback")


def pseudonym(key: bytes, tenant: str, user: str | None) -> str | None:
    """A stable name for a user that cannot be undone without `key`."""
    if user is None:
        return None
    return hmac.new(key, f"{tenant}\0{user}".encode(), hashlib.sha256).hexdigest()[:32]


async def insert(database: Database, batch: Sequence[Record]) -> None:
    """Write all of `batch`, or raise and write none. Rows that are there already stay as they are; of a user who was
    deleted since, nothing is written."""
    async with database.transaction() as session:
        await session.lock(INTERACTIONS_LOCK, shared=True)
        await session.many(INSERT, [[getattr(i, name) for name in COLUMNS] for i, _ in batch])
        contents = [(i.id, i.time, i.tenant, i.user, c.prompt, c.answer) for i, c in batch if c is not None]
        if contents:
            await session.many(INSERT_CONTENT, contents)
        await _drop_deleted(session, [i.id for i, _ in batch if i.user is not None])


async def _drop_deleted(session: Session, ids: list[str]) -> None:
    if not ids or not await session.fetch("SELECT 1 FROM ai_deletions LIMIT 1"):
        return
    for table in TABLES:
        await session.execute(
            f"DELETE FROM {table} WHERE id IN ({placeholders(1, len(ids))}) AND EXISTS (SELECT 1 FROM ai_deletions d "
            f"WHERE d.tenant = {table}.tenant AND d.pseudonym = {table}.pseudonym AND d.time >= {table}.time)",
            *ids,
        )


async def expire(database: Database, before: datetime) -> int:
    """Delete what is older, a piece at a time. Returns how many interactions."""
    deleted = 0
    for _ in range(EXPIRE_ROUNDS):
        removed = []
        async with database.transaction() as session:
            await session.lock("retention")
            for table in TABLES:
                chosen = f"SELECT id FROM {table} WHERE time < $1 ORDER BY time LIMIT {EXPIRE_ROWS}"
                removed.append(await session.execute(f"DELETE FROM {table} WHERE id IN ({chosen})", before))
        deleted += removed[0]
        if max(removed) < EXPIRE_ROWS:
            break
    async with database.transaction() as session:
        await session.execute("DELETE FROM ai_deletions WHERE time < $1", before)
    return deleted


async def export(database: Database, tenant: str, user: str) -> AsyncIterator[dict[str, Any]]:
    """All interactions of the user with that pseudonym, oldest first, a page in memory at a time."""
    columns = ", ".join(f"i.{name}" for name in SQL_COLUMNS)
    after: tuple[datetime, str] = (datetime(1970, 1, 1, tzinfo=UTC), "")
    while True:
        async with database.transaction() as session:
            rows = await session.fetch(
                f"SELECT {columns}, c.prompt, c.answer, f.feedback, f.outcome AS feedback_outcome "
                "FROM ai_interactions i LEFT JOIN ai_interaction_content c ON c.id = i.id "
                "LEFT JOIN ai_feedback f ON f.id = i.id WHERE i.tenant = $1 AND i.pseudonym = $2 "
                f"AND (i.time > $3 OR (i.time = $3 AND i.id > $4)) ORDER BY i.time, i.id LIMIT {PAGE}",
                tenant, user, *after,
            )  # fmt: skip
        for row in rows:
            row["time"] = moment(row["time"])
            yield {name: value for name, value in row.items() if value is not None or name in SQL_COLUMNS}
        if len(rows) < PAGE:
            return
        after = rows[-1]["time"], rows[-1]["id"]


async def forget(database: Database, tenant: str, user: str, now: datetime) -> dict[str, int]:
    """Delete all that is kept of the user with that pseudonym, and let nothing from before `now` in again. No gateway
    gives the tenant an answer any more that it has kept until now. Returns how many rows of each kind."""
    async with database.transaction() as session:
        # Those who insert hold the lock shared: none of them can be halfway.
        await session.lock(INTERACTIONS_LOCK)
        await session.execute(
            "INSERT INTO ai_deletions (tenant, pseudonym, time) VALUES ($1, $2, $3) "
            "ON CONFLICT (tenant, pseudonym) DO UPDATE SET time = excluded.time",
            tenant, user, now,
        )  # fmt: skip
        await session.execute(
            "INSERT INTO ai_cache_generations (tenant, generation) VALUES ($1, $2) "
            "ON CONFLICT (tenant) DO UPDATE SET generation = excluded.generation",
            tenant, secrets.token_hex(16),
        )  # fmt: skip
        return {
            kind: await session.execute(f"DELETE FROM {table} WHERE tenant = $1 AND pseudonym = $2", tenant, user)
            for kind, table in (
                ("interactions", "ai_interactions"),
                ("contents", "ai_interaction_content"),
                ("feedback", "ai_feedback"),
                ("contexts", "ai_contexts"),
            )
        }
