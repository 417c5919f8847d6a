"""One sync: look, decide, fetch, install, check, commit or roll back.

Every step is written down in update.json before it is taken, so that a process that died at any moment is followed by
one that goes on where it was:

    download  pieces come into slots/incoming            died: the partial file is kept, verified piece by piece
    install   the complete file moves into the free slot died: moved again
    health    an engine runs on it and answers           died: checked again, at most MAX_HEALTH_ATTEMPTS times
    commit    current.json names the slot                died: named again
    rollback  the slot is emptied, the file remembered   died: emptied again

The model in use is never touched before `commit`, and `commit` is one rename.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError
from sluice_contracts.base import Contract, ShortText, timestamp
from sluice_contracts.device import InstalledVersion, SyncReceipt, Transfer
from sluice_contracts.release import Release, Variant

from sluice_edge import durable, slots
from sluice_edge.audit import AuditLog
from sluice_edge.engine import health
from sluice_edge.engine.child import EngineSettings
from sluice_edge.errors import EdgeError, StorageFullError, UnhealthyError
from sluice_edge.home import AgentConfig, Home
from sluice_edge.pull import choose, pieces, trust
from sluice_edge.pull.fetch import Source

MAX_HEALTH_ATTEMPTS = 3
"""A check that takes the machine down must not do so at every start for ever."""


class State(StrEnum):
    """Where an update stands."""

    DOWNLOAD = "download"
    INSTALL = "install"
    HEALTH = "health"
    COMMIT = "commit"
    ROLLBACK = "rollback"


class Journal(Contract):
    """update.json: the update in progress."""

    state: State
    version: InstalledVersion
    """As it will be once installed; names the slot."""
    health_attempts: Annotated[int, Field(ge=0)] = 0
    reason: ShortText = ""
    """Why it is rolled back."""


@dataclass
class Sync:
    """The parts a sync works with."""

    home: Home
    config: AgentConfig
    audit: AuditLog
    say: Callable[[str], None]
    healthy: Callable[[EngineSettings], None] = health.check


def sync(work: Sync, *, retry: bool = False, repair: bool = False) -> SyncReceipt:
    """Bring the device up to date. The receipt is also kept in sync.json, for a failure too.

    `retry`: try files again that failed their health check here. `repair`: hash the file in use first, and fetch what
    the disk has damaged.

    Raises EdgeError: FetchError, TrustError, StorageFullError, UnhealthyError, ConfigurationError (another sync runs).
    """
    with durable.exclusive(work.home.sync_lock, "another sync is running in this home; wait for it"):
        started = time.monotonic()
        moved = _Moved()
        try:
            if retry:
                slots.forgive(work.home)
            outcome, message, tuf_version = _run(work, moved, repair)
        except EdgeError as error:
            receipt = _receipt(work.home, "failed", str(error), None, moved, started)
            _keep(work, receipt, error)
            raise
        receipt = _receipt(work.home, outcome, message, tuf_version, moved, started)
        _keep(work, receipt, None)
        return receipt


@dataclass
class _Moved:
    source: Source | None = None
    metadata: int = 0
    assembly: pieces.Assembly | None = None

    def transfer(self) -> Transfer:
        received = self.source.received if self.source is not None else 0
        metadata = self.metadata or received
        done = self.assembly
        return Transfer(
            metadata=metadata,
            pieces=received - metadata,
            pieces_fetched=done.fetched if done else 0,
            pieces_total=done.total if done else 0,
            reused=done.reused if done else 0,
        )


def _run(work: Sync, moved: _Moved, repair: bool) -> tuple[str, str, int]:
    failed = _finish_interrupted(work)
    with Source(work.config.repository, work.config.proxy) as source:
        moved.source = source
        offer = trust.look(work.home, work.config, source)
        moved.metadata = source.received
        decision = choose.decide(offer.release, _circumstances(work, repair))
        if decision.action != "update":
            _sweep(work.home)
            return decision.action, failed or decision.message, offer.tuf_version
        assert offer.release is not None
        assert decision.variant is not None
        work.say(f"{decision.message}: fetching what is missing of {decision.variant.size:,} bytes")
        journal = _begin(work, offer, offer.release, decision.variant)
        moved.assembly = _download(work, source, decision.variant)
        work.say(f"{moved.assembly.fetched} pieces fetched, {moved.assembly.reused} were here already")
    _complete(work, offer.document, journal.version)
    _go_on(work, journal.model_copy(update={"state": State.INSTALL}))
    return "updated", f"version {offer.release.version} ({decision.variant.quantization}) is in use", offer.tuf_version


def _circumstances(work: Sync, repair: bool) -> choose.Circumstances:
    at = slots.pointer(work.home)
    installed = slots.in_slot(work.home, at.slot) if at is not None else None
    if repair and installed is not None and pieces.digest_of(installed.model) != installed.version.sha256:
        work.say("the model file in use is damaged on this device's disk: fetching the damaged pieces")
        installed = None
    return choose.Circumstances(
        cohort=work.home.device().cohort,
        prefer=work.config.prefer,
        memory=int(_memory() * work.config.memory_share),
        installed=installed.version if installed is not None else None,
        rejected=slots.rejected(work.home),
    )


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _begin(work: Sync, offer: trust.Offer, release: Release, variant: Variant) -> Journal:
    slot = slots.free_slot(work.home)
    version = InstalledVersion(
        version=release.version,
        lineage=release.lineage,
        quantization=variant.quantization,
        sha256=variant.sha256,
        size=variant.size,
        context=min(variant.context, work.config.max_context),
        slot=slot,
        manifest_digest=release.manifest_digest,
        dataset_run_id=release.dataset_run_id,
        git_sha=release.git_sha,
        evaluation_digest=release.evaluation_digest,
        release_digest=offer.digest,
        tuf_version=offer.tuf_version,
        installed_at=timestamp(datetime.now(UTC)),
    )
    incoming = work.home.slots / slots.INCOMING
    before = _journal(work.home)
    if before is None or before.version.sha256 != variant.sha256:
        durable.remove(incoming)  # parts of a file that nobody wants any more
    try:
        incoming.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise durable.explain(error, f"cannot make {incoming}") from error
    journal = Journal(state=State.DOWNLOAD, version=version)
    enter(work.home, journal)
    return journal


def _download(work: Sync, source: Source, variant: Variant) -> pieces.Assembly:
    partial = work.home.slots / slots.INCOMING / slots.PARTIAL
    whole = partial.with_name(slots.MODEL)
    if whole.exists():
        durable.rename(whole, partial)  # died between completing the file and writing that down

    def attempt() -> pieces.Assembly:
        donors = [pieces.Donor(path, v) for path, v in slots.variants_on_device(work.home)]
        return pieces.assemble(source, variant, partial, donors)

    try:
        return attempt()
    except StorageFullError:
        spare = work.home.slots / slots.free_slot(work.home)
        if not spare.is_dir():
            raise
        work.say("the disk is full: giving up the previous version to make room")
        durable.remove(spare)
        return attempt()


def _complete(work: Sync, document: bytes, version: InstalledVersion) -> None:
    """Finish slots/incoming: the whole file under its name, beside it what it is."""
    incoming = work.home.slots / slots.INCOMING
    durable.write(incoming / slots.RELEASE, document)
    durable.write(incoming / slots.VERSION, version.canonical())
    durable.rename(incoming / slots.PARTIAL, incoming / slots.MODEL)


def _finish_interrupted(work: Sync) -> str | None:
    """Take an update that was interrupted after its download to its end, without the network.

    Returns why it was rolled back, if it was.
    """
    journal = _journal(work.home)
    if journal is None or journal.state is State.DOWNLOAD:
        return None
    work.say(f"going on with an interrupted update to version {journal.version.version} ({journal.state})")
    try:
        _go_on(work, journal)
    except UnhealthyError as error:
        return str(error)
    return None


def _go_on(work: Sync, journal: Journal) -> None:
    """From `journal.state` to the end. Raises UnhealthyError after a rollback."""
    home = work.home
    enter(home, journal)
    if journal.state is State.INSTALL:
        _install(home, journal)
        journal = enter(home, journal.model_copy(update={"state": State.HEALTH}))
    if journal.state is State.HEALTH:
        journal = _check(work, journal)
    if journal.state is State.COMMIT:
        slots.switch(home, journal.version.slot, journal.version.sha256)
        work.audit.append(
            "switch",
            version=journal.version.version,
            lineage=journal.version.lineage,
            sha256=journal.version.sha256,
            slot=journal.version.slot,
        )
    if journal.state is State.ROLLBACK:
        slots.reject(home, journal.version.sha256, journal.reason)
        durable.remove(home.slots / journal.version.slot)
        work.audit.append("rollback", version=journal.version.version, sha256=journal.version.sha256)
    home.journal.unlink(missing_ok=True)
    if journal.state is State.ROLLBACK:
        raise UnhealthyError(
            f"version {journal.version.version} was not taken into use: {journal.reason}; "
            "the version before it keeps running"
        )


def _install(home: Home, journal: Journal) -> None:
    incoming, slot = home.slots / slots.INCOMING, home.slots / journal.version.slot
    if incoming.is_dir():
        durable.remove(slot)
        durable.rename(incoming, slot)


def _check(work: Sync, journal: Journal) -> Journal:
    """Health state: returns the journal in state COMMIT or ROLLBACK, written down."""
    attempts = journal.health_attempts + 1
    journal = enter(work.home, journal.model_copy(update={"health_attempts": attempts}))
    reason = None
    installed = slots.in_slot(work.home, journal.version.slot)
    if attempts > MAX_HEALTH_ATTEMPTS:
        reason = f"its health check was interrupted {MAX_HEALTH_ATTEMPTS} times"
    elif installed is None or pieces.digest_of(installed.model) != journal.version.sha256:
        reason = "its file was damaged on this device's disk"
    else:
        work.say("checking that it answers")
        try:
            work.healthy(engine_settings(work.home, work.config, installed))
        except UnhealthyError as error:
            reason = str(error)
    if reason is None:
        return enter(work.home, journal.model_copy(update={"state": State.COMMIT}))
    return enter(work.home, journal.model_copy(update={"state": State.ROLLBACK, "reason": reason[:256]}))


def engine_settings(
    home: Home, config: AgentConfig, installed: slots.Installed, log: Path | None = None
) -> EngineSettings:
    """How the engine is started on an installed version."""
    return EngineSettings(
        model=installed.model,
        alias=config.model,
        context=min(installed.version.context, config.max_context),
        threads=config.threads,
        log=log or home.engine_log.with_name("health.log"),
    )


def enter(home: Home, journal: Journal) -> Journal:
    """Write the state down, durably, before it is acted on."""
    durable.write(home.journal, journal.canonical())
    return journal


def _journal(home: Home) -> Journal | None:
    try:
        return Journal.model_validate_json(home.journal.read_bytes())
    except FileNotFoundError:
        return None
    except (ValidationError, OSError):
        return None  # of another version of the agent: start the update over


def _sweep(home: Home) -> None:
    """Remove parts of an update that is not wanted any more."""
    home.journal.unlink(missing_ok=True)
    durable.remove(home.slots / slots.INCOMING)


def _receipt(
    home: Home, outcome: str, message: str, tuf_version: int | None, moved: _Moved, started: float
) -> SyncReceipt:
    at = slots.pointer(home)
    installed = slots.in_slot(home, at.slot) if at is not None else None
    version = installed.version if installed is not None else None
    return SyncReceipt.model_validate(
        {
            "outcome": outcome,
            "message": message[:256],
            "at": timestamp(datetime.now(UTC)),
            "seconds": round(time.monotonic() - started, 3),
            "version": version.version if version else None,
            "lineage": version.lineage if version else None,
            "quantization": version.quantization if version else None,
            "tuf_version": tuf_version,
            "bytes": moved.transfer(),
        }
    )


def _keep(work: Sync, receipt: SyncReceipt, error: EdgeError | None) -> None:
    """Write the receipt and the audit entry. On a full disk the first error counts, not that of its record."""
    try:
        durable.write(work.home.last_sync, receipt.canonical())
        work.audit.append(
            "sync",
            outcome=receipt.outcome,
            error=type(error).__name__ if error else None,
            version=receipt.version,
            tufVersion=receipt.tuf_version,
            metadataBytes=receipt.bytes.metadata,
            pieceBytes=receipt.bytes.pieces,
        )
    except EdgeError:
        if error is None:
            raise
