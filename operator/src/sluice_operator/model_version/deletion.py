"""A version that a pool serves, tries, or may go back to cannot be lost by deletion: a finalizer holds it until no
pool's status names it any more. (Its files stay in the bucket: they go
by `spec.retention` alone.)
"""

from collections.abc import Collection

from sluice_contracts.model_version import ModelVersionStatus
from sluice_contracts.names import FINALIZER_IN_USE, ConditionType

from sluice_operator.conditions import ConditionSet, find
from sluice_operator.kube.resources import MODEL_VERSION
from sluice_operator.plan import Apply, Event, EventType, Meta, Plan

KEPT = (
    ConditionType.READY,
    ConditionType.STALLED,
    ConditionType.VERIFIED,
    ConditionType.PROMOTED,
    ConditionType.PUBLISHED,
    ConditionType.RETAINED,
)


def hold_or_release(meta: Meta, pools: Collection[str]) -> list[Apply]:
    """Put the finalizer on or take it off, where it is not as it should be. Server-side apply owns this one entry of
    the list and touches no other."""
    held = FINALIZER_IN_USE in meta.finalizers
    if bool(pools) == held or (pools and meta.deleting):  # the API server takes no new finalizer for a deleted object
        return []
    body = {
        "apiVersion": MODEL_VERSION.api_version,
        "kind": MODEL_VERSION.kind,
        "metadata": {
            "name": meta.name,
            "namespace": meta.namespace,
            "uid": meta.uid,  # never to be created by this, should it just have gone
            "finalizers": [FINALIZER_IN_USE] if pools else [],
        },
    }
    return [Apply(MODEL_VERSION, body)]


def plan_deletion(
    meta: Meta, before: ModelVersionStatus, status: ModelVersionStatus, conditions: ConditionSet, pools: Collection[str]
) -> Plan:
    """Let it go, or say who still needs it."""
    if not pools:
        return Plan(apply=hold_or_release(meta, pools))
    names = ", ".join(sorted(pools))
    text = (
        f"its deletion waits: it is in use by InferencePool {names}, and goes when no pool's status names it any more"
    )
    for type_ in KEPT:
        conditions.keep(type_)
    conditions.set(ConditionType.RECONCILING, True, "InUse", text)
    told = find(before.conditions, ConditionType.RECONCILING)
    new = told is None or (told.reason, told.message) != ("InUse", text)
    status.conditions = conditions.list()
    return Plan(status=status.wire(), events=[Event("InUse", text, EventType.WARNING)] if new else [])
