"""From a version's manifest to the signed release: what is checked, what is stored, what devices will read."""

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.alias_generators import to_camel
from sluice_contracts.base import timestamp
from sluice_contracts.evaluation import EvaluationReport, ParityReport, ParityResult
from sluice_contracts.manifest import Artifact, Manifest
from sluice_contracts.release import CohortStage, Release, Variant, target_path
from sluice_storage import Store, open_store, read_bytes

from sluice_training.publish import pieces, repository
from sluice_training.publish.errors import PublishError
from sluice_training.publish.footprint import footprint

T = TypeVar("T", bound=BaseModel)
Report = Callable[[str], None]
"""Tells a person how far things are."""


@dataclass(frozen=True)
class Wish:
    """What is to be published, where and to whom."""

    manifest_uri: str
    manifest_digest: str
    channel: str
    version: str
    percent: int
    piece_size: int | None = None
    """None: chosen by each file's size."""
    licence: str = "Apache-2.0"


@dataclass(frozen=True)
class Published:
    """What came of it."""

    tuf_version: int
    changed: bool
    pieces_total: int
    pieces_uploaded: int
    bytes_uploaded: int

    def wire(self) -> dict[str, int | bool]:
        """camelCase, as the command prints it."""
        return {to_camel(name): value for name, value in asdict(self).items()}


def publish_release(
    store: Store, keys: Path, anchor: bytes | None, wish: Wish, now: datetime, say: Report
) -> Published:
    """Check, store, sign. Doing it again for the same version and percentage changes nothing but near expiries.

    Raises PublishError, StorageError (also ChecksumError for any input that is not what its digest says).
    """
    state = repository.load(store, anchor)
    signers = repository.load_signers(keys, state.root.signed)
    manifest = _read(Manifest, wish.manifest_uri, wish.manifest_digest)
    path = target_path(wish.channel, manifest.model)
    present = _present(store, state, path)
    if present is not None and present.version == wish.version:
        if present.manifest_digest != wish.manifest_digest:
            raise PublishError(
                f"{path} already offers version {wish.version} from another manifest ({present.manifest_digest}); "
                "a published version never changes: choose another --version"
            )
        return _restage(store, state, signers, path, present, wish.percent, now)

    report = _read(EvaluationReport, manifest.evaluation.uri, manifest.evaluation.digest)
    parity = _read(ParityReport, manifest.parity_uri, manifest.parity_digest)
    refusals = objections(manifest, report, parity)
    if refusals:
        raise PublishError(f"version {wish.version} is not fit to publish: " + "; ".join(refusals))

    variants, uploads = [], []
    source = open_store(manifest.run_uri)
    with tempfile.TemporaryDirectory(prefix="sluice-publish-") as folder:
        for artifact in manifest.device():
            say(f"{artifact.path}: fetching {artifact.size:,} bytes")
            local = Path(folder, "model.gguf")
            source.download(artifact.path, local)
            _check(local, artifact, f"{manifest.run_uri}/{artifact.path}")
            parts = pieces.cut(local, wish.piece_size or pieces.piece_size_for(artifact.size))
            upload = pieces.upload(store, local, parts)
            say(f"{artifact.path}: {upload.uploaded} of {len(parts.digests)} pieces were new")
            uploads.append((len(parts.digests), upload))
            variants.append(_variant(artifact, _parity_of(artifact, parity), parts, local))
    release = Release(
        model=manifest.model,
        version=wish.version,
        lineage=manifest.lineage,
        manifest_digest=wish.manifest_digest,
        dataset_run_id=manifest.dataset.run_id,
        git_sha=manifest.code.git_sha,
        evaluation_digest=manifest.evaluation.digest,
        evaluation_passed=report.passed,
        evaluation=headline(report),
        variants=variants,
        cohort=CohortStage(percent=wish.percent),
        licence=wish.licence,
        published_at=timestamp(now),
    )
    number = repository.publish(store, state, signers, path=path, data=release.canonical(), now=now)
    return Published(
        tuf_version=number,
        changed=True,
        pieces_total=sum(total for total, _ in uploads),
        pieces_uploaded=sum(upload.uploaded for _, upload in uploads),
        bytes_uploaded=sum(upload.bytes_uploaded for _, upload in uploads),
    )


