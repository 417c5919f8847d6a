"""ModelVersion: one finished model, verified, promoted, published. Its spec never changes but for `publish` and
`retention`."""

from typing import Annotated

from pydantic import Field, StringConstraints

from sluice_contracts.base import Contract, Digest, Duration, Name, RelativePath, ShortText, Timestamp, Uri
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


class HealthGate(Contract):
    """What devices must say of the open stages before the next one opens."""

    report: Uri
    """The health report: JSON that `sluice-train publish health` makes from the batches devices sent."""
    max_failure_share: Annotated[float, Field(ge=0.001, le=0.999)] = 0.1
    """The share of requests that may fail. What is surely above it halts the release."""
    min_requests: Annotated[int, Field(ge=0, le=1_000_000_000)] = 100
    """Requests the report must tell of before a further stage opens; 0 lets silence pass."""


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
    health: HealthGate | None = None
    """Absent: stages open by time alone."""
    paused: bool = False
    """No further stage opens. What is open stays open."""
    yanked: bool = False
    """Withdraw it: no further device updates to it, and those that run it keep it."""


class RetentionSpec(Contract):
    """When the version's files may go. Whichever of the two keeps it longer counts; what is in use never goes."""

    model_config = cel(
        (
            "has(self.keepLast) || has(self.ttl)",
            "retention needs keepLast, ttl or both; leave retention out to keep the files for ever",
        ),
    )

    keep_last: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Kept while it is among that many newest versions of its model in its namespace."""
    ttl: Duration | None = None
    """Kept for this long after its last use."""
    dry_run: bool = False
    """Only say in status what would go."""


class ModelVersionSpec(Contract):
    """A version is its manifest: everything else follows from it."""

    model_config = cel(*immutable("ModelVersion", "model", "version", "manifest"))

    model: Name
    version: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.-]*$", max_length=63)]
    manifest: ManifestReference
    publish: PublishSpec | None = None
    retention: RetentionSpec | None = None
    """Absent: its files are kept for ever."""


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


class HealthStatus(Contract):
    """What the newest health report that was used says of this version."""

    requests: Annotated[int, Field(ge=0)]
    failures: Annotated[int, Field(ge=0)]
    at_least: Annotated[float, Field(ge=0, le=1)]
    """The failure share is no lower than this, with 99 % confidence, however often one looks."""
    made_at: Timestamp
    halted_generation: Annotated[int, Field(ge=1)] | None = None
    """The generation whose limit was broken: a halt holds until a person changes the spec."""


class BuildsOn(Contract):
    """What the version was made from, as its manifest says."""

    digest: Digest
    """Of the base's manifest, or of its weights where it has none."""
    adapter: bool = False
    """It is of no use without the base's files."""
    rank: Annotated[int, Field(ge=1)] | None = None
    """Of the LoRA adapter that it can be served as beside that base; absent where it cannot."""


class RetentionStatus(Contract):
    """How far the version is on its way out."""

    unused_since: Timestamp | None = None
    """Since when nothing uses it; absent while something does."""
    retired_at: Timestamp | None = None
    """When it was taken out of use. Its files go a while later."""
    deleting: bool = False
    """The Job that deletes them was started: there is no way back."""
    deleted_at: Timestamp | None = None


class ModelVersionStatus(Contract):
    """What is known of a version."""

    observed_generation: Annotated[int, Field(ge=0)] = 0
    conditions: Conditions = []
    lineage: ShortText | None = None
    artifacts: Annotated[list[ArtifactStatus], Field(max_length=64)] = []
    promotion: PromotionStatus | None = None
    release: ReleaseStatus | None = None
    builds_on: BuildsOn | None = None
    health: HealthStatus | None = None
    retention: RetentionStatus | None = None
