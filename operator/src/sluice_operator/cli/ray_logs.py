"""What Ray's own processes say, asked of the dashboard on a cluster's head.

The containers of a Ray pod print next to nothing: Ray starts a job's entry point and Serve's replicas as processes of
their own, and keeps what they print in files. Its REST API gives them out, and through the API server's proxy no port
needs to be open: /api/jobs/<id>/logs, /api/serve/applications/ and /api/v0/logs/file, as Ray 2.60 has them.
https://docs.ray.io/en/latest/cluster/running-applications/job-submission/rest.html
https://docs.ray.io/en/latest/serve/api/index.html#serve-rest-api
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import urlencode

from sluice_operator.cli.cluster import Cluster
from sluice_operator.cli.errors import CliError
from sluice_operator.cli.objects import Run
from sluice_operator.cli.pods import Part, PodState
from sluice_operator.cli.terminal import looks
from sluice_operator.kube.resources import RAY_JOB

DASHBOARD_PORT = 8265
POLL_SECONDS = 2.0
OVER = {"SUCCEEDED", "FAILED", "STOPPED"}
"""Ray's states of a job that has ended."""
FOLLOW_SECONDS = 7 * 86_400.0
REPLICAS = 8
"""Of one engine that are read: each is two requests."""
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
PREAMBLE = re.compile(r"^:(job_id|actor_name|task_name):")
"""Lines with which Ray marks a worker's file for itself."""


@dataclass(frozen=True)
class Line:
    """One line of a pod's log."""

    pod: str
    text: str

    def wire(self) -> dict[str, Any]:
        """As JSON data."""
        return {"pod": self.pod, "line": self.text}


@dataclass(frozen=True)
class Source:
    """Something that gives a pod's lines when it is asked."""

    pod: str
    lines: Callable[[], Iterable[str]]


@dataclass(frozen=True)
class Engines:
    """What Ray says of a pool's engines."""

    troubles: list[Line] = field(default_factory=list)
    """Of those that cannot start."""
    replicas: list[Source] = field(default_factory=list)
    told: frozenset[str] = frozenset()
    """The heads that answered."""


def job_output(
    cluster: Cluster, run: Run, pods: Sequence[PodState], tail: int, follow: bool, interval: float = POLL_SECONDS
) -> Iterator[Line] | None:
    """The output of a run's job; None where it cannot be asked for. Raises CliError."""
    head = next((p for p in pods if p.role == "head" and p.started), None)
    if head is None or run.status.ray_job is None:
        return None
    text = _job_text(cluster, run, head)
    return None if text is None else _job_lines(cluster, run, head, text, tail, follow, interval)


def engines(cluster: Cluster, namespace: str, pods: Sequence[PodState], tail: int, follow: bool) -> Engines:
    """Why engines do not start, and their replicas' logs."""
    troubles: list[Line] = []
    replicas: list[Source] = []
    told = set()
    for head in (p for p in pods if p.part == Part.ENGINE and p.role == "head" and p.started):
        try:
            applications = json.loads(_ask(cluster, namespace, head, "api/serve/applications/") or "")["applications"]
        except (ValueError, KeyError, TypeError):
            continue
        told.add(head.name)
        troubles += [Line(head.name, line) for line in _troubles(applications)]
        for replica in _replicas(applications)[:REPLICAS]:
            lines = partial(_replica_lines, cluster, namespace, head, replica, tail, follow)
            replicas.append(Source(head.name, lines))
    return Engines(troubles, replicas, frozenset(told))


def _troubles(applications: Mapping[str, Any]) -> list[str]:
    """What Serve says of deployments that are not healthy: the traceback of an engine that cannot start."""
    found = []
    for application in applications.values():
        for name, deployment in (application.get("deployments") or {}).items():
            if deployment.get("status") != "HEALTHY" and deployment.get("message"):
                found.append(f"{name} {deployment['status']}:")
                found += COLOURS.sub("", deployment["message"]).splitlines()
    return found


def _replicas(applications: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [
        replica
        for application in applications.values()
        for deployment in (application.get("deployments") or {}).values()
        for replica in deployment.get("replicas") or []
    ]


def _replica_lines(
    cluster: Cluster, namespace: str, head: PodState, replica: Mapping[str, Any], tail: int, follow: bool
) -> Iterator[str]:
    """What the replica's process wrote to its standard error: Serve's log and vLLM's both go there."""
    query = urlencode({"actor_id": replica.get("actor_id") or "", "suffix": "err", "lines": max(1, tail)})
    if follow:
        text: Iterable[str] = cluster.ask_lines(namespace, head.name, DASHBOARD_PORT, f"api/v0/logs/stream?{query}")
    else:
        found = (_ask(cluster, namespace, head, f"api/v0/logs/file?{query}") or "").splitlines()
        text = found[-tail:] if tail else []
    for line in text:
        if not PREAMBLE.match(line):
            yield COLOURS.sub("", line)


def _job_lines(
    cluster: Cluster, run: Run, head: PodState, text: str, tail: int, follow: bool, interval: float
) -> Iterator[Line]:
    shown = _whole(text, follow)
    for line in text[:shown].splitlines()[-tail:] if tail else []:
        yield Line(head.name, line)
    if not follow:
        return

    def look() -> tuple[str | None, bool]:
        over = _job(cluster, run)[1]  # asked first: what the job said before its end is in the answer that follows
        return _job_text(cluster, run, head), over

    for now, over in looks(look, interval, FOLLOW_SECONDS):
        end = _whole(now, follow=not over) if now is not None else shown
        if now is not None and end > shown:
            yield from (Line(head.name, line) for line in now[shown:end].splitlines())
            shown = end
        if over or now is None:
            return


def _whole(text: str, follow: bool) -> int:
    """Where the last whole line ends: the rest of a line being written comes with the next look."""
    return text.rfind("\n") + 1 if follow else len(text)


def _job_text(cluster: Cluster, run: Run, head: PodState) -> str | None:
    job, _ = _job(cluster, run)
    if job is None:
        return None
    try:
        return str(json.loads(_ask(cluster, run.namespace, head, f"api/jobs/{job}/logs") or "")["logs"] or "")
    except (ValueError, KeyError, TypeError):
        return None


def _job(cluster: Cluster, run: Run) -> tuple[str | None, bool]:
    """The job's id in Ray, and whether it has ended."""
    assert run.status.ray_job is not None, "asked only of a run that has a RayJob"
    found = cluster.get(RAY_JOB, run.namespace, run.status.ray_job)
    status = (found or {}).get("status") or {}
    return status.get("jobId") or None, found is None or status.get("jobStatus") in OVER


def _ask(cluster: Cluster, namespace: str, head: PodState, path: str) -> str | None:
    """A page of the dashboard; None where it cannot be had: what Ray does not say is left out, never a failure."""
    try:
        return cluster.ask(namespace, head.name, DASHBOARD_PORT, path).decode(errors="replace")
    except CliError:
        return None
