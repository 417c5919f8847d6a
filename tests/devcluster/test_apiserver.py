"""The bare control plane: a real API server that comes and goes with a `with` block."""

import fcntl
import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sluice_devcluster import apiserver
from sluice_devcluster.apiserver import ControlPlane
from sluice_devcluster.errors import DevClusterError
from sluice_devcluster.kuberay import crds

pytestmark = pytest.mark.apiserver


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    with ControlPlane() as plane:
        yield plane


def ask(plane: ControlPlane, path: str, token: str, body: Any = None) -> Any:
    request = urllib.request.Request(
        plane.url + path,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
    )
    context = ssl.create_default_context(cafile=str(plane.ca))
    with urllib.request.urlopen(request, timeout=10, context=context) as reply:
        return json.load(reply)


def resources(plane: ControlPlane) -> list[Any]:
    """What the API server offers of ray.io now."""
    try:
        return list(ask(plane, "/apis/ray.io/v1", plane.token)["resources"])
    except urllib.error.HTTPError as error:
        error.close()
        return []


def test_it_is_the_pinned_version(plane: ControlPlane) -> None:
    assert ask(plane, "/version", plane.token)["gitVersion"] == "v1.36.3"


def test_a_stranger_is_refused(plane: ControlPlane) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401") as caught:
        ask(plane, "/api/v1/namespaces", "wrong")
    caught.value.close()


def test_the_stand_ins_definitions_are_accepted_and_set_kuberays_defaults(plane: ControlPlane) -> None:
    for definition in crds.definitions():
        ask(plane, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", plane.token, definition)
    job = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": "j", "namespace": "default"},
        "spec": {"entrypoint": "x", "rayClusterSpec": {"headGroupSpec": {"template": {"spec": {}}}}},
    }
    established = {"rayclusters", "rayjobs", "rayservices"}
    while {r["name"].split("/")[0] for r in resources(plane)} != established:
        continue  # a moment; pytest's timeout bounds it

    made = ask(plane, "/apis/ray.io/v1/namespaces/default/rayjobs", plane.token, job)

    assert made["spec"]["backoffLimit"] == 0
    assert made["spec"]["rayClusterSpec"] == job["spec"]["rayClusterSpec"]


def test_nothing_stays_behind() -> None:
    with ControlPlane() as plane:
        folder = plane.folder
        assert plane.kubeconfig.stat().st_mode & 0o077 == 0

    assert not folder.exists()
    commands = [p.read_bytes() for p in Path("/proc").glob("[0-9]*/cmdline") if p.exists()]
    assert not any(str(folder).encode() in command for command in commands)


def test_what_a_killed_run_left_is_removed_by_the_next(
    plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    abandoned, alive = tmp_path / f"{apiserver.PREFIX}1", tmp_path / f"{apiserver.PREFIX}2"
    for folder in (abandoned, alive):
        folder.mkdir()
        (folder / apiserver.LOCK).touch()
    with (alive / apiserver.LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        apiserver.remove_abandoned()

        assert not abandoned.exists()
        assert alive.exists()
    assert plane.folder.exists()


def test_without_programs_the_message_says_how_to_build_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICE_CACHE", str(tmp_path))

    with pytest.raises(DevClusterError, match="sluice-dev build"), ControlPlane():
        pass
