"""The states of a RayJob: one pure step at a time, in KubeRay's order."""

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from sluice_devcluster.kuberay import names
from sluice_devcluster.kuberay.cluster_status import EMPTY

JSON = dict[str, Any]
CHECK_TIMEOUT_S = 300
"""How long the job's status may be unknown before the RayJob fails."""
TERMINAL = ("SUCCEEDED", "FAILED", "STOPPED")


class Answer(Enum):
    """What asking Ray for the job gave, other than the job."""

    NOT_ASKED = "not asked"
    UNREACHABLE = "unreachable"
    UNKNOWN_JOB = "unknown job"


class Action(Enum):
    """What is to be done besides writing the status."""

    CREATE_CLUSTER = "create the RayCluster"
    DELETE_CLUSTER = "delete the RayCluster"
    HEAD_SERVICE = "make the head service, or point it at this cluster"
    SUBMIT = "submit the job"


@dataclass(frozen=True)
class Step:
    """The status to write, after the actions are done."""

    status: JSON
    actions: tuple[Action, ...] = ()


def invalid(job: Mapping[str, Any]) -> str | None:
    """Why KubeRay would refuse this RayJob, in its words, or why this stand-in does; None if neither does."""
    spec, name = job["spec"], job["metadata"]["name"]
    if len(name) > names.MAX_NAME:
        return f"The RayJob metadata is invalid: RayJob name should be no more than {names.MAX_NAME} characters"
    begin = "The RayJob spec is invalid: "
    if spec.get("suspend") and not spec.get("shutdownAfterJobFinishes"):
        return begin + "a RayJob with shutdownAfterJobFinishes set to false is not allowed to be suspended"
    if not spec.get("rayClusterSpec"):
        return begin + "one of RayClusterSpec or ClusterSelector must be set (this stand-in knows only the former)"
    if spec.get("submissionMode") != "HTTPMode":
        return begin + f"this stand-in knows only submissionMode HTTPMode, not {spec.get('submissionMode')}"
    if not spec.get("entrypoint"):
        return begin + "entrypoint must be set"
    return None


def step(
    job: Mapping[str, Any],
    cluster: Mapping[str, Any] | None,
    answer: JSON | Answer,
    now: datetime.datetime,
    suffix: str,
) -> Step:
    """The next step. `answer` is Ray's description of the job, or why there is none; `suffix` names what is new."""
    spec, old = job["spec"], dict(job.get("status", {}))
    state = old.get("jobDeploymentStatus", "")
    if cluster is not None and state not in ("Suspending", "Retrying", "Complete", "Failed"):
        old["rayClusterStatus"] = cluster.get("status") or EMPTY
    if state == "":
        return Step(_new(job, now, suffix))
    if state == "Suspended":
        return Step(old) if spec.get("suspend") else Step(_emptied(old, None))
    if state in ("Suspending", "Retrying"):
        if cluster is not None:
            return Step(old, (Action.DELETE_CLUSTER,))
        return Step(_emptied(old, "Suspended" if state == "Suspending" else None))
    if state in ("Complete", "Failed"):
        return _after_end(spec, old, cluster, now)
    if state in ("Initializing", "Running"):
        if spec.get("suspend"):
            return Step(old | {"jobDeploymentStatus": "Suspending"})
        if late := _deadline(spec, old, now):
            return Step(late)
        return _initializing(job, old, cluster) if state == "Initializing" else _running(spec, old, answer, now)
    return Step(old)  # ValidationFailed is final


def _new(job: Mapping[str, Any], now: datetime.datetime, suffix: str) -> JSON:
    old = job.get("status", {})
    counts = {"failed": old.get("failed", 0), "succeeded": old.get("succeeded", 0)}
    if reason := invalid(job):
        failed = {"jobDeploymentStatus": "ValidationFailed", "reason": "ValidationFailed", "message": reason}
        return counts | failed | {"rayJobInfo": {}, "rayClusterStatus": EMPTY}
    name = job["metadata"]["name"]
    return counts | {
        "jobDeploymentStatus": "Initializing",
        "jobId": job["spec"].get("jobId") or f"{name}-{suffix}",
        "rayClusterName": f"{name}-{suffix[::-1]}",
        "rayClusterStatus": EMPTY,
        "rayJobInfo": {},
        "startTime": text(now),
    }


def _emptied(old: JSON, state: str | None) -> JSON:
    """The status without anything of the cluster and the job that were."""
    kept = {k: old[k] for k in ("failed", "succeeded", "startTime") if k in old}
    return kept | {"rayJobInfo": {}, "rayClusterStatus": EMPTY} | ({"jobDeploymentStatus": state} if state else {})


