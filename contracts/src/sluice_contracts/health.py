"""The health report: how versions do on devices, added up from the signals that owners let go.

Whoever collects the batches writes it (`sluice-train publish health`), the operator reads it before it opens another
stage. Counts only, of whole versions: nothing in it is of one device.
"""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from sluice_contracts.base import Contract, Name, Timestamp
from sluice_contracts.signal import LineageId


class VersionHealth(Contract):
    """What all batches together say of one version."""

    lineage: LineageId
    batches: Annotated[int, Field(ge=1)]
    """Batches that tell of it. A batch is one device's, so this bounds how many devices spoke."""
    requests: Annotated[int, Field(ge=1)]
    failures: Annotated[int, Field(ge=0)]
    """Requests that failed, or that the owner marked as bad."""
    design_effect: Annotated[float, Field(ge=1)] = 1.0
    """How many times wider the failure share scatters than if every request were independent of the others: one broken
    device fails often, and must not count as many. The variance between batches over the binomial variance."""


class HealthReport(Contract):
    """health.json."""

    schema_version: Literal[1] = 1
    model: Name
    made_at: Timestamp
    last_day: Annotated[str, StringConstraints(pattern=r"^\d{4}-\d\d-\d\d$")] | None = None
    """The newest batch's day; None without one."""
    batches: Annotated[int, Field(ge=0)] = 0
    """All batches of the model, each counted once."""
    versions: Annotated[list[VersionHealth], Field(max_length=200)] = []
    """By requests, most first; beyond 200 versions the rarest are left out."""

    def of(self, lineage: str) -> VersionHealth | None:
        """What is known of one version."""
        return next((v for v in self.versions if v.lineage == lineage), None)
