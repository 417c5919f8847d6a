"""The links of how a model was made: signals, dataset, base, run, manifest. Pure."""

from typing import Any

from sluice_contracts.base import parse_timestamp
from sluice_contracts.lineage import LineageInputs, lineage_id
from sluice_contracts.manifest import Manifest
from sluice_contracts.training_run import Recipe

from sluice_operator.cli.lineage.chain import Link, LinkState
from sluice_operator.cli.lineage.evidence import Evidence
from sluice_operator.cli.text import counted, short, span

CHECKED = "digest checked"


def manifest_of(evidence: Evidence) -> Manifest | None:
    """The manifest, where it could be read."""
    return evidence.manifest.value if evidence.manifest is not None else None


def differs(evidence: Evidence, lineage: str | None, whose: str) -> str:
    """What is wrong with a link's lineage id; empty if nothing is."""
    if lineage is None or evidence.lineage is None or lineage == evidence.lineage:
        return ""
    return f"{whose} has lineage {short(lineage)}, not {short(evidence.lineage)}"


def signal(evidence: Evidence) -> list[Link]:
    """Which device signals weighed the dataset."""
    manifest = manifest_of(evidence)
    dataset = evidence.dataset.value if evidence.dataset is not None else None
    recorded = manifest.dataset.signals_digest if manifest else (dataset.signals_digest if dataset else None)
    if dataset is None:
        text = "told by the dataset's manifest, which could not be read"
        return [Link("signal", "-", LinkState.ABSENT, text, digest=recorded)]
    if dataset.signals_digest != recorded:
        text = f"the dataset names signals {short(dataset.signals_digest)}, the model's manifest {short(recorded)}"
        return [Link("signal", "-", LinkState.BROKEN, text, digest=recorded)]
    if dataset.signals_digest is None:
        return [Link("signal", "-", LinkState.ABSENT, "no device signals went into the dataset")]
    changed = [f"{w.domain} ×{w.factor:.3g}" for w in dataset.weights if w.factor != 1]
    weights = ", ".join(changed) or "none differently"
    return [
        Link(
            "signal",
            counted(dataset.signal_batches, "batch", "batches"),
            LinkState.OK,
            f"slices weighed: {weights}",
            check=f"{short(dataset.signals_digest)} in both manifests",
            digest=dataset.signals_digest,
            facts={"batches": dataset.signal_batches, "weights": [w.wire() for w in dataset.weights]},
        )
    ]


def dataset(evidence: Evidence) -> list[Link]:
    """The data it learned from."""
    document = evidence.dataset
    manifest = manifest_of(evidence)
    name = manifest.dataset.run_id if manifest else "-"
    if document is None:
        return [Link("dataset", name, LinkState.ABSENT, "named by the manifest, which could not be read")]
    if document.value is None:
        return [Link("dataset", name, LinkState.BROKEN, document.problem, uri=document.uri, digest=document.digest)]
    found = document.value
    held = {file.path: file.rows for file in found.files}
    rows = {name: held[f"{name}.jsonl"] for name in ("train", "val", "test") if f"{name}.jsonl" in held}
    if manifest is not None and found.run_id != manifest.dataset.run_id:
        text = f"the folder holds dataset {found.run_id}, the manifest names {manifest.dataset.run_id}"
        return [Link("dataset", name, LinkState.BROKEN, text, uri=document.uri, digest=document.digest)]
    parts = ", ".join(f"{name} {n:,}" for name, n in rows.items())
    return [
        Link(
            "dataset",
            found.run_id,
            LinkState.OK,
            f"{sum(rows.values()):,} rows ({parts})",
            check=CHECKED if document.digest else "no digest known",
            uri=document.uri,
            digest=document.digest,
            facts={"rows": rows, "generator": found.generator, "duplicatesRemoved": found.duplicates_removed},
        )
    ]


