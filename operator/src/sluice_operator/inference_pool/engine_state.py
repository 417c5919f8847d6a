"""What a RayService's status means.

Read from KubeRay 1.7's recorded states: a bad application never becomes a failure of the RayService (Ready stays
False/Initializing; DEPLOY_FAILED shows only in the pending cluster's application status), and after a lost head pod the
application still reads RUNNING for a while, so both the condition and the application must be good.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sluice_contracts.adapters import ADAPTER_PREFIX

from sluice_operator.plan import Object, bounded

UNWELL = {"UNHEALTHY", "DEPLOY_FAILED"}


@dataclass(frozen=True)
class AdapterState:
    """One adapter on a RayService's engines."""

    running: bool = False
    failure: str | None = None
    """Why the engines do not take it; None while they may."""


@dataclass(frozen=True)
class EngineState:
    """One RayService."""

    name: str
    ready: bool = False
    failure: str | None = None
    """Why its application will not come up by itself; None while it may."""
    message: str = ""
    deleting: bool = False
    deploying: bool = False
    """It answers, and Ray Serve is at work on its application: for a moment after any change of its options."""
    pods: int | None = None
    """Its ready worker pods; None where KubeRay has not said."""
    adapters: Mapping[str, AdapterState] = field(default_factory=dict)
    """By the names of their applications. The engine's own state does not depend on them."""


def read_ray_service(obj: Object) -> EngineState:
    """The state of a RayService."""
    status = obj.get("status") or {}
    conditions = {c["type"]: c for c in status.get("conditions") or []}
    ready = conditions.get("Ready") or {}
    everything = [
        *_applications(status.get("pendingServiceStatus")),
        *_applications(status.get("activeServiceStatus")),
    ]
    adapters = {name: _adapter(name, app) for name, app in everything if name.startswith(ADAPTER_PREFIX)}
    active = [a for a in _applications(status.get("activeServiceStatus")) if a[0] not in adapters]
    pending = [a for a in _applications(status.get("pendingServiceStatus")) if a[0] not in adapters]
    running = bool(active) and all(app.get("status") == "RUNNING" for _, app in active)
    deploying = bool(active) and {app.get("status") for _, app in active} == {"DEPLOYING"}
    failed = next(((n, a) for n, a in (*active, *pending) if a.get("status") == "DEPLOY_FAILED"), None)
    return EngineState(
        name=obj["metadata"]["name"],
        ready=ready.get("status") == "True" and running,
        failure=_failure(*failed) if failed is not None else None,
        message=_message(ready, active or pending),
        deleting="deletionTimestamp" in obj["metadata"],
        deploying=ready.get("status") == "True" and deploying,
        pods=((status.get("activeServiceStatus") or {}).get("rayClusterStatus") or {}).get("availableWorkerReplicas"),
        adapters=adapters,
    )


def _adapter(name: str, application: Mapping[str, Any]) -> AdapterState:
    status = application.get("status")
    return AdapterState(status == "RUNNING", _failure(name, application) if status == "DEPLOY_FAILED" else None)


def _applications(part: Mapping[str, Any] | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield from ((part or {}).get("applicationStatuses") or {}).items()


def _failure(name: str, application: Mapping[str, Any]) -> str:
    told = _last_line(application)
    # A replica's own words, such as which file was altered, are with its deployment; the application only counts.
    deployments = (application.get("serveDeploymentStatuses") or {}).items()
    words = [f"{n}: {line}" for n, d in deployments if d.get("status") in UNWELL and (line := _last_line(d))]
    return bounded(f"application {name} failed to deploy: {'; '.join([*words, told]) or 'no message'}", 900)


def _last_line(part: Mapping[str, Any]) -> str:
    """The last line of a message: a Python traceback ends with what went wrong."""
    lines = [line.strip() for line in str(part.get("message") or "").splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _message(ready: Mapping[str, Any], applications: list[tuple[str, Mapping[str, Any]]]) -> str:
    parts = [f"{name} is {application.get('status', 'unknown')}" for name, application in applications]
    if ready.get("reason"):
        parts.insert(0, str(ready["reason"]))
    return ", ".join(parts)
