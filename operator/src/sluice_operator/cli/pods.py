"""The pods of one object: which there are, what part each plays, and what keeps one from running. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from rich.text import Text
from sluice_contracts.names import LABEL_COMPONENT, LABEL_MODEL_VERSION, LABEL_POOL, LABEL_TRAINING_RUN

from sluice_operator.children.metadata import short_name
from sluice_operator.cli.errors import CliError
from sluice_operator.cli.objects import SHORT, AnyObject
from sluice_operator.cli.text import WIDTH, Cell, age, aligned
from sluice_operator.kube.resources import MODEL_VERSION, TRAINING_RUN

RAY_NODE_TYPE = "ray.io/node-type"
"""KubeRay's label: `head` or `worker`."""
MOST = 12
"""Pods that are read at once: more lines than that nobody reads, and each costs a connection."""


class Part(StrEnum):
    """What a pod does; its component label."""

    TRAINER = "trainer"
    ENGINE = "engine"
    GATEWAY = "gateway"
    PUBLISHER = "publisher"
    RETIREMENT = "retirement"


@dataclass(frozen=True)
class PodState:
    """One pod as a person wants to know it."""

    name: str
    part: str
    role: str
    """`head` or `worker` of a Ray cluster, else empty."""
    container: str
    """The container that matters: the first of the spec."""
    state: str
    """`Running`, or the reason why it does not."""
    why: str
    """What Kubernetes says about it, where it does not run."""
    ready: bool
    started: bool
    """Whether the container has ever run: before that it has no log."""
    restarts: int
    created: str
    address: str

    @property
    def title(self) -> str:
        """`engine head`, `gateway`."""
        return f"{self.part} {self.role}".strip()


def selector(obj: AnyObject) -> str:
    """The label selector of the object's pods. A version's are its Jobs'; engines belong to the pool."""
    if obj.resource == TRAINING_RUN:
        return f"{LABEL_TRAINING_RUN}={obj.name}"
    if obj.resource == MODEL_VERSION:
        jobs = f"{LABEL_COMPONENT} in ({Part.PUBLISHER},{Part.RETIREMENT})"
        return f"{LABEL_MODEL_VERSION}={short_name(obj.name)},{jobs}"
    return f"{LABEL_POOL}={obj.name}"


def pod_of(pod: Mapping[str, Any]) -> PodState:
    """What the API server says of a pod."""
    meta, spec, status = pod["metadata"], pod.get("spec") or {}, pod.get("status") or {}
    labels = meta.get("labels") or {}
    first = str((spec.get("containers") or [{"name": ""}])[0]["name"])
    containers = {c["name"]: c for c in status.get("containerStatuses") or []}
    mine = containers.get(first) or {}
    state, why = _state(status, [*(status.get("initContainerStatuses") or []), *containers.values()])
    if "deletionTimestamp" in meta:
        state = "Terminating"
    now, before = mine.get("state") or {}, mine.get("lastState") or {}
    return PodState(
        name=meta["name"],
        part=labels.get(LABEL_COMPONENT, "pod"),
        role=labels.get(RAY_NODE_TYPE, ""),
        container=first,
        state=state,
        why=" ".join(why.split()),
        ready=any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions") or []),
        started=any(key in found for found in (now, before) for key in ("running", "terminated")),
        restarts=sum(int(c.get("restartCount") or 0) for c in containers.values()),
        created=meta.get("creationTimestamp") or "",
        address=status.get("podIP") or "",
    )


def sorted_pods(pods: Iterable[Mapping[str, Any]]) -> list[PodState]:
    """The pods by part, heads first."""
    return sorted(map(pod_of, pods), key=lambda p: (p.part, p.role, p.name))


def choose(
    pods: Sequence[PodState], obj: AnyObject, part: Part | None, name: str | None, most: int = MOST
) -> list[PodState]:
    """The pods a person means. Raises CliError, saying which there are."""
    target = f"{SHORT[obj.resource]}/{obj.name}"
    if not pods:
        raise CliError(
            f"{obj} has no pods now (those of a finished job are removed); "
            f"sluice explain {target} -n {obj.namespace} says how it stands"
        )
    there = ", ".join(f"{p.name} ({p.title})" for p in pods[:MOST])
    found = [p for p in pods if (part is None or p.part == part) and (name is None or p.name == name)]
    if not found:
        asked = " ".join(text for text in (part and f"part {part.value}", name and f"name {name}") if text)
        raise CliError(f"{obj} has no pod of {asked}; there are: {there}")
    if len(found) > most:
        raise CliError(f"{obj} has {len(found)} pods, more than {most} at once; choose with --part or --pod: {there}")
    return found


def list_pods(pods: Sequence[PodState], now: datetime) -> list[Text]:
    """A table of the pods."""
    head: list[Cell] = [Text(word, style="dim") for word in ("pod", "part", "state", "restarts", "age", "")]
    rows: list[list[Cell]] = [
        [
            Text(p.name, style="bold"),
            p.title,
            Text(p.state, style="green" if p.ready else "yellow"),
            str(p.restarts),
            age(p.created, now),
            p.why,
        ]
        for p in pods
    ]
    return aligned([head, *rows], width=WIDTH)


def troubled(pods: Sequence[PodState]) -> list[PodState]:
    """The pods that do not run, and Kubernetes says why."""
    return [p for p in pods if not p.ready and (p.why or p.state not in {"Running", "Succeeded", "Terminating"})]


def wire_pods(pods: Sequence[PodState]) -> list[dict[str, Any]]:
    """The pods as JSON data."""
    return [
        {
            "name": p.name,
            "part": p.part,
            "role": p.role or None,
            "state": p.state,
            "message": p.why or None,
            "ready": p.ready,
            "restarts": p.restarts,
        }
        for p in pods
    ]


def tags(pods: Sequence[PodState]) -> dict[str, str]:
    """A short name for each pod: what is left of the names without their common beginning, cut at a hyphen."""
    if len(pods) < 2:
        return {p.name: p.name for p in pods}
    words = [p.name.split("-") for p in pods]
    common = 0
    while all(len(w) > common + 1 for w in words) and len({w[common] for w in words}) == 1:
        common += 1
    return {p.name: "-".join(w[common:]) for p, w in zip(pods, words, strict=True)}


def _state(status: Mapping[str, Any], containers: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """The pod's phase, or what a container waits for or ended with: that says more."""
    for found in containers:
        state = found.get("state") or {}
        waiting, ended = state.get("waiting") or {}, state.get("terminated") or {}
        if waiting.get("reason"):
            return str(waiting["reason"]), str(waiting.get("message") or _last_end(found))
        if ended and ended.get("exitCode"):
            text = f"exit code {ended['exitCode']}"
            return str(ended.get("reason") or "Error"), f"{text}: {ended['message']}" if ended.get("message") else text
    for condition in status.get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return str(condition.get("reason") or "Pending"), str(condition.get("message") or "")
    return str(status.get("phase") or "Unknown"), str(status.get("message") or "")


def _last_end(container: Mapping[str, Any]) -> str:
    ended = (container.get("lastState") or {}).get("terminated") or {}
    if not ended:
        return ""
    return f"last ended with exit code {ended.get('exitCode')} ({ended.get('reason') or 'no reason given'})"
