"""Budgets: what is spent up is refused until its window ends, whichever gateway was asked."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sluice_serving.gateway.budgets import BudgetLedger, window_of
from sluice_serving.gateway.database import Database, DatabaseDown, open_database
from sluice_serving.gateway.errors import ApiError
from sluice_serving.gateway.tenants import Budget, Caller, TenantFile

START = datetime(2026, 11, 21, 12, 30, 15, tzinfo=UTC).timestamp()


def caller(*own: dict[str, Any], tenant: tuple[dict[str, Any], ...] = (), key: str = "web") -> Caller:
    return Caller(
        "acme",
        f"acme/{key}",
        policy=TenantFile(budgets=[Budget(**b) for b in tenant]),
        budgets=tuple(Budget(**b) for b in own),
    )


class Clock:
    def __init__(self, now: float = START) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class NoDatabase:
    """Of one gateway alone, and away."""

    shared = False

    def transaction(self) -> Any:
        raise DatabaseDown("away")

    async def close(self) -> None:
        pass


def ledger(clock: Clock | None = None, **more: Any) -> BudgetLedger:
    return BudgetLedger(more.pop("database", NoDatabase()), clock=clock or Clock(), **more)


def admitted(meters: BudgetLedger, who: Caller, most: int = 50) -> int:
    for n in range(most):
        try:
            meters.admit(who, priced=True)
        except ApiError:
            return n
    return most


@given(st.sampled_from(["minute", "hour", "day", "month"]), st.floats(0, 4e9))
def test_windows_tile_time(span: Any, now: float) -> None:
    start, end = window_of(span, now)
    assert start <= now < end
    assert window_of(span, end)[0] == end
    assert window_of(span, start) == (start, end)


def test_requests_are_counted_before_and_the_next_window_begins_anew() -> None:
    clock = Clock()
    meters, who = ledger(clock), caller({"window": "minute", "requests": 3})
    assert admitted(meters, who) == 3
    with pytest.raises(ApiError) as error:
        meters.admit(who, priced=True)
    assert (error.value.status, error.value.code, error.value.retry_after) == (429, "rate_limit_exceeded", 45)
    assert error.value.message == "The key's budget of requests for this minute is spent up."
    assert meters.refused == {"requests": 2}
    clock.now += 45
    assert admitted(meters, who) == 3


def test_tokens_and_money_are_counted_after() -> None:
    meters = ledger()
    tokens, money = caller({"window": "day", "tokens": 100}), caller({"window": "day", "money": "0.10"}, key="b")
    meters.admit(tokens, priced=False)
    meters.charge(tokens, 99, None)
    meters.admit(tokens, priced=False)
    meters.charge(tokens, 1, None)
    with pytest.raises(ApiError, match="budget of tokens"):
        meters.admit(tokens, priced=False)
    for _ in range(10):
        meters.admit(money, priced=True)
        meters.charge(money, 0, 0.01)  # ten times a cent is exactly ten cents
    with pytest.raises(ApiError, match="budget of money") as error:
        meters.admit(money, priced=True)
    assert error.value.code == "insufficient_quota"


def test_a_budget_of_money_without_a_price_lets_nobody_in() -> None:
    with pytest.raises(ApiError) as error:
        ledger().admit(caller({"window": "day", "money": "1"}), priced=False)
    assert (error.value.status, error.value.code) == (503, "budget_without_price")


def test_a_tenants_budget_is_shared_by_its_keys_and_each_keys_own_is_its_own() -> None:
    meters = ledger()
    whole = ({"window": "hour", "requests": 5},)
    first = caller({"window": "hour", "requests": 3}, tenant=whole, key="a")
    second = caller({"window": "hour", "requests": 3}, tenant=whole, key="b")
    assert (admitted(meters, first), admitted(meters, second)) == (3, 2)
    with pytest.raises(ApiError, match="The tenant's budget"):
        meters.admit(second, priced=True)


def test_a_request_that_found_no_room_is_given_back_and_never_below_nothing() -> None:
    clock = Clock()
    meters, who = ledger(clock), caller({"window": "minute", "requests": 1})
    meters.admit(who, priced=True)
    meters.give_back(who)
    meters.admit(who, priced=True)
    clock.now += 60
    meters.give_back(who)
    assert admitted(meters, who) == 1


def test_without_a_shared_database_each_gateway_has_its_share() -> None:
    who = caller({"window": "hour", "requests": 10})
    assert admitted(ledger(replicas=4), who) == 3
    assert admitted(ledger(replicas=1), who) == 10


async def test_meters_go_with_their_windows(tmp_path: Any) -> None:
    clock = Clock()
    database = open_database(f"sqlite:///{tmp_path}/b.db")
    meters = ledger(clock, database=database)
    for i in range(50):
        meters.admit(caller({"window": "minute", "requests": 3}, key=f"k{i}"), priced=True)
    assert meters.meters == 50
    clock.now += 60
    await meters.sync()
    assert meters.meters == 0
    await database.close()


async def test_gateways_with_one_database_spend_from_one_budget(database: Database) -> None:
    clock = Clock()
    one, other = (ledger(clock, database=database, name=n) for n in ("one", "other"))
    who = caller({"window": "hour", "requests": 10}, {"window": "month", "money": "1"})
    for _ in range(6):
        one.admit(who, priced=True)
    one.charge(who, 0, 0.25)
    await one.sync()
    await one.sync()  # written twice, counted once
    await other.sync()
    assert admitted(other, who) == 4
    await other.sync()
    await one.sync()
    assert admitted(one, who) == 0
    # A gateway that starts anew finds what was spent before.
    fresh = ledger(clock, database=database, name="fresh")
    await fresh.sync()
    assert admitted(fresh, who) == 0
    clock.now += 3600
    fresh.charge(who, 0, 0.75)
    with pytest.raises(ApiError, match="budget of money"):
        fresh.admit(who, priced=True)


async def test_while_the_database_is_away_each_goes_on_with_what_it_knew(database: Database) -> None:
    clock = Clock()
    who = caller({"window": "hour", "requests": 10})
    one, other = (ledger(clock, database=database, name=n) for n in ("one", "other"))
    for _ in range(6):
        other.admit(who, priced=True)
    await other.sync()
    await one.sync()
    one._database = NoDatabase()
    one.admit(who, priced=True)
    with pytest.raises(DatabaseDown):
        await one.sync()
    assert admitted(one, who) == 3
    one._database = database
    await one.sync()
    await other.sync()
    assert admitted(other, who) == 0


async def test_the_loop_goes_on_after_an_outage(
    caplog: pytest.LogCaptureFixture, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sluice_serving.gateway.budgets.DOWN_SECONDS", 0.05)
    meters = ledger(replicas=1)
    task = asyncio.create_task(meters.run())
    async with asyncio.timeout(20):
        while "cannot share budgets" not in caplog.text:
            await asyncio.sleep(0.01)
    database = open_database(f"sqlite:///{tmp_path}/b.db")
    meters._database = database
    meters.admit(caller({"window": "month", "requests": 3}), priced=True)

    async def written() -> int:
        async with database.transaction() as session:
            return len(await session.fetch("SELECT * FROM ai_budgets"))

    async with asyncio.timeout(20):
        while not await written():
            await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await database.close()


async def test_counts_of_windows_long_over_are_deleted(database: Database) -> None:
    clock = Clock()
    meters = ledger(clock, database=database)
    who = caller({"window": "minute", "requests": 10}, {"window": "month", "requests": 10})
    meters.admit(who, priced=True)
    await meters.sync()
    clock.now += 2 * 86400
    await meters.clean()
    async with database.transaction() as session:
        assert [r["span"] for r in await session.fetch("SELECT span FROM ai_budgets")] == ["month"]
