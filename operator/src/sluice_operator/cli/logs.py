"""`sluice logs`: what an object's pods say, read through the API server."""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import cast

from sluice_operator.cli.cluster import Cluster
from sluice_operator.cli.errors import CliError
from sluice_operator.cli.objects import AnyObject, Run
from sluice_operator.cli.pods import Part, PodState, selector, sorted_pods
from sluice_operator.cli.ray_logs import Line, Source, engines, job_output
from sluice_operator.kube.resources import TRAINING_RUN

BACKLOG = 1000
"""Lines that may wait to be printed: then the readers wait, and with them the API server's stream."""


def pods_of(cluster: Cluster, obj: AnyObject) -> list[PodState]:
    """The object's pods, by part. Raises CliError."""
    return sorted_pods(cluster.pods(obj.namespace, selector(obj)))


def said(
    cluster: Cluster,
    obj: AnyObject,
    pods: Sequence[PodState],
    tail: int,
    follow: bool,
    raw: bool,
    note: Callable[[str], None],
) -> Iterator[Line]:
    """What these pods of the object say: Ray's processes where Ray tells, else (and with `raw`) the containers.

    Raises CliError."""
    if raw or not any(p.role == "head" for p in pods):
        yield from read(containers(cluster, obj.namespace, pods, tail, follow), follow)
        return
    if obj.resource == TRAINING_RUN:
        output = job_output(cluster, cast(Run, obj), pods, tail, follow)
        if output is None:
            note("Ray's job API does not answer: these are the containers' own lines")
            output = read(containers(cluster, obj.namespace, pods, tail, follow), follow)
        yield from output
        return
    found = engines(cluster, obj.namespace, pods, tail, follow)
    silent = [p for p in pods if p.part == Part.ENGINE and p.role == "head" and p.name not in found.told]
    for head in silent:
        note(f"Ray does not answer in {head.name}: these are its container's own lines")
    rest = [p for p in pods if p.part != Part.ENGINE or p in silent]
    yield from found.troubles
    yield from read([*found.replicas, *containers(cluster, obj.namespace, rest, tail, follow)], follow)


def containers(cluster: Cluster, namespace: str, pods: Sequence[PodState], tail: int, follow: bool) -> list[Source]:
    """What the pods' containers print."""
    return [
        Source(pod.name, partial(cluster.pod_log, namespace, pod.name, pod.container, tail, follow=follow))
        for pod in pods
    ]


def read(sources: Sequence[Source], follow: bool) -> Iterator[Line]:
    """The sources' lines: one source after the other, or with `follow` as they come, until all have ended.

    Raises CliError."""
    if not follow:
        for source in sources:
            yield from (Line(source.pod, text) for text in source.lines())
        return
    lines: queue.Queue[Line | CliError | None] = queue.Queue(BACKLOG)

    def hand_on(source: Source) -> None:
        try:
            for text in source.lines():
                lines.put(Line(source.pod, text))
            lines.put(None)
        except CliError as error:
            lines.put(error)

    for source in sources:
        threading.Thread(target=hand_on, args=(source,), daemon=True).start()
    reading = len(sources)
    while reading:
        found = lines.get()
        if isinstance(found, Line):
            yield found
            continue
        if found is not None:
            raise found
        reading -= 1
