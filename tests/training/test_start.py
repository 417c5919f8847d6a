"""What a command loads before it does anything: each of a training's three processes starts anew for every run."""

import subprocess
import sys

LOADED = """
import sys
import sluice_training.cli
assert not {"torch", "ray", "gguf", "transformers"} & set(sys.modules), "for every command"
import sluice_training.job.run
assert not {"peft", "gguf", "transformers"} & set(sys.modules), "for every job"
"""


def test_nothing_heavy_is_loaded_before_it_is_needed() -> None:
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
