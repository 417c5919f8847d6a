"""What a RayService's status means.

Read from KubeRay 1.7's recorded states: a bad application never becomes a failure of the RayService (Ready stays
False/Initializing; DEPLOY_FAILED shows only in the pending cluster's application status), and after a lost head pod the
application still reads RUNNING for a while, so both the condition and the application must be good.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sluice_operator.plan import Object, bounded


@dataclass(frozen=True)
class EngineState:
    """One RayService."""

    name: str
    ready: bool = False
    failure: str | None = None
    """Why its application will not come up by itself; None while it may."""
    message: str = ""
    deleting: bool = False


def read_ray_service(obj: Object) -> EngineState:
    """The state of a RayService."""
    status = obj.get("status") or {}
    conditions = {c["type"]: c for c in status.get("conditions") or []}
    ready = conditions.get("Ready") or {}
    active = list(_applications(status.get("activeServiceStatus")))
    pending = list(_applications(status.get("pendingServiceStatus")))
    running = bool(active) and all(app.get("status") == "RUNNING" for _, app in active)
    failed = next(((n, a) for n, a in (*active, *pending) if a.get("status") == "DEPLOY_FAILED"), None)
    return EngineState(
        name=obj["metadata"]["name"],
        ready=ready.get("status") == "True" and running,
        failure=_failure(*failed) if failed is not None else None,
        message=_message(ready, active or pending),
        deleting="deletionTimestamp" in obj["metadata"],
    )


def _applications(part: Mapping[str, Any] | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield from ((part or {}).get("applicationStatuses") or {}).items()


def _failure(name: str, application: Mapping[str, Any]) -> str:
    text = str(application.get("message") or "").strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = lines[-1] if lines else "no message"
    return bounded(f"application {name} failed to deploy: {told}", 900)


def _message(ready: Mapping[str, Any], applications: list[tuple[str, Mapping[str, Any]]]) -> str:
    parts = [f"{name} is {application.get('status', 'unknown')}" for name, application in applications]
    if ready.get("reason"):
        parts.insert(0, str(ready["reason"]))
    return ", ".join(parts)
