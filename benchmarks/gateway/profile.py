"""Where the gateway's processor time goes, by what the work is for: samples of py-spy, if that is installed."""

import os
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

PROFILER_VARIABLE = "SLUICE_BENCH_PYSPY"
"""Path of a `py-spy` command, where it is not on PATH."""
SAMPLES_A_SECOND = 400
WAITING = ("_worker (concurrent", "_connection_worker_thread (aiosqlite")
"""Threads that wait for work look busy to the profiler."""
GATEWAY = "sluice_serving/gateway/"
PURPOSES = {
    "answering the client (uvicorn)": ("uvicorn/", "httptools/", GATEWAY + "asgi.py", GATEWAY + "connections.py"),
    "asking the engine (aiohttp)": ("aiohttp/", GATEWAY + "upstream.py"),
    "reading and writing JSON": ("json/",),
    "records and budgets, and their database": (
        "aiosqlite/",
        *(GATEWAY + name for name in ("interactions.py", "records.py", "database.py", "spool.py", "budgets.py")),
    ),
    "keys, users, prices": tuple(
        GATEWAY + name for name in ("keys.py", "accounting.py", "tenants.py", "pseudonyms.py")
    ),
    "checks of the request": tuple(GATEWAY + name for name in ("completion.py", "inputs.py", "parameters.py")),
    "reading the answer": tuple(GATEWAY + name for name in ("events.py", "answers.py", "naming.py", "listening.py")),
    "counts for metrics and analysis": (GATEWAY + "observations.py", "sluice_contracts/", "pydantic/"),
    "the request's way: version, slot, route": (GATEWAY,),
    "event loop and tasks": ("asyncio/", "uvloop/"),
}
"""The first frame from the innermost one that begins with one of these paths decides."""


def profiler() -> str | None:
    """Where py-spy is, None if it is not installed."""
    return os.environ.get(PROFILER_VARIABLE) or shutil.which("py-spy")


def shares(pid: int, seconds: float, work: Callable[[], object]) -> dict[str, float]:
    """Per cent of the process's busy samples by purpose, while `work` runs for at least so many seconds."""
    program = profiler()
    assert program is not None
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "samples"
        command = [
            program,
            "record",
            "--rate",
            str(SAMPLES_A_SECOND),
            "--duration",
            str(int(seconds)),
            "--format",
            "raw",
        ]
        recording = subprocess.Popen(
            [*command, "--output", str(raw), "--pid", str(pid)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        work()
        recording.wait(seconds + 30)
        lines = raw.read_text().splitlines()
    counted: Counter[str] = Counter()
    for line in lines:
        stack, _, count = line.rpartition(" ")
        frames = stack.split(";")
        if not frames[-1].startswith(WAITING):
            counted[purpose(frames)] += int(count)
    total = counted.total() or 1
    return {name: 100 * counted[name] / total for name, _ in counted.most_common()}


def purpose(frames: list[str]) -> str:
    """What the innermost frame that says something works for. A frame reads `function (path/file.py:line)`."""
    for frame in reversed(frames):
        path = frame.partition(" (")[2]
        for name, prefixes in PURPOSES.items():
            if path.startswith(prefixes):
                return name
    return "other"
