"""Bytes a device fetches to go from one version of its model file to the next.

Ours: the real publisher signs and lays out each version, and the real agent (`sluice-edge sync`, health check and all)
follows it over HTTP. Peers, on the same two files: the whole file; `zstd -19` of it; and a delta by
`zstd -19 --patch-from`, the best a general tool does, which the publisher must make and keep for every pair of versions
that some device might go between.
"""

import argparse
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from sluice_contracts.base import sha256, timestamp
from sluice_contracts.evaluation import EvaluationReport, ParityReport, ParityResult
from sluice_contracts.lineage import SCRATCH, LineageInputs, lineage_id
from sluice_contracts.manifest import Artifact, CodeProvenance, DatasetProvenance, EvaluationProvenance, Manifest
from sluice_contracts.names import Quantization
from sluice_contracts.training_run import Method, ParityLimits, Recipe
from sluice_storage import open_store
from sluice_training.publish import release, repository

from benchmarks.device_files import TEMPLATE, Model, nudged, other_tensor, random_model, write
from benchmarks.record import Report

MODEL = "benchmark"
QUANTIZATION = Quantization.Q8_0
LIMIT_S = 120


@dataclass(frozen=True)
class Update:
    """One kind of change, from the file every device has to the next."""

    name: str
    after: Model


def updates(before: Model) -> list[Update]:
    """What changes between versions, from nearly nothing to everything."""
    return [
        Update("nothing new", before),
        Update("header, same length", replace(before, template=TEMPLATE.replace("assistant", "the reply"))),
        Update("header, 1 KB longer", replace(before, card="c" * 1024)),
        Update("one tensor of 23", other_tensor(before, "blk.1.ffn_up.weight", seed=2)),
        Update("all weights by 0.1 %", nudged(before, 0.001, seed=3)),
        Update("all weights by 3 %", nudged(before, 0.03, seed=4)),
        Update("trained anew", random_model(seed=5, layers=before.layers)),
    ]


class Publisher:
    """A release repository in a folder, and the run folders it publishes from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repository = folder / "repository"
        self.store = open_store(f"file://{self.repository}")
        self.keys = folder / "keys"
        self.now = datetime.now(UTC)
        self.root = repository.create(self.store, self.keys, root_keys=1, threshold=1, now=self.now)
        (self.keys / "root.json").write_bytes(self.root)

    def publish(self, version: str, file: Path) -> None:
        """Sign and lay out `file` as `version`."""
        run = self.folder / version
        uri, digest = write_run(run, version, file)
        wish = release.Wish(uri, digest, "stable", version, 100)
        release.publish_release(self.store, self.keys, self.root, wish, self.now, lambda line: None)


def write_run(run: Path, version: str, file: Path) -> tuple[str, str]:
    """The run folder that the publisher wants to see: URI and digest of its manifest."""
    data, at = file.read_bytes(), timestamp(datetime.now(UTC))
    recipe = Recipe(method=Method.SCRATCH, steps=1)
    inputs = LineageInputs(
        dataset_run_id=version, base_digest=SCRATCH, recipe_digest=recipe.content_digest(), git_sha="benchmark"
    )
    lineage, uri = lineage_id(inputs), f"file://{run}"
    path = f"export/gguf/{MODEL}-{QUANTIZATION}.gguf"
    artifact = Artifact(path=path, role="device", quantization=QUANTIZATION, size=len(data), sha256=sha256(data))
    result = ParityResult(
        quantization=QUANTIZATION,
        path=path,
        size=len(data),
        mean_kld=0,
        p99_kld=0,
        same_top=1,
        perplexity_ratio=1,
        task_accuracy=1,
        task_accuracy_parent=1,
        flips=0,
        tokens=1,
        passed=True,
    )
    parity = ParityReport(
        lineage=lineage, limits=ParityLimits(), engine="none", results=[result], passed=True, created_at=at
    )
    report = EvaluationReport(
        lineage=lineage,
        suites=[],
        gates=[],
        passed=True,
        samples_path="eval/samples.jsonl",
        samples_digest=sha256(b""),
        created_at=at,
    )
    manifest = Manifest(
        model=MODEL,
        lineage=lineage,
        training_run=version,
        run_uri=uri,
        dataset=DatasetProvenance(run_id=version, uri=uri, digest=sha256(b"")),
        base_digest=SCRATCH,
        code=CodeProvenance(git_sha="benchmark"),
        recipe=recipe,
        evaluation=EvaluationProvenance(uri=f"{uri}/eval/report.json", digest=report.content_digest(), passed=True),
        parity_uri=f"{uri}/parity.json",
        parity_digest=parity.content_digest(),
        artifacts=[artifact],
        created_at=at,
    )
    store = open_store(uri)
    store.upload(file, path)
    store.write("eval/report.json", report.canonical())
    store.write("parity.json", parity.canonical())
    store.write("manifest.json", manifest.canonical())
    return f"{uri}/manifest.json", manifest.content_digest()


class Handler(SimpleHTTPRequestHandler):
    """Static files, quietly."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The folder over HTTP on loopback."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


