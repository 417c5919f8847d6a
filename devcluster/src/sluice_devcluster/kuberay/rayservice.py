"""The states of a RayService with upgradeStrategy None: one pure step at a time, in KubeRay's order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from sluice_devcluster.kuberay import names
from sluice_devcluster.kuberay.cluster_status import EMPTY, head_of, ready

JSON = dict[str, Any]


class Action(Enum):
    """What is to be done besides writing the status."""

    CREATE_CLUSTER = "create the RayCluster"
    SERVICES = "make the head and serve services"


@dataclass(frozen=True)
class Step:
    """Actions, then the status to write."""

    status: JSON
    actions: tuple[Action, ...] = ()


def step(
    service: Mapping[str, Any],
    cluster: Mapping[str, Any] | None,
    pods: Sequence[Mapping[str, Any]],
    applications: JSON | None,
    now: str,
    suffix: str,
) -> Step:
    """The next step.

    `applications` are their statuses (see `application_statuses`), {} where a new head has none, None where Ray does
    not answer and the last ones stand. A cluster that is gone is replaced by a new pending one.
    """
    old: JSON = service.get("status", {})
    generation = service["metadata"].get("generation", 1)
    active, pending = _of_a_cluster(old, "activeServiceStatus"), _of_a_cluster(old, "pendingServiceStatus")
    if cluster is None:
        active = {}
    if not active and not pending:
        pending = {"rayClusterName": f"{service['metadata']['name']}-{suffix}"}
        return Step(_status(old, generation, active, pending, 0, now))
    if cluster is None:
        return Step(old, (Action.CREATE_CLUSTER,))
    current = active or pending
    current["rayClusterStatus"] = cluster.get("status") or EMPTY
    if applications is not None:
        current["applicationStatuses"] = applications
        if not applications:
            del current["applicationStatuses"]
    actions: tuple[Action, ...] = ()
    if current is pending and running(applications):
        active, pending = pending, {}
    if active:
        actions = (Action.SERVICES,)
    return Step(_status(old, generation, active, pending, serve_endpoints(pods), now), actions)


def _of_a_cluster(status: JSON, which: str) -> JSON:
    """The active or pending part of a status, empty where it names no cluster."""
    found = dict(status.get(which, {}))
    return found if found.get("rayClusterName") else {}


def running(applications: JSON | None) -> bool:
    """Whether there are applications and all of them run."""
    return bool(applications) and all(a["status"] == "RUNNING" for a in (applications or {}).values())


def serve_endpoints(pods: Sequence[Mapping[str, Any]]) -> int:
    """How many pods the serve service sends to."""
    return sum(p["metadata"]["labels"].get(names.SERVE) == "true" and ready(p) for p in pods)


def application_statuses(details: Mapping[str, Any]) -> JSON:
    """The statuses to write from the answer of Ray's GET /api/serve/applications/."""
    found: JSON = {}
    for name, application in details.get("applications", {}).items():
        found[name] = _brief(application)
        deployments = {k: _brief(v) for k, v in application.get("deployments", {}).items()}
        if deployments:
            found[name]["serveDeploymentStatuses"] = deployments
    return found


def _brief(thing: Mapping[str, Any]) -> JSON:
    message = thing.get("message")
    return {"status": thing["status"]} | ({"message": message} if message else {})


def _status(old: JSON, generation: int, active: JSON, pending: JSON, endpoints: int, now: str) -> JSON:
    serving = bool(active) and endpoints > 0
    initializing = "RayService is initializing"
    if not active:
        conditions = [
            _condition("Ready", False, "Initializing", initializing),
            _condition("UpgradeInProgress", False, "Initializing", initializing),
        ]
    else:
        conditions = [
            _condition("Ready", True, "NonZeroServeEndpoints", "Number of serve endpoints is greater than 0")
            if serving
            else _condition("Ready", False, "ZeroServeEndpoints", "Number of serve endpoints dropped to 0"),
            _condition(
                "UpgradeInProgress", False, "NoPendingCluster", "Active Ray cluster exists and no pending Ray cluster"
            ),
        ]
        if not serving and not _was_ready(old):
            conditions[0] = _condition("Ready", False, "Initializing", initializing)
    before = {c["type"]: c for c in old.get("conditions", [])}
    for condition in conditions:
        condition["observedGeneration"] = generation
        last = before.get(condition["type"], {})
        same = last.get("status") == condition["status"]
        condition["lastTransitionTime"] = last["lastTransitionTime"] if same else now
    new: JSON = {
        "activeServiceStatus": {"rayClusterStatus": EMPTY} | active,
        "pendingServiceStatus": {"rayClusterStatus": EMPTY} | pending,
        "conditions": conditions,
        "observedGeneration": generation,
    }
    if serving:
        new |= {"numServeEndpoints": endpoints, "serviceStatus": "Running"}
    unchanged = {k: v for k, v in old.items() if k != "lastUpdateTime"} == new
    new["lastUpdateTime"] = old["lastUpdateTime"] if unchanged else now
    return new


def _was_ready(old: JSON) -> bool:
    return any(c["type"] == "Ready" and c["reason"] != "Initializing" for c in old.get("conditions", []))


def _condition(kind: str, holds: bool, reason: str, message: str) -> JSON:
    return {"type": kind, "status": "True" if holds else "False", "reason": reason, "message": message}


def head_serves(pods: Sequence[Mapping[str, Any]], proxy_healthy: bool) -> tuple[str, str] | None:
    """The head pod whose serve label must change, and its new value; None when it is right."""
    head = head_of(pods)
    if head is None or "deletionTimestamp" in head["metadata"]:
        return None
    wanted = "true" if proxy_healthy else "false"
    if head["metadata"]["labels"].get(names.SERVE) == wanted:
        return None
    return head["metadata"]["name"], wanted
