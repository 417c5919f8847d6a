"""Who may use a pool's gateway, and what it keeps of requests: parts of an InferencePool's `spec.gateway`."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from sluice_contracts.base import Contract, Duration
from sluice_contracts.kubernetes import (
    ConfigMapKeyReference,
    Quantity,
    SecretKeyReference,
    SecretReference,
    cel,
)

Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
"""Asymmetric ones only: a secret shared with the issuer would let its holder make tokens."""


class Issuer(Contract):
    """An OpenID Connect issuer whose tokens (JWT) are taken in place of API keys. A token's `sub` is its user."""

    model_config = cel(
        (
            "has(self.keysUrl) != has(self.keysConfigMapRef)",
            "gateway.auth.jwt needs exactly one of keysUrl (fetched from the issuer) and keysConfigMapRef (mounted)",
        ),
        (
            "has(self.tenant) != has(self.tenantClaim)",
            "gateway.auth.jwt needs exactly one of tenant (all tokens are that tenant's) and tenantClaim (the claim "
            "that names it)",
        ),
    )

    issuer: Annotated[str, StringConstraints(pattern=r"^https://[^ /@]+(/[^ ]*)?$", max_length=512)]
    """As tokens have it in `iss`, to the letter."""
    audience: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    """What tokens for this pool have in `aud`; those for others are refused."""
    keys_url: Annotated[str, StringConstraints(pattern=r"^https://[^ /@]+(/[^ ]*)?$", max_length=512)] | None = None
    """The issuer's `jwks_uri`."""
    keys_config_map_ref: ConfigMapKeyReference | None = None
    """A JSON Web Key Set; read anew when it changes."""
    algorithms: Annotated[list[Algorithm], Field(min_length=1, max_length=10)] = ["RS256", "ES256"]
    tenant: Annotated[str, StringConstraints(min_length=1, max_length=253)] | None = None
    tenant_claim: Annotated[str, StringConstraints(min_length=1, max_length=256)] | None = None
    """A tenant also needs an entry in the keys' Secret, if without keys: that is the list of those let in."""


class GatewayAuth(Contract):
    """A Secret whose keys name the tenants. A value is JSON with the tenant's keys, budgets and choices, or one API
    key, or the `sha256:` digest of one: docs/gateway-data.md."""

    secret_ref: SecretReference
    plain_keys: Literal["allow", "refuse"] = "allow"
    """Whether a value may be the API key itself instead of its digest."""
    jwt: Issuer | None = None


class Interactions(Contract):
    """Where the record of each request, users' contexts and shared budgets go: PostgreSQL if a URL is given, else
    SQLite in each pod, gone with the pod."""

    model_config = cel(
        ("self.retention.matches('[1-9]')", "gateway.interactions.retention must be above 0, such as 30d"),
        (
            "quantity(self.spoolSize).compareTo(quantity('1Mi')) >= 0 && "
            "quantity(self.spoolSize).compareTo(quantity('1Ti')) <= 0",
            "gateway.interactions.spoolSize must be from 1Mi to 1Ti",
        ),
    )

    database_secret_ref: SecretKeyReference | None = None
    retention: Duration = "30d"
    pseudonym_key_secret_ref: SecretKeyReference | None = None
    """What users' names are hashed with, at least 16 bytes. With PostgreSQL and without it, pseudonyms follow from the
    API keys and change with them, so contexts, export and deletion of one user are refused."""
    spool_size: Quantity = "256Mi"
    """How much a gateway keeps on its disk while the database is away; what comes after is dropped and counted."""
    contexts_per_tenant: Annotated[int, Field(ge=1, le=100_000_000)] = 100_000
