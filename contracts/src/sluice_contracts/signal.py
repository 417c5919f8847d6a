"""Signals: all that ever leaves a device. No free text field exists in these types, so none can leak."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from sluice_contracts.base import Contract, Name
from sluice_contracts.names import Domain, Task


class Outcome(StrEnum):
    """How a request ended for the person who asked."""

    SUCCESS = "success"
    PARTIAL = "partial"
    FAILURE = "failure"


class LatencyBucket(StrEnum):
    """Time to the whole answer, coarsely."""

    UNDER_200MS = "under-200ms"
    UNDER_1S = "under-1s"
    UNDER_5S = "under-5s"
    OVER_5S = "over-5s"


class TokenBucket(StrEnum):
    """Length of the answer, coarsely."""

    UNDER_16 = "under-16"
    UNDER_64 = "under-64"
    UNDER_256 = "under-256"
    OVER_256 = "over-256"


LineageId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$", max_length=64)]


class SignalCell(Contract):
    """How often one combination happened on a device since its last batch."""

    lineage: LineageId
    domain: Domain
    task: Task
    outcome: Outcome
    feedback: Annotated[int, Field(ge=-1, le=1)] = 0
    latency: LatencyBucket
    tokens: TokenBucket
    count: Annotated[int, Field(ge=1, le=100_000)]


class SignalBatch(Contract):
    """What one device exports, with its owner's consent: counts of closed combinations, a random id, nothing else.

    No time finer than a day, no device id, no order of events.
    """

    schema_version: Literal[1] = 1
    batch_id: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
    """Random, fresh for each batch: makes a repeated upload count once, links nothing."""
    model: Name
    day: Annotated[str, StringConstraints(pattern=r"^\d{4}-\d\d-\d\d$")]
    consent: Literal["improve-models"]
    cells: Annotated[list[SignalCell], Field(max_length=1000)]
