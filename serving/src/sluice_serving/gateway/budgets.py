"""What a key or tenant may still spend: fixed windows, counted in memory, shared through the database.

A request is let in while nothing of its budgets is spent up; what it costs is known, and charged, when it ends. So a
budget is overdrawn by at most what its running requests cost. Counting takes no I/O. Where several gateways share a
database, each writes its own counts there every second and reads the others': they may overdraw by one second's worth
more. Rows hold absolute counts per gateway, so writing one twice changes nothing. While the database is away each
gateway goes on with what it last knew of the others. Without a shared database each gateway has its equal share.
"""

import asyncio
import logging
import math
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from sluice_serving.gateway.database import Database, DatabaseDown, DataRefused
from sluice_serving.gateway.errors import ApiError
from sluice_serving.gateway.tenants import Budget, Caller, Window

logger = logging.getLogger("sluice.gateway")

SYNC_SECONDS = 1.0
DOWN_SECONDS = 5.0
"""Between tries while the database is away."""
KEEP_SECONDS = 86400
"""How long counts stay in the database after their window ended."""
MONEY_UNIT = 100_000_000
"""Money is counted in hundred-millionths: floating point does not add cents."""
UPSERT = """INSERT INTO ai_budgets (scope, span, starts, replica, requests, tokens, money)
  VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (scope, span, starts, replica)
  DO UPDATE SET requests = excluded.requests, tokens = excluded.tokens, money = excluded.money"""
OTHERS = """SELECT scope, span, starts, CAST(SUM(requests) AS BIGINT) AS requests,
  CAST(SUM(tokens) AS BIGINT) AS tokens, CAST(SUM(money) AS BIGINT) AS money
  FROM ai_budgets WHERE replica <> $1 AND starts IN ($2, $3, $4, $5) GROUP BY scope, span, starts"""
WINDOWS: tuple[Window, ...] = ("minute", "hour", "day", "month")


@dataclass
class Spent:
    """Amounts of one window."""

    requests: int = 0
    tokens: int = 0
    money: int = 0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(self.requests + other.requests, self.tokens + other.tokens, self.money + other.money)


@dataclass
class Meter:
    """What a key or tenant spent in the present window of one length."""

    starts: int
    ends: int
    own: Spent = field(default_factory=Spent)
    others: Spent = field(default_factory=Spent)
    dirty: bool = False