def base(evidence: Evidence) -> list[Link]:
    """What training started from."""
    manifest = manifest_of(evidence)
    if manifest is None:
        return []
    if manifest.base_lineage is None:
        started = "trained from scratch" if manifest.recipe.method == "scratch" else "started from given files"
        return [Link("base", "-", LinkState.ABSENT, started, digest=manifest.base_digest)]
    name = evidence.versions.get(manifest.base_lineage)
    return [
        Link(
            "base",
            name or "(no longer here)",
            LinkState.OK,
            f"fine-tuned from lineage {short(manifest.base_lineage)}",
            check=f"named by the manifest, {short(manifest.base_digest)}",
            digest=manifest.base_digest,
            facts={"baseLineage": manifest.base_lineage, "modelVersion": name},
        )
    ]


def run(evidence: Evidence) -> list[Link]:
    """The training run."""
    manifest, found = manifest_of(evidence), evidence.run
    recipe = manifest.recipe if manifest else (found.spec.recipe if found else None)
    if found is None:
        if manifest is None or recipe is None:
            return [Link("run", "-", LinkState.ABSENT, "named by the manifest, which could not be read")]
        text = f"{_recipe(recipe)}; git {manifest.code.git_sha[:10]}; the object is deleted"
        facts: dict[str, Any] = {"gitSha": manifest.code.git_sha, "recipe": recipe.wire()}
        return [
            Link(
                "run", manifest.training_run, LinkState.OK, text, "told by the manifest", manifest.lineage, facts=facts
            )
        ]
    status = found.status
    facts = {
        "recipe": found.spec.recipe.wire(),
        "gitSha": manifest.code.git_sha if manifest else None,
        "attempts": status.attempts,
        "preemptions": status.preemptions,
        "startedAt": status.started_at,
        "finishedAt": status.finished_at,
    }
    problem = differs(evidence, status.lineage, f"{found}'s status")
    if problem:
        return [Link("run", found.name, LinkState.BROKEN, problem, lineage=status.lineage, facts=facts)]
    took = ""
    if status.started_at and status.finished_at:
        took = span((parse_timestamp(status.finished_at) - parse_timestamp(status.started_at)).total_seconds())
    parts = [
        _recipe(found.spec.recipe),
        f"git {manifest.code.git_sha[:10]}" if manifest else "",
        took,
        counted(status.attempts, "attempt") if status.attempts > 1 else "",
    ]
    state = LinkState.OK if status.lineage else LinkState.ABSENT
    check = "same id in its status" if status.lineage else "it has no lineage id yet"
    text = "; ".join(part for part in parts if part)
    return [Link("run", found.name, state, text, check, status.lineage, status.run_uri, facts=facts)]


def manifest(evidence: Evidence) -> list[Link]:
    """The document that ties data, code, evaluation and files together."""
    document = evidence.manifest
    if document is None:
        return [Link("manifest", "-", LinkState.ABSENT, "the run has not written one")]
    found = document.value
    if found is None:
        return [Link("manifest", "-", LinkState.BROKEN, document.problem, uri=document.uri, digest=document.digest)]
    version = evidence.version
    recorded = version.status.lineage if version is not None else None
    problem = differs(evidence, recorded, f"{version}'s status") or _other_inputs(found)
    files = f"{counted(len(found.artifacts), 'file')}, {len(found.device())} for devices"
    return [
        Link(
            "manifest",
            version.name if version is not None else found.training_run,
            LinkState.BROKEN if problem else LinkState.OK,
            problem or files,
            check=f"{CHECKED}; the id follows from data, base, recipe and code" if not problem else CHECKED,
            lineage=recorded or found.lineage,
            uri=document.uri,
            digest=document.digest,
            facts={"artifacts": {a.path: a.sha256 for a in found.artifacts}},
        )
    ]


def _other_inputs(found: Manifest) -> str:
    """The id is a function of four inputs, and the manifest holds all four: it can be computed again."""
    inputs = LineageInputs(
        dataset_run_id=found.dataset.run_id,
        base_digest=found.base_digest,
        recipe_digest=found.recipe.content_digest(),
        git_sha=found.code.git_sha,
    )
    made = lineage_id(inputs)
    if made == found.lineage:
        return ""
    return f"its data, base, recipe and code make lineage {short(made)}, but it says {short(found.lineage)}"


def _recipe(recipe: Recipe) -> str:
    return f"{recipe.method}, {recipe.steps:,} steps, seed {recipe.seed}"
