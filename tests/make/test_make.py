"""What `make` says on a machine that lacks something: tried with stand-ins for that machine's programs."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import LONGEST, TESTS

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout in which nothing is installed yet."""
    shutil.copytree(REPOSITORY / ".ci", tmp_path / "checkout" / ".ci")
    return tmp_path / "checkout"


def run(script: Path, *arguments: str, **programs: str) -> subprocess.CompletedProcess[str]:
    """Run a script with some programs replaced by one-line shell scripts."""
    folder = script.parents[2] / "programs"
    folder.mkdir()
    for name, line in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "SLUICE_CACHE": str(folder / "cache")}
    return subprocess.run(
        [str(script), *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_another_system_is_named(checkout: Path) -> None:
    result = run(checkout / ".ci" / "setup", uname="echo Darwin")
    assert result.returncode == 1
    assert result.stderr == "setup: this needs Linux, found Darwin: use a Linux machine or virtual machine\n"


def test_a_full_disk_is_told_with_what_is_needed(checkout: Path) -> None:
    result = run(checkout / ".ci" / "setup", df="printf 'head\\nx 1 1 5242880 1 /\\n'")
    assert result.returncode == 1
    assert "23 GB are needed (environment and downloads 11 GB, Go caches 11 GB, programs 1 GB), 5 GB are free" in (
        result.stderr
    )


def test_a_machine_without_python_is_told(checkout: Path) -> None:
    for name in ("uv.lock", "pyproject.toml"):
        (checkout / name).write_text("")
    (checkout / "room").mkdir()
    (checkout / "room" / "pyproject.toml").write_text("")
    result = run(checkout / ".ci" / "setup", "environment", uv="exit 1", python3="exit 1")
    assert result.returncode == 1
    assert "uv cannot be installed: install it by hand (pipx install uv)" in result.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_without_root_and_sudo_the_ways_out_are_told() -> None:
    if shutil.which("sudo", path="/usr/bin:/bin") is not None:
        pytest.skip("this machine has sudo")
    script = (REPOSITORY / ".ci" / "as-root").read_text()
    result = subprocess.run(
        ["/bin/bash", "-c", script, "as-root", "touch", "/never"],
        user=65534,
        group=65534,
        extra_groups=[],
        cwd="/",
        env={"PATH": "/usr/bin:/bin", "HOME": "/"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert result.returncode == 1
    assert result.stderr.startswith("The local cluster needs root: run this as root, or where sudo works.")


def test_unit_tests_ask_for_no_root_and_no_cluster() -> None:
    planned = subprocess.run(
        ["make", "-n", "test", "LAYERS=unit"], cwd=REPOSITORY, capture_output=True, text=True, timeout=30
    )
    assert planned.returncode == 0, planned.stderr
    assert "as-root" not in planned.stdout
    assert ".ci/setup environment" in planned.stdout
    everything = subprocess.run(["make", "-n", "test"], cwd=REPOSITORY, capture_output=True, text=True, timeout=30)
    assert ".ci/as-root" in everything.stdout


def test_help_names_every_command_a_person_needs() -> None:
    shown = subprocess.run(["make"], cwd=REPOSITORY, capture_output=True, text=True, timeout=30).stdout
    for command in ("setup", "demo", "test", "lint", "bench", "clean"):
        assert f"make {command} " in shown


def test_the_files_that_begin_first_are_there() -> None:
    assert [file for file in LONGEST if not (TESTS / file).is_file()] == []
