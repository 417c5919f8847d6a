"""What a RayJob's status means. A RayJob has no conditions, and its two status words must be read together.

Read from KubeRay 1.7's recorded states: success is jobStatus SUCCEEDED, never Complete (a stopped job is Complete,
too); after a deadline jobStatus stays RUNNING; ValidationFailed is final although KubeRay's own "is terminal" leaves it
out; a lost head pod shows only as a new start time.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from sluice_contracts.base import timestamp

from sluice_operator.children.rayjob import attempt_number
from sluice_operator.plan import Object


class JobPhase(StrEnum):
    """Where one attempt stands."""

    STARTING = "starting"
    RUNNING = "running"
    SUSPENDED = "suspended"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"
    REJECTED = "rejected"

    @property
    def over(self) -> bool:
        """Nothing will change any more."""
        return self in {JobPhase.SUCCEEDED, JobPhase.FAILED, JobPhase.STOPPED, JobPhase.REJECTED}


@dataclass(frozen=True)
class RayJobState:
    """One attempt, as its RayJob tells it."""

    name: str
    attempt: int
    phase: JobPhase
    started_at: str | None = None
    """When the entry point last began."""
    ended_at: str | None = None
    created_at: str | None = None
    job_id: str | None = None
    """Ray's id of the submitted job: the same after a lost head, another one after a suspension."""
    workers: int = 0
    """Pods that train and run now: worker pods, or the head where it trains alone."""
    message: str = ""
    suspend: bool = False
    """What the RayJob's spec asks for now."""
    deleting: bool = False


def read_ray_job(run: str, obj: Object) -> RayJobState | None:
    """The state of a RayJob of `run`; None if it is none of its attempts."""
    name = obj["metadata"]["name"]
    attempt = attempt_number(run, name)
    if attempt is None:
        return None
    status = obj.get("status") or {}
    info = status.get("rayJobInfo") or {}
    return RayJobState(
        name=name,
        attempt=attempt,
        phase=_phase(status.get("jobStatus") or "", status.get("jobDeploymentStatus") or ""),
        started_at=_moment(info.get("startTime")),
        ended_at=_moment(status.get("endTime") or info.get("endTime")),
        created_at=_moment(obj["metadata"].get("creationTimestamp")),
        job_id=status.get("jobId") or None,
        workers=_workers(obj.get("spec") or {}, status.get("rayClusterStatus") or {}),
        message=_first_lines(status.get("reason"), status.get("message")),
        suspend=bool((obj.get("spec") or {}).get("suspend")),
        deleting="deletionTimestamp" in obj["metadata"],
    )


def _phase(job: str, deployment: str) -> JobPhase:
    if deployment == "ValidationFailed":
        return JobPhase.REJECTED
    if job == "SUCCEEDED":
        return JobPhase.SUCCEEDED
    if job == "STOPPED":
        return JobPhase.STOPPED
    if deployment == "Failed" or (job == "FAILED" and deployment != "Retrying"):
        return JobPhase.FAILED
    if deployment in {"Suspending", "Suspended"}:
        return JobPhase.SUSPENDED
    if deployment == "Running" and job == "RUNNING":
        return JobPhase.RUNNING
    return JobPhase.STARTING


def _workers(spec: Object, cluster: Object) -> int:
    """KubeRay counts the worker pods that run, and shows a head's address once its pod has one."""
    if (spec.get("rayClusterSpec") or {}).get("workerGroupSpecs"):
        return int(cluster.get("availableWorkerReplicas") or 0)
    return 1 if (cluster.get("head") or {}).get("podIP") else 0


def _moment(text: str | None) -> str | None:
    """A Kubernetes time as a contract's Timestamp; None for none, or for what is no time."""
    if text is None:
        return None
    try:
        return timestamp(datetime.fromisoformat(text.replace("Z", "+00:00")))
    except ValueError:
        return None


def _first_lines(reason: str | None, message: str | None) -> str:
    """Reason and the telling part of a message that may be 20,000 characters of log: its first and its last lines."""
    lines = [line.strip() for line in (message or "").splitlines() if line.strip()]
    text = " … ".join(lines[:1] + lines[-2:]) if len(lines) > 3 else " ".join(lines)
    return ": ".join(part for part in (reason, text[:800]) if part)
