"""A circuit breaker for each object: one that changes without end is slowed, so that it costs the others nothing.

Two controllers that overwrite each other's field, or a child that flaps, make an object be looked at as fast as the API
server answers. Each object has an allowance of looks that fills up again with time (a token bucket); when it is used up
the breaker opens, and for a while the object is looked at now and then only. A look that wrote nothing costs a small
part of one: a version that hundreds of pools name is woken by each of them, and only sees that all is well. No object
is abandoned: what it needs still happens, later. Crossplane guards its composite resources in the same way.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

LOOKS_A_MINUTE = 120.0
"""What one object may have for ever, and at once. The busiest healthy object is a pool in a rollout with an interval of
one second: a look a second, and a few more when its pods come and go."""
QUIET_LOOK = 0.05
"""What a look costs that wrote nothing: 20 times as many of those, for they take processor time from the others."""
OPEN_SECONDS = 60.0
PAUSE_SECONDS = 10.0
"""Between two looks while the breaker is open."""
AFTERWARDS = 20.0
"""Looks an object may have at once when its breaker has closed: one that is still hot opens it again soon."""


@dataclass(slots=True)
class _Allowance:
    looks: float
    at: float
    open_until: float | None = None
    next_look: float = 0.0


@dataclass(frozen=True)
class Verdict:
    """Whether an object may be looked at now."""

    pause: float = 0.0
    """Seconds it must wait; 0 when it may be looked at."""
    opened: bool = False
    """Its breaker has opened with this look."""


class Breaker(Generic[K]):
    """The allowances of all objects that were looked at lately."""

    def __init__(self) -> None:
        self._allowances: dict[K, _Allowance] = {}

    def ask(self, key: K, now: float) -> Verdict:
        """Whether `key` may be looked at at time `now` (seconds of any clock that only goes forward); if so, that is
        counted."""
        found = self._allowances.get(key)
        if found is None:
            found = self._allowances[key] = _Allowance(LOOKS_A_MINUTE, now)
        if found.open_until is not None:
            if now < found.next_look:
                return Verdict(found.next_look - now)
            if now < found.open_until:
                found.next_look = now + PAUSE_SECONDS
                return Verdict()
            found.open_until, found.looks, found.at = None, AFTERWARDS, now
        found.looks = min(LOOKS_A_MINUTE, found.looks + (now - found.at) * LOOKS_A_MINUTE / 60)
        found.at = now
        if found.looks >= 1:  # what a look will cost is known after it
            found.looks -= 1
            return Verdict()
        found.open_until = now + OPEN_SECONDS
        found.next_look = now + PAUSE_SECONDS
        return Verdict(PAUSE_SECONDS, opened=True)

    def was_quiet(self, key: K) -> None:
        """The look that was counted last has written nothing: most of it is given back."""
        found = self._allowances.get(key)
        if found is not None and found.open_until is None:
            found.looks += 1 - QUIET_LOOK

    def forget(self, key: K) -> None:
        """`key` is gone."""
        self._allowances.pop(key, None)

    def is_open(self, now: float) -> int:
        """How many objects are being slowed at time `now`."""
        return sum(1 for a in self._allowances.values() if a.open_until is not None and now < a.open_until)
