"""The cluster's own control group, below which the kubelet makes those of the pods.

Version 1 (one hierarchy for each controller, some machines still boot with it) and version 2 (one hierarchy) differ in
where the group lies and in what must be copied or switched on; the kubelet gets the same name in both.
"""

import contextlib
import os
import time
from pathlib import Path

from sluice_devcluster.errors import DevClusterError

GROUP = "sluice-dev"
V2_CONTROLLERS = ("cpuset", "cpu", "io", "memory", "pids")


def hierarchies(mounts: str) -> tuple[int, list[Path]]:
    """The version of control groups and where the hierarchies are mounted, from the text of /proc/mounts.

    Version 1 includes the hybrid arrangement, where an empty version 2 hierarchy is mounted beside the others.
    """
    found: dict[str, str] = {}
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) > 2 and fields[2] in ("cgroup", "cgroup2") and fields[1].startswith("/sys/fs/cgroup"):
            found[fields[1]] = fields[2]
    if found.get("/sys/fs/cgroup") == "cgroup2":
        return 2, [Path("/sys/fs/cgroup")]
    return 1, [Path(p) for p in sorted(found)]


def _machine() -> tuple[int, list[Path]]:
    version, roots = hierarchies(Path("/proc/mounts").read_text())
    if not roots:
        raise DevClusterError("no control groups are mounted at /sys/fs/cgroup: the kubelet cannot run pods without")
    return version, roots


def create() -> None:
    """Make the group in every hierarchy; there already is fine. Raises DevClusterError."""
    version, roots = _machine()
    for root in roots:
        group = root / GROUP
        try:
            group.mkdir(exist_ok=True)
            if version == 2:
                _enable(root)
                _enable(group)
            else:
                # A version 1 cpuset starts empty, and no process may enter an empty one.
                for name in ("cpuset.cpus", "cpuset.mems"):
                    if (root / name).exists():
                        (group / name).write_text((root / name).read_text())
        except OSError as error:
            raise DevClusterError(
                f"cannot make the control group {group}: {error.strerror}. Inside a container, give it a writable "
                "/sys/fs/cgroup; on a machine of its own, run as root"
            ) from error


def _enable(group: Path) -> None:
    there = (group / "cgroup.controllers").read_text().split()
    for controller in V2_CONTROLLERS:
        if controller in there:
            (group / "cgroup.subtree_control").write_text(f"+{controller}")


def existing() -> list[Path]:
    """Where the group is there now."""
    _, roots = hierarchies(Path("/proc/mounts").read_text())
    return [root / GROUP for root in roots if (root / GROUP).is_dir()]


def remove(deadline_s: float = 10.0) -> list[Path]:
    """Remove the group and all below it, and return what would not go.

    A group can be removed only a moment after its last process is gone, hence the deadline.
    """
    end = time.monotonic() + deadline_s
    while groups := existing():
        for group in groups:
            for folder, _, _ in os.walk(group, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(folder)
        if time.monotonic() > end:
            break
        if existing():
            time.sleep(0.05)
    return existing()
