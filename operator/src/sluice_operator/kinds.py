"""How each kind is decided: parse, observe, plan. The only place that knows all three."""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar

import aiohttp
from pydantic import ValidationError
from sluice_contracts.base import Contract
from sluice_contracts.inference_pool import InferencePoolSpec, InferencePoolStatus
from sluice_contracts.model_version import ModelVersionSpec, ModelVersionStatus
from sluice_contracts.names import ConditionType
from sluice_contracts.training_run import TrainingRunSpec, TrainingRunStatus

from sluice_operator.artifacts import Artifacts
from sluice_operator.conditions import ConditionSet, find
from sluice_operator.engine.cache import Cache, Key
from sluice_operator.inference_pool.observe import observe as observe_pool
from sluice_operator.inference_pool.plan import plan as plan_pool
from sluice_operator.kube.client import KubeClient
from sluice_operator.kube.resources import INFERENCE_POOL, MODEL_VERSION, TRAINING_RUN, Resource
from sluice_operator.model_version.observe import observe as observe_version
from sluice_operator.model_version.plan import plan as plan_version
from sluice_operator.plan import Event, EventType, Meta, Object, Plan, bounded
from sluice_operator.settings import Settings
from sluice_operator.training_run.observe import observe as observe_run
from sluice_operator.training_run.plan import plan as plan_run
from sluice_operator.verification import Verification

C = TypeVar("C", bound=Contract)


INVALID = "InvalidSpec"
"""Reason of an object whose spec the CRD let through and the operator cannot read."""
INVALID_LENGTH = 1000


class UnreadableError(Exception):
    """Part of an object does not read as its kind: its CRD is older or newer than this operator."""


@dataclass(frozen=True)
class World:
    """What deciding needs besides the object itself."""

    cache: Cache
    kube: KubeClient
    artifacts: Artifacts
    http: aiohttp.ClientSession
    settings: Settings
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    verification: Verification = field(default_factory=Verification)


def deciders(world: World) -> dict[Resource, Callable[[Object], Awaitable[Plan]]]:
    """For each kind, the function from an object to its plan."""

    async def training_run(meta: Meta, spec: TrainingRunSpec, status: TrainingRunStatus) -> Plan:
        observed = await observe_run(meta, spec, status, world.cache, world.artifacts, world.settings)
        return plan_run(meta, spec, observed, world.settings, world.now())

    async def model_version(meta: Meta, spec: ModelVersionSpec, status: ModelVersionStatus) -> Plan:
        observed = await observe_version(
            meta, spec, status, world.cache, world.artifacts, world.verification, world.kube
        )
        return plan_version(meta, spec, observed, world.settings, world.now())

    async def inference_pool(meta: Meta, spec: InferencePoolSpec, status: InferencePoolStatus) -> Plan:
        observed = await observe_pool(
            meta, spec, status, world.cache, world.kube, world.http, world.now(), world.settings.prometheus
        )
        return plan_pool(meta, spec, observed, world.settings, world.now())

    return {
        TRAINING_RUN: _reading(TrainingRunSpec, TrainingRunStatus, training_run, world),
        MODEL_VERSION: _reading(ModelVersionSpec, ModelVersionStatus, model_version, world),
        INFERENCE_POOL: _reading(InferencePoolSpec, InferencePoolStatus, inference_pool, world),
    }


SpecT = TypeVar("SpecT", bound=Contract)
StatusT = TypeVar("StatusT", TrainingRunStatus, ModelVersionStatus, InferencePoolStatus)


def _reading(
    spec_type: type[SpecT],
    status_type: type[StatusT],
    decide: Callable[[Meta, SpecT, StatusT], Awaitable[Plan]],
    world: World,
) -> Callable[[Object], Awaitable[Plan]]:
    """`decide` for objects as they come. A spec that does not read is a matter for a person, told in the object's
    status; a status that does not read raises UnreadableError, as nothing may be written over it."""

    async def read_and_decide(obj: Object) -> Plan:
        meta, status = Meta.of(obj), _parse(status_type, obj, "status")
        try:
            spec = _parse(spec_type, obj, "spec")
        except UnreadableError as error:
            return _invalid(meta, status, str(error), world.now())
        return await decide(meta, spec, status)

    return read_and_decide


def _parse(model: type[C], obj: Object, part: str) -> C:
    """One half of an object. A status that does not read is never taken for an empty one: what it says was decided."""
    try:
        return model.model_validate(obj.get(part) or {})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join([part, *(str(p) for p in first["loc"])])
        if first["type"] == "value_error":  # a rule that only the contracts have, and whose words say what to do
            raise UnreadableError(f"{where}: {first['ctx']['error']}") from None
        raise UnreadableError(
            f"{where}: {first['msg']}; the CRD and the operator are of different versions: upgrade the chart"
        ) from None


def _invalid(meta: Meta, status: StatusT, message: str, now: datetime) -> Plan:
    """The plan for a spec that does not read: its object says so, and its children stay as they are."""
    message = bounded(message, INVALID_LENGTH)
    conditions = ConditionSet(status.conditions, meta.generation, now)
    for type_ in ConditionType:
        conditions.keep(type_)
    conditions.stalled(INVALID, message)
    after = status.model_copy(update={"observed_generation": meta.generation, "conditions": conditions.list()})
    before = find(status.conditions, ConditionType.STALLED)
    told = before is not None and before.reason == INVALID
    return Plan(status=after.wire(), events=[] if told else [Event(INVALID, message, EventType.WARNING)])


REFERENCES: tuple[tuple[Resource, Resource, *tuple[str, ...]], ...] = (
    (TRAINING_RUN, MODEL_VERSION, "spec", "base", "modelVersion"),
    (MODEL_VERSION, INFERENCE_POOL, "spec", "publish", "after", "promotedIn"),
    (INFERENCE_POOL, INFERENCE_POOL, "spec", "gateway", "fallback", "model", "pool"),
    (INFERENCE_POOL, MODEL_VERSION, "spec", "modelVersion"),
    (INFERENCE_POOL, MODEL_VERSION, "status", "stable", "modelVersion"),
    (INFERENCE_POOL, MODEL_VERSION, "status", "candidate", "modelVersion"),
    (INFERENCE_POOL, MODEL_VERSION, "status", "previous", "modelVersion"),
    (INFERENCE_POOL, MODEL_VERSION, "status", "stable", "base", "modelVersion"),
    (INFERENCE_POOL, MODEL_VERSION, "status", "candidate", "base", "modelVersion"),
    (INFERENCE_POOL, MODEL_VERSION, "status", "previous", "base", "modelVersion"),
)
"""Who names whom, and in which field."""


def references(resource: Resource, obj: Object) -> Iterable[Key]:
    """The objects of ours that an object names: when those change, it is looked at."""
    namespace = obj["metadata"].get("namespace", "")
    for wanted, found, *path in REFERENCES:
        name: object = obj
        for part in path:
            name = name.get(part) if isinstance(name, Mapping) else None
        if wanted == resource and name and isinstance(name, str):
            yield Key(found, namespace, name)