def _initializing(job: Mapping[str, Any], old: JSON, cluster: Mapping[str, Any] | None) -> Step:
    if cluster is None:
        return Step(old, (Action.CREATE_CLUSTER,))
    if cluster.get("status", {}).get("state") != "ready":
        return Step(old)
    namespace = job["metadata"]["namespace"]
    service = names.head_service(cluster["metadata"]["name"])
    url = f"{service}.{namespace}.svc.cluster.local:{names.DASHBOARD_PORT}"
    return Step(old | {"jobDeploymentStatus": "Running", "dashboardURL": url}, (Action.HEAD_SERVICE,))


def _running(spec: Mapping[str, Any], old: JSON, answer: JSON | Answer, now: datetime.datetime) -> Step:
    if answer is Answer.UNREACHABLE:
        since = old.setdefault("jobStatusCheckFailureStartTime", text(now))
        if (now - instant(since)).total_seconds() < CHECK_TIMEOUT_S:
            return Step(old)
        begun = instant(since).strftime("%Y-%m-%d %H:%M:%S")
        message = f"Job status checks have been failing since {begun}; exceeded timeout of {CHECK_TIMEOUT_S}s"
        return Step(_failed(old, "JobStatusCheckTimeoutExceeded", message, now))
    if answer is Answer.UNKNOWN_JOB:
        # Also after a head was lost: the new one has never heard of the job, and it starts again from its beginning.
        return Step(old, (Action.SUBMIT,))
    if isinstance(answer, Answer):
        return Step(old)
    old.pop("jobStatusCheckFailureStartTime", None)
    times = {"startTime": answer.get("start_time"), "endTime": answer.get("end_time")}
    seconds = {k: datetime.datetime.fromtimestamp(v / 1000, datetime.UTC) for k, v in times.items() if v}
    old |= {
        "jobStatus": answer["status"],
        "message": answer.get("message") or "",
        "rayJobInfo": {k: text(v) for k, v in seconds.items()},
    }
    if answer["status"] not in TERMINAL:
        return Step(old)
    if answer["status"] == "FAILED":
        failed = _failed(old, "AppFailed", old["message"], now)
        if failed["failed"] <= int(spec.get("backoffLimit", 0)):
            failed["jobDeploymentStatus"] = "Retrying"
            failed.pop("endTime")
        return Step(failed)
    succeeded = old["succeeded"] + (answer["status"] == "SUCCEEDED")
    return Step(old | {"jobDeploymentStatus": "Complete", "endTime": text(now), "succeeded": succeeded})


def after_submission(job: Mapping[str, Any], status: JSON, now: datetime.datetime, *, taken: bool) -> JSON:
    """The status after an attempt to submit. One that Ray did not take counts like a question it did not answer."""
    if not taken:
        return _running(job["spec"], dict(status), Answer.UNREACHABLE, now).status
    return {k: v for k, v in status.items() if k != "jobStatusCheckFailureStartTime"}


def _failed(old: JSON, reason: str, message: str, now: datetime.datetime) -> JSON:
    return old | {
        "jobDeploymentStatus": "Failed",
        "reason": reason,
        "message": message,
        "endTime": text(now),
        "failed": old["failed"] + 1,
    }


def _deadline(spec: Mapping[str, Any], old: JSON, now: datetime.datetime) -> JSON | None:
    start = instant(old["startTime"])
    begun = start.strftime("%Y-%m-%d %H:%M:%S +0000 UTC")
    limit = spec.get("activeDeadlineSeconds")
    if limit and (now - start).total_seconds() >= limit:
        message = f"The RayJob has passed the activeDeadlineSeconds. StartTime: {begun}. ActiveDeadlineSeconds: {limit}"
        return _failed(old, "DeadlineExceeded", message, now)
    limit = spec.get("preRunningDeadlineSeconds")
    if limit and old["jobDeploymentStatus"] == "Initializing" and (now - start).total_seconds() >= limit:
        field = "preRunningDeadlineSeconds"
        message = f"The RayJob has passed the {field}. StartTime: {begun}. P{field[1:]}: {limit}"
        return _failed(old, "PreRunningDeadlineExceeded", message, now)
    return None


def _after_end(spec: Mapping[str, Any], old: JSON, cluster: Mapping[str, Any] | None, now: datetime.datetime) -> Step:
    wait = int(spec.get("ttlSecondsAfterFinished", 0))
    over = (now - instant(old["endTime"])).total_seconds() >= wait
    if spec.get("shutdownAfterJobFinishes") and cluster is not None and over:
        return Step(old, (Action.DELETE_CLUSTER,))
    return Step(old)


def text(moment: datetime.datetime) -> str:
    """A time as Kubernetes writes it."""
    return moment.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def instant(written: str) -> datetime.datetime:
    """The time that `text` wrote."""
    return datetime.datetime.fromisoformat(written.replace("Z", "+00:00"))
