"""What a reconciliation decides: objects to apply, objects to delete, a status, events, and when to look again.

A `Plan` is plain data. Deciding is pure (one `plan` function per kind); carrying it out is `engine.execute`'s work.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sluice_operator.kube.resources import Resource

Object = Mapping[str, Any]
"""A Kubernetes object as plain JSON data."""


@dataclass(frozen=True)
class Meta:
    """What a plan needs of its object's metadata."""

    namespace: str
    name: str
    uid: str
    generation: int
    annotations: Mapping[str, str] = field(default_factory=dict)
    deleting: bool = False
    finalizers: frozenset[str] = frozenset()

    @classmethod
    def of(cls, obj: Object) -> "Meta":
        """The metadata of an object as the API server gave it."""
        meta = obj["metadata"]
        return cls(
            namespace=meta["namespace"],
            name=meta["name"],
            uid=meta["uid"],
            generation=meta.get("generation", 0),
            annotations=meta.get("annotations") or {},
            deleting="deletionTimestamp" in meta,
            finalizers=frozenset(meta.get("finalizers") or ()),
        )


class EventType(StrEnum):
    """Kubernetes' two types of events."""

    NORMAL = "Normal"
    WARNING = "Warning"


@dataclass(frozen=True)
class Event:
    """Something happened that a person may want to know. Reasons are stable: alerts are written against them."""

    reason: str
    message: str
    type: EventType = EventType.NORMAL


@dataclass(frozen=True)
class Apply:
    """Make an object so, by server-side apply. `manager` tells owners of different fields of one object apart."""

    resource: Resource
    object: Object
    manager: str = "sluice-operator"


@dataclass(frozen=True)
class Delete:
    """Remove an object; none there is fine."""

    resource: Resource
    namespace: str
    name: str


@dataclass(frozen=True)
class Plan:
    """The decision. `status` None leaves the status alone."""

    apply: list[Apply] = field(default_factory=list)
    delete: list[Delete] = field(default_factory=list)
    status: dict[str, Any] | None = None
    status_first: bool = False
    """Write the status before the children: for kinds whose children follow from it. Otherwise it comes after them."""
    events: list[Event] = field(default_factory=list)
    requeue_after: float | None = None
    """Seconds until the object is looked at again even if nothing happens; None: at the next resync."""
    consume: str | None = None
    """An annotation that has been obeyed and is now removed."""
    consume_first: bool = False
    """Remove it before anything else: losing a person's request is better than obeying it twice."""


def bounded(text: str, limit: int) -> str:
    """`text`, cut to `limit` characters so that the API server accepts it."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