def agent(home: Path, *arguments: str) -> str:
    """`sluice-edge …` as a device's owner would run it."""
    command = [sys.executable, "-m", "sluice_edge", *arguments]
    environment = {**os.environ, "SLUICE_HOME": str(home)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S)
    if done.returncode:
        raise SystemExit(f"sluice-edge {arguments[0]} failed: {done.stderr.strip()}")
    return done.stdout


def synced(home: Path) -> dict[str, Any]:
    """One sync's receipt."""
    receipt: dict[str, Any] = json.loads(agent(home, "sync", "-o", "json"))
    return receipt


def zstd(*arguments: str) -> None:
    """The zstd program."""
    done = subprocess.run(["zstd", "-q", "-f", *arguments], capture_output=True, text=True, timeout=LIMIT_S)
    if done.returncode:
        raise SystemExit(f"zstd {' '.join(arguments)} failed: {done.stderr.strip()}")


def peers(before: Path, after: Path, folder: Path) -> dict[str, int | None]:
    """Bytes the other ways would move; None where zstd is not installed."""
    if shutil.which("zstd") is None:
        return {"zstd -19": None, "zstd patch": None}
    zstd("-19", str(after), "-o", str(folder / "whole.zst"))
    zstd("-19", "--long=27", f"--patch-from={before}", str(after), "-o", str(folder / "patch.zst"))
    return {
        "zstd -19": (folder / "whole.zst").stat().st_size,
        "zstd patch": (folder / "patch.zst").stat().st_size,
    }


def measure(report: Report, folder: Path, layers: int) -> None:
    """Every update from the same first version, each to a device of its own."""
    before = random_model(seed=1, layers=layers)
    old = write(before, folder / "old.gguf")
    for number, update in enumerate(updates(before)):
        work = folder / f"update-{number}"
        work.mkdir()
        nothing = update.after is before
        new = write(update.after, work / "new.gguf")
        publisher = Publisher(work / "publisher")
        publisher.publish("v1", old)
        with served(publisher.repository) as url:
            root = str(publisher.keys / "root.json")
            agent(work / "home", "init", "--repository", url, "--root", root, "--model", MODEL, "--port", "0")
            first = synced(work / "home")
            if not nothing:
                publisher.publish("v2", new)
            began = time.monotonic()
            receipt = synced(work / "home")
            took = time.monotonic() - began
        moved = receipt["bytes"]
        ours = moved["metadata"] + moved["pieces"]
        whole = new.stat().st_size
        report.add(update=update.name, whole_file=0 if nothing else whole)
        report.rows[-1].update(
            {"zstd -19": 0, "zstd patch": 0} if nothing else peers(old, new, work),
            **{
                "Sluice": ours,
                "of it metadata": moved["metadata"],
                "pieces": f"{moved['piecesFetched']} of {moved['piecesTotal']}",
                "share": f"{100 * ours / whole:.1f} %",
                "seconds": took,
                "firstInstall": first["bytes"],
            },
        )
        shutil.rmtree(work)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=3, help="layers of the model: 3.4 MB each")
    options = parser.parse_args()
    found = shutil.which("zstd")
    version = (
        subprocess.run(["zstd", "--version"], capture_output=True, text=True).stdout.strip() if found else "absent"
    )
    report = Report(
        "edge_update",
        "Bytes a device fetches for an update (Llama, GGUF Q8_0), from the version it has",
        ["update", "whole file", "zstd -19", "zstd patch", "Sluice", "of it metadata", "pieces", "share", "seconds"],
        packages=["sluice-edge", "sluice-training", "tuf", "gguf", "xllamacpp"],
        tools={"zstd": version},
    )
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as folder:
        measure(report, Path(folder), options.layers)
    report.notes = [
        "Sluice: signed metadata, release and pieces as the agent counted them; it verified, checked and switched",
        "zstd patch: a file for each pair of versions, made and kept by the publisher; pieces serve any pair",
        "seconds: the whole of `sluice-edge sync` over loopback, its start and the engine's health check included",
    ]
    if not found:
        report.notes.append("the zstd program is not installed: its columns are empty (apt-get install zstd)")
    report.finish()


if __name__ == "__main__":
    main()
