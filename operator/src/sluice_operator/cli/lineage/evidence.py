"""Everything a lineage is told from, as plain data: objects of the cluster, documents of the bucket, receipts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from sluice_contracts.base import Contract
from sluice_contracts.dataset import DatasetManifest
from sluice_contracts.device import DeviceReceipt
from sluice_contracts.evaluation import EvaluationReport, ParityReport
from sluice_contracts.manifest import Manifest
from sluice_contracts.release import Release

from sluice_operator.cli.objects import Pool, Run, Version

T = TypeVar("T", bound=Contract)


@dataclass(frozen=True)
class Document(Generic[T]):
    """A JSON document in storage, as it was found."""

    uri: str
    digest: str | None = None
    """Digest its bytes were promised to have; None where nobody promised one."""
    value: T | None = None
    problem: str = ""
    """Why there is no value: it is gone, was changed, or is none of its kind."""


@dataclass(frozen=True)
class Published:
    """What the release repository says."""

    channel: str
    targets_version: int
    """Version of the targets metadata that named the release."""
    newest: int
    """Version of the targets metadata in force now."""
    release: Document[Release] | None
    """None: that metadata names no release of this model."""


@dataclass(frozen=True)
class Receipt:
    """What a device said of itself."""

    source: str
    value: DeviceReceipt | None = None
    problem: str = ""


@dataclass(frozen=True)
class Evidence:
    """All that was found about one version or run."""

    namespace: str
    name: str
    version: Version | None = None
    run: Run | None = None
    pools: tuple[Pool, ...] = ()
    """Pools that serve the same model."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Lineage id to the name of the ModelVersion of this namespace that has it."""
    manifest: Document[Manifest] | None = None
    dataset: Document[DatasetManifest] | None = None
    report: Document[EvaluationReport] | None = None
    parity: Document[ParityReport] | None = None
    published: Published | None = None
    unpublished: str = ""
    """Why nothing is known of a release."""
    receipts: tuple[Receipt, ...] = ()

    @property
    def model(self) -> str:
        """The model's name."""
        owner = self.version or self.run
        return owner.spec.model if owner is not None else ""

    @property
    def lineage(self) -> str | None:
        """The lineage id all links are compared with: the manifest's own, else what the cluster recorded."""
        if self.manifest is not None and self.manifest.value is not None:
            return self.manifest.value.lineage
        if self.version is not None and self.version.status.lineage:
            return self.version.status.lineage
        return self.run.status.lineage if self.run is not None else None
