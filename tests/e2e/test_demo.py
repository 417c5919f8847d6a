"""The end-to-end test is the demo itself: what a newcomer sees is what is tested."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
LOCAL = os.environ.get("SLUICE_CLUSTER", "local") == "local"


@pytest.mark.e2e
@pytest.mark.timeout(2700)
@pytest.mark.skipif(
    LOCAL and (os.geteuid() != 0 or sys.platform != "linux"), reason="the local cluster needs Linux and root"
)
def test_the_whole_loop_goes_as_promised(tmp_path: Path) -> None:
    sluice_dev = shutil.which("sluice-dev", path=str(Path(sys.executable).parent))
    assert sluice_dev, "the environment lacks sluice-dev; run `make setup`"
    output, report = tmp_path / "output", tmp_path / "report.html"

    command = [sluice_dev, "demo", "--output", str(output), "--report", str(report)]
    lines = []
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            print(line, end="", flush=True)

    assert process.returncode == 0, "".join(lines[-40:])
    if LOCAL:
        status = subprocess.run([sluice_dev, "status", "-o", "json"], capture_output=True, text=True, timeout=60)
        state = json.loads(status.stdout)
        assert not state["running"]
        assert state["leftovers"] == []
    page = report.read_text()
    for figure in ("Training", "Canaries", "Lineage", "<svg"):
        assert figure in page
