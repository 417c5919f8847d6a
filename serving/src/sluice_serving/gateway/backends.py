"""New engines: nobody is sent to one before it has answered.

The operator learns from KubeRay that a version is ready and writes its Service's URL into the routing table. A gateway
may read it before kube-proxy on its node has the Service's rules: the first requests would fail, and the new version
would be charged with them. So each new URL is asked for its health until it answers once; whose version it is goes to
another meanwhile, and comes back to it afterwards, because the choice itself is not touched.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

from sluice_contracts.routing import Backend

from sluice_serving.gateway.split import choose

logger = logging.getLogger("sluice.gateway")

Look = Callable[[str, float], Awaitable[int | None]]
"""GET of a URL within so many seconds: the status of the answer, None for none."""

HEALTH_PATH = "/-/healthz"
"""Ray Serve's own: its proxy answers when it knows its routes, and no replica is asked, so none is woken."""
LOOK_SECONDS = 2.0
PAUSE_SECONDS = (0.1, 1.0)
NOT_YET = frozenset({408, 429})


def reached(status: int | None) -> bool:
    """Whether an answer shows that an engine's server is there. One that does not know the path is."""
    return status is not None and status < 500 and status not in NOT_YET


class Newcomers:
    """Which engines have answered. `proven` is called whenever one more has."""

    def __init__(
        self,
        look: Look,
        proven: Callable[[], None],
        patience: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.probes: Counter[tuple[str, str]] = Counter()
        """Looks by version and result."""
        self.spared: Counter[str] = Counter()
        """Requests by the version they would have gone to."""
        self._look = look
        self._tell = proven
        self._patience = patience
        self._clock = clock
        self._proven: set[str] = set()
        self._asking: dict[str, asyncio.Task[None]] = {}

    def follow(self, backends: Sequence[Backend]) -> None:
        """Ask the engines that are new. One that was not ready is new again when it is."""
        names: dict[str, list[str]] = {}
        for backend in backends:
            if backend.ready:
                names.setdefault(backend.url, []).append(backend.model_version)
        if self._patience <= 0:
            self._proven = set(names)
            return
        routed = {b.model_version for b in backends}
        for probe in [p for p in self.probes if p[0] not in routed]:
            del self.probes[probe]
        for version in self.spared.keys() - routed:
            del self.spared[version]
        self._proven &= names.keys()
        for url in self._asking.keys() - names.keys():
            self._asking.pop(url).cancel()
        for url, versions in names.items():
            if url not in self._proven and url not in self._asking:
                self._asking[url] = asyncio.create_task(self._prove(url, versions))

    def proven(self, backend: Backend) -> bool:
        """Whether it has answered, or was asked for long enough."""
        return backend.url in self._proven

    def choose(self, backends: Sequence[Backend], person: str | None) -> Backend | None:
        """As `split.choose`, among the versions that have answered if there are any."""
        known = [b for b in backends if b.url in self._proven]
        chosen = choose(known, person)
        if len(known) == len(backends):
            return chosen
        wanted = choose(backends, person)
        if chosen is None or wanted is None or wanted.url in self._proven:
            return chosen or wanted
        self.spared[wanted.model_version] += 1
        return chosen

    def close(self) -> None:
        """Ask no more."""
        for task in self._asking.values():
            task.cancel()
        self._asking.clear()

    async def _prove(self, url: str, versions: list[str]) -> None:
        end = self._clock() + self._patience
        result, pause = "gave_up", PAUSE_SECONDS[0]
        while (left := end - self._clock()) > 0:
            if reached(await self._look(url.rstrip("/") + HEALTH_PATH, min(left, LOOK_SECONDS))):
                result = "answered"
                break
            self._count(versions, "failed")
            await asyncio.sleep(min(pause, max(0.0, end - self._clock())))
            pause = min(PAUSE_SECONDS[1], pause * 1.5)
        self._count(versions, result)
        if result == "gave_up":
            # Spared for ever it would never be found out: from here on its failures count.
            logger.warning("%s has not answered within %g s; taken as it is", ", ".join(versions), self._patience)
        self._asking.pop(url, None)
        self._proven.add(url)
        self._tell()

    def _count(self, versions: list[str], result: str) -> None:
        for version in versions:
            self.probes[version, result] += 1
