"""Why is it not Ready? Conditions, pods in trouble, the last events, and what to do, on one screen. Pure."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.text import Text
from sluice_contracts.kubernetes import Condition

from sluice_operator.cli.advice import advice
from sluice_operator.cli.objects import SHORT, AnyObject
from sluice_operator.cli.pods import PodState, troubled, wire_pods
from sluice_operator.cli.state import headline, message
from sluice_operator.cli.text import WIDTH, Cell, age, aligned, folded

EVENTS = 8
PODS = 5
LONGEST = 220
"""Characters of a message that is not the object's own: the whole is in -o json."""
_STYLES = {"True": "green", "False": "", "Unknown": "yellow"}
_ABNORMAL = {"Stalled", "Reconciling"}
"""Condition types that are good when False."""


def render(obj: AnyObject, events: Sequence[Mapping[str, Any]], pods: Sequence[PodState], now: datetime) -> list[Text]:
    """The lines. `events` as the API server gave them, in any order."""
    said = message(obj)
    lines = [Text.assemble((str(obj), "bold"), f" in namespace {obj.namespace}: ", headline(obj))]
    if said:
        lines += folded(Text(said), WIDTH)
    todo = advice(obj)
    if todo:
        lines += [Text(), Text("What to do", style="bold")]
        lines += aligned([[f"{i}.", line] for i, line in enumerate(todo, 1)], gap=1, indent=1)
    lines += [Text(), Text("Conditions", style="bold")]
    lines += aligned(
        [_condition(c, said, now) for c in obj.conditions] or [["none: no operator has looked yet"]],
        indent=1,
        width=WIDTH,
    )
    if obj.observed_generation < obj.generation and obj.conditions:
        seen, is_now = obj.observed_generation, obj.generation
        lines.append(Text(f" They are about generation {seen}; the object is at {is_now}.", style="yellow"))
    stuck = troubled(pods)
    if stuck:
        lines += [Text(), Text("Pods that do not run", style="bold")]
        for pod in stuck[:PODS]:
            lines += [Text.assemble(f" {pod.name}  {pod.title}  ", (pod.state, "yellow"))]
            lines += aligned([[_cut(pod.why)]], indent=3, width=WIDTH) if pod.why else []
        if len(stuck) > PODS:
            lines.append(Text(f" and {len(stuck) - PODS} more: sluice logs {SHORT[obj.resource]}/{obj.name} --list"))
    lines += [Text(), Text("Last events", style="bold")]
    lines += aligned(
        [_event(e, now) for e in last(events)] or [["none (they are kept for an hour)"]], indent=1, width=WIDTH
    )
    return lines


def wire(obj: AnyObject, events: Sequence[Mapping[str, Any]], pods: Sequence[PodState]) -> dict[str, Any]:
    """The same as JSON data."""
    return {
        "kind": obj.resource.kind,
        "name": obj.name,
        "namespace": obj.namespace,
        "state": headline(obj).plain,
        "message": message(obj),
        "advice": advice(obj),
        "conditions": [c.wire() for c in obj.conditions],
        "pods": wire_pods(troubled(pods)),
        "events": [
            {"at": _when(e), "type": e.get("type"), "reason": e.get("reason"), "message": e.get("message")}
            for e in last(events)
        ],
    }


def last(events: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The newest events, the newest first."""
    return sorted(events, key=_when, reverse=True)[:EVENTS]


def _condition(found: Condition, said: str, now: datetime) -> list[Cell]:
    cells: list[Cell] = [
        found.type,
        Text(found.status, style=_condition_style(found.type, found.status)),
        found.reason,
        age(found.last_transition_time, now),
    ]
    return [*cells, _cut(found.message)] if found.message and found.message != said else cells


def _event(event: Mapping[str, Any], now: datetime) -> list[Cell]:
    warning = event.get("type") == "Warning"
    count = int(event.get("count") or (event.get("series") or {}).get("count") or 1)
    times = f" (×{count})" if count > 1 else ""
    reason = Text(str(event.get("reason", "")), style="yellow" if warning else "")
    return [f"{age(_when(event) or None, now)} ago", reason, _cut(str(event.get("message", ""))) + times]


def _when(event: Mapping[str, Any]) -> str:
    series = event.get("series") or {}
    metadata = event.get("metadata") or {}
    found = (
        series.get("lastObservedTime")
        or event.get("lastTimestamp")
        or event.get("eventTime")
        or event.get("firstTimestamp")
        or metadata.get("creationTimestamp")
        or ""
    )
    return str(found).replace("+00:00", "Z")


def _condition_style(type_: str, status: str) -> str:
    if type_ in _ABNORMAL and status == "True":
        return "yellow"
    return "" if type_ in _ABNORMAL else _STYLES.get(status, "")


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"
