"""One word for how an object stands, from its conditions, as kstatus reads them. Pure."""

from rich.text import Text
from sluice_contracts.names import ConditionType

from sluice_operator.cli.objects import AnyObject, condition, holds


def headline(obj: AnyObject) -> Text:
    """`Ready`, `Stalled (GateFailed)`, `Training`, …: what a person wants to know first."""
    conditions = obj.conditions
    if obj.deleting:
        return Text("being deleted", style="yellow")
    if not conditions:
        return Text("new: no operator has looked at it", style="yellow")
    ready = condition(conditions, ConditionType.READY)
    reason = ready.reason if ready is not None else "Unknown"
    if obj.observed_generation < obj.generation:
        return Text("changed: the operator has not looked yet", style="yellow")
    if holds(conditions, ConditionType.STALLED):
        found = condition(conditions, ConditionType.STALLED)
        return Text(f"Stalled ({found.reason if found else reason})", style="bold red")
    if holds(conditions, ConditionType.READY):
        return Text("Ready", style="green")
    return Text(reason, style="cyan" if holds(conditions, ConditionType.RECONCILING) else "yellow")


def message(obj: AnyObject) -> str:
    """What the operator says of it: the message of the condition the headline came from."""
    for type_ in (ConditionType.STALLED, ConditionType.RECONCILING):
        found = condition(obj.conditions, type_)
        if found is not None and found.status == "True" and found.message:
            return found.message
    ready = condition(obj.conditions, ConditionType.READY)
    return ready.message if ready is not None else ""
