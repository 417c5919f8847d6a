"""Both kinds of store: a folder, and a bucket of the real Cloud Storage emulator on loopback."""

import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from sluice_devcluster.ports import free_port
from sluice_devcluster.programs import built_programs
from sluice_storage import Store, open_store

START_DEADLINE_S = 20.0


@pytest.fixture(scope="session")
def emulator() -> Iterator[str]:
    """The emulator's address, with one bucket named `models`."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [str(built_programs() / "fake-gcs-server"), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port)]
    process = subprocess.Popen(
        [*command, "-backend", "memory", "-public-host", f"127.0.0.1:{port}", "-log-level", "error"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _create_bucket(url, "models")
        yield url
    finally:
        process.terminate()
        process.wait(10)


def _create_bucket(url: str, name: str) -> None:
    request = urllib.request.Request(
        f"{url}/storage/v1/b?project=local",
        data=b'{"name": "%s"}' % name.encode(),
        headers={"Content-Type": "application/json"},
    )
    end = time.monotonic() + START_DEADLINE_S
    while True:
        try:
            with urllib.request.urlopen(request, timeout=5):
                return
        except urllib.error.URLError:
            assert time.monotonic() < end, "the emulator did not start"
            time.sleep(0.05)


@pytest.fixture
def bucket(emulator: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A prefix of its own in the bucket."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator)
    return f"gs://models/{abs(hash(request.node.name))}"


@pytest.fixture(params=["file", pytest.param("gs", marks=pytest.mark.apiserver)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store of each kind."""
    if request.param == "file":
        return open_store((tmp_path / "store").as_uri())
    return open_store(request.getfixturevalue("bucket"))
