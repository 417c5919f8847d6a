"""Conditions, as kstatus reads them: Ready, and the two that are abnormal when true, Reconciling and Stalled.

Source of the meaning: kubernetes-sigs/cli-utils, pkg/kstatus. Reconciling True: still on the way there. Stalled True:
it will not get there by itself. Ready True: what the spec asks for is so, at this generation.
"""

from collections.abc import Iterable
from datetime import datetime

from sluice_contracts.base import timestamp
from sluice_contracts.kubernetes import Condition
from sluice_contracts.names import ConditionType

from sluice_operator.plan import bounded

Truth = bool | None
"""True, False, or None for Unknown."""


class ConditionSet:
    """The conditions of one object while a plan is made: set by type, keeping the time of the last real transition."""

    def __init__(self, before: Iterable[Condition], generation: int, now: datetime) -> None:
        self._before = {c.type: c for c in before}
        self._set: dict[str, Condition] = {}
        self._generation = generation
        self._now = timestamp(now)

    def set(self, type_: ConditionType, truth: Truth, reason: str, message: str = "") -> None:
        """State one condition; the last word on a type counts."""
        status = {True: "True", False: "False", None: "Unknown"}[truth]
        old = self._before.get(type_)
        same = old is not None and old.status == status
        self._set[type_] = Condition(
            type=type_,
            status=status,
            reason=reason,
            message=bounded(message, 4096),
            observed_generation=self._generation,
            last_transition_time=old.last_transition_time if old is not None and same else self._now,
        )

    def keep(self, type_: ConditionType) -> None:
        """Carry a condition over, if it was there: it still holds, also of this generation."""
        if type_ in self._before and type_ not in self._set:
            update = {"observed_generation": self._generation}
            self._set[type_] = self._before[type_].model_copy(update=update)

    def ready(self, reason: str, message: str = "") -> None:
        """What the spec asks for is so."""
        self.set(ConditionType.READY, True, reason, message)
        self.set(ConditionType.RECONCILING, False, reason)
        self.set(ConditionType.STALLED, False, reason)

    def reconciling(self, reason: str, message: str = "") -> None:
        """On the way."""
        self.set(ConditionType.READY, False, reason, message)
        self.set(ConditionType.RECONCILING, True, reason, message)
        self.set(ConditionType.STALLED, False, reason)

    def stalled(self, reason: str, message: str) -> None:
        """It will not get there without a person."""
        self.set(ConditionType.READY, False, reason, message)
        self.set(ConditionType.RECONCILING, False, reason)
        self.set(ConditionType.STALLED, True, reason, message)

    def waiting(self, reason: str, message: str) -> None:
        """Neither on the way nor stuck: a person asked for it to stand still."""
        self.set(ConditionType.READY, False, reason, message)
        self.set(ConditionType.RECONCILING, False, reason, message)
        self.set(ConditionType.STALLED, False, reason)

    def list(self) -> list[Condition]:
        """All that were set, in the order of their types' names: a stable order keeps equal statuses equal."""
        return [self._set[t] for t in sorted(self._set)]


def find(conditions: Iterable[Condition], type_: ConditionType) -> Condition | None:
    """The condition of that type, if it is there."""
    return next((c for c in conditions if c.type == type_), None)


def is_true(conditions: Iterable[Condition], type_: ConditionType) -> bool:
    """Whether the condition is there and True."""
    found = find(conditions, type_)
    return found is not None and found.status == "True"
