"""Reading a lineage's evidence from the cluster, the bucket, the release repository and receipts. All the I/O there is.

A document that is gone or was changed is evidence too, and kept as such; storage that does not answer at all is an
error, for then nothing could be said of any link.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from sluice_contracts.base import Contract
from sluice_contracts.dataset import DatasetManifest
from sluice_contracts.device import DeviceReceipt
from sluice_contracts.evaluation import EvaluationReport, ParityReport
from sluice_contracts.job import MANIFEST_FILE
from sluice_contracts.manifest import Manifest
from sluice_contracts.release import Release, target_path
from sluice_storage import ChecksumError, NotFoundError, StorageError, join, read_bytes

from sluice_operator.cli.cluster import Cluster
from sluice_operator.cli.errors import CliError
from sluice_operator.cli.find import find_named, find_one
from sluice_operator.cli.lineage.evidence import Document, Evidence, Published, Receipt
from sluice_operator.cli.objects import Pool, Run, Version, pool_of, run_of, version_of
from sluice_operator.kube.resources import INFERENCE_POOL, MODEL_VERSION, TRAINING_RUN

Read = Callable[[str, str | None], bytes]
T = TypeVar("T", bound=Contract)


def gather(
    cluster: Cluster,
    namespace: str,
    target: str,
    releases_uri: str | None,
    receipts: list[Path],
    read: Read = read_bytes,
) -> Evidence:
    """Everything about `target`: a ModelVersion, a TrainingRun, or a pool (its stable version). Raises CliError."""
    version, run = _subject(cluster, namespace, target)
    owner = version or run
    assert owner is not None
    pools = tuple(
        p for p in map(pool_of, cluster.everything(INFERENCE_POOL, namespace)) if p.spec.model == owner.spec.model
    )
    try:
        manifest = _manifest(read, version, run)
        found = manifest.value if manifest is not None else None
        published, unpublished = _published(read, releases_uri, version)
        return Evidence(
            namespace=namespace,
            name=owner.name,
            version=version,
            run=run,
            pools=pools,
            versions=_lineages(cluster, namespace),
            manifest=manifest,
            dataset=_dataset(read, found, run),
            report=_report(read, found, run),
            parity=_document(read, ParityReport, found.parity_uri, found.parity_digest) if found else None,
            published=published,
            unpublished=unpublished,
            receipts=tuple(_receipt(path) for path in receipts),
        )
    except StorageError as error:
        raise CliError(str(error)) from None


def _subject(cluster: Cluster, namespace: str, target: str) -> tuple[Version | None, Run | None]:
    found: Any = find_named(cluster, namespace, target)
    if found.resource == INFERENCE_POOL:
        pool: Pool = found
        if pool.status.stable is None:
            raise CliError(f"{pool} serves no version yet; `sluice explain ipool/{pool.name}` says why")
        found = find_one(cluster, MODEL_VERSION, namespace, pool.status.stable.model_version)
    if found.resource == TRAINING_RUN:
        run: Run = found
        made = run.status.model_version and cluster.get(MODEL_VERSION, namespace, run.status.model_version)
        return (version_of(made) if made else None), run
    version: Version = found
    by_name = cluster.get(TRAINING_RUN, namespace, version.spec.version)
    return version, (run_of(by_name) if by_name else None)


def _lineages(cluster: Cluster, namespace: str) -> dict[str, str]:
    versions = map(version_of, cluster.everything(MODEL_VERSION, namespace))
    return {v.status.lineage: v.name for v in versions if v.status.lineage}


def _manifest(read: Read, version: Version | None, run: Run | None) -> Document[Manifest] | None:
    reference = version.spec.manifest if version else (run.status.manifest if run else None)
    return None if reference is None else _document(read, Manifest, reference.uri, reference.digest)


def _dataset(read: Read, manifest: Manifest | None, run: Run | None) -> Document[DatasetManifest] | None:
    if manifest is not None:
        return _document(read, DatasetManifest, join(manifest.dataset.uri, MANIFEST_FILE), manifest.dataset.digest)
    if run is not None:
        return _document(read, DatasetManifest, join(run.spec.dataset.uri, MANIFEST_FILE), run.spec.dataset.digest)
    return None


def _report(read: Read, manifest: Manifest | None, run: Run | None) -> Document[EvaluationReport] | None:
    if manifest is not None:
        return _document(read, EvaluationReport, manifest.evaluation.uri, manifest.evaluation.digest)
    if run is not None and run.status.report_uri:
        return _document(read, EvaluationReport, run.status.report_uri, None)
    return None


def _document(read: Read, kind: type[T], uri: str, digest: str | None) -> Document[T]:
    try:
        return Document(uri, digest, kind.model_validate_json(read(uri, digest)))
    except NotFoundError:
        return Document(uri, digest, problem=f"{uri} is gone")
    except ChecksumError:
        return Document(uri, digest, problem=f"{uri} was changed after it was recorded: its digest differs")
    except ValidationError as error:
        detail = error.errors()[0]
        where = ".".join(map(str, detail["loc"])) or "document"
        return Document(uri, digest, problem=f"{uri} is no {kind.__name__}: {where}: {detail['msg']}")


def _published(read: Read, releases_uri: str | None, version: Version | None) -> tuple[Published | None, str]:
    """The release as the metadata names it that was in force when this version was published.

    Consistent snapshots keep every version of the targets metadata, so this stays readable after newer releases. The
    signatures are for devices to check; here the digests are followed.
    """
    if version is None:
        return None, ""
    if not releases_uri:
        return None, "where releases lie is not known: pass --releases URI or set SLUICE_RELEASES_URI"
    publish = version.spec.publish
    channel = publish.channel if publish is not None else "stable"
    try:
        snapshot = _signed(read, releases_uri, "timestamp.json")["meta"]["snapshot.json"]["version"]
        newest = int(_signed(read, releases_uri, f"{snapshot}.snapshot.json")["meta"]["targets.json"]["version"])
        said = version.status.release
        number = min(said.tuf_version, newest) if said is not None else newest
        targets = _signed(read, releases_uri, f"{number}.targets.json")["targets"]
        path = target_path(channel, version.spec.model)
        if path not in targets:
            return Published(channel, number, newest, None), ""
        digest = str(targets[path]["hashes"]["sha256"])
    except NotFoundError:
        return None, f"{releases_uri} holds no releases yet (sluice-train publish init)"
    except (KeyError, TypeError, ValueError) as error:
        raise CliError(f"the metadata in {releases_uri} is none of a release repository's: {error}") from None
    folder, _, name = path.rpartition("/")
    uri = join(releases_uri, "targets", folder, f"{digest}.{name}")
    return Published(channel, number, newest, _document(read, Release, uri, f"sha256:{digest}")), ""


def _signed(read: Read, releases_uri: str, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(read(join(releases_uri, "metadata", name), None))["signed"]
    return content


def _receipt(path: Path) -> Receipt:
    try:
        return Receipt(path.name, DeviceReceipt.model_validate_json(path.read_bytes()))
    except OSError as error:
        raise CliError(f"cannot read --device {path}: {error.strerror}") from None
    except ValidationError as error:
        detail = error.errors()[0]
        where = ".".join(map(str, detail["loc"])) or "document"
        raise CliError(
            f"--device {path} is no receipt: {where}: {detail['msg']}; make one with `sluice-edge status -o json`"
        ) from None
