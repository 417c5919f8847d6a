"""What is known of a pool: the versions it names, their engines, its gateway, and, when it is due, the evidence."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta

import aiohttp
from sluice_contracts.base import parse_timestamp, seconds
from sluice_contracts.inference_pool import InferencePoolSpec, InferencePoolStatus, ServedVersion
from sluice_contracts.model_version import BuildsOn
from sluice_contracts.names import ANNOTATION_ROLLOUT, ConditionType, RolloutRequest
from sluice_contracts.training_run import ManifestReference

from sluice_operator.children.gateway import gateway_name
from sluice_operator.children.rayservice import Version
from sluice_operator.children.routes import read_routes, routes_name
from sluice_operator.engine.cache import Cache
from sluice_operator.inference_pool.engine_state import EngineState, read_ray_service
from sluice_operator.inference_pool.evidence import Evidence, gather
from sluice_operator.inference_pool.fallback import NO_FALLBACK, ObservedFallback, observe_fallback
from sluice_operator.inference_pool.route import NO_ROUTE, ObservedRoute, observe_route
from sluice_operator.inference_pool.sources import gather_from_prometheus
from sluice_operator.kube.client import KubeClient
from sluice_operator.kube.resources import CONFIG_MAP, DEPLOYMENT, INFERENCE_POOL, MODEL_VERSION, RAY_SERVICE
from sluice_operator.plan import Meta
from sluice_operator.settings import Prometheus


@dataclass(frozen=True)
class VersionState:
    """A ModelVersion as a pool sees it."""

    version: Version | None = None
    """None unless it is verified."""
    missing: bool = False
    """Not there, or being deleted: what serves it goes on, and no rollout to it begins."""
    stalled: bool = False
    why_not: str = ""


@dataclass(frozen=True)
class GatewayState:
    """The gateway Deployment."""

    ready: int = 0
    message: str = "its Deployment does not exist yet"


@dataclass(frozen=True)
class Observed:
    """All that a plan for a pool is made from."""

    status: InferencePoolStatus
    versions: dict[str, VersionState] = field(default_factory=dict)
    """By ModelVersion name: the wanted one and all in status."""
    engines: dict[str, EngineState] = field(default_factory=dict)
    """By RayService name: all the pool owns."""
    gateway: GatewayState = GatewayState()
    evidence: Evidence | None = None
    """None when it is not time to look."""
    window: str = ""
    """The analysis window the routes name now."""
    request: RolloutRequest | None = None
    bad_request: str | None = None
    """The rollout annotation, where it is none of the known words."""
    route: ObservedRoute = NO_ROUTE
    fallback: ObservedFallback = NO_FALLBACK


def window_of(candidate: ServedVersion, started_at: str | None) -> str:
    """The analysis window of one rollout: counts accumulate over its steps, and never over two rollouts."""
    digits = "".join(c for c in started_at or "" if c.isdigit())
    return f"{candidate.model_version[:80]}-{candidate.manifest_digest[7:15]}-{digits}"


def warming(status: InferencePoolStatus, now: datetime) -> bool:
    """Whether the candidate's requests are not judged yet. A clock set back beyond the step's beginning ends it."""
    if status.judged_from is None or status.step_started_at is None:
        return False
    return parse_timestamp(status.step_started_at) <= now < parse_timestamp(status.judged_from)


def current_window(candidate: ServedVersion, status: InferencePoolStatus, now: datetime) -> str:
    """The window to count in: after the initial delay another one, so that the gateways count anew."""
    judged = status.judged_from is not None and not warming(status, now)
    return window_of(candidate, status.judged_from if judged else status.rollout_started_at)


def analysis_due(
    spec: InferencePoolSpec, status: InferencePoolStatus, request: RolloutRequest | None, now: datetime
) -> bool:
    """Whether the evidence should be looked at: every interval while a candidate has traffic, or when a person asks."""
    if status.candidate is None or status.step is None or warming(status, now):
        return False
    if request is RolloutRequest.APPROVE or status.analyzed_at is None:
        return True
    since = now - _looked_at(status.analyzed_at, status)
    # Below zero the clock was set back: a canary must not be blind until it has caught up.
    return not timedelta(0) <= since < timedelta(seconds=seconds(spec.rollout.interval))


def next_analysis(spec: InferencePoolSpec, status: InferencePoolStatus, now: datetime) -> datetime | None:
    """When the evidence is due, or the initial delay ends. None if nothing was looked at yet."""
    if status.analyzed_at is None:
        return None
    if status.judged_from is not None and warming(status, now):
        return parse_timestamp(status.judged_from)
    return _looked_at(status.analyzed_at, status) + timedelta(seconds=seconds(spec.rollout.interval))


def _looked_at(analyzed_at: str, status: InferencePoolStatus) -> datetime:
    """The last look. The end of the initial delay is like one: the gateways need to hear of the new window first."""
    last = parse_timestamp(analyzed_at)
    return last if status.judged_from is None else max(last, parse_timestamp(status.judged_from))


def _age(status: InferencePoolStatus, now: datetime) -> float:
    """Seconds since the window began; 0 by a clock that was set back."""
    began = status.judged_from or status.rollout_started_at
    return 0.0 if began is None else max(0.0, (now - parse_timestamp(began)).total_seconds())


async def observe(
    meta: Meta,
    spec: InferencePoolSpec,
    status: InferencePoolStatus,
    cache: Cache,
    kube: KubeClient,
    http: aiohttp.ClientSession,
    now: datetime,
    prometheus: Prometheus,
) -> Observed:
    """Look at the pool's versions and children, and ask for the evidence if it is time."""
    served = named_versions(status)
    text = meta.annotations.get(ANNOTATION_ROLLOUT)
    request = RolloutRequest(text) if text in set(RolloutRequest) else None
    evidence = None
    if status.candidate is not None and analysis_due(spec, status, request, now):
        window = current_window(status.candidate, status, now)
        source = spec.rollout.analysis.source.prometheus
        if source is None:
            evidence = await gather(meta, window, kube, http)
        else:
            evidence = await gather_from_prometheus(source, meta, window, _age(status, now), http, prometheus)
    routes = read_routes(cache.get(CONFIG_MAP, meta.namespace, routes_name(meta.name)))
    services = cache.children(INFERENCE_POOL, meta.namespace, meta.name, RAY_SERVICE)
    engines = [read_ray_service(obj) for obj in services]
    return Observed(
        status=status,
        versions={name: version_state(meta.namespace, name, cache) for name in {spec.model_version, *served}},
        engines={engine.name: engine for engine in engines},
        gateway=_gateway(meta, cache),
        evidence=evidence,
        window=routes.window if routes is not None else "",
        request=request,
        bad_request=text if text is not None and request is None else None,
        route=await observe_route(meta, spec, cache, kube),
        fallback=observe_fallback(meta, spec, cache),
    )


