"""What is missing or taken is said in one line, with what to do about it."""

import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
from sluice_devcluster import cgroups, network, preflight, processes, readiness
from sluice_devcluster.errors import DevClusterError
from sluice_devcluster.places import GIB, State


def test_without_root_the_message_offers_two_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    with pytest.raises(DevClusterError, match=r"needs root.*sudo.*SLUICE_CLUSTER=existing"):
        preflight.check_system()


def test_missing_programs_are_named_with_their_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "SYSTEM_PATH", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("ip", "setsid", "unshare", "iptables"):
        (tmp_path / name).touch(mode=0o755)

    with pytest.raises(DevClusterError, match=r"missing on this machine: runc, nft\. .*install nftables runc"):
        preflight.check_tools()


def test_too_little_disk_says_how_much_is_needed_and_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10 * GIB, 9 * GIB, GIB))

    with pytest.raises(DevClusterError, match=r"needs 2 GiB free at .*, there are 1\.0: .*SLUICE_STATE"):
        preflight.check_state_folder(tmp_path / "not" / "yet")


def test_a_state_folder_that_mounts_cannot_carry_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DevClusterError, match="space"):
        preflight.check_state_folder(tmp_path / "my cluster")


LINKS = [
    {"ifname": "lo", "addr_info": [{"local": "127.0.0.1", "prefixlen": 8}]},
    {"ifname": "sluice0", "addr_info": [{"local": "10.250.0.1", "prefixlen": 30}]},
]


def test_a_free_machine_has_no_overlaps() -> None:
    routes = [{"dst": "default", "dev": "eth0"}, {"dst": "10.244.0.0/16", "dev": "sluice0"}]

    assert network.overlaps(LINKS, routes) == []


def test_a_taken_address_is_named_with_its_interface() -> None:
    taken = [*LINKS, {"ifname": "docker0", "addr_info": [{"local": "10.96.5.1", "prefixlen": 24}]}]

    (found,) = network.overlaps(taken, [])

    assert "docker0" in found
    assert "10.96.5.1/24" in found


def test_only_a_route_narrower_than_ours_is_in_the_way() -> None:
    assert network.overlaps([], [{"dst": "10.0.0.0/8", "dev": "tun0"}]) == []
    (found,) = network.overlaps([], [{"dst": "10.244.7.0/24", "dev": "cni9"}])
    assert "cni9" in found


V1 = """tmpfs /sys/fs/cgroup tmpfs rw 0 0
cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0
cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0
"""
V2 = "proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw,nsdelegate 0 0\n"


def test_both_versions_of_control_groups_are_told_apart() -> None:
    version, roots = cgroups.hierarchies(V1)
    assert version == 1
    assert [r.name for r in roots] == ["cpu", "memory", "unified"]
    assert cgroups.hierarchies(V2) == (2, [Path("/sys/fs/cgroup")])
    assert cgroups.hierarchies("proc /proc proc rw 0 0\n") == (1, [])


def test_control_groups_of_version_2_hand_their_controllers_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = tmp_path / cgroups.GROUP
    group.mkdir()
    for folder in (tmp_path, group):
        (folder / "cgroup.controllers").write_text("cpu memory pids rdma")
        (folder / "cgroup.subtree_control").write_text("")
    written: list[tuple[str, str]] = []
    monkeypatch.setattr(cgroups, "_machine", lambda: (2, [tmp_path]))
    monkeypatch.setattr(Path, "write_text", lambda self, text: written.append((self.parent.name, text)))

    cgroups.create()

    assert [t for f, t in written if f == cgroups.GROUP] == ["+cpu", "+memory", "+pids"]
    assert [t for f, t in written if f == tmp_path.name] == ["+cpu", "+memory", "+pids"]


def test_the_nodes_process_is_found_by_what_it_runs(tmp_path: Path) -> None:
    plan = str(tmp_path / "etc" / "node.json")
    (tmp_path / "some_module.py").write_text("import time\nprint('here', flush=True)\ntime.sleep(60)\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "some_module", plan], cwd=tmp_path, stdout=subprocess.PIPE, env={"PYTHONPATH": "."}
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        assert processes.running("some_module") == {process.pid: plan}
        processes.end([process.pid], grace_s=5.0)
        assert processes.running("some_module") == {}
    finally:
        process.kill()
        process.communicate()


def test_a_name_server_is_asked_and_understood() -> None:
    question = readiness.dns_query("kubernetes.default.svc.cluster.local", identifier=7)
    assert question[:2] == b"\x00\x07"
    assert b"\x0akubernetes\x07default\x03svc\x07cluster\x05local\x00" in question
    answered, no_such_name = bytes.fromhex("00078180000100010000 0000"), bytes.fromhex("0007818300010000 00000000")
    assert readiness.dns_answered(answered)
    assert not readiness.dns_answered(no_such_name)
    assert not readiness.dns_answered(b"short")


def test_the_state_folder_may_be_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SLUICE_STATE", str(tmp_path / "a"))
    assert State.default().kubeconfig == tmp_path / "a" / "kubeconfig"
    monkeypatch.delenv("SLUICE_STATE")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert State.default().root == tmp_path / "sluice" / "dev"