def withdraw(
    store: Store, keys: Path, anchor: bytes | None, *, channel: str, model: str, version: str | None, now: datetime
) -> Published:
    """Take a model's release out of a channel. Devices keep what they run; no further one is updated to it.

    With `version`, only if that version is the one offered: a late call cannot withdraw its successor.
    """
    state = repository.load(store, anchor)
    signers = repository.load_signers(keys, state.root.signed)
    path = target_path(channel, model)
    present = _present(store, state, path)
    if present is None or (version is not None and present.version != version):
        return Published(state.targets.signed.version, False, 0, 0, 0)
    number = repository.publish(store, state, signers, path=path, data=None, now=now)
    return Published(number, True, 0, 0, 0)


def objections(manifest: Manifest, report: EvaluationReport, parity: ParityReport) -> list[str]:
    """Everything that forbids publishing, in words; an empty list allows it."""
    found = []
    if report.lineage != manifest.lineage:
        found.append(f"the evaluation report is of lineage {report.lineage[:16]}, not {manifest.lineage[:16]}")
    if parity.lineage != manifest.lineage:
        found.append(f"the parity report is of lineage {parity.lineage[:16]}, not {manifest.lineage[:16]}")
    if manifest.evaluation.passed != report.passed:
        found.append("the manifest and the evaluation report disagree on whether the gates passed")
    if not report.passed and manifest.evaluation.waiver is None:
        failed = ", ".join(f"{g.metric} {g.value:.3f} (needed {g.bound})" for g in report.gates if not g.passed)
        found.append(f"its evaluation failed and nobody waived it: {failed or 'see the report'}")
    if not manifest.device():
        found.append("the manifest lists no file for devices")
    seen = set()
    for artifact in manifest.device():
        if artifact.quantization is None or artifact.quantization in seen:
            found.append(f"{artifact.path} has no quantization of its own")
            continue
        seen.add(artifact.quantization)
        result = next((r for r in parity.results if r.path == artifact.path), None)
        if result is None:
            found.append(f"{artifact.path} was never compared with its full-precision parent")
        elif not result.passed:
            found.append(f"{artifact.path} failed the parity gate: {', '.join(result.reasons) or 'see parity.json'}")
    return found


def headline(report: EvaluationReport) -> dict[str, float]:
    """The metrics over all slices, by name."""
    return {m.metric: m.value for suite in report.suites for m in suite.metrics if m.slice is None}


def _restage(
    store: Store,
    state: repository.State,
    signers: repository.Signers,
    path: str,
    present: Release,
    percent: int,
    now: datetime,
) -> Published:
    total = sum(len(v.pieces) for v in present.variants)
    if present.cohort.percent == percent:
        return Published(state.targets.signed.version, False, total, 0, 0)
    staged = present.model_copy(update={"cohort": CohortStage(percent=percent)})
    number = repository.publish(store, state, signers, path=path, data=staged.canonical(), now=now)
    return Published(number, True, total, 0, 0)


def _present(store: Store, state: repository.State, path: str) -> Release | None:
    data = repository.target_bytes(store, state, path)
    if data is None:
        return None
    try:
        return Release.model_validate_json(data)
    except ValidationError as error:
        raise PublishError(
            f"{store.uri}: the signed release {path} was written by another version of Sluice: {_first(error)}"
        ) from error


def _read(kind: type[T], uri: str, digest: str) -> T:
    data = read_bytes(uri, digest)
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise PublishError(f"{uri} is no {kind.__name__}: {_first(error)}") from error


def _first(error: ValidationError) -> str:
    detail = error.errors()[0]
    return f"{'.'.join(map(str, detail['loc'])) or 'document'}: {detail['msg']}"


def _check(path: Path, artifact: Artifact, uri: str) -> None:
    size = path.stat().st_size
    if size != artifact.size:
        raise PublishError(f"{uri} has {size:,} bytes, its manifest says {artifact.size:,}")
    found = pieces.digest_of(path)
    if found != artifact.sha256:
        raise PublishError(
            f"{uri} has digest {found}, its manifest says {artifact.sha256}: it was changed after the run"
        )


def _parity_of(artifact: Artifact, parity: ParityReport) -> ParityResult:
    return next(r for r in parity.results if r.path == artifact.path)


def _variant(artifact: Artifact, parity: ParityResult, parts: pieces.Cut, path: Path) -> Variant:
    assert artifact.quantization is not None  # objections() refused it otherwise
    need = footprint(path)
    return Variant(
        quantization=artifact.quantization,
        size=artifact.size,
        sha256=artifact.sha256,
        piece_size=parts.piece_size,
        pieces=parts.digests,
        ram_bytes=need.ram_bytes,
        context=need.context,
        mean_kld=parity.mean_kld,
        same_top=parity.same_top,
    )
