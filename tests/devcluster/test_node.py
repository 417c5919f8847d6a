"""What the node is told to do, and how its first process keeps programs running."""

import json
import os
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import pytest
from sluice_devcluster import images, node_config, node_plan, pki, runtime
from sluice_devcluster.errors import DevClusterError
from sluice_devcluster.places import State

SUPERVISE = """
import json, sys, threading
from sluice_devcluster import node
node.RESTARTS = 2
plan = json.load(open(sys.argv[1]))
supervisor = node.Supervisor(plan)
def steps():
    try:
        for step in plan["steps"]:
            supervisor.start(step) if step["do"] == "start" else supervisor.run(step)
        print("done", flush=True)
    except node.NodeError as error:
        print("failed:", error, flush=True)
    if plan["stop"]:
        supervisor.stopping = True
threading.Thread(target=steps, daemon=True).start()
try:
    supervisor.collect()
except node.NodeError as error:
    print("gave up:", error, flush=True)
supervisor.stop()
"""


def supervise(tmp_path: Path, *steps: dict[str, Any], stop: bool) -> str:
    """What the supervisor says about some steps, in a process of its own (it collects every child)."""
    plan = {"path": "/bin", "scratch": str(tmp_path), "logs": str(tmp_path), "steps": list(steps), "stop": stop}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    done = subprocess.run(
        [sys.executable, "-c", SUPERVISE, str(tmp_path / "plan.json")],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_program_that_ends_is_started_again(tmp_path: Path) -> None:
    count = f"echo x >> {tmp_path}/count; test $(wc -l < {tmp_path}/count) -ge 2 && exec sleep 60; exit 3"
    said = supervise(
        tmp_path,
        node_plan.start("flaky", ["sh", "-c", count]),
        node_plan.run("second start", ["sh", "-c", f"test $(wc -l < {tmp_path}/count) -ge 2"], 10),
        stop=True,
    )

    assert said == "done\n"


def test_a_program_that_keeps_ending_is_given_up_with_its_name_and_log(tmp_path: Path) -> None:
    said = supervise(tmp_path, node_plan.start("broken", ["sh", "-c", "echo why; exit 3"]), stop=False)

    assert "gave up: broken: ended 3 times, at last with status 3" in said
    assert str(tmp_path / "broken.log") in said
    assert (tmp_path / "broken.log").read_text() == "why\n" * 3


def test_a_step_that_never_succeeds_is_given_up_after_its_deadline(tmp_path: Path) -> None:
    said = supervise(tmp_path, node_plan.run("import", ["false"], 0.5), stop=True)

    assert "failed: import: did not succeed in 0.5 s" in said


def test_the_plan_is_plain_data_and_names_every_program(tmp_path: Path) -> None:
    plan = node_plan.node_plan(State(tmp_path), Path("/programs"), [tmp_path / "image.tar"], [])

    started = [s["name"] for s in json.loads(json.dumps(plan))["steps"] if s["do"] == "start"]
    assert started[:3] == ["etcd", "containerd", "kube-apiserver"]
    assert {"kubelet", "kube-scheduler", "kube-proxy", "coredns", "storage", "kuberay"} < set(started)


def test_secrets_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    pki.write_pki(tmp_path / "pki", pki.component_identities("node1", pki.api_server_hosts("10.96.0.1")))

    keys = list((tmp_path / "pki").glob("*.key"))
    assert len(keys) > 5
    assert {oct(k.stat().st_mode & 0o777) for k in keys} == {"0o600"}


def test_a_kubeconfig_carries_everything_in_itself(tmp_path: Path) -> None:
    pki.write_pki(tmp_path, (pki.Identity("admin", "admin", ("system:masters",)),))

    user = pki.certificate_user(tmp_path, "admin")
    config = json.loads(pki.kubeconfig("https://h:6443", (tmp_path / "ca.crt").read_bytes(), user))

    assert set(config["users"][0]["user"]) == {"client-certificate-data", "client-key-data"}
    assert config["clusters"][0]["cluster"]["server"] == "https://h:6443"


def test_the_same_image_has_the_same_bytes_and_this_environments_path(tmp_path: Path) -> None:
    for name in ("a.tar", "b.tar"):
        images.sluice_image(tmp_path / name, Path("/env/bin"), {"bin": "usr/bin"})

    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        texts = [m.read() for m in map(tar.extractfile, tar.getmembers()) if m is not None]
    configs = [json.loads(t)["config"] for t in texts if t.startswith(b'{"architecture"')]
    assert configs[0]["User"] == "1000:1000"
    assert "RAY_USAGE_STATS_ENABLED=0" in configs[0]["Env"]
    assert any(v.startswith("PATH=/env/bin:") for v in configs[0]["Env"])


def test_only_the_runtime_class_shows_this_machine_and_only_to_read() -> None:
    config = runtime.containerd_config("/usr/sbin/runc", Path("/cni"), Path("/etc/cni"), Path("/spec.json"))
    back = tomllib.loads(runtime.to_toml(config))
    runtimes = back["plugins"]["io.containerd.cri.v1.runtime"]["containerd"]["runtimes"]

    assert back == config
    assert "base_runtime_spec" not in runtimes["runc"]
    assert runtimes["sluice-host"]["base_runtime_spec"] == "/spec.json"
    default = {"mounts": [{"destination": "/proc"}], "process": {"rlimits": [{"type": "RLIMIT_NOFILE"}]}}
    spec = runtime.base_spec(default, [Path("/usr"), Path("/opt/env")])
    added = spec["mounts"][1:]
    assert [m["destination"] for m in added] == ["/usr", "/opt/env"]
    assert all("ro" in m["options"] for m in added)
    assert "rlimits" not in spec["process"]
    assert len(default["mounts"]) == 1


def test_the_mounts_hold_this_environment_and_no_folder_twice() -> None:
    found = runtime.host_mounts()

    for needed in (sys.prefix, os.path.dirname(os.path.dirname(runtime.__file__)), "/usr"):
        assert any(Path(needed).is_relative_to(path) for path in found)
    assert not any(a != b and a.is_relative_to(b) for a in found for b in found)


def test_an_environment_that_pods_could_not_see_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod's own /tmp lies over the machine's: every container would die for want of its Python."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setattr(sys, "prefix", folder)
        with pytest.raises(DevClusterError, match=rf"pods have a /tmp of their own, which would hide {folder}: move"):
            runtime.host_mounts()


def test_source_folders_are_read_from_the_environments_pth_files(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "a.pth").write_text(f"{tmp_path}/src\nimport something\n{tmp_path}/gone\n")

    assert runtime.editable_sources(tmp_path) == [tmp_path / "src"]


@pytest.mark.parametrize("kind", ["RayCluster", "RayJob", "RayService", "RuntimeClass", "ClusterRole"])
def test_the_first_objects_hold_what_pods_and_programs_need(kind: str) -> None:
    objects = node_config.bootstrap_objects()

    assert kind in {o["kind"] for o in objects} | {o["spec"]["names"]["kind"] for o in objects if "spec" in o}
