"""The record of each request: kept through outages and crashes, once, and gone when its time or its user says so."""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sluice_serving.gateway.database import Database, DatabaseDown, open_database
from sluice_serving.gateway.interactions import InteractionLog, decode, encode
from sluice_serving.gateway.records import Content, Interaction, expire, export, forget, insert, pseudonym
from sluice_serving.gateway.spool import Spool

NOW = datetime.now(UTC)
JANE = pseudonym(b"k", "acme", "jane") or ""


def interaction(i: int, age: timedelta = timedelta(), **more: Any) -> Interaction:
    made = Interaction(
        id=f"id{i:04}", time=NOW - age, tenant="acme", user=JANE, model="m", version="v1", lineage="l",
        context_reference=None, prompt_tokens=1, output_tokens=2, ttft=0.1, latency=0.2, finish_reason="stop",
        route="split", outcome="ok",
    )  # fmt: skip
    return replace(made, **more)


async def rows(database: Database, table: str = "ai_interactions") -> list[dict[str, Any]]:
    async with database.transaction() as session:
        return await session.fetch(f"SELECT * FROM {table} ORDER BY id")


async def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


@asynccontextmanager
async def running(log: InteractionLog) -> AsyncIterator[InteractionLog]:
    task = asyncio.create_task(log.run())
    try:
        yield log
    finally:
        log.close()
        await task


def make_log(url: str, folder: Path, **more: Any) -> InteractionLog:
    limit = more.pop("limit", 1 << 20)
    return InteractionLog(open_database(url), Spool(folder / "spool", limit), more.pop("retention", 3600.0), **more)


def test_a_pseudonym_depends_on_key_tenant_and_user() -> None:
    first = pseudonym(b"k", "acme", "jane")
    assert first == pseudonym(b"k", "acme", "jane")
    others = {pseudonym(b"other", "acme", "jane"), pseudonym(b"k", "rival", "jane"), pseudonym(b"k", "acme", "john")}
    assert first not in others
    assert pseudonym(b"k", "acme", None) is None


def test_a_record_survives_the_spool_and_text_that_databases_refuse_is_cleaned() -> None:
    record = (interaction(1), Content("ask\n", "answer"))
    assert b"\n" not in encode(record)
    assert decode(encode(record)) == record
    odd = (interaction(1, finish_reason="a\0b\ud800"), Content("\0", "\udfff"))
    cleaned = decode(encode(odd))
    assert cleaned == (interaction(1, finish_reason="ab?"), Content("", "?"))
    assert decode(b'{"id": "of another version"}') is None


async def test_records_reach_the_database_once_with_content_apart(
    database_url: str, database: Database, tmp_path: Path
) -> None:
    async with running(make_log(database_url, tmp_path)) as log:
        log.add(interaction(1))
        log.add(interaction(2), Content("what?", "that"))
        log.add(interaction(2))  # the same once more: a batch that was written, but whose answer was lost
        await until(lambda: not log.waiting)
    assert [r["id"] for r in await rows(database)] == ["id0001", "id0002"]
    assert [(r["id"], r["prompt"], r["answer"]) for r in await rows(database, "ai_interaction_content")] == [
        ("id0002", "what?", "that")
    ]
    assert "what?" not in str(await rows(database))
    assert list((tmp_path / "spool").glob("*.spool")) == []  # what is in the database does not stay on disk


async def test_one_record_that_the_database_refuses_does_not_hold_up_the_others(
    database_url: str, database: Database, tmp_path: Path
) -> None:
    async with running(make_log(database_url, tmp_path)) as log:
        log.add(interaction(1))
        log.add(interaction(2, tenant=None))
        log.add(interaction(3))
        await until(lambda: not log.waiting)
        assert (log.written, log.dropped, log.lost["refused"]) == (2, 1, 1)
    assert [r["id"] for r in await rows(database)] == ["id0001", "id0003"]


