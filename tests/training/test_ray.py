"""The entry point as Ray's job runs it: Ray Train's worker does the training, and this process the rest."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sluice_contracts.job import JobConfig, JobOutcome, JobResult

MakeJob = Callable[..., JobConfig]


@pytest.mark.timeout(240)
def test_a_job_trains_on_rays_workers(make_job: MakeJob, tmp_path: Path) -> None:
    config = make_job()
    path = tmp_path / "run.json"
    path.write_bytes(config.canonical())
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": "/tmp", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    command = [sys.executable, "-c", "from sluice_training.cli import main; main()", "job", "--config", str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=220, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    folder = Path(config.run_uri.removeprefix("file://"))
    outcome = JobOutcome.model_validate_json((folder / "outcome.json").read_bytes())
    assert outcome.result is JobResult.SUCCEEDED, outcome.message
    assert '"workers":1' in (folder / "training.json").read_text()
