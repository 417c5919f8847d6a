"""What a process and its children take, from /proc."""

import os
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


def processor_seconds(pid: int) -> float:
    """User and system time of one process so far. Raises OSError if there is none."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


@dataclass(frozen=True)
class Usage:
    """Processor time in seconds and resident memory in bytes, of all of them together."""

    cpu: float
    memory: int


def usage(root: int) -> Usage:
    """Of the process `root` and all below it that live."""
    cpu, memory = 0.0, 0
    for pid in family(root):
        try:
            spent = processor_seconds(pid)
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue
        cpu += spent
        resident = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")]
        memory += int(resident[0]) * 1024 if resident else 0
    return Usage(cpu, memory)


def family(root: int) -> list[int]:
    """The process and its descendants."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            parents.setdefault(parent, []).append(int(entry.name))
    found, todo = [], [root]
    while todo:
        pid = todo.pop()
        found.append(pid)
        todo += parents.get(pid, [])
    return found