async def test_an_outage_spools_to_disk_and_nothing_acknowledged_is_lost_over_a_restart(
    postgres: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = await postgres.new_database()
    async with running(make_log(url, tmp_path)) as log:
        log.add(interaction(0))
        await until(lambda: not log.waiting)
        postgres.stop()
        try:
            for i in range(1, 1200):
                log.add(interaction(i))
            await until(lambda: "cannot write interactions" in caplog.text)
        except BaseException:
            postgres.start()
            raise
    # The gateway stopped during the outage; another takes over its disk.
    assert "stay in the spool" in caplog.text
    assert "sluice@" not in caplog.text
    postgres.start()
    async with running(make_log(url, tmp_path)) as log:
        log.add(interaction(5000))
        await until(lambda: log.written >= 1200)
        await until(lambda: not log.waiting)
        assert log.dropped == 0
    database = open_database(url)
    assert [r["id"] for r in await rows(database)] == [interaction(i).id for i in (*range(1200), 5000)]
    await database.close()


async def test_an_error_that_nobody_foresaw_delays_records_and_loses_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sluice_serving.gateway.interactions.BACKOFF_SECONDS", (0.01, 0.01))
    failures = [RuntimeError("some driver's own: secret")]

    async def fails_once(database: Database, batch: Any) -> None:
        if failures:
            raise failures.pop()
        await insert(database, batch)

    monkeypatch.setattr("sluice_serving.gateway.interactions.insert", fails_once)
    async with running(make_log(f"sqlite:///{tmp_path}/i.db", tmp_path)) as log:
        log.add(interaction(1))
        await until(lambda: log.written == 1)
        await until(lambda: not log.waiting)
        assert log.dropped == 0
    assert "cannot write interactions (RuntimeError)" in caplog.text
    assert "secret" not in caplog.text


async def test_connections_that_the_server_ends_are_made_anew(postgres: Any, tmp_path: Path) -> None:
    url = await postgres.new_database()
    database = open_database(url)
    async with running(make_log(url, tmp_path)) as log:
        log.add(interaction(1))
        await until(lambda: not log.waiting)
        async with database.transaction() as session:
            await session.fetch("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
                                "AND datname = current_database()")  # fmt: skip
        log.add(interaction(2))
        await until(lambda: not log.waiting)
    assert [r["id"] for r in await rows(database)] == ["id0001", "id0002"]
    await database.close()


async def test_a_role_that_may_not_create_tables_will_do_where_they_are(postgres: Any) -> None:
    url = await postgres.new_database()
    owner = open_database(url)
    async with owner.transaction() as session:
        await session.execute("CREATE ROLE writer LOGIN")
        await session.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    clerk = open_database(url.replace("sluice@", "writer@"))
    async with owner.transaction() as session:
        for table in ("ai_interactions", "ai_deletions"):
            await session.execute(f"GRANT SELECT, INSERT, DELETE ON {table} TO writer")
    await insert(clerk, [(interaction(1), None)])
    assert len(await rows(owner)) == 1
    await owner.close()
    await clerk.close()


async def test_memory_and_disk_are_bounded_and_what_is_dropped_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "folder"
    blocked.write_text("a file where a folder should be")
    url = f"sqlite:///{blocked}/i.db"
    log = make_log(url, tmp_path, buffer=3)
    for i in range(5):
        log.add(interaction(i))
    assert (log.waiting, dict(log.lost)) == (3, {"buffer_full": 2})
    monkeypatch.setattr("sluice_serving.gateway.interactions.BUFFER_CHARACTERS", 10)
    wordy = make_log(url, tmp_path / "other")
    wordy.add(interaction(1), Content("12345", "6789"))
    wordy.add(interaction(2), Content("1", "2"))
    assert (wordy.waiting, wordy.lost["buffer_full"]) == (1, 1)
    one = len(encode((interaction(0), None))) + 10
    small = make_log(url, tmp_path, limit=2 * one)
    async with running(small):
        for i in range(5):
            small.add(interaction(i))
        await until(lambda: small.lost["spool_full"] == 3)
        assert small.waiting == 2
        blocked.unlink()
        await until(lambda: not small.waiting)
        small.add(interaction(9))
        await until(lambda: small.written == 3)
    database = open_database(url)
    assert [r["id"] for r in await rows(database)] == ["id0000", "id0001", "id0009"]
    await database.close()


async def test_old_interactions_are_deleted_with_their_content(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sluice_serving.gateway.records.EXPIRE_ROWS", 2)
    old = [(interaction(i, timedelta(hours=2)), Content("p", "a")) for i in range(5)]
    await insert(database, [*old, (interaction(9, timedelta(minutes=5)), Content("p", "a"))])
    assert await expire(database, NOW - timedelta(hours=1)) == 5
    assert [r["id"] for r in await rows(database)] == ["id0009"]
    assert [r["id"] for r in await rows(database, "ai_interaction_content")] == ["id0009"]


async def test_the_retention_job_runs_by_itself(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/i.db"
    database = open_database(url)
    await insert(database, [(interaction(1, timedelta(hours=2)), None), (interaction(2), None)])
    await database.close()
    async with running(make_log(url, tmp_path)):

        def kept() -> list[str]:
            with sqlite3.connect(tmp_path / "i.db") as connection:
                found = connection.execute("SELECT id FROM ai_interactions").fetchall()
            connection.close()
            return [row[0] for row in found]

        await until(lambda: kept() == ["id0002"])


async def test_one_user_gets_all_of_theirs_in_order_and_nobody_elses(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sluice_serving.gateway.records.PAGE", 2)
    mine = [interaction(i, timedelta(seconds=30 - i // 2)) for i in range(7)]
    others = [interaction(50, user="other"), interaction(51, tenant="rival"), interaction(52, user=None)]
    await insert(database, [*((i, None) for i in [*reversed(mine), *others]), (interaction(60), Content("p", "a"))])
    found = [row async for row in export(database, "acme", JANE)]
    assert [row["id"] for row in found] == [*(i.id for i in mine), "id0060"]
    assert found[0]["time"] == mine[0].time
    assert "prompt" not in found[0]
    assert (found[-1]["prompt"], found[-1]["answer"]) == ("p", "a")


async def test_a_user_is_forgotten_even_where_a_spool_still_holds_records(database: Database) -> None:
    late = [(interaction(1), Content("p", "a")), (interaction(2, user="other"), None)]
    await insert(database, [*late, (interaction(3), None)])
    gone = await forget(database, "acme", JANE, NOW + timedelta(seconds=1))
    assert gone == {"interactions": 2, "contents": 1, "feedback": 0, "contexts": 0}
    # A replica that was cut off replays its spool; the user comes back afterwards.
    back = interaction(4, -timedelta(seconds=2))
    await insert(database, [*late, (back, None)])
    assert [r["id"] for r in await rows(database)] == ["id0002", "id0004"]
    assert await rows(database, "ai_interaction_content") == []
    assert len([row async for row in export(database, "acme", JANE)]) == 1


async def test_a_database_that_is_away_is_named_without_its_url(tmp_path: Path) -> None:
    database = open_database(f"postgresql://me:hunter2@/x?host={tmp_path}")
    with pytest.raises(DatabaseDown) as error:
        await rows(database)
    assert "hunter2" not in str(error.value)
    await database.close()


async def test_a_table_of_an_earlier_version_gets_what_it_lacks(database_url: str) -> None:
    former = open_database(database_url)
    async with former.transaction() as session:
        await session.execute("ALTER TABLE ai_interactions DROP COLUMN cost")
    await former.close()
    now = open_database(database_url)
    await insert(now, [(interaction(1, cost=0.5), None)])
    assert [r["cost"] for r in await rows(now)] == [0.5]
    await now.close()


async def test_a_failed_transaction_leaves_nothing(database: Database) -> None:
    async def half() -> None:
        async with database.transaction() as session:
            await session.execute("INSERT INTO ai_deletions VALUES ($1, $2, $3)", "acme", JANE, NOW)
            raise LookupError

    with pytest.raises(LookupError):
        await half()
    async with database.transaction() as session:
        assert await session.fetch("SELECT * FROM ai_deletions") == []
