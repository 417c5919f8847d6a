"""Tests in layers, cheapest first, and one real API server for all tests that need no more than that."""

import json
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from sluice_contracts.telemetry import switch_off
from sluice_devcluster.apiserver import ControlPlane
from sluice_devcluster.programs import built_programs

switch_off()  # before anything that reports home is imported, and for every process a test starts
TESTS = Path(__file__).parent
REPOSITORY = TESTS.parent
LAYERS = ("unit", "apiserver", "cluster", "e2e")
LONGEST = (
    "serving/test_engine.py",
    "training/test_learning.py",
    "training/test_job.py",
    "operator/test_faults.py",
    "training/test_ray.py",
    "training/test_export.py",
    "integration/test_bad_devices.py",
    "integration/test_bad_data.py",
    "operator/test_machine_pool.py",
    "operator/test_flows.py",
    "openai_api/test_rolling_restart.py",
    "edge_agent/test_gateway.py",
    "serving/test_gateway_flow.py",
    "operator/test_odd_specs.py",
    "charts/test_chart.py",
)
"""Files of ten seconds and more, longest first. Workers take them first: one that is left for the end would keep one
worker busy while the other has nothing more to do."""
_seconds: dict[str, float] = defaultdict(float)
_counts: dict[str, int] = defaultdict(int)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--layers", default="", help=f"which layers to run, of: {' '.join(LAYERS)} (default: all)")


def layer_of(item: pytest.Item) -> str:
    """The most demanding layer that the test is marked with."""
    return next((layer for layer in reversed(LAYERS) if item.get_closest_marker(layer)), "unit")


def turn(item: pytest.Item, workers: bool) -> tuple[int, int]:
    """When the test has its turn: cheapest layer first, or where several workers take files, the longest file first."""
    layer = LAYERS.index(layer_of(item))
    if not workers:
        return layer, 0
    file = item.path.relative_to(TESTS).as_posix()
    return LONGEST.index(file) if file in LONGEST else len(LONGEST), layer


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = config.getoption("--layers").split() or list(LAYERS)
    if unknown := set(wanted) - set(LAYERS):
        raise pytest.UsageError(f"no layer {', '.join(sorted(unknown))}; there are: {', '.join(LAYERS)}")
    left_out = [item for item in items if layer_of(item) not in wanted]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
    workers = hasattr(config, "workerinput")
    items[:] = sorted((i for i in items if layer_of(i) in wanted), key=lambda i: turn(i, workers))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    # Reports, not items: with several workers only these reach the process that writes the summary.
    layer = next((layer for layer in reversed(LAYERS) if layer in report.keywords), "unit")
    _seconds[layer] += report.duration
    _counts[layer] += report.when == "call"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for layer in LAYERS:
        if _counts[layer]:
            terminalreporter.write_line(f"{layer:>10}: {_counts[layer]:4} tests of {_seconds[layer]:6.1f} s")


@dataclass(frozen=True)
class Kubectl:
    """kubectl against one API server."""

    program: Path
    kubeconfig: Path
    audit_log: Path
    """What service accounts ask of the API server, as it writes it down itself."""

    def __call__(self, *arguments: str, stdin: object = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.program), "--kubeconfig", str(self.kubeconfig), *arguments],
            input=None if stdin is None else json.dumps(stdin),
            capture_output=True,
            text=True,
            timeout=60,
        )

    def applied(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """Apply `manifest` and read back what the API server made of it."""
        result = self("apply", "--server-side", "-f", "-", "-o", "yaml", stdin=manifest)
        assert result.returncode == 0, result.stderr
        value: dict[str, Any] = yaml.safe_load(result.stdout)
        return value

    def refusal(self, manifest: dict[str, Any]) -> str:
        """What the API server says when it refuses `manifest`."""
        result = self("apply", "--server-side", "-f", "-", stdin=manifest)
        assert result.returncode != 0, f"was accepted: {manifest}"
        return result.stderr


@pytest.fixture(scope="session")
def kubectl() -> Iterator[Kubectl]:
    with ControlPlane(audited=True) as plane:
        kubectl = Kubectl(built_programs() / "kubectl", plane.kubeconfig, plane.audit_log)
        crds = kubectl("apply", "--server-side", "-f", str(REPOSITORY / "crds"))
        assert crds.returncode == 0, crds.stderr
        established = kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", str(REPOSITORY / "crds"))
        assert established.returncode == 0, established.stderr
        assert kubectl("create", "namespace", "support").returncode == 0
        yield kubectl
