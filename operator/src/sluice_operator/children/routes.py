"""The routing table in its ConfigMap: the one thing by which the operator steers a pool's gateways."""

import json
from decimal import Decimal
from typing import Any

from pydantic import ValidationError
from sluice_contracts.base import seconds
from sluice_contracts.inference_pool import InferencePoolSpec, ServedVersion
from sluice_contracts.names import LABEL_POOL
from sluice_contracts.routing import (
    ROUTES_KEY,
    Backend,
    CacheRoute,
    JudgeRoute,
    MirrorRoute,
    Price,
    RoutingLimits,
    RoutingTable,
)

from sluice_operator.children.hardware import HardwareError
from sluice_operator.children.metadata import child, labels
from sluice_operator.children.scaling import waking
from sluice_operator.kube.resources import CONFIG_MAP, INFERENCE_POOL
from sluice_operator.plan import Meta, Object
from sluice_operator.prices import Prices

SHORTEST_SECONDS = 0.001
"""For a limit of 0 that an older CRD let through: a table that cannot be written would stop the whole pool."""


def routes_name(pool: str) -> str:
    """The pool's routes ConfigMap."""
    return f"{pool}-routes"


def price(spec: InferencePoolSpec, version: str, prices: Prices) -> Price | None:
    """What this version's work costs: its token prices, the pool's, or else a place's share of the machine."""
    tokens = next((v for v in spec.costs.versions if v.model_version == version), spec.costs.tokens)
    if tokens is not None:
        million = Decimal(1_000_000)
        return Price(
            prompt_token=float(Decimal(tokens.prompt) / million), output_token=float(Decimal(tokens.output) / million)
        )
    try:
        hour = prices.worker_hour(spec.hardware)
    except HardwareError:
        return None  # the pool stalls on it anyway
    if hour is None:
        return None
    return Price(slot_second=float(hour / 3600 / spec.limits.in_flight_per_replica))


def mirror_route(spec: InferencePoolSpec, candidate: ServedVersion) -> MirrorRoute | None:
    """What the gateways are told of mirroring; None if nothing is mirrored."""
    mirror = spec.rollout.mirror
    if mirror.percent == 0:
        return None
    judge = mirror.judge
    return MirrorRoute(
        percent=mirror.percent,
        candidate=candidate.model_version,
        max_in_flight=mirror.max_in_flight,
        timeout_seconds=max(SHORTEST_SECONDS, seconds(mirror.timeout)),
        judge=None
        if judge is None
        else JudgeRoute(
            entry_point=judge.entry_point,
            url=judge.url,
            timeout_seconds=max(SHORTEST_SECONDS, seconds(judge.timeout)),
        ),
    )


def cache_route(spec: InferencePoolSpec) -> CacheRoute | None:
    """Bounds of each gateway's kept answers; None if none are kept."""
    cache = spec.gateway.cache
    if cache.max_entries == 0:
        return None
    return CacheRoute(
        max_entries=cache.max_entries,
        max_bytes=cache.max_megabytes << 20,
        ttl_seconds=max(SHORTEST_SECONDS, seconds(cache.ttl)),
    )


def routing_table(
    meta: Meta, spec: InferencePoolSpec, backends: list[Backend], window: str, mirror: MirrorRoute | None = None
) -> RoutingTable:
    """The table for these backends. Raises ValidationError unless their weights sum to 100."""
    return RoutingTable(
        pool=meta.name,
        namespace=meta.namespace,
        model=spec.model,
        window=window,
        sticky=spec.rollout.sticky,
        limits=RoutingLimits(
            max_output_tokens=spec.limits.max_output_tokens,
            output_token_policy=spec.limits.output_token_policy,
            in_flight_per_replica=spec.limits.in_flight_per_replica,
            queue=spec.limits.queue,
            queue_timeout_seconds=max(SHORTEST_SECONDS, seconds(spec.limits.queue_timeout)),
            max_request_bytes=spec.limits.max_request_bytes,
        ),
        waking=waking(spec.replicas),
        backends=backends,
        fallback_template=spec.gateway.fallback.template,
        mirror=mirror,
        cache=cache_route(spec),
    )


def routes_config_map(meta: Meta, table: RoutingTable) -> dict[str, Any]:
    """`<pool>-routes` with key routes.json."""
    label = labels("routes", model=table.model, lineage=None, **{LABEL_POOL: meta.name})
    text = json.dumps(table.wire(), indent=2, sort_keys=True, ensure_ascii=False)
    return child(CONFIG_MAP, routes_name(meta.name), INFERENCE_POOL, meta, label, data={ROUTES_KEY: text + "\n"})


def read_routes(config_map: Object | None) -> RoutingTable | None:
    """The table a ConfigMap holds; None where there is none or it does not read as one."""
    text = ((config_map or {}).get("data") or {}).get(ROUTES_KEY)
    if not isinstance(text, str):
        return None
    try:
        return RoutingTable.model_validate_json(text)
    except ValidationError:
        return None
