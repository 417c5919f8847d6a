"""Carrying out a plan: what differs is written, in the order the plan asks for, and nothing else."""

import hashlib
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from sluice_contracts.kubernetes import Condition
from sluice_contracts.names import ConditionType

from sluice_operator.conditions import ConditionSet, find
from sluice_operator.engine.cache import Cache, Key, key_of
from sluice_operator.engine.difference import is_so, stamped
from sluice_operator.kube.client import ApiError, ApiUnreachable, KubeClient
from sluice_operator.kube.resources import EVENT, Resource
from sluice_operator.plan import Apply, Event, EventType, Meta, Object, Plan

MANAGERS = {
    "TrainingRun": "sluice-trainingrun",
    "ModelVersion": "sluice-modelversion",
    "InferencePool": "sluice-inferencepool",
}
"""The field manager of each kind's plans."""
REJECTED = "ApplyRejected"
SAID_NO = {400, 403, 404, 409, 422}
"""Answers that the same request will get again until somebody changes something."""
Wrote = Callable[[Key, Resource, Object], None]
log = logging.getLogger(__name__)


class RejectedError(Exception):
    """The API server refused a child; the object's status says so."""


class Executor:
    """Writes what a plan asks for through one client, and passes each answer to `wrote`, for the cache."""

    def __init__(self, kube: KubeClient, cache: Cache, wrote: Wrote) -> None:
        self._kube = kube
        self._cache = cache
        self._wrote = wrote

    async def execute(self, resource: Resource, obj: Object, plan: Plan) -> bool:
        """Carry out `plan` for `obj`. Returns whether anything had to be written. Raises ApiError, ApiUnreachable,
        RejectedError."""
        meta = Meta.of(obj)
        wrote = bool(plan.delete or plan.consume or plan.events)
        if plan.consume is not None and plan.consume_first:
            await self._consume(resource, meta, plan.consume)
        # While a child is being refused, the status keeps saying so until the children have been tried again.
        status_first = plan.status_first and not _was_rejected(obj)
        if status_first:
            await self.tell(resource, obj, plan.events)
            wrote |= await self._write_status(resource, obj, plan.status)
        try:
            for apply in plan.apply:
                wrote |= await self._apply(key_of(resource, obj), apply)
        except ApiError as error:
            if error.status not in SAID_NO:
                raise
            message = _explain(error, apply)
            await self._write_status(resource, obj, _with_rejection(obj, plan.status, message))
            await self.tell(resource, obj, [Event(REJECTED, message, EventType.WARNING)])
            raise RejectedError(message) from error
        if not status_first:
            await self.tell(resource, obj, plan.events)
            wrote |= await self._write_status(resource, obj, plan.status)
        for delete in plan.delete:
            await self._kube.delete(delete.resource, delete.namespace, delete.name)
        if plan.consume is not None and not plan.consume_first:
            await self._consume(resource, meta, plan.consume)
        return wrote

    async def _apply(self, owner: Key, apply: Apply) -> bool:
        """Whether it had to be written."""
        meta = apply.object["metadata"]
        found = self._cache.get(apply.resource, meta["namespace"], meta["name"])
        whole = "ownerReferences" in meta
        wanted = stamped(apply.object) if whole else apply.object
        if found is not None and is_so(wanted, found):
            return False
        manager = MANAGERS[owner.resource.kind] if apply.manager == "sluice-operator" else apply.manager
        answer = await self._kube.apply(apply.resource, wanted, manager)
        log.info("applied %s %s/%s", apply.resource.kind, meta["namespace"], meta["name"])
        self._wrote(owner, apply.resource, answer)
        return True

    async def _write_status(self, resource: Resource, obj: Object, status: dict[str, Any] | None) -> bool:
        """Whether it had to be written."""
        if status is None:
            return False
        meta = Meta.of(obj)
        found = self._cache.get(resource, meta.namespace, meta.name) or obj
        if (found.get("status") or {}) == status:
            return False
        answer = await self._kube.apply_status(resource, meta.namespace, meta.name, status, MANAGERS[resource.kind])
        self._wrote(key_of(resource, obj), resource, answer)
        return True

    async def _consume(self, resource: Resource, meta: Meta, annotation: str) -> None:
        patch = {"metadata": {"annotations": {annotation: None}}}
        answer = await self._kube.merge(resource, meta.namespace, meta.name, patch)
        self._wrote(Key(resource, meta.namespace, meta.name), resource, answer)

    async def tell(self, resource: Resource, obj: Object, events: list[Event]) -> None:
        """Post events. Their names are digests of what they say, so a repeated pass repeats none of them."""
        meta = Meta.of(obj)
        for event in events:
            said = "/".join([meta.uid, str(meta.generation), event.type, event.reason, event.message])
            name = f"{meta.name}.{hashlib.sha256(said.encode()).hexdigest()[:16]}"
            moment = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            body = {
                "apiVersion": EVENT.api_version,
                "kind": EVENT.kind,
                "metadata": {"name": name, "namespace": meta.namespace},
                "involvedObject": {
                    "apiVersion": resource.api_version,
                    "kind": resource.kind,
                    "namespace": meta.namespace,
                    "name": meta.name,
                    "uid": meta.uid,
                },
                "type": event.type.value,
                "reason": event.reason,
                "message": event.message[:1000],
                "source": {"component": "sluice-operator"},
                "reportingComponent": "sluice-operator",
                "firstTimestamp": moment,
                "lastTimestamp": moment,
                "count": 1,
            }
            try:
                await self._kube.create(EVENT, body)
            except (ApiError, ApiUnreachable) as error:  # an event is a courtesy: never a reason to stop
                log.warning("no event for %s %s/%s: %s", resource.kind, meta.namespace, meta.name, error)


def _was_rejected(obj: Object) -> bool:
    conditions = (obj.get("status") or {}).get("conditions") or []
    return any(c["type"] == ConditionType.STALLED and c["reason"] == REJECTED for c in conditions)


def _with_rejection(obj: Object, status: dict[str, Any] | None, message: str) -> dict[str, Any]:
    """`status` with conditions that say which child was refused, and why."""
    wanted = dict(status or obj.get("status") or {})
    before = [Condition.model_validate(c) for c in (obj.get("status") or {}).get("conditions") or []]
    meta = Meta.of(obj)
    conditions = ConditionSet(before, meta.generation, datetime.now(UTC))
    conditions.stalled(REJECTED, message)
    stated = conditions.list()
    for other in (Condition.model_validate(c) for c in wanted.get("conditions") or []):
        if find(stated, ConditionType(other.type)) is None:
            stated.append(_keep_time(other, before))
    wanted["conditions"] = [c.wire() for c in sorted(stated, key=lambda c: c.type)]
    wanted["observedGeneration"] = meta.generation
    return wanted


def _keep_time(condition: Condition, before: list[Condition]) -> Condition:
    """`condition` with the transition time it had, if its status is still the same."""
    old = find(before, ConditionType(condition.type))
    if old is None or old.status != condition.status:
        return condition
    return condition.model_copy(update={"last_transition_time": old.last_transition_time})


def _explain(error: ApiError, apply: Apply) -> str:
    what = f"{apply.resource.kind} {apply.object['metadata']['name']}"
    if error.status == 404 and apply.resource.group == "ray.io":
        return f"{what}: the API server does not know {apply.resource}: install KubeRay (its CRDs and operator)"
    if error.status == 403:
        return f"{what}: {error.message}; the operator's role lacks this right, or the namespace is being deleted"
    return f"{what}: {error.message}"
