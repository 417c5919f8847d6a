"""InferencePool's gateway: how it is reached, what it keeps, and what it says when no version can answer."""

from typing import Annotated

from pydantic import Field, StringConstraints

from sluice_contracts.base import Contract
from sluice_contracts.drift import Drift
from sluice_contracts.fallback import Fallback
from sluice_contracts.gateway_data import GatewayAuth, Interactions
from sluice_contracts.kubernetes import ObjectName, PodTemplate, SecretReference, cel
from sluice_contracts.response_cache import Cache
from sluice_contracts.tracing import Tracing


class ParentReference(Contract):
    """A Gateway, or one of its listeners, that the route asks to be attached to."""

    name: ObjectName
    namespace: ObjectName | None = None
    """The Gateway's namespace; it must let routes of the pool's namespace in."""
    section_name: ObjectName | None = None
    """One listener of the Gateway."""
    port: Annotated[int, Field(ge=1, le=65_535)] | None = None


Hostname = Annotated[
    str,
    StringConstraints(
        pattern=r"^(\*\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
        min_length=1,
        max_length=253,
    ),
]
"""As the Gateway API defines it: a DNS name, its first label perhaps `*`."""


class GatewayRoute(Contract):
    """An HTTPRoute of the Gateway API that leads from outside the cluster to the pool's gateway."""

    parent_refs: Annotated[list[ParentReference], Field(min_length=1, max_length=8)]
    hostnames: Annotated[list[Hostname], Field(max_length=16)] = []
    """None: every hostname that the Gateway's listeners have."""


class GatewayTls(Contract):
    """The API is spoken over TLS. A certificate that is renewed in the Secret is used without a restart."""

    secret_ref: SecretReference
    """Of type kubernetes.io/tls: tls.crt, with the chain, and tls.key."""


class Gateway(Contract):
    """The only way in."""

    model_config = cel(
        (
            "!(has(self.tls) && has(self.route))",
            "gateway.tls and gateway.route do not go together: with a route, TLS ends at its Gateway; leave tls out",
        ),
        (
            "!has(self.cache.redis) || has(self.interactions.pseudonymKeySecretRef)",
            "gateway.cache.redis needs gateway.interactions.pseudonymKeySecretRef: what gateways share is encrypted "
            "with a key that follows from it",
        ),
        (
            "!has(self.drift) || has(self.interactions.databaseSecretRef)",
            "gateway.drift needs gateway.interactions.databaseSecretRef: a pod's own database goes with the pod, and "
            "drift shows over weeks",
        ),
    )

    replicas: Annotated[int, Field(ge=1, le=100)] = 1
    auth: GatewayAuth
    interactions: Interactions = Interactions()
    fallback: Fallback = Fallback()
    cache: Cache = Cache()
    drift: Drift | None = None
    """Counts of what is asked and answered, for seeing it change. Nothing is counted unless this is set."""
    route: GatewayRoute | None = None
    tls: GatewayTls | None = None
    tracing: Tracing | None = None
    allowed_namespaces: Annotated[list[ObjectName], Field(max_length=64)] = []
    """Namespaces whose pods may call the API; with a route, also the one its Gateway's proxies run in. None: all."""
    pod_template: PodTemplate | None = None
