"""`sluice-dev` as a person meets it when there is no cluster: one clear line, a status that tells the truth."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


def sluice_dev(state: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sluice_devcluster.cli", *arguments],
        env={"SLUICE_STATE": str(state), "PATH": "/usr/bin:/bin", "HOME": str(state)} | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_status_is_1_and_readable_by_machines_when_nothing_runs(tmp_path: Path) -> None:
    done = sluice_dev(tmp_path / "dev", "status", "-o", "json")

    assert done.returncode == 1
    value = json.loads(done.stdout)
    assert value["running"] is False
    assert value["kubeconfig"] == str(tmp_path / "dev" / "kubeconfig")
    assert not (tmp_path / "dev").exists(), "looking leaves no trace"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("kubectl", "get", "pods"), "sluice-dev: the local cluster is not running: start it with `sluice-dev up`"),
        (("logs",), "sluice-dev: there are no logs in"),
    ],
)
def test_without_a_cluster_the_message_is_one_line(tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    done = sluice_dev(tmp_path, *arguments)

    assert done.returncode == 1
    assert done.stderr.startswith(says)
    assert done.stderr.count("\n") == 1


def test_an_unknown_part_is_answered_with_the_parts_there_are(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "kubelet.log").write_text("one\ntwo\n")

    done = sluice_dev(tmp_path, "logs", "kublet")
    assert done.stderr == "sluice-dev: no part 'kublet'; there are: kubelet\n"
    assert sluice_dev(tmp_path, "logs", "kubelet", "-n", "1").stdout == "two\n"
    assert sluice_dev(tmp_path, "logs").stdout == "kubelet\n"


def test_a_wrong_option_is_a_mistake_in_usage(tmp_path: Path) -> None:
    assert sluice_dev(tmp_path, "status", "--outptu=json").returncode == 2
