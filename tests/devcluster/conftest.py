"""Recordings of the real KubeRay operator, and the local cluster for the tests that need it."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sluice_devcluster import cluster
from sluice_devcluster.places import State

from tests.devcluster.steps import silent

RECORDINGS = Path(__file__).parent / "recordings"


@pytest.fixture(scope="session")
def recorded_objects() -> dict[str, Any]:
    """The first state of each object of a RayJob with a worker (`job`) and of a RayService (`service`)."""
    value: dict[str, Any] = json.loads((RECORDINGS / "objects.json").read_text())
    return value


@pytest.fixture
def recorded_autoscaled() -> dict[str, Any]:
    """What the real operator made of Sluice's own objects: `elastic` and `slice` (RayJobs), `pool` (a RayService)."""
    value: dict[str, Any] = json.loads((RECORDINGS / "objects_autoscaled.json").read_text())
    return value


@pytest.fixture(scope="session")
def recorded() -> Any:
    """A function: the recorded states of a scenario's objects, by name."""

    def load(scenario: str) -> dict[str, Any]:
        value: dict[str, Any] = json.loads((RECORDINGS / f"{scenario}.json").read_text())["objects"]
        return value

    return load


def _place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[State]:
    """A local cluster's place, empty at first and emptied at last, whatever the tests left."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("the local cluster needs Linux and root")
    if os.environ.get("SLUICE_CLUSTER", "local") != "local":
        pytest.skip("SLUICE_CLUSTER asks for another cluster than the local one")
    if cluster.status(State.default()).running:
        pytest.fail("a local cluster runs already; the tests need its addresses: `sluice-dev down`")
    monkeypatch.setenv("SLUICE_STATE", str(folder / "dev"))
    state = State.default()
    yield state
    cluster.down(state, silent)


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[State]:
    """The place of a cluster that the test starts and stops itself."""
    yield from _place(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def _shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[State]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield from _place(tmp_path_factory.mktemp("cluster"), monkeypatch)


@pytest.fixture
def running(_shared: State) -> State:
    """A ready cluster, the same for a module's tests; one that a test has left broken is repaired."""
    cluster.up(_shared, silent)
    return _shared
