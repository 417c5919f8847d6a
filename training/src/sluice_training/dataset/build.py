"""`sluice-train dataset build`: configuration and signals in, a dataset folder out.

The run id is a digest of everything that goes in, so it is known before anything is made, and the same inputs make the
same bytes. manifest.json is written last: a folder without it is not finished.
"""

import json
from collections import Counter
from dataclasses import dataclass

from sluice_contracts.base import canonical_json, sha256
from sluice_contracts.dataset import DatasetFile, DatasetManifest, DatasetRow, SliceCount
from sluice_contracts.names import Domain, Task
from sluice_storage import join, open_store

from sluice_training.dataset.config import BuildConfig
from sluice_training.dataset.duplicates import NearDuplicates, normalised
from sluice_training.dataset.generate import examples, plan
from sluice_training.dataset.quality import report
from sluice_training.dataset.signals import Evidence
from sluice_training.dataset.split import SPLITS, SplitName, split_of

GENERATOR = "synthetic/1"
"""Raise the number whenever the same configuration would make other rows."""
FOLDER = "distillation_dataset"


@dataclass(frozen=True)
class Dataset:
    """A dataset in memory: its manifest and its files' bytes."""

    manifest: DatasetManifest
    files: dict[str, bytes]


@dataclass(frozen=True)
class Written:
    """Where a dataset went, and the digest of its manifest."""

    run_id: str
    uri: str
    digest: str
    rows: dict[SplitName, int]


def inputs_digest(config: BuildConfig, signals_digest: str | None) -> str:
    """Digest of all that determines the dataset."""
    return sha256(canonical_json({"generator": GENERATOR, "config": config.wire(), "signals": signals_digest}))


def run_id(config: BuildConfig, signals_digest: str | None) -> str:
    """Name of the dataset: a pure function of its inputs."""
    return f"{config.name}-{inputs_digest(config, signals_digest).removeprefix('sha256:')[:16]}"


def build(config: BuildConfig, evidence: Evidence) -> Dataset:
    """Make the dataset. Raises InvalidInputError if the signals leave nothing to focus on."""
    slices = plan(config, evidence)
    splits: dict[SplitName, list[DatasetRow]] = {name: [] for name in SPLITS}
    seen: set[str] = set()
    near = NearDuplicates(config.near_duplicate_threshold)
    removed: Counter[str] = Counter()
    for piece in slices:
        kept = 0
        for example in examples(piece, config):
            row = example.row()
            text = normalised(row)
            if text in seen:
                removed["exact"] += 1
                continue
            seen.add(text)
            if not near.add(row):
                removed["near"] += 1
                continue
            splits[split_of(example.group, row.domain, row.task, config.split, config.seed)].append(row)
            kept += 1
            if kept == piece.rows:
                break
    for rows in splits.values():
        rows.sort(key=lambda r: r.id)
    files = {f"{name}.jsonl": b"".join(row.canonical() + b"\n" for row in rows) for name, rows in splits.items()}
    quality = report(splits, slices, removed["exact"], removed["near"], evidence.suppressed)
    files["qa.json"] = (json.dumps(quality, indent=1, sort_keys=True) + "\n").encode()
    rows_of = {f"{name}.jsonl": len(rows) for name, rows in splits.items()}
    manifest = DatasetManifest(
        run_id=run_id(config, evidence.digest),
        generator=GENERATOR,
        inputs_digest=inputs_digest(config, evidence.digest),
        signals_digest=evidence.digest,
        signal_batches=evidence.batches,
        weights=list(evidence.weights),
        slices=_slices(splits),
        files=[
            DatasetFile(path=name, size=len(data), sha256=sha256(data), rows=rows_of.get(name, 0))
            for name, data in sorted(files.items())
        ],
        duplicates_removed=sum(removed.values()),
        split={"train": config.split.train, "val": config.split.val, "test": config.split.test},
    )
    return Dataset(manifest, files)


def _slices(splits: dict[SplitName, list[DatasetRow]]) -> list[SliceCount]:
    counts = Counter((row.domain, row.task, name) for name, rows in splits.items() for row in rows)
    keys: list[tuple[Domain, Task]] = sorted({(domain, task) for domain, task, _ in counts})
    return [
        SliceCount(
            domain=domain,
            task=task,
            train=counts[domain, task, "train"],
            val=counts[domain, task, "val"],
            test=counts[domain, task, "test"],
        )
        for domain, task in keys
    ]


def write(dataset: Dataset, out: str) -> Written:
    """Put the dataset below the storage URI `out`. Raises StorageError."""
    uri = join(out, FOLDER, dataset.manifest.run_id)
    store = open_store(uri)
    for name, data in dataset.files.items():
        store.write(name, data)
    data = dataset.manifest.canonical()
    store.write("manifest.json", data)
    rows = {name: sum(getattr(s, name) for s in dataset.manifest.slices) for name in SPLITS}
    return Written(dataset.manifest.run_id, uri, sha256(data), rows)
