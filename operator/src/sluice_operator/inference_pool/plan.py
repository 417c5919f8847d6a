"""The decision for an InferencePool: the rollout's turn, and the children that follow from the new status."""

from collections.abc import Mapping
from datetime import datetime, timedelta

from sluice_contracts.adapters import adapter_name
from sluice_contracts.base import parse_timestamp, seconds
from sluice_contracts.inference_pool import InferencePoolSpec, InferencePoolStatus, ServedVersion
from sluice_contracts.names import ANNOTATION_ROLLOUT, ConditionType
from sluice_contracts.routing import Backend

from sluice_operator.children.gateway import gateway_objects, gateway_url
from sluice_operator.children.hardware import HardwareError
from sluice_operator.children.rayservice import engine_url, ray_service
from sluice_operator.children.routes import mirror_route, price, routes_config_map, routing_table
from sluice_operator.conditions import ConditionSet
from sluice_operator.inference_pool.adapters import by_service, weights_and_adapters
from sluice_operator.inference_pool.capacity import asleep, engines, room
from sluice_operator.inference_pool.fallback import FallbackPlan, plan_fallback
from sluice_operator.inference_pool.observe import Observed, current_window, next_analysis
from sluice_operator.inference_pool.rollout import Turn, turn
from sluice_operator.inference_pool.route import plan_route
from sluice_operator.inference_pool.standing import Manner, Standing, candidate_weight, paused
from sluice_operator.kube.resources import CONFIG_MAP, RAY_SERVICE
from sluice_operator.plan import Apply, Delete, Meta, Plan
from sluice_operator.settings import Settings

DRAIN_SECONDS = 30.0
"""A refused engine stays this long without new requests, so that answers under way can end."""
UNREADY_SECONDS = 30.0


def plan(meta: Meta, spec: InferencePoolSpec, observed: Observed, settings: Settings, now: datetime) -> Plan:
    """What to do about this pool now."""
    decided = turn(meta, spec, observed, now)
    status = decided.status
    status.observed_generation = meta.generation
    status.url = gateway_url(meta, spec)
    running = {s.ray_service for s in _served(status) if s.ready}
    status.replicas = sum(engines(spec, observed.engines.get(name)) for name in running)

    route = plan_route(meta, spec, observed.route)
    fallback = plan_fallback(meta, spec, observed.fallback, settings.prices)
    apply = [Apply(CONFIG_MAP, _routes(meta, spec, observed, status, fallback, settings, now))]
    made = gateway_objects(meta, spec, settings, observed.fallback.borrowers)
    apply += [Apply(resource, obj) for resource, obj in made]
    standing = decided.standing
    try:
        apply += _engines(meta, spec, observed, status, settings)
    except HardwareError as error:
        standing = Standing(Manner.STALLED, "InvalidHardware", f"spec.{error}")
    apply += route.apply
    delete, wait = _leftovers(meta, observed, status, now)

    also = {ConditionType.ROUTE_ACCEPTED: route.condition, ConditionType.FALLBACK_READY: fallback.condition}
    _conditions(meta, spec, observed, status, standing, also, now)
    return Plan(
        apply=apply,
        delete=[*delete, *route.delete],
        status=status.wire(),
        status_first=True,
        events=decided.events,
        requeue_after=_next_look(spec, decided, now, [w for w in (wait, route.requeue_after) if w is not None]),
        consume=ANNOTATION_ROLLOUT if decided.consume else None,
        consume_first=decided.consume_first,
    )


def _served(status: InferencePoolStatus) -> list[ServedVersion]:
    return [s for s in (status.stable, status.candidate, status.previous) if s is not None]


def _routes(
    meta: Meta,
    spec: InferencePoolSpec,
    observed: Observed,
    status: InferencePoolStatus,
    fallback: FallbackPlan,
    settings: Settings,
    now: datetime,
) -> dict[str, object]:
    """The routing table that follows from the status. The window's name outlives its rollout, so that the counts can
    still be looked at; the next rollout begins a new one."""
    share = candidate_weight(spec, status)
    backends = []
    window = observed.window
    if status.stable is not None:
        backends.append(_backend(meta, spec, observed, status.stable, 100 - share, settings))
    if status.candidate is not None and status.step is not None:
        backends.append(_backend(meta, spec, observed, status.candidate, share, settings))
        window = current_window(status.candidate, status, now)
    mirror = mirror_route(spec, status.candidate) if status.candidate is not None and share else None
    table = routing_table(meta, spec, backends, window, mirror)
    told = {"fallback_model": fallback.model, "templates": list(fallback.templates) or None}
    return routes_config_map(meta, table.model_copy(update=told))


def _backend(
    meta: Meta, spec: InferencePoolSpec, observed: Observed, served: ServedVersion, weight: int, settings: Settings
) -> Backend:
    return Backend(
        model_version=served.model_version,
        lineage=served.lineage,
        manifest_digest=served.manifest_digest,
        url=engine_url(served.ray_service, meta.namespace),
        engine_model=None if served.base is None else adapter_name(spec.model, served.manifest_digest),
        weight=weight,
        replicas=room(spec, observed.engines.get(served.ray_service)),
        ready=served.ready,
        may_sleep=spec.replicas.min == 0,
        price=price(spec, served.model_version, settings.prices),
    )