def named_versions(status: InferencePoolStatus) -> set[str]:
    """The versions a pool serves, tries or may go back to, and those whose engines they run on."""
    served = [s for s in (status.stable, status.candidate, status.previous) if s is not None]
    return {s.model_version for s in served} | {s.base.model_version for s in served if s.base is not None}


def version_state(namespace: str, name: str, cache: Cache) -> VersionState:
    """What the cache says of ModelVersion `name`."""
    obj = cache.get(MODEL_VERSION, namespace, name)
    if obj is None:
        return VersionState(missing=True, why_not=f"there is no ModelVersion {name} in namespace {namespace}")
    status = obj.get("status") or {}
    conditions = {c["type"]: c for c in status.get("conditions") or []}
    verified = conditions.get(ConditionType.VERIFIED) or {}
    if verified.get("status") != "True" or not status.get("lineage"):
        why = verified.get("message") or "it has not been looked at yet"
        stalled = verified.get("status") == "False"
        return VersionState(stalled=stalled, why_not=f"ModelVersion {name} is not verified: {why}")
    manifest = ManifestReference.model_validate(obj["spec"]["manifest"])
    builds_on = BuildsOn.model_validate(status["buildsOn"]) if status.get("buildsOn") else None
    version = Version(name, obj["spec"]["model"], status["lineage"], manifest, builds_on)
    if "deletionTimestamp" in obj["metadata"]:
        return VersionState(version, missing=True, why_not=f"ModelVersion {name} is being deleted")
    return VersionState(version)


def _gateway(meta: Meta, cache: Cache) -> GatewayState:
    obj = cache.get(DEPLOYMENT, meta.namespace, gateway_name(meta.name))
    if obj is None:
        return GatewayState()
    status = obj.get("status") or {}
    ready, wanted = status.get("readyReplicas") or 0, (obj.get("spec") or {}).get("replicas") or 0
    trouble = [
        str(c.get("message") or c.get("reason"))
        for c in status.get("conditions") or []
        if (c.get("type"), c.get("status")) in {("Progressing", "False"), ("ReplicaFailure", "True")}
    ]
    return GatewayState(ready, "; ".join([f"{ready} of {wanted} gateway pods are ready", *trouble]))
