"""What the gateway's pod needs for keys, tokens, records, contexts and shared answers: variables, and
Secrets mounted as files.

The operator never reads a Secret; the pod's volumes name them. Where one key of a Secret is meant, only it is mounted.
"""

from dataclasses import dataclass, field
from typing import Any

from sluice_contracts.gateway import Gateway
from sluice_contracts.gateway_data import Issuer
from sluice_contracts.kubernetes import ConfigMapKeyReference, SecretKeyReference
from sluice_contracts.response_cache import CacheRedis
from sluice_contracts.tracing import Tracing

from sluice_operator.children.hardware import quantity

KEYS = "/etc/sluice/keys"
DATABASE = "/etc/sluice/database"
PSEUDONYM = "/etc/sluice/pseudonym"
ISSUER = "/etc/sluice/issuer"
TRACING = "/etc/sluice/tracing"
REDIS = "/etc/sluice/redis"
REDIS_CA = "/etc/sluice/redis-ca"
DATA = "/var/lib/sluice"


@dataclass
class PodParts:
    """Pieces of the pod."""

    env: dict[str, str] = field(default_factory=dict)
    mounts: list[dict[str, Any]] = field(default_factory=list)
    volumes: list[dict[str, Any]] = field(default_factory=list)

    def mount(self, name: str, path: str, source: dict[str, Any]) -> None:
        """A volume that is only read."""
        self.mounts.append({"name": name, "mountPath": path, "readOnly": True})
        self.volumes.append({"name": name, **source})


def data_parts(gateway: Gateway) -> PodParts:
    """For `spec.gateway.auth`, `spec.gateway.interactions`, `spec.gateway.drift` and `spec.gateway.tracing`."""
    kept = gateway.interactions
    parts = PodParts()
    parts.env = {
        "SLUICE_KEYS_DIR": KEYS,
        "SLUICE_PLAIN_KEYS": gateway.auth.plain_keys,
        "SLUICE_RETENTION": kept.retention,
        "SLUICE_SPOOL_BYTES": str(int(quantity(kept.spool_size))),
        "SLUICE_CONTEXTS_PER_TENANT": str(kept.contexts_per_tenant),
    }
    parts.mount("keys", KEYS, {"secret": {"secretName": gateway.auth.secret_ref.name}})
    parts.mounts.append({"name": "data", "mountPath": DATA})
    parts.volumes.append({"name": "data", "emptyDir": {}})
    if kept.database_secret_ref is not None:
        parts.env["SLUICE_DATABASE_URL_FILE"] = f"{DATABASE}/{kept.database_secret_ref.key}"
        parts.mount("database", DATABASE, _secret(kept.database_secret_ref))
    else:
        # Gateways that share no database share no counts either. Elsewhere the number would restart pods for nothing.
        parts.env["SLUICE_REPLICAS"] = str(gateway.replicas)
    if kept.pseudonym_key_secret_ref is not None:
        parts.env["SLUICE_PSEUDONYM_KEY_FILE"] = f"{PSEUDONYM}/{kept.pseudonym_key_secret_ref.key}"
        parts.mount("pseudonym", PSEUDONYM, _secret(kept.pseudonym_key_secret_ref))
    if gateway.drift is not None:
        parts.env["SLUICE_DRIFT"] = gateway.drift.canonical().decode()
    if gateway.auth.jwt is not None:
        _add_issuer(parts, gateway.auth.jwt)
    if gateway.cache.redis is not None:
        _add_redis(parts, gateway.cache.redis)
    if gateway.tracing is not None:
        _add_tracing(parts, gateway.tracing)
    return parts


def _add_tracing(parts: PodParts, tracing: Tracing) -> None:
    parts.env["SLUICE_TRACING_ENDPOINT"] = tracing.endpoint
    parts.env["SLUICE_TRACING_RATIO"] = repr(tracing.sample_ratio)
    if tracing.trusted_tenants:
        parts.env["SLUICE_TRACING_TRUSTED_TENANTS"] = ",".join(tracing.trusted_tenants)
    if tracing.headers_secret_ref is not None:
        parts.env["SLUICE_TRACING_HEADERS_FILE"] = f"{TRACING}/{tracing.headers_secret_ref.key}"
        parts.mount("tracing", TRACING, _secret(tracing.headers_secret_ref))


def _add_redis(parts: PodParts, redis: CacheRedis) -> None:
    parts.env["SLUICE_CACHE_REDIS_URL_FILE"] = f"{REDIS}/{redis.secret_ref.key}"
    parts.env["SLUICE_CACHE_REDIS_TIMEOUT"] = f"{redis.timeout_milliseconds}ms"
    parts.mount("redis", REDIS, _secret(redis.secret_ref))
    if redis.ca_secret_ref is not None:
        parts.env["SLUICE_CACHE_REDIS_CA_FILE"] = f"{REDIS_CA}/{redis.ca_secret_ref.key}"
        parts.mount("redis-ca", REDIS_CA, _secret(redis.ca_secret_ref))


def _add_issuer(parts: PodParts, issuer: Issuer) -> None:
    values = {
        "ISSUER": issuer.issuer,
        "AUDIENCE": issuer.audience,
        "ALGORITHMS": ",".join(issuer.algorithms),
        "KEYS_URL": issuer.keys_url,
        "TENANT": issuer.tenant,
        "TENANT_CLAIM": issuer.tenant_claim,
    }
    parts.env |= {f"SLUICE_JWT_{name}": value for name, value in values.items() if value is not None}
    keys = issuer.keys_config_map_ref
    if keys is not None:
        parts.env["SLUICE_JWT_KEYS_FILE"] = f"{ISSUER}/{keys.key}"
        parts.mount("issuer", ISSUER, {"configMap": {"name": keys.name, "items": _items(keys)}})


def _secret(reference: SecretKeyReference) -> dict[str, Any]:
    return {"secret": {"secretName": reference.name, "items": _items(reference)}}


def _items(reference: SecretKeyReference | ConfigMapKeyReference) -> list[dict[str, str]]:
    return [{"key": reference.key, "path": reference.key}]
