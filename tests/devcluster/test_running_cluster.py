"""A local cluster that is up: what runs in it comes back, keeps others out, and speaks as the real things do."""

import os
import signal
import socket
import urllib.request
from pathlib import Path

import pytest
from sluice_devcluster import cluster, network
from sluice_devcluster.errors import DevClusterError
from sluice_devcluster.places import State

from tests.devcluster.steps import silent, until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]


def test_a_program_of_the_node_that_dies_comes_back(running: State) -> None:
    api_servers = [p for p in Path("/proc").glob("[0-9]*") if (p / "comm").read_text() == "kube-apiserver\n"]
    mine = [p for p in api_servers if str(running.root) in (p / "cmdline").read_text()]
    os.kill(int(mine[0].name), signal.SIGKILL)

    until(lambda: not cluster.status(running).ready, "loss of the API server")
    until(lambda: cluster.status(running).ready, "return of the API server", 60)


def test_two_clusters_do_not_meet(running: State, tmp_path: Path) -> None:
    for act in (cluster.up, cluster.down):
        with pytest.raises(DevClusterError, match=rf"another local cluster runs, from {running.root}"):
            act(State(tmp_path / "other"), silent)
    assert cluster.status(running).ready


def test_storage_speaks_as_cloud_storage_does(running: State, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from sluice_storage import open_store

    monkeypatch.setenv("STORAGE_EMULATOR_HOST", network.STORAGE)
    big = os.urandom(9 * 1024 * 1024)  # large enough for a resumable upload
    (tmp_path / "big").write_bytes(big)
    store = open_store("gs://sluice/runs/1")
    store.upload(tmp_path / "big", "pieces/big")
    store.write("small.json", b"{}")

    assert list(store.list()) == ["pieces/big", "small.json"]
    store.download("pieces/big", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == big
    request = urllib.request.Request(f"{network.STORAGE}/sluice/runs/1/pieces/big", headers={"Range": "bytes=5-14"})
    with urllib.request.urlopen(request, timeout=5) as reply:
        assert reply.status == 206
        assert reply.read() == big[5:15]
    with socket.create_connection((network.NODE_ADDRESS, network.STORAGE_PORT), 2):
        pass
