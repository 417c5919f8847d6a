"""Which of the kept answers may still be given: none from before somebody of the tenant was forgotten.

An answer may have been given to many users of a tenant, and nobody keeps a list of whom. So whoever deletes a user
gives the tenant a new generation, in the same transaction; the generation is part of every kept answer's key, and with
a new one no key from before can be made again, in any gateway's memory or in Redis. Each gateway reads the generations
every second, off the requests' path. One that could not for some seconds does not know who was forgotten meanwhile, and
then gives and keeps nothing.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable

from sluice_serving.gateway.database import Database, DatabaseDown, DataRefused

logger = logging.getLogger("sluice.gateway")

READ_EVERY = 1.0
READ_SECONDS = 2.0
KNOWN_SECONDS = 5.0
"""For so long what was read holds good. So no gateway gives an answer that was forgotten longer ago than this,
whatever fails."""


class Forgetting:
    """The tenants' generations, as this gateway knows them."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._clock = clock
        self._known: dict[str, str] = {}
        self._until = -math.inf
        self._not_before = -math.inf
        self._wanted = False
        self._wake = asyncio.Event()
        self._told = False

    @property
    def known(self) -> bool:
        """Whether this gateway knows who was forgotten."""
        return self._clock() < self._until

    def generation(self, tenant: str) -> str | None:
        """Part of the key of the tenant's answers. None: not known just now, so none may be given or kept."""
        return self._known.get(tenant, "") if self._clock() < self._until else None

    def watch(self, wanted: bool) -> None:
        """Whether answers are kept at all; else nobody asks the database."""
        if wanted and not self._wanted:
            self._wake.set()
        self._wanted = wanted

    def forgot(self) -> None:
        """This very gateway has just deleted somebody: what it knew is out of date at once."""
        self._not_before = self._clock()
        self._until = -math.inf
        self._wake.set()

    async def run(self, forget: Callable[[str], None]) -> None:
        """Read on and on. `forget` is called for each tenant that has a new generation."""
        while True:
            self._wake.clear()
            if self._wanted:
                for tenant in await self.read():
                    forget(tenant)
            try:
                async with asyncio.timeout(READ_EVERY):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def read(self) -> list[str]:
        """Read the generations once. Returns the tenants whose generation is new."""
        asked = self._clock()
        try:
            async with asyncio.timeout(READ_SECONDS), self._database.transaction() as session:
                rows = await session.fetch("SELECT tenant, generation FROM ai_cache_generations")
        except (DatabaseDown, DataRefused, TimeoutError) as error:
            if not self._told:
                logger.warning("the database does not say who was forgotten (%s): kept answers are not given from %g s "
                               "after it last did", type(error).__name__, KNOWN_SECONDS)  # fmt: skip
            self._told = True
            return []
        self._told = False
        found = {row["tenant"]: row["generation"] for row in rows}
        changed = [
            tenant for tenant in found.keys() | self._known.keys() if found.get(tenant) != self._known.get(tenant)
        ]
        self._known = found
        if asked >= self._not_before:
            self._until = asked + KNOWN_SECONDS
        return changed
