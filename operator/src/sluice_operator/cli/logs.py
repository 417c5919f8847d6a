"""`sluice logs`: what an object's pods say, read through the API server.

A training job's own output is not what its pods' containers print: Ray starts the entry point as a process of the head
and keeps its output in a file (HTTPMode; https://docs.ray.io/en/latest/cluster/running-applications/job-submission/rest.html).
So for a run it is asked for at Ray's own job API, and the containers are what remains when that does not answer.
"""

import json
import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sluice_operator.cli.cluster import Cluster
from sluice_operator.cli.errors import CliError
from sluice_operator.cli.objects import AnyObject, Run
from sluice_operator.cli.pods import PodState, selector, sorted_pods
from sluice_operator.cli.terminal import looks
from sluice_operator.kube.resources import RAY_JOB

DASHBOARD_PORT = 8265
POLL_SECONDS = 2.0
OVER = {"SUCCEEDED", "FAILED", "STOPPED"}
"""Ray's states of a job that has ended."""
FOLLOW_SECONDS = 7 * 86_400.0
BACKLOG = 1000
"""Lines that may wait to be printed: then the readers wait, and with them the API server's stream."""


@dataclass(frozen=True)
class Line:
    """One line of a pod's log."""

    pod: str
    text: str

    def wire(self) -> dict[str, Any]:
        """As JSON data."""
        return {"pod": self.pod, "line": self.text}


def pods_of(cluster: Cluster, obj: AnyObject) -> list[PodState]:
    """The object's pods, by part. Raises CliError."""
    return sorted_pods(cluster.pods(obj.namespace, selector(obj)))


def lines_of(cluster: Cluster, namespace: str, pods: Sequence[PodState], tail: int, follow: bool) -> Iterator[Line]:
    """The last `tail` lines of each pod, and with `follow` those to come, until all have ended. Raises CliError."""
    if not follow:
        for pod in pods:
            for text in cluster.pod_log(namespace, pod.name, pod.container, tail, follow=False):
                yield Line(pod.name, text)
        return
    lines: queue.Queue[Line | CliError | None] = queue.Queue(BACKLOG)

    def read(pod: PodState) -> None:
        try:
            for text in cluster.pod_log(namespace, pod.name, pod.container, tail, follow=True):
                lines.put(Line(pod.name, text))
            lines.put(None)
        except CliError as error:
            lines.put(error)

    for pod in pods:
        threading.Thread(target=read, args=(pod,), daemon=True).start()
    reading = len(pods)
    while reading:
        found = lines.get()
        if isinstance(found, Line):
            yield found
            continue
        if found is not None:
            raise found
        reading -= 1


def job_output(
    cluster: Cluster, run: Run, pods: Sequence[PodState], tail: int, follow: bool, interval: float = POLL_SECONDS
) -> Iterator[Line] | None:
    """The training job's own output; None where Ray's job API cannot be asked. Raises CliError."""
    head = next((p for p in pods if p.role == "head" and p.started), None)
    if head is None or run.status.ray_job is None:
        return None
    text = _ask(cluster, run, head)
    return None if text is None else _job_lines(cluster, run, head, text, tail, follow, interval)


def _job_lines(
    cluster: Cluster, run: Run, head: PodState, text: str, tail: int, follow: bool, interval: float
) -> Iterator[Line]:
    shown = _whole(text, follow)
    for line in text[:shown].splitlines()[-tail:] if tail else []:
        yield Line(head.name, line)
    if not follow:
        return

    def look() -> tuple[str | None, bool]:
        over = _state(cluster, run)[1]  # asked first: what the job said before its end is in the answer that follows
        return _ask(cluster, run, head), over

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


def _ask(cluster: Cluster, run: Run, head: PodState) -> str | None:
    job, _ = _state(cluster, run)
    if job is None:
        return None
    try:
        answer = cluster.ask(run.namespace, head.name, DASHBOARD_PORT, f"api/jobs/{job}/logs")
        found = json.loads(answer).get("logs")
    except (CliError, ValueError, AttributeError):
        return None
    return str(found or "")


def _state(cluster: Cluster, run: Run) -> tuple[str | None, bool]:
    """The job's id in Ray, and whether it has ended."""
    assert run.status.ray_job is not None, "asked only of a run that has a RayJob"
    found = cluster.get(RAY_JOB, run.namespace, run.status.ray_job)
    status = (found or {}).get("status") or {}
    return status.get("jobId") or None, found is None or status.get("jobStatus") in OVER
