"""A copy holds, and forgetting removes, what any table has under a user's pseudonym: also tables that are to come."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from sluice_serving.gateway.contexts import ContextStore
from sluice_serving.gateway.data_api import export_lines
from sluice_serving.gateway.database import SCHEMA, Database
from sluice_serving.gateway.records import expire, forget

TOMBSTONES = "ai_deletions"
NOW = datetime(2026, 5, 1, tzinfo=UTC)
OF_USERS = {name: sql for name, sql in SCHEMA.items() if "CREATE TABLE" in sql and "pseudonym TEXT" in sql}
VALUES: dict[str, Callable[[str], Any]] = {"TEXT": lambda table: f"from {table}", "{time}": lambda _: NOW}


async def fill(database: Database, user: str) -> None:
    """A row of the user's in every table that names users."""
    async with database.transaction() as session:
        for table, sql in OF_USERS.items():
            columns = re.findall(r"(\w+) (TEXT|INTEGER|BIGINT|DOUBLE PRECISION|\{time\})", sql)
            fixed = {"id": f"id of {user}", "tenant": "acme", "pseudonym": user}
            values = [fixed.get(name, VALUES.get(kind, lambda _: 1)(table)) for name, kind in columns]
            names, places = ", ".join(name for name, _ in columns), ", ".join(f"${i + 1}" for i in range(len(columns)))
            await session.execute(f"INSERT INTO {table} ({names}) VALUES ({places})", *values)


async def rows(database: Database, table: str, user: str) -> int:
    async with database.transaction() as session:
        (counted,) = await session.fetch(f"SELECT COUNT(*) AS n FROM {table} WHERE pseudonym = $1", user)
        return int(counted["n"])


async def test_a_copy_holds_and_forgetting_removes_what_any_table_has(database: Database) -> None:
    for user in ("jane", "john"):
        await fill(database, user)
    context = await ContextStore(database, 10).read("acme", "jane")
    copy = b"".join([line async for line in export_lines(database, "acme", "jane", context)]).decode()
    kept = OF_USERS.keys() - {TOMBSTONES}
    assert len(kept) > 3
    assert {table for table in kept if f"from {table}" not in copy} == set()
    assert "john" not in copy
    await forget(database, "acme", "jane", NOW)
    assert {table for table in kept if await rows(database, table, "jane")} == set()
    assert {table for table in kept if not await rows(database, table, "john")} == set()


async def test_what_is_old_goes_from_every_table_but_the_contexts(database: Database) -> None:
    await fill(database, "jane")
    await expire(database, NOW.replace(month=6))
    assert {table for table in OF_USERS if await rows(database, table, "jane")} == {"ai_contexts"}
