"""The node's processes, found by what they run: no file of process ids that could be stale after a crash."""

import os
import signal
import time
from pathlib import Path

from sluice_devcluster.errors import DevClusterError


def running(module: str) -> dict[int, str]:
    """The processes that run `python -m module ARGUMENT`, oldest first, with their argument."""
    found: dict[int, str] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            words = (folder / "cmdline").read_text(errors="replace").rstrip("\0").split("\0")
        except OSError:
            continue  # it ended while we looked
        if words[-3:-1] == ["-m", module]:
            found[int(folder.name)] = words[-1]
    return dict(sorted(found.items(), key=lambda item: _started(item[0])))


def _started(pid: int) -> int:
    try:
        # The name, in parentheses, may hold anything; the fields after it count from the third.
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return 0


def namespace(pid: int, kind: str) -> str | None:
    """The identity of a process's namespace (`net`, `mnt`, …), or None if the process is gone."""
    try:
        return os.readlink(f"/proc/{pid}/ns/{kind}")
    except OSError:
        return None


def end(pids: list[int], grace_s: float, deadline_s: float = 20.0) -> None:
    """End processes: SIGTERM, after `grace_s` seconds SIGKILL. Raises DevClusterError if one stays."""
    began = time.monotonic()
    for pid in pids:
        _signal(pid, signal.SIGTERM)
    killed = False
    while left := [pid for pid in pids if Path(f"/proc/{pid}").exists() and not _zombie(pid)]:
        waited = time.monotonic() - began
        if waited > grace_s and not killed:
            killed = True
            for pid in left:
                _signal(pid, signal.SIGKILL)
        if waited > deadline_s:
            raise DevClusterError(
                f"processes {left} of the node do not end (stuck in the kernel?); wait a little and run "
                "`sluice-dev down` again"
            )
        time.sleep(0.02)


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
    except PermissionError as error:
        raise DevClusterError(f"cannot end process {pid} of the node: it belongs to another user; use root") from error


def _zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
