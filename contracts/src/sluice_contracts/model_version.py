"""ModelVersion: one finished model, verified, promoted, published. Its spec never changes but for `publish`."""

from typing import Annotated

from pydantic import Field, StringConstraints

from sluice_contracts.base import Contract, Duration, Name, RelativePath, ShortText, Timestamp
from sluice_contracts.kubernetes import Conditions, ObjectName, cel, immutable
from sluice_contracts.training_run import ManifestReference


class PublishStage(Contract):
    """A share of all devices, and how long it must run well before the next stage opens."""

    percent: Annotated[int, Field(ge=1, le=100)]
    soak: Duration = "0s"


class PublishAfter(Contract):
    """What must have happened before the version is published."""

    promoted_in: ObjectName
    """The InferencePool that must have promoted it."""


class PublishSpec(Contract):
    """Whether, when and to whom the quantised files go."""

    model_config = cel(
        (
            "self.stages.map(s, s.percent).isSorted()"
            " && self.stages.all(a, self.stages.exists_one(b, a.percent == b.percent))"
            " && self.stages[size(self.stages) - 1].percent == 100",
            "publish.stages must rise strictly and end at percent 100, such as 5, 25, 100",
        )
    )

    channel: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]*$", max_length=32)] = "stable"
    after: PublishAfter | None = None
    stages: Annotated[list[PublishStage], Field(min_length=1, max_length=10)] = [PublishStage(percent=100)]
    paused: bool = False
    """No further stage opens. What is open stays open."""
    yanked: bool = False
    """Withdraw it: no further device updates to it, and those that run it keep it."""


class ModelVersionSpec(Contract):
    """A version is its manifest: everything else follows from it."""

    model_config = cel(*immutable("ModelVersion", "model", "version", "manifest"))

    model: Name
    version: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.-]*$", max_length=63)]
    manifest: ManifestReference
    publish: PublishSpec | None = None


class ArtifactStatus(Contract):
    """One file of the version."""

    path: RelativePath
    size: Annotated[int, Field(ge=0)]
    quantization: ShortText | None = None


class ReleaseStatus(Contract):
    """What devices can see of this version."""

    tuf_version: Annotated[int, Field(ge=1)]
    published_stage: Annotated[int, Field(ge=0, le=10)] = 0
    percent: Annotated[int, Field(ge=0, le=100)] = 0
    published_at: Timestamp | None = None
    channel: ShortText | None = None
    """Where it was published."""
    yanked_at: Timestamp | None = None
    """When it was withdrawn; no device is offered it since."""


class PromotionStatus(Contract):
    """Which pool promoted the version, when, and on what evidence."""

    pool: ObjectName
    at: Timestamp
    evidence: Annotated[str, StringConstraints(max_length=1024)] = ""


class ModelVersionStatus(Contract):
    """What is known of a version."""

    observed_generation: Annotated[int, Field(ge=0)] = 0
    conditions: Conditions = []
    lineage: ShortText | None = None
    artifacts: Annotated[list[ArtifactStatus], Field(max_length=64)] = []
    promotion: PromotionStatus | None = None
    release: ReleaseStatus | None = None
