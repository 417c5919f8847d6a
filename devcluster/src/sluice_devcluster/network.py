"""The addresses of the local cluster, and the one link that joins it to this machine.

The node lives in a network namespace of its own, behind a veth pair, without a default route: nothing of it can leave
this machine. Routes for pods and services point at the node, so that programs on this machine reach pod addresses and
cluster addresses directly.
"""

import ipaddress
import json
import subprocess
from typing import Any

from sluice_devcluster.errors import DevClusterError
from sluice_devcluster.preflight import find_tool

LINK = "sluice0"
NODE_LINK = "eth0"
HOST_ADDRESS = "10.250.0.1"
NODE_ADDRESS = "10.250.0.2"
LINK_RANGE = "10.250.0.0/30"
POD_RANGE = "10.244.0.0/16"
NODE_POD_RANGE = "10.244.0.0/24"
SERVICE_RANGE = "10.96.0.0/16"
KUBERNETES_SERVICE = "10.96.0.1"
NODE_NAME = "node1"
API_SERVER = f"https://{NODE_ADDRESS}:6443"
STORAGE_PORT = 4443
STORAGE = f"http://{NODE_ADDRESS}:{STORAGE_PORT}"
DOMAIN = "cluster.local"


def ip(*arguments: str, check: bool = True) -> str:
    """Run `ip` and return what it prints. Raises DevClusterError with its message, unless `check` is False."""
    program = find_tool("ip") or "ip"
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=20, check=False)
    if done.returncode and check:
        raise DevClusterError(f"`ip {' '.join(arguments)}` failed: {done.stderr.strip()}")
    return done.stdout


def overlaps(addresses: list[dict[str, Any]], routes: list[dict[str, Any]]) -> list[str]:
    """What on this machine already uses one of the cluster's ranges, in words.

    `addresses` and `routes` are what `ip -j -4 addr` and `ip -j -4 route` print; the cluster's own link is ignored.
    """
    ranges = [ipaddress.ip_network(r) for r in (LINK_RANGE, POD_RANGE, SERVICE_RANGE)]
    found = []
    for link in addresses:
        for info in link.get("addr_info", []):
            used = ipaddress.ip_network(f"{info['local']}/{info['prefixlen']}", strict=False)
            clash = next((r for r in ranges if used.overlaps(r)), None)
            if link["ifname"] != LINK and clash:
                found.append(f"interface {link['ifname']} has {info['local']}/{info['prefixlen']} ({clash} is needed)")
    for route in routes:
        if route["dst"] == "default" or route.get("dev") == LINK or route.get("protocol") == "kernel":
            continue
        used = ipaddress.ip_network(route["dst"], strict=False)
        clash = next((r for r in ranges if used.overlaps(r)), None)
        # A wide route (a VPN's 10.0.0.0/8) is no obstacle: the cluster's narrower ones win.
        if clash and used.prefixlen >= clash.prefixlen:
            found.append(f"a route to {route['dst']} by {route.get('dev', '?')} ({clash} is needed)")
    return found


def check_ranges_free() -> None:
    """Raise DevClusterError if something on this machine already uses the cluster's addresses."""
    found = overlaps(json.loads(ip("-j", "-4", "addr")), json.loads(ip("-j", "-4", "route") or "[]"))
    if found:
        raise DevClusterError(
            f"the local cluster's addresses are taken: {'; '.join(found)}. Remove that link or route and try again"
        )


def link_exists() -> bool:
    """Whether this machine's end of the link is there."""
    return bool(ip("-o", "link", "show", LINK, check=False).strip())


def remove_link() -> None:
    """Remove the link; its routes go with it. None there is fine."""
    if link_exists():
        ip("link", "delete", LINK, check=False)


def connect(pid: int) -> None:
    """Join this machine with the network namespace of process `pid`. Raises DevClusterError."""
    ip("link", "add", LINK, "type", "veth", "peer", "name", NODE_LINK, "netns", str(pid))
    ip("addr", "add", f"{HOST_ADDRESS}/30", "dev", LINK)
    ip("link", "set", LINK, "up")
    for subnet in (POD_RANGE, SERVICE_RANGE):
        ip("route", "add", subnet, "via", NODE_ADDRESS, "dev", LINK)
