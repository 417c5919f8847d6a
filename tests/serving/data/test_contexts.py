"""User contexts: versions that nobody overwrites unseen, bounds, and look-ups that never hold up a request for long."""

import asyncio
import json
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sluice_serving.gateway import contexts
from sluice_serving.gateway.contexts import Conflict, ContextStore, TooMany, with_context
from sluice_serving.gateway.database import Database, DatabaseDown


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_a_context_is_created_read_replaced_and_deleted(database: Database) -> None:
    store = ContextStore(database, 10)
    assert await store.read("acme", "u") is None
    made = await store.create("acme", "u", "likes tea")
    assert (made.version, made.content) == (1, "likes tea")
    assert await store.read("acme", "u") == made
    assert await store.read("rival", "u") is None
    updated = await store.update("acme", "u", "likes coffee", made.tag)
    assert updated is not None
    assert (updated.reference, updated.version, updated.created) == (made.reference, 2, made.created)
    assert await store.read("acme", "u") == updated
    assert await store.update("acme", "nobody", "x", made.tag) is None
    assert await store.delete("acme", "u", None)
    assert not await store.delete("acme", "u", None)
    again = await store.create("acme", "u", "likes tea")
    assert again.reference != made.reference  # a deleted person's reference leads nowhere


async def test_a_version_that_is_not_the_latest_changes_nothing(database: Database) -> None:
    store = ContextStore(database, 10)
    made = await store.create("acme", "u", "one")
    with pytest.raises(Conflict):
        await store.create("acme", "u", "two")
    await store.update("acme", "u", "two", made.tag)
    with pytest.raises(Conflict):
        await store.update("acme", "u", "three", made.tag)
    with pytest.raises(Conflict):
        await store.delete("acme", "u", made.tag)
    kept = await store.read("acme", "u")
    assert kept is not None
    assert kept.content == "two"
    assert await store.delete("acme", "u", kept.tag)


async def test_of_many_who_replace_one_version_at_once_one_succeeds(database: Database) -> None:
    store = ContextStore(database, 10)
    made = await store.create("acme", "u", "zero")
    tries = [store.update("acme", "u", f"by {i}", made.tag) for i in range(8)]
    results = await asyncio.gather(*tries, return_exceptions=True)
    assert sum(isinstance(r, Conflict) for r in results) == 7
    kept = await store.read("acme", "u")
    assert kept is not None
    assert kept.version == 2


async def test_a_tenant_has_so_many_and_no_more(database: Database) -> None:
    store = ContextStore(database, 2)
    for user in ("a", "b"):
        await store.create("acme", user, "x")
    with pytest.raises(TooMany):
        await store.create("acme", "c", "x")
    await store.create("rival", "c", "x")


async def test_other_gateways_see_a_change_within_seconds_and_ones_own_is_seen_at_once(database: Database) -> None:
    clock = Clock()
    one, other = ContextStore(database, 10, clock), ContextStore(database, 10, clock)
    made = await one.create("acme", "u", "old")
    assert await other.find("acme", "u") == made
    updated = await one.update("acme", "u", "new", made.tag)
    assert await one.find("acme", "u") == updated
    assert await other.find("acme", "u") == made
    clock.now += contexts.CACHE_SECONDS
    assert await other.find("acme", "u") == updated
    await one.delete("acme", "u", None)
    assert await one.find("acme", "u") is None
    assert (other.lookups["cached"], other.lookups["found"]) == (1, 2)


async def test_the_cache_is_bounded(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contexts, "CACHE_ENTRIES", 2)
    store = ContextStore(database, 10)
    for user in ("a", "b", "c", "c", "a"):
        await store.find("acme", user)
    assert (store.lookups["none"], store.lookups["cached"]) == (4, 1)


class SlowDatabase:
    """Connects, and then says nothing."""

    shared = True

    def __init__(self) -> None:
        self.asked = 0

    @asynccontextmanager
    async def transaction(self) -> Any:
        self.asked += 1
        await asyncio.Event().wait()
        yield

    async def close(self) -> None:
        pass


async def test_a_database_that_does_not_answer_is_left_alone_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contexts, "LOOKUP_SECONDS", 0.05)
    clock, slow = Clock(), SlowDatabase()
    store = ContextStore(slow, 10, clock)
    for _ in range(3):
        with pytest.raises(DatabaseDown):
            await store.find("acme", "u")
    assert slow.asked == 1
    clock.now += contexts.REST_SECONDS
    with pytest.raises(DatabaseDown):
        await store.find("acme", "u")
    assert (slow.asked, store.lookups["unavailable"]) == (2, 4)


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        (
            [{"role": "user", "content": "hi"}],
            [{"role": "system", "content": "ctx"}, {"role": "user", "content": "hi"}],
        ),
        (
            [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}],
            [{"role": "system", "content": "ctx\n\nbe kind"}, {"role": "user", "content": "hi"}],
        ),
        (
            [{"role": "developer", "content": [{"type": "text", "text": "be kind"}]}],
            [{"role": "developer", "content": [{"type": "text", "text": "ctx"}, {"type": "text", "text": "be kind"}]}],
        ),
    ],
)
def test_a_context_becomes_the_one_system_message(messages: list[Any], expected: list[Any]) -> None:
    body = json.dumps({"model": "m", "messages": messages, "n": 1}).encode()
    assert json.loads(with_context(body, "ctx")) == {"model": "m", "messages": expected, "n": 1}
