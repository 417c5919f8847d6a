"""How each kind is decided: parse, observe, plan. The only place that knows all three."""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

import aiohttp
from pydantic import ValidationError
from sluice_contracts.base import Contract
from sluice_contracts.inference_pool import InferencePoolSpec, InferencePoolStatus
from sluice_contracts.model_version import ModelVersionSpec, ModelVersionStatus
from sluice_contracts.training_run import TrainingRunSpec, TrainingRunStatus

from sluice_operator.artifacts import Artifacts
from sluice_operator.engine.cache import Cache, Key
from sluice_operator.inference_pool.observe import observe as observe_pool
from sluice_operator.inference_pool.plan import plan as plan_pool
from sluice_operator.kube.client import KubeClient
from sluice_operator.kube.resources import INFERENCE_POOL, MODEL_VERSION, TRAINING_RUN, Resource
from sluice_operator.model_version.observe import observe as observe_version
from sluice_operator.model_version.plan import plan as plan_version
from sluice_operator.plan import Meta, Object, Plan
from sluice_operator.settings import Settings
from sluice_operator.training_run.observe import observe as observe_run
from sluice_operator.training_run.plan import plan as plan_run

C = TypeVar("C", bound=Contract)


class UnreadableError(Exception):
    """An object does not read as its kind: its CRD is older or newer than this operator."""


@dataclass(frozen=True)
class World:
    """What deciding needs besides the object itself."""

    cache: Cache
    kube: KubeClient
    artifacts: Artifacts
    http: aiohttp.ClientSession
    settings: Settings
    now: Callable[[], datetime] = lambda: datetime.now(UTC)


def deciders(world: World) -> dict[Resource, Callable[[Object], Awaitable[Plan]]]:
    """For each kind, the function from an object to its plan."""

    async def training_run(obj: Object) -> Plan:
        meta, spec, status = _read(obj, TrainingRunSpec, TrainingRunStatus)
        observed = await observe_run(meta, spec, status, world.cache, world.artifacts, world.settings)
        return plan_run(meta, spec, observed, world.settings, world.now())

    async def model_version(obj: Object) -> Plan:
        meta, spec, status = _read(obj, ModelVersionSpec, ModelVersionStatus)
        observed = await observe_version(meta, spec, status, world.cache, world.artifacts, world.kube)
        return plan_version(meta, spec, observed, world.settings, world.now())

    async def inference_pool(obj: Object) -> Plan:
        meta, spec, status = _read(obj, InferencePoolSpec, InferencePoolStatus)
        observed = await observe_pool(meta, spec, status, world.cache, world.kube, world.http, world.now())
        return plan_pool(meta, spec, observed, world.settings, world.now())

    return {TRAINING_RUN: training_run, MODEL_VERSION: model_version, INFERENCE_POOL: inference_pool}


SpecT = TypeVar("SpecT", bound=Contract)
StatusT = TypeVar("StatusT", bound=Contract)


def _read(obj: Object, spec: type[SpecT], status: type[StatusT]) -> tuple[Meta, SpecT, StatusT]:
    return Meta.of(obj), _parse(spec, obj, "spec"), _parse(status, obj, "status")


def _parse(model: type[C], obj: Object, part: str) -> C:
    """One half of an object. A status that does not read is never taken for an empty one: what it says was decided."""
    try:
        return model.model_validate(obj.get(part) or {})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join([part, *(str(p) for p in first["loc"])])
        raise UnreadableError(
            f"{where}: {first['msg']}; the CRD and the operator are of different versions: upgrade the chart"
        ) from None


def references(resource: Resource, obj: Object) -> Iterable[Key]:
    """The objects of ours that an object names: when those change, it is looked at."""
    namespace = obj["metadata"].get("namespace", "")
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    if resource == TRAINING_RUN:
        name = (spec.get("base") or {}).get("modelVersion")
        if name:
            yield Key(MODEL_VERSION, namespace, name)
    if resource == MODEL_VERSION:
        pool = ((spec.get("publish") or {}).get("after") or {}).get("promotedIn")
        if pool:
            yield Key(INFERENCE_POOL, namespace, pool)
    if resource == INFERENCE_POOL:
        served = [(status.get(part) or {}).get("modelVersion") for part in ("stable", "candidate", "previous")]
        for name in {spec.get("modelVersion"), *served} - {None}:
            yield Key(MODEL_VERSION, namespace, str(name))
