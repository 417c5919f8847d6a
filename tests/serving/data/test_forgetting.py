"""Kept answers after somebody was forgotten: no gateway gives them, from memory or from Redis. And whose they are."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sluice_contracts.routing import CacheRoute
from sluice_serving.gateway.cache_settings import RedisSettings
from sluice_serving.gateway.contexts import ContextStore
from sluice_serving.gateway.database import Database, DatabaseDown, open_database
from sluice_serving.gateway.forgetting import KNOWN_SECONDS, Forgetting
from sluice_serving.gateway.records import forget

from tests.serving.conftest import until
from tests.serving.data.redis_server import RedisServer
from tests.serving.data.test_gateway_data import ADMIN, USER, Place, tenant_file

RULES = CacheRoute(max_entries=100, max_bytes=1 << 20, ttl_seconds=600)
NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


async def test_a_tenant_has_a_new_generation_with_each_user_who_is_forgotten(database: Database) -> None:
    seen = Forgetting(database)
    assert (seen.known, seen.generation("acme")) == (False, None)
    assert await seen.read() == []
    generations = [seen.generation("acme")]
    for user in ("jane", "john"):
        await forget(database, "acme", user, NOW)
        assert await seen.read() == ["acme"]
        generations.append(seen.generation("acme"))
    assert len(set(generations)) == 3
    assert seen.generation("rival") == ""
    assert await seen.read() == []


async def test_a_gateway_that_hears_of_it_forgets_the_tenants_contexts_too(database: Database) -> None:
    one, other = ContextStore(database, 10, Clock()), ContextStore(database, 10, Clock())
    for tenant in ("acme", "rival"):
        await one.create(tenant, "jane", "Likes tea.")
        assert await other.find(tenant, "jane") is not None
    await forget(database, "acme", "jane", NOW)
    other.forget_tenant("acme")
    assert await other.find("acme", "jane") is None
    assert await other.find("rival", "jane") is not None
    assert other.lookups["cached"] == 1


class Away:
    """A database that can be away, and lets something happen while it is read."""

    shared = True

    def __init__(self) -> None:
        self.away = False
        self.meanwhile: Any = lambda: None

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        if self.away:
            raise DatabaseDown("ConnectionRefusedError")
        self.meanwhile()
        yield self

    async def fetch(self, *_: Any) -> list[dict[str, Any]]:
        return []

    async def close(self) -> None:
        return


async def test_a_gateway_that_cannot_know_gives_nothing(caplog: pytest.LogCaptureFixture) -> None:
    database, clock = Away(), Clock()
    seen = Forgetting(database, clock)
    await seen.read()
    database.away = True
    clock.now += KNOWN_SECONDS - 0.1
    await seen.read()
    assert seen.generation("acme") == ""
    clock.now += 0.1
    await seen.read()
    assert (seen.known, seen.generation("acme")) == (False, None)
    assert [r.levelno for r in caplog.records] == [logging.WARNING]  # once, not at every try
    database.away = False
    await seen.read()
    assert seen.known


async def test_what_was_read_before_ones_own_deletion_does_not_count() -> None:
    database, clock = Away(), Clock()
    seen = Forgetting(database, clock)

    def deleted() -> None:
        clock.now += 0.01
        seen.forgot()

    database.meanwhile = deleted
    await seen.read()
    assert not seen.known
    database.meanwhile = lambda: None
    await seen.read()
    assert seen.known


async def said(gateway: Any, *, key: str = USER, **more: Any) -> str:
    """What it answers to the one question that is asked here."""
    async with gateway.chat(key=key, temperature=0, **more) as got:
        assert got.status == 200
        return str((await got.json())["choices"][0]["message"]["content"])


async def shows(gateway: Any, line: str) -> bool:
    return line in await gateway.metrics()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_a_deleted_users_answers_are_given_by_no_gateway_from_no_level(
    start_gateway: Any, engines: Any, served: Any, database_url: str, redis: RedisServer, tmp_path: Path
) -> None:
    keys, secret = tmp_path / "tenants", tmp_path / "pseudonym.key"
    keys.mkdir()
    (keys / "acme").write_bytes(tenant_file())
    (keys / "rival").write_text("sk-rival")
    secret.write_text("0123456789abcdef0123")
    chosen: dict[str, Any] = {"keys_dir": keys, "database_url": database_url, "pseudonym_key_file": secret}
    engine = await engines("old")
    gateways = []
    for _ in range(2):
        gateway = await start_gateway(**chosen, redis=RedisSettings(url=redis.url, timeout=5.0))
        await gateway.route(served(engine), cache=RULES)
        await until(lambda g=gateway: shows(g, "sluice_cache_shared_up 1.0"), "Redis is connected", 30)
        gateways.append(gateway)
    here, there = gateways

    for key in (USER, "sk-rival"):
        assert await said(here, key=key, user="jane") == "old"
    with redis.client() as admin:
        await until(lambda: admin.dbsize() == 2, "both tenants' answers are in Redis", 30)
    engine.words = ["new"]
    for gateway in gateways:
        assert [await said(gateway, key=key, user="john") for key in (USER, "sk-rival")] == ["old", "old"]

    place = Place(here, engine, None, database_url)
    assert (await place.call("DELETE", "/v1/users/jane/records", key=ADMIN))[0] == 200
    assert await said(here, user="john") == "new"  # at once, where she was deleted
    await until(lambda: _says(there, "new"), "the other gateway knows", 4 * KNOWN_SECONDS)
    for gateway in gateways:
        assert await said(gateway, key="sk-rival") == "old"

    # `sluice-data delete` is another process: it tells nobody but the database.
    engine.words = ["newer"]
    await until(lambda: shows(there, "sluice_cache_entries 2.0"), "the answer is kept again", 20)
    assert await said(there) == "new"
    database = open_database(database_url)
    await forget(database, "acme", "somebody's pseudonym", NOW)
    await database.close()
    for gateway in gateways:
        await until(lambda g=gateway: _says(g, "newer"), "each gateway knows", 4 * KNOWN_SECONDS)


async def _says(gateway: Any, words: str) -> bool:
    return await said(gateway) == words


async def one_gateway(start_gateway: Any, engines: Any, served: Any, folder: Path) -> Place:
    """With a tenant that may keep contexts, and a cache."""
    keys = folder / "tenants"
    keys.mkdir()
    (keys / "acme").write_bytes(tenant_file(contexts=True))
    gateway, engine = await start_gateway(keys_dir=keys), await engines("a very private answer")
    await gateway.route(served(engine), cache=RULES)
    return Place(gateway, engine, None, "")


async def test_an_answer_with_a_users_context_is_that_users_and_that_versions_alone(
    start_gateway: Any, engines: Any, served: Any, tmp_path: Path
) -> None:
    here = await one_gateway(start_gateway, engines, served, tmp_path)

    async def asked(user: str) -> str:
        got = await here.ask(user=user, temperature=0)
        assert got.headers["x-sluice-context"] != "unavailable"
        return str(got.headers["x-sluice-cache"])

    tags = {}
    for user in ("jane", "john"):
        _, _, headers = await here.call("POST", "/v1/contexts", {"user": user, "content": "Likes tea."})
        tags[user] = headers["etag"]
    # The engine gets the same words for both. That nothing of hers is given to him must not depend on what they are.
    assert [await asked(user) for user in ("jane", "jane", "john", "ann", "bob")] == [
        "miss", "hit", "miss", "miss", "hit"
    ]  # fmt: skip
    text = {"content": "Likes tea."}
    assert (await here.call("PUT", "/v1/contexts/jane", text, headers={"if-match": tags["jane"]}))[0] == 200
    assert await asked("jane") == "miss"
    await here.call("DELETE", "/v1/contexts/jane")
    assert await asked("jane") == "hit"  # what anybody without a context gets
    await here.call("POST", "/v1/contexts", {"user": "jane"} | text)
    assert await asked("jane") == "miss"


async def test_a_key_that_is_taken_back_gets_no_kept_answer(
    start_gateway: Any, engines: Any, served: Any, tmp_path: Path
) -> None:
    here = await one_gateway(start_gateway, engines, served, tmp_path)
    assert await said(here.gateway) == await said(here.gateway)
    assert len(here.engine.requests) == 1
    (here.gateway.settings.keys_dir / "acme").write_text("sk-another")

    async def refused() -> bool:
        return bool((await here.ask(temperature=0)).status == 401)

    await until(refused, "the key is not known any more", 20)
