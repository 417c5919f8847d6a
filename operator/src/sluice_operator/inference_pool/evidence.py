"""The evidence of a rollout: every gateway's counts of the rollout's window, added up.

Read from the gateways themselves, so that a canary needs no Prometheus. A gateway that does not answer is left out: its
counts of both versions are missing alike.
"""

import asyncio
from dataclasses import dataclass, field

import aiohttp
from pydantic import ValidationError
from sluice_contracts.analysis import AnalysisSnapshot, VersionCounts

from sluice_operator.children.boundaries import INTERNAL_PORT, pod_labels
from sluice_operator.kube.client import KubeClient
from sluice_operator.kube.resources import POD
from sluice_operator.plan import Meta, Object

DEADLINE = aiohttp.ClientTimeout(total=5, connect=2)
LIMIT_BYTES = 2_000_000


@dataclass(frozen=True)
class Evidence:
    """Counts by ModelVersion in one window, and how many gateways gave them."""

    counts: dict[str, VersionCounts] = field(default_factory=dict)
    asked: int = 0
    answered: int = 0
    trouble: str = ""
    """Why there are no counts, or not all of them."""


async def gather(meta: Meta, window: str, kube: KubeClient, http: aiohttp.ClientSession) -> Evidence:
    """Ask all ready gateways of the pool for their counts of `window`."""
    selector = ",".join(f"{name}={value}" for name, value in pod_labels("gateway", meta.name).items())
    addresses = [_address(pod) async for pod in kube.list(POD, meta.namespace, labels=selector)]
    asked = [address for address in addresses if address is not None]
    answers = await asyncio.gather(*(_ask(http, address) for address in asked))
    return add_up(window, [a for a in answers if a is not None], len(asked))


def add_up(window: str, snapshots: list[AnalysisSnapshot], asked: int) -> Evidence:
    """The snapshots of `window` together. One of another window comes from a gateway that has not seen the newest
    routes yet: it has nothing to say about this rollout."""
    counts: dict[str, VersionCounts] = {}
    current = [s for s in snapshots if s.window == window]
    for snapshot in current:
        for version, found in snapshot.versions.items():
            counts[version] = counts[version].plus(found) if version in counts else found
    return Evidence(counts, asked, len(current), _missing(asked, len(snapshots), len(current)))


def _missing(asked: int, heard: int, current: int) -> str:
    """Why not every gateway's counts are there; empty if they are."""
    if asked == 0:
        return "no gateway pod is ready"
    if heard < asked:
        return f"{asked - heard} of {asked} ready gateways did not answer on port {INTERNAL_PORT}"
    return f"{asked - current} of {asked} gateways do not count this rollout yet" if current < asked else ""


def _address(pod: Object) -> str | None:
    status = pod.get("status") or {}
    conditions = {c["type"]: c["status"] for c in status.get("conditions") or []}
    if conditions.get("Ready") != "True" or "deletionTimestamp" in pod["metadata"]:
        return None
    address = status.get("podIP")
    return str(address) if address else None


async def _ask(http: aiohttp.ClientSession, address: str) -> AnalysisSnapshot | None:
    host = f"[{address}]" if ":" in address else address
    try:
        async with http.get(f"http://{host}:{INTERNAL_PORT}/analysis", timeout=DEADLINE) as response:
            if response.status != 200:
                return None
            body = b""
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > LIMIT_BYTES:
                    return None
            return AnalysisSnapshot.model_validate_json(body)
    except (aiohttp.ClientError, TimeoutError, ValidationError):
        return None
