"""Counts in a real database: of several gateways, over restarts and outages, and no more of anyone than numbers."""

import asyncio
import json
from collections import Counter
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from sluice_contracts.drift import Drift, DriftReference
from sluice_serving.gateway.data_command import app
from sluice_serving.gateway.database import Database, DatabaseDown, open_database
from sluice_serving.gateway.drift import store
from sluice_serving.gateway.drift.cells import day_before
from sluice_serving.gateway.drift.counting import QUEUE, DriftCounter
from sluice_serving.gateway.drift.features import Heard
from sluice_serving.gateway.routes import parse_table
from sluice_serving.gateway.settings import SettingsError, read_data_settings
from typer.testing import CliRunner

POOL, DAY = "ns/pool", "2026-11-20"
TABLE = parse_table(json.dumps({"pool": "pool", "namespace": "ns", "model": "m"}))
HELLO = Heard("chat", False, b'{"messages": [{"role": "user", "content": "where is my order, PIN 47zz11"}]}', b"{}",
              prompt_tokens=9, output_tokens=3)  # fmt: skip
KEY = (DAY, "v1", "language", "en")


def counter(database: Database, now: str = f"{DAY}T12:00:00", **settings: Any) -> DriftCounter:
    made = DriftCounter(Drift(**settings), database, now=lambda: datetime.fromisoformat(now).replace(tzinfo=UTC))
    made.follow(TABLE)
    return made


async def kept(database: Database, table: str = "ai_drift") -> dict[tuple[str, str, str, str], int]:
    async with database.transaction() as session:
        rows = await session.fetch(f"SELECT * FROM {table}")
    return {(r["day"], r["version"], r["feature"], r["bin"]): r["count"] for r in rows}


async def test_gateways_add_up_and_a_batch_that_is_sent_twice_counts_once(database: Database) -> None:
    await store.add(database, POOL, "b1", DAY, {KEY: 7})
    await store.add(database, POOL, "b2", DAY, {KEY: 5, (DAY, "v2", "task", "other"): 30})
    await store.add(database, POOL, "b1", DAY, {KEY: 7})  # its first answer was lost
    await store.add(database, "other/pool", "b3", DAY, {KEY: 100})
    assert await store.close_days(database, POOL, DAY, 10) == 0  # the day runs
    assert await store.close_days(database, POOL, "2026-11-21", 10) == 1
    assert await store.close_days(database, POOL, "2026-11-21", 10) == 0
    assert await kept(database) == {KEY: 12, (DAY, "v2", "task", "other"): 30}
    assert await kept(database, "ai_drift_running") == {KEY: 100}  # small counts of this pool are nowhere any more
    await store.add(database, POOL, "late", "2026-11-21", {KEY: 4})
    await store.close_days(database, POOL, "2026-11-21", 10)
    assert (await kept(database))[KEY] == 16


async def test_two_gateways_that_write_and_close_at_once_lose_nothing(database_url: str) -> None:
    databases = [open_database(database_url) for _ in range(2)]
    keys = [(DAY, "v1", "intent", name) for name in "abcdef"]

    async def write(database: Database, name: int) -> None:
        for i in range(8):
            await store.add(database, POOL, f"{name}-{i}", DAY, dict.fromkeys(keys if name else reversed(keys), 10))
            await store.close_days(database, POOL, "2026-11-21", 10)

    await asyncio.gather(*(write(database, name) for name, database in enumerate(databases)))
    assert await kept(databases[0]) == dict.fromkeys(keys, 160)
    for database in databases:
        await database.close()


class Flaky:
    """A database that is away, or says so after it has written."""

    def __init__(self, database: Database) -> None:
        self.inner, self.shared, self.away, self.lost_answers = database, database.shared, False, 0

    def transaction(self) -> Any:
        @asynccontextmanager
        async def transaction() -> Any:
            if self.away:
                raise DatabaseDown("away")
            async with self.inner.transaction() as session:
                yield session
            if self.lost_answers:
                self.lost_answers -= 1
                raise DatabaseDown("gone before the answer")

        return transaction()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_an_outage_neither_loses_nor_doubles_a_count(database: Database) -> None:
    flaky = Flaky(database)
    counts = counter(flaky)  # type: ignore[arg-type]
    flaky.lost_answers = 1
    for outage in (False, True, False):
        flaky.away = outage
        for _ in range(4):
            counts.take("v1", HELLO)
        await counts.read_queue()
        try:
            await counts.flush()
        except DatabaseDown:
            continue
    await counts.finish()
    assert (await kept(database, "ai_drift_running"))[KEY] == 12


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_a_batch_too_old_to_be_known_again_is_given_up_and_said_to_be(database: Database) -> None:
    now = [datetime(2026, 11, 20, tzinfo=UTC)]
    flaky = Flaky(database)
    flaky.away = True
    counts = DriftCounter(Drift(), flaky, now=lambda: now[0])  # type: ignore[arg-type]
    counts.follow(TABLE)
    for _ in range(3):
        counts.take("v1", HELLO)
    await counts.read_queue()
    with pytest.raises(DatabaseDown):
        await counts.flush()
    now[0] += timedelta(days=store.BATCH_DAYS)
    flaky.away = False
    await counts.flush()
    assert counts.skipped == {"database_down": 3}
    assert await kept(database, "ai_drift_running") == {}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_what_waits_is_bounded_and_what_is_skipped_is_counted(database: Database) -> None:
    counts = counter(database)
    for _ in range(QUEUE + 3):
        counts.take("v1", HELLO)
    assert counts.skipped == {"queue_full": 3}
    await counts.read_queue()
    for _ in range(90):
        counts.take("v1", Heard("chat", False, b"x" * 60_000, b"y" * 60_000))
    assert counts.skipped["queue_full"] > 3 + 10  # 8 MiB


