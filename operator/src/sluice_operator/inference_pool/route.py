"""The optional HTTPRoute of a pool: what is known of it, and what is to be done.

Whatever is wrong with it is a condition of its own, RouteAccepted: a pool serves inside the cluster without a route.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sluice_contracts.inference_pool import InferencePoolSpec

from sluice_operator.children.http_route import http_route, route_name
from sluice_operator.engine.cache import Cache
from sluice_operator.kube.client import KubeClient
from sluice_operator.kube.resources import HTTP_ROUTE
from sluice_operator.plan import Apply, Delete, Meta, Object

LOOK_AGAIN_SECONDS = 30.0


class RouteState(StrEnum):
    """What is there under the route's name."""

    NONE = "none"
    OURS = "ours"
    FOREIGN = "foreign"
    """Somebody else's: it is never touched."""
    UNKNOWN_KIND = "unknown kind"
    """The Gateway API is not installed."""


@dataclass(frozen=True)
class ObservedRoute:
    """The route, and what the Gateways' controllers say of it."""

    state: RouteState = RouteState.NONE
    accepted: bool | None = None
    """None while no controller has spoken."""
    message: str = ""


NO_ROUTE = ObservedRoute()


@dataclass(frozen=True)
class RoutePlan:
    """What to do, and the condition RouteAccepted: truth, reason, message. None: there is nothing to say."""

    apply: tuple[Apply, ...] = ()
    delete: tuple[Delete, ...] = ()
    condition: tuple[bool | None, str, str] | None = None
    requeue_after: float | None = None


async def observe_route(meta: Meta, spec: InferencePoolSpec, cache: Cache, kube: KubeClient) -> ObservedRoute:
    """Look at the route. Others' objects are not in the cache, so before ours exists the API server is asked."""
    found: Object | None = cache.get(HTTP_ROUTE, meta.namespace, route_name(meta.name))
    if found is None and spec.gateway.route is None:
        return ObservedRoute()
    if found is None:
        if not await kube.knows(HTTP_ROUTE):
            return ObservedRoute(RouteState.UNKNOWN_KIND)
        found = await kube.get(HTTP_ROUTE, meta.namespace, route_name(meta.name))
    if found is None:
        return ObservedRoute()
    if not _is_ours(found, meta):
        return ObservedRoute(RouteState.FOREIGN)
    accepted, message = read_parents(found)
    return ObservedRoute(RouteState.OURS, accepted, message)


def _is_ours(route: Object, meta: Meta) -> bool:
    owners = route["metadata"].get("ownerReferences") or []
    return any(o.get("controller") and o.get("uid") == meta.uid for o in owners)


def read_parents(route: Object) -> tuple[bool | None, str]:
    """Whether every Gateway it names has taken it; else what they say. A parent is accepted by its conditions Accepted
    and ResolvedRefs, of this generation."""
    wanted = (route.get("spec") or {}).get("parentRefs") or []
    told = (route.get("status") or {}).get("parents") or []
    generation = route["metadata"].get("generation", 0)
    refusals, spoken = [], 0
    for parent in wanted:
        conditions = [
            c for p in told if _same_parent(p.get("parentRef") or {}, parent) for c in p.get("conditions") or []
        ]
        current = {c["type"]: c for c in conditions if c.get("observedGeneration", generation) >= generation}
        spoken += "Accepted" in current
        for type_ in ("Accepted", "ResolvedRefs"):
            condition = current.get(type_)
            if condition is not None and condition.get("status") != "True":
                why = condition.get("message") or condition.get("reason") or "no reason given"
                refusals.append(f"Gateway {parent['name']}: {type_} is {condition.get('status')}: {why}")
    if refusals:
        return False, "; ".join(refusals)
    return (True, "") if spoken == len(wanted) else (None, f"{spoken} of {len(wanted)} Gateways have answered")


def _same_parent(told: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(told.get(k) == wanted.get(k) for k in ("name", "sectionName", "port")) and (
        "namespace" not in wanted or told.get("namespace") == wanted["namespace"]
    )


def plan_route(meta: Meta, spec: InferencePoolSpec, observed: ObservedRoute) -> RoutePlan:
    """What to do about the route."""
    wanted, name = spec.gateway.route, route_name(meta.name)
    if wanted is None:
        gone = (Delete(HTTP_ROUTE, meta.namespace, name),) if observed.state is RouteState.OURS else ()
        return RoutePlan(delete=gone)
    if observed.state is RouteState.UNKNOWN_KIND:
        text = (
            f"spec.gateway.route: the API server does not know {HTTP_ROUTE}/{HTTP_ROUTE.version}; install the Gateway "
            "API's CRDs, or remove the block"
        )
        return RoutePlan(condition=(False, "GatewayApiMissing", text), requeue_after=LOOK_AGAIN_SECONDS)
    if observed.state is RouteState.FOREIGN:
        text = (
            f"HTTPRoute {name} is not this pool's and is left alone; remove or rename it, or remove spec.gateway.route"
        )
        return RoutePlan(condition=(False, "RouteNotOurs", text), requeue_after=LOOK_AGAIN_SECONDS)
    apply = (Apply(HTTP_ROUTE, http_route(meta, spec, wanted)),)
    hosts = ", ".join(wanted.hostnames) or "every hostname of its Gateways"
    if observed.accepted is None:
        text = observed.message or "no Gateway has answered yet"
        return RoutePlan(apply, condition=(None, "Waiting", f"HTTPRoute {name}: {text}"))
    if not observed.accepted:
        return RoutePlan(apply, condition=(False, "NotAccepted", f"HTTPRoute {name}: {observed.message}"))
    return RoutePlan(apply, condition=(True, "Accepted", f"{hosts} -> {name}"))
