"""The HTTPRoute that leads from outside the cluster to a pool's gateway, where the spec asks for one.

Only paths below `/v1` go there, so that a hostname may be shared. The split between versions is the gateway's and never
the route's: `backendRefs` is an atomic list (Gateway API v1), which two owners cannot share.
"""

from typing import Any

from sluice_contracts.gateway import GatewayRoute
from sluice_contracts.inference_pool import InferencePoolSpec
from sluice_contracts.names import LABEL_POOL

from sluice_operator.children.gateway import SERVICE_PORT, gateway_name
from sluice_operator.children.metadata import child, labels
from sluice_operator.kube.resources import HTTP_ROUTE, INFERENCE_POOL
from sluice_operator.plan import Meta

PATH = "/v1"


def route_name(pool: str) -> str:
    """The pool's HTTPRoute: named as its gateway's other objects."""
    return gateway_name(pool)


def http_route(meta: Meta, spec: InferencePoolSpec, wanted: GatewayRoute) -> dict[str, Any]:
    """The HTTPRoute of `spec.gateway.route`."""
    body: dict[str, Any] = {
        "parentRefs": [parent.wire() for parent in wanted.parent_refs],
        "rules": [
            {
                "matches": [{"path": {"type": "PathPrefix", "value": PATH}}],
                "backendRefs": [{"name": gateway_name(meta.name), "port": SERVICE_PORT}],
            }
        ],
    }
    if wanted.hostnames:
        body["hostnames"] = list(wanted.hostnames)
    label = labels("gateway", model=spec.model, lineage=None, **{LABEL_POOL: meta.name})
    return child(HTTP_ROUTE, route_name(meta.name), INFERENCE_POOL, meta, label, spec=body)
