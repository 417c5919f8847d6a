"""The links of how a model reached people: release and devices. Pure."""

from sluice_contracts.device import InstalledVersion
from sluice_contracts.manifest import Manifest
from sluice_contracts.names import ConditionType
from sluice_contracts.release import Release

from sluice_operator.cli.lineage.chain import Link, LinkState
from sluice_operator.cli.lineage.evidence import Evidence, Receipt
from sluice_operator.cli.lineage.made import differs, manifest_of
from sluice_operator.cli.objects import condition
from sluice_operator.cli.text import moment, short


def release(evidence: Evidence) -> list[Link]:
    """The signed document that devices trust."""
    version, published = evidence.version, evidence.published
    if version is None:
        return [Link("release", "-", LinkState.ABSENT, "there is no version to publish")]
    if published is None:
        return [Link("release", "-", LinkState.ABSENT, evidence.unpublished)]
    name = f"{published.channel}/{version.spec.model}"
    said = version.status.release
    document = published.release
    if document is None or (document.value is not None and document.value.version != version.name and said is None):
        offered = f"offers {document.value.version}" if document and document.value else "offers nothing yet"
        return [Link("release", name, LinkState.ABSENT, f"{_waiting(evidence)}; the channel {offered}")]
    found = document.value
    if found is None:
        return [Link("release", name, LinkState.BROKEN, document.problem, uri=document.uri, digest=document.digest)]
    problems = [differs(evidence, found.lineage, "the release"), *_contradictions(found, manifest_of(evidence))]
    problem = next((p for p in problems if p), "")
    newer = published.newest > published.targets_version
    text = f"{found.version} for {found.cohort.percent} % of devices, targets version {published.targets_version}"
    return [
        Link(
            "release",
            name,
            LinkState.BROKEN if problem else LinkState.OK,
            problem or text + (f" (now {published.newest})" if newer else ""),
            check="the digests agree with the manifest" if not problem else "",
            lineage=found.lineage,
            uri=document.uri,
            digest=document.digest,
            facts={
                "tufVersion": published.targets_version,
                "percent": found.cohort.percent,
                "publishedAt": found.published_at,
                "quantizations": [v.quantization.value for v in found.variants],
            },
        )
    ]


def devices(evidence: Evidence) -> list[Link]:
    """Each device that handed in a receipt."""
    if not evidence.receipts:
        text = "no receipt given: sluice-edge status -o json > FILE, then --device FILE"
        return [Link("device", "-", LinkState.ABSENT, text)]
    return [_device(evidence, receipt) for receipt in evidence.receipts]


def _device(evidence: Evidence, receipt: Receipt) -> Link:
    found = receipt.value
    if found is None:
        return Link("device", receipt.source, LinkState.BROKEN, receipt.problem)
    installed = found.installed
    if installed is None:
        return Link("device", receipt.source, LinkState.ABSENT, "has no version installed yet: sluice-edge sync")
    problems = [
        differs(evidence, installed.lineage, f"it runs {installed.version}, which"),
        _foreign_file(installed, manifest_of(evidence)),
        _other_release(evidence, installed),
    ]
    problem = next((p for p in problems if p), "")
    text = f"runs {installed.version} {installed.quantization} since {moment(installed.installed_at)}"
    moved = found.last_sync.bytes if found.last_sync is not None else None
    if moved is not None and moved.pieces_total:
        text += f"; {moved.pieces_fetched} of {moved.pieces_total} pieces fetched"
    return Link(
        "device",
        receipt.source,
        LinkState.BROKEN if problem else LinkState.OK,
        problem or text,
        check="its file's digest is the manifest's" if not problem and manifest_of(evidence) else "",
        lineage=installed.lineage,
        digest=installed.sha256,
        facts={
            "version": installed.version,
            "quantization": installed.quantization.value,
            "slot": installed.slot,
            "installedAt": installed.installed_at,
            "tufVersion": installed.tuf_version,
        },
    )


def _contradictions(found: Release, manifest: Manifest | None) -> list[str]:
    """Where a release and the manifest it was made from disagree."""
    if manifest is None:
        return []
    files = {a.quantization: a.sha256 for a in manifest.device()}
    problems = [
        f"its {v.quantization} file is {short(v.sha256)}, the manifest's {short(files.get(v.quantization))}"
        for v in found.variants
        if files.get(v.quantization) != v.sha256
    ]
    if found.evaluation_digest != manifest.evaluation.digest:
        problems.append("it names another evaluation report than the manifest")
    if found.dataset_run_id != manifest.dataset.run_id:
        problems.append(f"it names dataset {found.dataset_run_id}, the manifest {manifest.dataset.run_id}")
    return problems


def _foreign_file(installed: InstalledVersion, manifest: Manifest | None) -> str:
    if manifest is None or any(a.sha256 == installed.sha256 for a in manifest.device()):
        return ""
    return f"its file {short(installed.sha256)} is none of the manifest's"


def _other_release(evidence: Evidence, installed: InstalledVersion) -> str:
    version = evidence.version
    if version is None or installed.manifest_digest == version.spec.manifest.digest:
        return ""
    return f"it names manifest {short(installed.manifest_digest)}, the version {short(version.spec.manifest.digest)}"


def _waiting(evidence: Evidence) -> str:
    version = evidence.version
    if version is None or version.spec.publish is None:
        return "not asked for: spec.publish is not set"
    found = condition(version.conditions, ConditionType.PUBLISHED)
    return f"not published yet{': ' + found.message if found is not None and found.message else ''}"
