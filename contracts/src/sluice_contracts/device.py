"""What a device says about itself: which version it runs, where that came from, what fetching it took. No identity."""

from typing import Annotated, Literal

from pydantic import Field

from sluice_contracts.base import Contract, Digest, Name, ShortText, Timestamp
from sluice_contracts.names import Quantization


class Transfer(Contract):
    """What one sync moved over the network, and what it found on the device already."""

    metadata: Annotated[int, Field(ge=0)] = 0
    """Bytes of signed metadata and of the release."""
    pieces: Annotated[int, Field(ge=0)] = 0
    """Bytes of pieces, refused ones among them."""
    pieces_fetched: Annotated[int, Field(ge=0)] = 0
    pieces_total: Annotated[int, Field(ge=0)] = 0
    """Pieces of the file that was wanted; 0 if nothing new was."""
    reused: Annotated[int, Field(ge=0)] = 0
    """Pieces of it that were on the device already."""


SyncOutcome = Literal["updated", "unchanged", "waiting", "failed"]
"""waiting: the release is not for this device yet (its cohort, or none is published)."""


class SyncReceipt(Contract):
    """How the last sync ended."""

    outcome: SyncOutcome
    message: ShortText
    at: Timestamp
    seconds: Annotated[float, Field(ge=0)]
    version: ShortText | None = None
    """The version that runs after the sync."""
    lineage: ShortText | None = None
    quantization: Quantization | None = None
    tuf_version: Annotated[int, Field(ge=1)] | None = None
    """Version of the targets metadata that was seen."""
    bytes: Transfer = Transfer()


class InstalledVersion(Contract):
    """The file in use and where it came from."""

    version: ShortText
    lineage: ShortText
    quantization: Quantization
    sha256: Digest
    size: Annotated[int, Field(ge=1)]
    context: Annotated[int, Field(ge=64)]
    slot: Literal["a", "b"]
    manifest_digest: Digest
    dataset_run_id: ShortText
    git_sha: ShortText
    evaluation_digest: Digest
    release_digest: Digest
    """Digest of the signed release document."""
    tuf_version: Annotated[int, Field(ge=1)]
    installed_at: Timestamp


class DeviceReceipt(Contract):
    """`sluice-edge status -o json`."""

    schema_version: Literal[1] = 1
    model: Name
    channel: ShortText
    cohort: Annotated[int, Field(ge=0, le=99)]
    installed: InstalledVersion | None = None
    previous: InstalledVersion | None = None
    """What the device would go back to."""
    last_sync: SyncReceipt | None = None
    consent: bool = False
    """Whether the owner lets signals leave."""
    audit_entries: Annotated[int, Field(ge=0)] = 0
    audit_head: ShortText | None = None
