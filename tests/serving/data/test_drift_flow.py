"""Drift and feedback through a running gateway: what is counted, what is not, and that no word is kept."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sluice_contracts.drift import Drift, DriftIntent
from sluice_serving.gateway.database import open_database
from sluice_serving.gateway.drift.counting import DriftCounter
from sluice_serving.gateway.exchange import Exchange
from sluice_serving.gateway.records import export, forget

KEY, STRANGER = "sk-test-5f1c2d", "sk-somebody-else"
SECRET = "my PIN is 47zz11, jane@example.org, I want a refund"
DRIFT = Drift(intents=[DriftIntent(name="refund", phrases=["refund"])])


async def rows(url: str, query: str) -> list[tuple[Any, ...]]:
    database = open_database(url)
    try:
        async with database.transaction() as session:
            return [tuple(row.values()) for row in await session.fetch(query)]
    finally:
        await database.close()


async def running(url: str) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for feature, name, n in await rows(url, "SELECT feature, bin, count FROM ai_drift_running WHERE count > 0"):
        found.setdefault(feature, {})[name] = n
    return found


async def post(gateway: Any, body: Any, key: str = KEY) -> tuple[int, Any]:
    headers = {"authorization": f"Bearer {key}"}
    async with gateway.session.post(f"{gateway.url}/v1/feedback", json=body, headers=headers) as got:
        return got.status, await got.json()


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    deadline = time.monotonic() + 20
    while not await condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.05)


@pytest.fixture
async def gateway(start_gateway: Any, engines: Any, served: Any, database_url: str) -> Any:
    made = await start_gateway(database_url=database_url, drift=DRIFT)
    engine = await engines("As an AI , I keep secrets like 08zz15")
    await made.route(served(engine))
    made.engine = engine
    return made


async def test_answers_are_counted_without_a_word_of_them(gateway: Any, database_url: str) -> None:
    asked = [{"role": "user", "content": SECRET}]
    about = {"domain": "healthcare", "task": "jane"}
    for more in ({}, {"stream": True}, {"metadata": about}):
        async with gateway.chat(messages=asked, user="jane", **more) as got:
            assert got.status == 200
            await got.read()
    async with gateway.chat(messages=asked, headers={"x-sluice-record": "none"}) as got:  # no record, no count
        assert got.status == 200
    gateway.engine.status = 500
    async with gateway.chat(messages=asked) as got:  # not answered
        assert got.status == 502
    shown = await gateway.metrics()
    assert "sluice_drift_counted_total" in shown
    await gateway.close()
    found = await running(database_url)
    assert found == {
        "intent": {"refund": 3},
        "language": {"en": 3},
        "refusal": {"refused": 3},
        "domain": {"unlabelled": 2, "healthcare": 1},
        "task": {"unlabelled": 2, "other": 1},
        "prompt_length": {"under-16": 3},
        "answer_length": {"under-16": 3},
    }
    everything = repr(
        [await rows(database_url, f"SELECT * FROM {t}") for t in ("ai_drift_running", "ai_drift_batches")]
    )
    for private in ("47zz11", "jane", "08zz15", "acme", "secrets"):
        assert private not in everything


async def test_feedback_counts_once_and_the_last_word_counts(gateway: Any, database_url: str) -> None:
    (gateway.folder / "keys" / "other").write_text(STRANGER)
    async with gateway.chat(user="jane") as got:
        identity = got.headers["x-request-id"]
    told = {"id": identity, "feedback": 1}

    async def known() -> bool:
        return (await post(gateway, told))[0] == 200  # 404 until the record is written

    await until(known, "the record is written")
    for body, counted in (
        (told, {"feedback": {"1": 1}}),
        ({"id": identity, "feedback": -1, "outcome": "partial"}, {"feedback": {"-1": 1}, "outcome": {"partial": 1}}),
        ({"id": identity, "feedback": -1}, {"feedback": {"-1": 1}, "outcome": {"partial": 1}}),
    ):
        assert await post(gateway, body) == (200, {"ok": True})
        found = await running(database_url)
        assert {f: c for f, c in found.items() if f in {"feedback", "outcome"}} == counted
    assert await rows(database_url, "SELECT tenant, feedback, outcome FROM ai_feedback") == [("acme", -1, "partial")]

    async def strangers_key_is_read() -> bool:
        return (await post(gateway, told, STRANGER))[0] != 401

    await until(strangers_key_is_read, "the other tenant's key is read")
    status, answer = await post(gateway, told, STRANGER)  # not theirs to judge
    assert (status, answer["error"]["code"], answer["error"]["param"]) == (404, "not_found", "id")
    assert (await post(gateway, told | {"id": "0" * 32}))[0] == 404
    for wrong, param in (
        ({"feedback": 1}, "id"),
        (told | {"feedback": 2}, "feedback"),
        (told | {"feedback": "1"}, "feedback"),
        (told | {"outcome": "edited"}, "outcome"),
        (told | {"comment": "I am Jane"}, "comment"),
    ):
        status, answer = await post(gateway, wrong)
        assert (status, answer["error"]["param"]) == (400, param)
    assert (await post(gateway, told, "sk-wrong"))[0] == 401
    assert (await post(gateway, {"id": "0" * 5000}))[0] == 413

    ((user,),) = await rows(database_url, "SELECT pseudonym FROM ai_feedback")
    database = open_database(database_url)
    exported = [row async for row in export(database, "acme", user)]
    assert [(row["feedback"], row["feedback_outcome"]) for row in exported] == [(-1, "partial")]
    assert (await forget(database, "acme", user, datetime.now(UTC)))["feedback"] == 1
    await database.close()
    assert await rows(database_url, "SELECT id FROM ai_feedback") == []


async def test_only_the_sample_is_listened_to(tmp_path: Path) -> None:
    drawn = iter([0.09, 0.1, 0.5])
    database = open_database(f"sqlite:///{tmp_path}/x.db")
    counter = DriftCounter(Drift(sample_percent=10), database, draw=lambda: next(drawn))

    async def send(_: Any) -> None: ...

    class Visit:
        recorded = True

    def listened(kind: Any) -> bool:
        exchange = Exchange(kind, visit=Visit())  # type: ignore[arg-type]
        return (counter.listen(exchange, b"{}", send) != send) is (exchange.hearing is not None) is True

    assert [listened(kind) for kind in ("chat", "embeddings", "text", "responses")] == [True, False, False, False]
