"""Keeping a benchmark's figures with everything needed to judge them: command, versions, machine, commit."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"


@dataclass
class Report:
    """One run of one benchmark."""

    name: str
    title: str
    columns: Sequence[str]
    """Names of the printed columns; the first names the row."""
    packages: Sequence[str] = ()
    """Distributions whose versions belong to the figures."""
    tools: dict[str, str] = field(default_factory=dict)
    """Versions of programs that are no Python packages."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, **row: Any) -> None:
        """One row; its keys are the columns' names, with `_` for spaces. Further keys are kept and not printed."""
        self.rows.append({key.replace("_", " "): value for key, value in row.items()})

    def finish(self) -> Path:
        """Print the table and write the record. Returns where it went."""
        print(self.table())
        at = datetime.now(UTC)
        record = {
            "name": self.name,
            "title": self.title,
            "at": at.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "git": git_state(),
            "machine": machine(),
            "versions": {"python": platform.python_version(), **versions(self.packages), **self.tools},
            "rows": self.rows,
            "notes": self.notes,
        }
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{self.name}-{at.strftime('%Y%m%dT%H%M%SZ')}.json"
        temporary = path.with_suffix(".tmp")
        with temporary.open("w") as file:
            json.dump(record, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        print(f"\nwritten to {path.relative_to(ROOT)}")
        return path

    def table(self) -> str:
        """Title, aligned columns (numbers to the right), notes."""
        cells = [[shown(row.get(column, "")) for column in self.columns] for row in self.rows]
        widths = [max(len(c) for c in column) for column in zip(self.columns, *cells, strict=True)]
        lines = [self.title, ""]
        for row in [list(self.columns), *cells]:
            first = row[0].ljust(widths[0])
            lines.append("  ".join([first, *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip())
        lines.insert(3, "  ".join("-" * width for width in widths))
        return "\n".join(["", *lines, *([""] if self.notes else []), *(f"- {note}" for note in self.notes)])


def shown(value: Any) -> str:
    """A cell's text: whole numbers with thousands apart, others to three digits, None as a dash."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"


def machine() -> dict[str, Any]:
    """What it ran on."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        models = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memoryBytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "loadBefore": os.getloadavg()[0],
    }


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Installed versions; `absent` where one is not."""
    found = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def git_state() -> dict[str, Any]:
    """The commit, and whether the working tree differs from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=30)
        return done.stdout.strip() if done.returncode == 0 else ""

    return {"sha": git("rev-parse", "HEAD") or None, "dirty": bool(git("status", "--porcelain"))}