def window_of(span: Window, now: float) -> tuple[int, int]:
    """Start and end of the window that `now` lies in, in whole seconds since 1970."""
    if span == "month":
        start = datetime.fromtimestamp(now, UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        end = (start + timedelta(days=32)).replace(day=1)
        return int(start.timestamp()), int(end.timestamp())
    length = {"minute": 60, "hour": 3600, "day": 86400}[span]
    start_second = int(now // length) * length
    return start_second, start_second + length


class BudgetLedger:
    """The meters of this gateway. One event loop."""

    def __init__(
        self, database: Database, *, replicas: int = 1, clock: Callable[[], float] = time.time, name: str = ""
    ) -> None:
        self.refused: Counter[str] = Counter()
        self._database = database
        self._divisor = 1 if database.shared else max(1, replicas)
        self._clock = clock
        self._replica = name or secrets.token_hex(8)
        self._meters: dict[tuple[str, Window], Meter] = {}
        self._used = False

    @property
    def meters(self) -> int:
        """How many there are: at most one for each window of each key and tenant that has a budget."""
        return len(self._meters)

    def admit(self, caller: Caller, *, priced: bool) -> None:
        """Count one request. Raises ApiError 429 if a budget is spent up, 503 if there is one of money and the version
        has no price."""
        now = self._clock()
        for scope, budget in budgets_of(caller):
            if budget.money is not None and not priced:
                logger.error("%s has a budget of money, and the pool has no prices: refused", scope)
                raise ApiError(503, "This key has a budget of money, and the pool has no prices; tell its owner.",
                               code="budget_without_price")  # fmt: skip
            meter = self._meter(scope, budget.window, now)
            what = exceeded(budget, meter.own + meter.others, self._divisor)
            if what is not None:
                self.refused[what] += 1
                whose = "tenant" if scope == caller.tenant else "key"
                code = "insufficient_quota" if what == "money" else "rate_limit_exceeded"
                raise ApiError(
                    429, f"The {whose}'s budget of {what} for this {budget.window} is spent up.", code=code,
                    retry_after=max(1.0, meter.ends - now),
                )  # fmt: skip
        self._add(caller, Spent(requests=1), now)

    def charge(self, caller: Caller, tokens: int, cost: float | None) -> None:
        """Count what a request took. It goes to the window in which the request ended."""
        money = math.ceil((cost or 0.0) * MONEY_UNIT)
        if tokens or money:
            self._add(caller, Spent(tokens=tokens, money=money), self._clock())

    def give_back(self, caller: Caller) -> None:
        """The request was turned away for want of room: it does not count."""
        self._add(caller, Spent(requests=-1), self._clock())

    def _add(self, caller: Caller, amount: Spent, now: float) -> None:
        for scope, span in dict.fromkeys((scope, budget.window) for scope, budget in budgets_of(caller)):
            meter = self._meter(scope, span, now)
            meter.own += amount
            meter.own.requests = max(0, meter.own.requests)  # given back in the next window
            meter.dirty = True

    def _meter(self, scope: str, span: Window, now: float) -> Meter:
        meter = self._meters.get((scope, span))
        if meter is None or not meter.starts <= now < meter.ends:
            meter = self._meters[(scope, span)] = Meter(*window_of(span, now))
        return meter

    async def run(self) -> None:
        """Exchange counts with the other gateways, until cancelled."""
        down = False
        next_cleaning = 0.0
        while True:
            try:
                await self.sync()
                if self._used and self._clock() >= next_cleaning:
                    await self.clean()
                    next_cleaning = self._clock() + 3600
                if down:
                    logger.info("budgets are shared again")
                down = False
            except (DatabaseDown, DataRefused) as error:
                if not down:
                    logger.error("cannot share budgets (%s); each gateway counts by itself", error)
                down = True
            await asyncio.sleep(DOWN_SECONDS if down else SYNC_SECONDS)

    async def sync(self) -> None:
        """Write what changed, read what the others spent, drop what is over. Raises DatabaseDown, DataRefused."""
        now = self._clock()
        for key in [k for k, meter in self._meters.items() if now >= meter.ends]:
            del self._meters[key]
        if not self._meters and self._used:
            return
        changed = [(key, meter) for key, meter in self._meters.items() if meter.dirty]
        written = [
            (scope, span, m.starts, self._replica, m.own.requests, m.own.tokens, m.own.money)
            for (scope, span), m in changed
        ]
        for _, meter in changed:
            meter.dirty = False
        try:
            async with self._database.transaction() as session:
                if written:
                    await session.many(UPSERT, written)
                others = await session.fetch(OTHERS, self._replica, *(window_of(w, now)[0] for w in WINDOWS))
        except BaseException:
            for _, meter in changed:
                meter.dirty = True
            raise
        self._used = True
        self._take(others, now)

    def _take(self, rows: list[dict[str, object]], now: float) -> None:
        for row in rows:
            span: Window = row["span"]  # type: ignore[assignment]
            starts, ends = window_of(span, now)
            if row["starts"] != starts or now >= ends:
                continue
            meter = self._meter(str(row["scope"]), span, now)
            amounts = [row[name] for name in ("requests", "tokens", "money")]
            meter.others = Spent(*(int(a) for a in amounts if isinstance(a, int)))

    async def clean(self) -> None:
        """Delete the counts of windows that are long over. Raises DatabaseDown, DataRefused."""
        now = self._clock()
        async with self._database.transaction() as session:
            for span in WINDOWS:
                start = window_of(span, now - KEEP_SECONDS)[0]
                await session.execute("DELETE FROM ai_budgets WHERE span = $1 AND starts < $2", span, start)


def budgets_of(caller: Caller) -> Iterator[tuple[str, Budget]]:
    """The budgets a caller spends from, with whose they are."""
    for budget in caller.policy.budgets:
        yield caller.tenant, budget
    for budget in caller.budgets:
        yield caller.key_id, budget


def exceeded(budget: Budget, spent: Spent, divisor: int) -> str | None:
    """What of the budget is spent up; None if nothing is. Without a shared database each of `divisor` gateways has its
    equal share, rounded up."""
    money = None if budget.money is None else math.ceil(float(budget.money) * MONEY_UNIT)
    limits = (("requests", budget.requests), ("tokens", budget.tokens), ("money", money))
    for what, limit in limits:
        if limit is not None and getattr(spent, what) >= -(-limit // divisor):
            return what
    return None