async def test_old_days_go_and_those_of_a_fixed_reference_stay(database: Database) -> None:
    days = [day_before(DAY, back) for back in (1, 30, 300)]
    await store.add(database, POOL, "b", DAY, {(day, "v1", "task", "other"): 50 for day in days})
    fixed = DriftReference(first_day=days[2], last_day=days[2])
    counts = counter(database, retention_days=29 + 8, reference=fixed)
    await counts.close_days()
    assert {key[0] for key in await kept(database)} == set(days)
    counts = counter(database, f"{day_before(DAY, -8)}T12:00:00", retention_days=29 + 8, reference=fixed)
    await counts.close_days()
    assert {key[0] for key in await kept(database)} == {days[0], days[2]}


async def test_a_shift_is_in_the_metrics_and_in_the_report(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = Counter[store.Key]()
    for back in range(20):
        cells[day_before(DAY, back), "v1", "language", "en"] = 900
        cells[day_before(DAY, back), "v1", "language", "de"] = 600 if back < 2 else 60
    await store.add(database, POOL, "b", DAY, cells)
    counts = counter(database, "2026-11-21T00:10:00")
    await counts.close_days()
    assert counts.report is not None
    assert counts.report.last_day == "2026-11-19"  # yesterday's last counts may still be on their way
    counts = counter(database, "2026-11-21T00:20:00")
    await counts.close_days()
    registry = CollectorRegistry()
    registry.register(counts)
    labels = {"version": "v1", "feature": "language"}
    assert (registry.get_sample_value("sluice_drift_psi", labels) or 0) > 0.25
    assert registry.get_sample_value("sluice_drift_level", labels) == 2
    day = registry.get_sample_value("sluice_drift_last_day_timestamp_seconds")
    assert day == datetime.fromisoformat(DAY).replace(tzinfo=UTC).timestamp()
    await database.close()
    monkeypatch.setenv("SLUICE_DATABASE_URL", database_url)
    monkeypatch.delenv("SLUICE_DRIFT", raising=False)
    table = await command("drift")
    assert table.exit_code == 0, table.output
    assert "v1       language" in table.stdout
    assert "2026-11-19" in table.stdout.split("major")[2]
    found = json.loads((await command("drift", "-o", "json", "--day", "2026-11-10")).stdout)
    assert [f["level"] for f in found["findings"]] == ["stable"]
    monkeypatch.setenv("SLUICE_DRIFT", '{"thresholds": {"moderate": 0.3}}')
    for arguments, says in ((["drift", "--day", "tomorrow"], "--day 'tomorrow': expected a day such as"),
                            (["drift", "-o", "yaml"], "-o 'yaml': expected table or json"),
                            (["drift"], "SLUICE_DRIFT: thresholds: ")):  # fmt: skip
        refused = await command(*arguments)
        assert refused.exit_code == 2
        assert says in refused.stderr
    monkeypatch.delenv("SLUICE_DRIFT")
    none = await command("drift", "--day", "2026-12-24")
    assert none.exit_code == 2
    assert "ns/pool has no counts of 2026-12-24; the last day that has some is 2026-11-20" in none.stderr
    assert "has counts of ns/pool" in (await command("drift", "--pool", "a/b")).stderr


async def command(*arguments: str) -> Any:
    """`sluice-data`; in a thread, as it brings a loop of its own."""
    return await asyncio.to_thread(CliRunner().invoke, app, arguments)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "SLUICE_DRIFT: the text: "),
        ('{"samplePercent": 0}', "SLUICE_DRIFT: samplePercent: "),
        ('{"thresholds": {"moderate": 0.3}}', "SLUICE_DRIFT: thresholds: .*moderate must be below major"),
        ('{"reference": {"firstDay": "2026-01-01"}}', "SLUICE_DRIFT: reference: .*firstDay and lastDay go together"),
        ('{"intents": [{"name": "rare"}]}', "SLUICE_DRIFT: intents.0: .*rare is a name of the counts' own"),
        ('{"intentField": "intent"}', "SLUICE_DRIFT: the text: .*intentField needs intents"),
        ('{"retentionDays": 29}', "SLUICE_DRIFT: the text: .*retentionDays must be more than"),
    ],
)
def test_settings_that_no_api_server_has_seen_are_refused_as_well(text: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        read_data_settings({"SLUICE_DRIFT": text})
