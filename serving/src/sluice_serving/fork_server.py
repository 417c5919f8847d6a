"""Starting vLLM's engine process in two seconds rather than eight.

vLLM runs its engine in a process of its own. Within Ray that process is spawned, and imports PyTorch and vLLM all over
again after the replica has done so. Here a clean, single-threaded server process imports them at the same time as the
replica does, and the engine is forked from it. (Forking the replica itself would not do: Ray's threads hold locks.)
"""

import importlib.util
import multiprocessing
import os
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

PRELOADED = "sluice_serving.engine_imports"


def begin() -> None:
    """Start the server process; returns at once. Call it before vLLM is imported, with the environment set."""
    multiprocessing.get_context("forkserver").set_forkserver_preload([PRELOADED])
    inherited = os.environ.get("LD_PRELOAD")
    os.environ["LD_PRELOAD"] = ":".join([*_libraries(), *([inherited] if inherited else [])])
    try:
        forkserver.ensure_running()
    finally:
        if inherited is None:
            del os.environ["LD_PRELOAD"]
        else:
            os.environ["LD_PRELOAD"] = inherited


def context(*_: Any) -> Any:
    """Takes the place of vLLM's choice of a start method."""
    return multiprocessing.get_context("forkserver")


def _libraries() -> list[str]:
    """The allocator and the OpenMP runtime that vLLM would have preloaded in a spawned process on CPU."""
    found: list[str] = []
    for package, pattern in (("vllm", "libs/libtcmalloc*.so*"), ("torch", "lib/libgomp*.so*")):
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            found += [str(path) for path in sorted(Path(folder).glob(pattern))[:1]]
    return found
