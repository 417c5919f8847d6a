"""What must be there before the cluster can start, each checked by name, with the remedy in the message."""

import os
import platform
import shutil
from pathlib import Path

from sluice_devcluster.errors import DevClusterError
from sluice_devcluster.places import DISK_FOR_STATE, GIB

TOOLS = {
    "setsid": "util-linux",
    "unshare": "util-linux",
    "ip": "iproute2",
    "runc": "runc",
    "nft": "nftables",
    "iptables": "iptables",
}
"""Programs of the distribution, and the Debian package of each."""
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def find_tool(name: str) -> str | None:
    """Where a program of the distribution lies; administrators' folders are not in every user's PATH."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}")


def missing_tools() -> list[str]:
    """The distribution's programs that are not installed."""
    return [name for name in TOOLS if find_tool(name) is None]


def check_system() -> None:
    """Raise DevClusterError unless this is Linux, run by root."""
    if platform.system() != "Linux":
        raise DevClusterError(
            f"the local cluster needs Linux, this is {platform.system()}: "
            "use a cluster of your own with SLUICE_CLUSTER=existing and KUBECONFIG"
        )
    if os.geteuid() != 0:
        raise DevClusterError(
            "the local cluster needs root (namespaces, a network link, control groups): run it with "
            "`sudo -E env PATH=$PATH sluice-dev …`, or use a cluster of your own with SLUICE_CLUSTER=existing and "
            "KUBECONFIG"
        )


def check_tools() -> None:
    """Raise DevClusterError naming every missing program and its package."""
    if missing := missing_tools():
        packages = " ".join(sorted({TOOLS[name] for name in missing}))
        raise DevClusterError(
            f"missing on this machine: {', '.join(missing)}. Install with `apt-get install {packages}` "
            "(`sluice-dev build` does it where it can)"
        )


def check_disk(folder: Path, needed: int, purpose: str) -> None:
    """Raise DevClusterError unless `needed` bytes are free where `folder` is or will be."""
    place = folder
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise DevClusterError(
            f"{purpose} needs {needed / GIB:.0f} GiB free at {folder}, there are {free / GIB:.1f}: "
            "free some, or choose another place with SLUICE_STATE or SLUICE_CACHE"
        )


def check_state_folder(root: Path) -> None:
    """Raise DevClusterError unless the state folder can be used: room, and no odd characters in its name."""
    if any(c.isspace() or c in ":,\\" for c in str(root)):
        raise DevClusterError(
            f"the state folder {root} has a space, comma, colon or backslash in its name, which mounts cannot carry: "
            "choose another with SLUICE_STATE"
        )
    check_disk(root, DISK_FOR_STATE, "the local cluster")
