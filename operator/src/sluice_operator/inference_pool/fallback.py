"""A pool's fallbacks: the other pool whose model answers for it, the pools it answers for, and its templates.

Gateways ask the other pool's engines, never its gateway: so no chain can form, and two pools may name each other.
Whatever is wrong is a condition of its own, FallbackReady: a pool serves without a fallback.
"""

import json
from dataclasses import dataclass

from pydantic import ValidationError
from sluice_contracts.adapters import adapter_name
from sluice_contracts.base import seconds
from sluice_contracts.fallback import MAX_DOCUMENT, FallbackModel, Template
from sluice_contracts.inference_pool import InferencePoolSpec, InferencePoolStatus, ServedVersion
from sluice_contracts.routing import Backend, FallbackModelRoute, TemplateRoute

from sluice_operator.children.rayservice import engine_url
from sluice_operator.children.routes import SHORTEST_SECONDS, price
from sluice_operator.engine.cache import Cache, Key
from sluice_operator.kube.resources import INFERENCE_POOL
from sluice_operator.plan import Meta, Object
from sluice_operator.prices import Prices


@dataclass(frozen=True)
class OtherPool:
    """The pool that `gateway.fallback.model` names."""

    spec: InferencePoolSpec
    stable: ServedVersion | None


@dataclass(frozen=True)
class Unusable:
    """Why the pool that is named cannot be used at all."""

    reason: str
    message: str


@dataclass(frozen=True)
class ObservedFallback:
    """What is known around a pool's fallback."""

    other: OtherPool | None = None
    why_not: Unusable | None = None
    borrowers: tuple[str, ...] = ()
    """The pools whose gateways may ask this one's engines, as their fallback names it."""


NO_FALLBACK = ObservedFallback()


@dataclass(frozen=True)
class FallbackPlan:
    """What the gateways are told, and the condition FallbackReady: truth, reason, message. None: nothing to say."""

    model: FallbackModelRoute | None = None
    templates: tuple[TemplateRoute, ...] = ()
    condition: tuple[bool, str, str] | None = None


def observe_fallback(meta: Meta, spec: InferencePoolSpec, cache: Cache) -> ObservedFallback:
    """Look at the pool that is named, and at those that name this one."""
    borrowers = _borrowers(meta, cache)
    wanted = spec.gateway.fallback.model
    if wanted is None:
        return ObservedFallback(borrowers=borrowers)
    if wanted.pool == meta.name:  # an older CRD lets it through
        return ObservedFallback(None, Unusable("PoolItself", "it names the pool itself; name another one"), borrowers)
    found = cache.get(INFERENCE_POOL, meta.namespace, wanted.pool)
    if found is None or "deletionTimestamp" in found["metadata"]:
        text = f"there is no InferencePool {wanted.pool} in namespace {meta.namespace}; make it, or name another one"
        return ObservedFallback(None, Unusable("PoolNotFound", text), borrowers)
    try:
        return ObservedFallback(_read(found), None, borrowers)
    except ValidationError:
        text = f"InferencePool {wanted.pool} cannot be read: see its own conditions"
        return ObservedFallback(None, Unusable("PoolUnreadable", text), borrowers)


def _read(pool: Object) -> OtherPool:
    spec = InferencePoolSpec.model_validate(pool["spec"])
    return OtherPool(spec, InferencePoolStatus.model_validate(pool.get("status") or {}).stable)


def _borrowers(meta: Meta, cache: Cache) -> tuple[str, ...]:
    here = Key(INFERENCE_POOL, meta.namespace, meta.name)
    return tuple(sorted(k.name for k in cache.referrers(here) if k.resource == INFERENCE_POOL and k != here))


def plan_fallback(meta: Meta, spec: InferencePoolSpec, observed: ObservedFallback, prices: Prices) -> FallbackPlan:
    """What the gateways are told of fallbacks, and what is said of them."""
    wanted = spec.gateway.fallback
    templates, too_large = _templates(wanted.templates)
    model = None
    if wanted.model is not None and observed.other is not None and observed.other.stable is not None:
        model = _route(meta, wanted.model, observed.other.spec, observed.other.stable, prices)
    if too_large:
        names = ", ".join(too_large)
        text = f"spec.gateway.fallback.templates: a document of more than {MAX_DOCUMENT} bytes is left out: {names}"
        return FallbackPlan(model, templates, _not_ready("DocumentTooLarge", text))
    return FallbackPlan(model, templates, _condition(wanted.model, observed))


def _condition(wanted: FallbackModel | None, observed: ObservedFallback) -> tuple[bool, str, str] | None:
    """Whether the other pool could answer now."""
    if wanted is None:
        return None
    where = "spec.gateway.fallback.model.pool"
    if observed.why_not is not None:
        return _not_ready(observed.why_not.reason, f"{where}: {observed.why_not.message}")
    stable = observed.other.stable if observed.other is not None else None
    if stable is None:
        return _not_ready("PoolNotServing", f"{where}: no version of {wanted.pool} has served yet")
    if not stable.ready:
        return _not_ready("PoolNotServing", f"{where}: {stable.model_version} of {wanted.pool} is not ready")
    troubles = ", ".join(wanted.when)
    return True, "Serving", f"{stable.model_version} of {wanted.pool} would answer (when: {troubles})"


def _not_ready(reason: str, message: str) -> tuple[bool, str, str]:
    return False, reason, message


def _route(
    meta: Meta, wanted: FallbackModel, other: InferencePoolSpec, stable: ServedVersion, prices: Prices
) -> FallbackModelRoute:
    adapter = None if stable.base is None else adapter_name(other.model, stable.manifest_digest)
    return FallbackModelRoute(
        pool=wanted.pool,
        model=other.model,
        backend=Backend(
            model_version=stable.model_version,
            lineage=stable.lineage,
            manifest_digest=stable.manifest_digest,
            url=engine_url(stable.ray_service, meta.namespace),
            engine_model=adapter,
            weight=0,
            ready=stable.ready,
            may_sleep=other.replicas.min == 0,
            price=price(other, stable.model_version, prices),
        ),
        when=wanted.when,
        timeout_seconds=max(SHORTEST_SECONDS, seconds(wanted.timeout)),
        patience_seconds=None if wanted.patience is None else max(SHORTEST_SECONDS, seconds(wanted.patience)),
        max_in_flight=wanted.max_in_flight or other.limits.in_flight_per_replica,
        max_output_tokens=other.limits.max_output_tokens,
    )


def _templates(wanted: list[Template]) -> tuple[tuple[TemplateRoute, ...], list[str]]:
    """The templates as the gateways are told of them, in the spec's order, and the names of those that are too large
    for the routing table, which is one object of at most 1 MiB."""
    found, too_large = [], []
    for template in wanted:
        words = template.text
        if words is None:
            # Sorted: the API server keeps no order of a document's fields.
            words = json.dumps(template.document, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
        if len(words.encode("utf-8", "replace")) > MAX_DOCUMENT:
            too_large.append(template.name)
            continue
        found.append(
            TemplateRoute(
                name=template.name,
                version=template.version,
                endpoints=template.match.endpoints,
                tenants=template.match.tenants,
                headers=template.match.headers,
                kind="json" if template.text is None else "text",
                body=words,
            )
        )
    return tuple(found), too_large
