"""User contexts: a record per user that is added to their chats as a system message.

Users are known by their pseudonym here, as in `ai_interactions`. A request waits for its context a quarter of a second
at most; when the database is away it is answered without, and says so.
"""

import asyncio
import json
import secrets
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sluice_serving.gateway.database import Database, DatabaseDown, DataRefused, moment

MAX_CHARACTERS = 8192
CACHE_ENTRIES = 10_000
CACHE_SECONDS = 2.0
"""How long another gateway may go on with a former version."""
LOOKUP_SECONDS = 0.25
REST_SECONDS = 1.0
"""After a failed look-up the database is left alone for so long: waiting for it would delay every request."""
COUNT_LOCK = "contexts"


class Conflict(Exception):
    """There is one already, or it is not the version that the caller means."""


class TooMany(Exception):
    """The tenant has as many contexts as it may have."""


@dataclass(frozen=True)
class Context:
    """One user's record."""

    reference: str
    """Stays the same through all versions, and says nothing about the user."""
    version: int
    content: str
    created: datetime
    updated: datetime

    @property
    def tag(self) -> str:
        """Names this version in headers and records."""
        return f"{self.reference}.{self.version}"


def _context(row: dict[str, Any]) -> Context:
    return Context(
        row["reference"], row["version"], row["content"], moment(row["created"]), moment(row["updated"])
    )  # fmt: skip


SELECT = "SELECT reference, version, content, created, updated FROM ai_contexts WHERE tenant = $1 AND pseudonym = $2"


class ContextStore:
    """The contexts of all tenants, with a cache for those that chat."""

    def __init__(self, database: Database, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.lookups: Counter[str] = Counter()
        self._database = database
        self._limit = limit
        self._clock = clock
        self._cache: OrderedDict[tuple[str, str], tuple[float, Context | None]] = OrderedDict()
        self._rest_until = 0.0

    async def find(self, tenant: str, user: str) -> Context | None:
        """For a request: the context, perhaps a few seconds old; None if there is none. Raises DatabaseDown."""
        now = self._clock()
        key = (tenant, user)
        cached = self._cache.get(key)
        if cached is not None and now < cached[0]:
            self._cache.move_to_end(key)
            self.lookups["cached"] += 1
            return cached[1]
        if now < self._rest_until:
            self.lookups["unavailable"] += 1
            raise DatabaseDown("resting")
        try:
            async with asyncio.timeout(LOOKUP_SECONDS):
                found = await self.read(tenant, user)
        except (DatabaseDown, DataRefused, TimeoutError) as error:
            self._rest_until = self._clock() + REST_SECONDS
            self.lookups["unavailable"] += 1
            raise DatabaseDown(type(error).__name__) from None
        self.lookups["found" if found else "none"] += 1
        self._remember(key, found)
        return found

    def _remember(self, key: tuple[str, str], found: Context | None) -> None:
        self._cache[key] = self._clock() + CACHE_SECONDS, found
        self._cache.move_to_end(key)
        while len(self._cache) > CACHE_ENTRIES:
            self._cache.popitem(last=False)

    async def read(self, tenant: str, user: str) -> Context | None:
        """The context as it is now. Raises DatabaseDown, DataRefused."""
        async with self._database.transaction() as session:
            rows = await session.fetch(SELECT, tenant, user)
        return _context(rows[0]) if rows else None

    async def create(self, tenant: str, user: str, content: str) -> Context:
        """Make one. Raises Conflict, TooMany, DatabaseDown, DataRefused."""
        now = datetime.now(UTC)
        made = Context(f"ctx_{secrets.token_hex(8)}", 1, content, now, now)
        async with self._database.transaction() as session:
            await session.lock(COUNT_LOCK)
            (counted,) = await session.fetch("SELECT COUNT(*) AS n FROM ai_contexts WHERE tenant = $1", tenant)
            if counted["n"] >= self._limit:
                raise TooMany
            added = await session.execute(
                "INSERT INTO ai_contexts (tenant, pseudonym, reference, version, content, created, updated) "
                "VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (tenant, pseudonym) DO NOTHING",
                tenant, user, made.reference, made.version, content, now, now,
            )  # fmt: skip
        if not added:
            raise Conflict
        self._remember((tenant, user), made)
        return made

    async def update(self, tenant: str, user: str, content: str, tag: str) -> Context | None:
        """Replace the version named by `tag`. None if there is no context. Raises Conflict, DatabaseDown."""
        now = datetime.now(UTC)
        async with self._database.transaction() as session:
            rows = await session.fetch(SELECT, tenant, user)
            if not rows:
                return None
            former = _context(rows[0])
            if former.tag != tag:
                raise Conflict
            changed = await session.execute(
                "UPDATE ai_contexts SET content = $4, updated = $5, version = version + 1 "
                "WHERE tenant = $1 AND pseudonym = $2 AND version = $3",
                tenant, user, former.version, content, now,
            )  # fmt: skip
            if not changed:  # another gateway was faster, between the two statements
                raise Conflict
        updated = Context(former.reference, former.version + 1, content, former.created, now)
        self._remember((tenant, user), updated)
        return updated

    async def delete(self, tenant: str, user: str, tag: str | None) -> bool:
        """Delete it, if `tag` is given only that version. False if there is none. Raises Conflict, DatabaseDown."""
        async with self._database.transaction() as session:
            rows = await session.fetch(SELECT, tenant, user)
            if rows and tag is not None and _context(rows[0]).tag != tag:
                raise Conflict
            wanted = _context(rows[0]).version if rows else 0
            only = "" if tag is None else f" AND version = {wanted:d}"
            deleted = await session.execute(
                f"DELETE FROM ai_contexts WHERE tenant = $1 AND pseudonym = $2{only}", tenant, user
            )
            if rows and not deleted and tag is not None:
                raise Conflict
        self._remember((tenant, user), None)
        return deleted > 0

    def forget(self, tenant: str, user: str) -> None:
        """The user was deleted: nothing of theirs may stay in memory."""
        self._cache.pop((tenant, user), None)

    def forget_tenant(self, tenant: str) -> None:
        """One of the tenant's users was deleted elsewhere, and who it was is not said: none may stay in memory."""
        for key in [key for key in self._cache if key[0] == tenant]:
            del self._cache[key]


def with_context(body: bytes, text: str) -> bytes:
    """A chat's body with `text` as its system message.

    An own system message of the request stays, after the context and in the same message: many chat templates take one
    only, and only in the first place.
    """
    request = json.loads(body)
    messages = request["messages"]
    first = messages[0] if messages and messages[0].get("role") in {"system", "developer"} else None
    if first is None:
        messages.insert(0, {"role": "system", "content": text})
    elif isinstance(first.get("content"), list):
        first["content"] = [{"type": "text", "text": text}, *first["content"]]
    else:
        first["content"] = f"{text}\n\n{first.get('content') or ''}".rstrip()
    return json.dumps(request, ensure_ascii=False).encode()
