"""Knocking again where nobody opened: an engine's replica has gone, and its address is still given out.

kube-proxy learns a moment late that a pod ends, so for that moment a share of new connections, half of them with two
replicas, is refused. Nothing ran then: connecting again costs no engine anything, and meets a replica that is there.
So it is done without a budget, but only for engines with several replicas, and only for as long as such a moment may
take. After that the engine is gone, and waiting would only delay what happens instead.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from sluice_contracts.routing import Backend

PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8)
"""Seconds between tries of one request. Of two replicas, one request in 64 meets only the one that is gone."""
LATE_SECONDS = 3.0
"""How late addresses may be."""
QUIET_SECONDS = 1.0
"""Without a refusal for so long, the next one is the first of another moment."""


@dataclass
class _Refusals:
    first: float
    last: float


class Reconnecting:
    """Which engines are worth knocking at again, and for how long."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._refusals: dict[str, _Refusals | None] = {}
        """By the address of an engine with several replicas."""

    def follow(self, backends: Sequence[Backend]) -> None:
        """Know the table's engines."""
        several = {b.url.rstrip("/") for b in backends if b.replicas > 1}
        self._refusals = {url: self._refusals.get(url) for url in several}

    def pauses(self, url: str) -> Iterator[float]:
        """The pauses before further tries at an endpoint of an engine, after it was refused once."""
        for pause in PAUSES:
            if not self._worthwhile(url):
                return
            yield pause

    def _worthwhile(self, url: str) -> bool:
        engine = url.partition("/v1/")[0]
        if engine not in self._refusals:
            return False
        now, seen = self._clock(), self._refusals[engine]
        if seen is None or now - seen.last > QUIET_SECONDS:
            seen = self._refusals[engine] = _Refusals(now, now)
        seen.last = now
        return now - seen.first <= LATE_SECONDS
