"""The routing table in its ConfigMap: the one thing by which the operator steers a pool's gateways."""

import json
from typing import Any

from pydantic import ValidationError
from sluice_contracts.base import seconds
from sluice_contracts.inference_pool import InferencePoolSpec
from sluice_contracts.names import LABEL_POOL
from sluice_contracts.routing import ROUTES_KEY, Backend, RoutingLimits, RoutingTable

from sluice_operator.children.metadata import child, labels
from sluice_operator.children.scaling import waking
from sluice_operator.kube.resources import CONFIG_MAP, INFERENCE_POOL
from sluice_operator.plan import Meta, Object

SHORTEST_SECONDS = 0.001
"""For a limit of 0 that an older CRD let through: a table that cannot be written would stop the whole pool."""


def routes_name(pool: str) -> str:
    """The pool's routes ConfigMap."""
    return f"{pool}-routes"


def routing_table(meta: Meta, spec: InferencePoolSpec, backends: list[Backend], window: str) -> RoutingTable:
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
