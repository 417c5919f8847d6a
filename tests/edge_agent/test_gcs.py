"""The same against fake-gcs-server, as in the local cluster: publish to gs://, read by plain HTTP, upload signals."""

import json
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import httpx
import pytest
from edge_fixtures_here import Device
from edge_world import MODEL, Publisher
from sluice_edge.home import AgentConfig, Home, initialise
from sluice_edge.signals import Signals
from sluice_storage import open_store


def binary() -> Path | None:
    cache = Path(os.environ.get("SLUICE_CACHE") or Path.home() / ".cache/sluice")
    found = [*cache.glob("bin/*/fake-gcs-server"), *cache.glob("build/fake-gcs-server")]
    on_path = shutil.which("fake-gcs-server")
    return Path(on_path) if on_path else next(iter(found), None)


@pytest.fixture
def gcs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A running emulator with two buckets; yields its URL."""
    program = binary()
    if program is None:
        pytest.skip("fake-gcs-server is not built; `sluice-dev build` does it")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    args = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory"]
    with (tmp_path / "gcs.log").open("wb") as log:
        process = subprocess.Popen([program, *args, "-public-host", f"127.0.0.1:{port}"], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                for bucket in ("sluice", "sluice-releases"):
                    httpx.post(f"{url}/storage/v1/b?project=local", json={"name": bucket}).raise_for_status()
                break
            except httpx.TransportError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        yield url
    finally:
        process.kill()
        process.wait()


class BucketPublisher(Publisher):
    """A publisher whose repository is a bucket."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        from sluice_training.publish import repository

        self.store = open_store("gs://sluice-releases")
        self.anchor = repository.create(self.store, self.root / "gcs-keys", root_keys=1, threshold=1, now=self.now)
        self.keys = self.root / "gcs-keys"


def test_from_bucket_to_device_and_signals_back(gcs: str, models, tmp_path: Path) -> None:
    publisher = BucketPublisher(tmp_path / "publisher")
    publisher.release("v1", models["one"])
    home = Home(tmp_path / "device")
    config = AgentConfig(repository=f"{gcs}/sluice-releases", model=MODEL, threads=1, upload_endpoint=gcs)
    initialise(home, config, publisher.anchor, 0)
    device = Device(home)
    assert device.sync().bytes.pieces_fetched == 24
    again = device.sync()
    assert (again.outcome, again.bytes.pieces) == ("unchanged", 0)
    publisher.release("v2", models["two"])
    assert device.sync().bytes.pieces_fetched == 12

    device.command("chat", "hello", "--domain", "leadership", "--task", "intent")
    Signals(home).consent = True
    sent = device.json("signals", "export", "--upload", "gs://sluice/signals")
    (batch,) = sent["batches"]
    stored = json.loads(open_store("gs://sluice/signals").read(f"{batch['batchId']}.json"))
    assert stored["cells"][0]["domain"] == "leadership"
