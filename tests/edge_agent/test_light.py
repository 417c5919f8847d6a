"""The agent installs and runs without the cluster's libraries."""

import subprocess
import sys

HEAVY = (
    "torch",
    "ray",
    "kubernetes",
    "google",
    "transformers",
    "vllm",
    "numpy",
    "gguf",
    "sluice_storage",
    "sluice_training",
)
IMPORT_ALL = f"""
import importlib, pkgutil, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise ImportError(f"{{name}} is not on a device")

sys.meta_path.insert(0, Blocker())
import sluice_edge
for module in pkgutil.walk_packages(sluice_edge.__path__, "sluice_edge."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
try:
    import torch
except ImportError:
    print("blocked")
"""


def test_every_module_imports_without_the_clusters_libraries() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "blocked\n", "the blocker blocks nothing"