def _engines(
    meta: Meta, spec: InferencePoolSpec, observed: Observed, status: InferencePoolStatus, settings: Settings
) -> list[Apply]:
    """A RayService for each served version that is still known, or for several that share one. One whose ModelVersion
    is gone, or was made anew with another manifest, is left as it is: it serves, and nobody can say any more how to
    make it.

    Never more than two at a time, since accelerators are scarce: a candidate waits until a refused one is gone."""
    found = []
    services = by_service(_served(status))
    versions = {name: state.version for name, state in observed.versions.items() if state.version is not None}
    for name, group in services.items():
        if group == [status.candidate] and name not in observed.engines and observed.engines.keys() - services.keys():
            continue
        made_of = weights_and_adapters(group, versions)
        if made_of is not None:
            weights, adapters = made_of
            # A version sleeps only once it has been stable: a candidate that is not there would look well.
            awake = any(served.since is None for served in group)
            made = ray_service(meta, spec, weights, settings, awake=awake, adapters=adapters)
            found.append(Apply(RAY_SERVICE, made))
    return found


def _leftovers(
    meta: Meta, observed: Observed, status: InferencePoolStatus, now: datetime
) -> tuple[list[Delete], float | None]:
    """Engines nobody is sent to any more, and seconds until the next of them may go."""
    keep = {s.ray_service for s in _served(status)}
    gone = [name for name, engine in observed.engines.items() if name not in keep and not engine.deleting]
    if not gone:
        return [], None
    if status.history:
        ended = parse_timestamp(status.history[-1].ended_at)
        left = (ended + timedelta(seconds=DRAIN_SECONDS) - now).total_seconds()
        if 0 < left <= DRAIN_SECONDS:  # more than all of it is left only when the clock was set back
            return [], left
    return [Delete(RAY_SERVICE, meta.namespace, name) for name in sorted(gone)], None


def _conditions(
    meta: Meta,
    spec: InferencePoolSpec,
    observed: Observed,
    status: InferencePoolStatus,
    standing: Standing,
    also: Mapping[ConditionType, tuple[bool | None, str, str] | None],
    now: datetime,
) -> None:
    conditions = ConditionSet(observed.status.conditions, meta.generation, now)
    match standing.manner:
        case Manner.READY:
            conditions.ready(standing.reason, standing.message)
        case Manner.RECONCILING:
            conditions.reconciling(standing.reason, standing.message)
        case Manner.WAITING:
            conditions.waiting(standing.reason, standing.message)
        case Manner.STALLED:
            conditions.stalled(standing.reason, standing.message)
    stable = status.stable
    if stable is not None and stable.ready and observed.gateway.ready > 0:
        if asleep(spec, observed.engines.get(stable.ray_service)):
            text = f"{stable.model_version} answers when it has woken; requests are held until then"
            conditions.set(ConditionType.AVAILABLE, True, "ScaledToZero", text)
        else:
            conditions.set(ConditionType.AVAILABLE, True, "Serving", f"{stable.model_version} answers")
    elif stable is None or not stable.ready:
        conditions.set(ConditionType.AVAILABLE, False, "NoReadyVersion", "no version is ready to answer")
    else:
        conditions.set(ConditionType.AVAILABLE, False, "NoReadyGateway", observed.gateway.message)
    conditions.set(ConditionType.DEGRADED, *_degraded(status, standing))
    for type_, said in also.items():
        if said is not None:
            conditions.set(type_, *said)
    status.conditions = conditions.list()


def _degraded(status: InferencePoolStatus, standing: Standing) -> tuple[bool, str, str]:
    """Whether less, or something else, is served than spec asks for, and why: after a rollback with its evidence."""
    stable = status.stable
    if standing.manner is Manner.STALLED:
        return True, standing.reason, standing.message
    if stable is not None and stable.since is not None and not stable.ready:
        return True, "StableNotReady", f"{stable.model_version} has served and is not ready now: {standing.message}"
    return False, standing.reason, ""


def _next_look(spec: InferencePoolSpec, decided: Turn, now: datetime, waits: list[float]) -> float | None:
    """When to look again: at the next analysis, at the end of a drain or a rollback window, or at a deadline."""
    status = decided.status
    due = next_analysis(spec, status, now)
    if status.candidate is not None and status.step is not None and due is not None:
        waits.append((due - now).total_seconds())
    elif status.candidate is not None:
        waits.append(UNREADY_SECONDS)
    if status.candidate is not None and status.rollout_started_at is not None:
        end = parse_timestamp(status.rollout_started_at) + timedelta(seconds=seconds(spec.rollout.deadline))
        end += paused(status, now)
        if end > now:
            waits.append((end - now).total_seconds())
    if status.previous is not None and status.previous.since is not None:
        end = parse_timestamp(status.previous.since) + timedelta(seconds=seconds(spec.rollout.rollback_window))
        waits.append((end - now).total_seconds())
    return max(0.2, min(waits)) if waits else None
