"""The gateway's pod names Secrets and never holds them; each part of the spec arrives at the gateway."""

import json
from pathlib import Path
from typing import Any

import yaml
from sluice_contracts.training_run import ManifestReference
from sluice_operator.children.gateway import gateway_objects
from sluice_operator.children.rayservice import Version, ray_service
from sluice_serving.arguments import ServeArguments, parse_arguments
from sluice_serving.gateway.settings import read_settings

SECRET = {"name": "db", "key": "url"}
ISSUER = {"issuer": "https://issuer.example", "audience": "sluice"}


def pod_of(make: Any, **gateway: Any) -> dict[str, Any]:
    spec = make.pool_spec(gateway={"auth": {"secretRef": {"name": "keys"}}} | gateway)
    deployment = gateway_objects(make.meta("chat"), spec, make.settings())[-1][1]
    pod: dict[str, Any] = deployment["spec"]["template"]["spec"]
    return pod


def env_of(pod: dict[str, Any]) -> dict[str, str]:
    return {e["name"]: e["value"] for e in pod["containers"][0]["env"]}


def volume(pod: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [v for v in pod["volumes"] if v["name"] == name]
    (mount,) = [m for m in pod["containers"][0]["volumeMounts"] if m["name"] == name]
    assert mount["readOnly"] is True
    return {k: v for k, v in found.items() if k != "name"}


def test_each_secret_is_mounted_and_only_the_key_that_is_meant(make: Any) -> None:
    kept = {"databaseSecretRef": SECRET, "pseudonymKeySecretRef": {"name": "hash", "key": "k"}, "spoolSize": "1Gi"}
    pod = pod_of(make, interactions=kept, replicas=3)
    env = env_of(pod)
    assert volume(pod, "keys") == {"secret": {"secretName": "keys"}}
    assert volume(pod, "database") == {"secret": {"secretName": "db", "items": [{"key": "url", "path": "url"}]}}
    assert volume(pod, "pseudonym") == {"secret": {"secretName": "hash", "items": [{"key": "k", "path": "k"}]}}
    assert env["SLUICE_DATABASE_URL_FILE"] == "/etc/sluice/database/url"
    assert env["SLUICE_PSEUDONYM_KEY_FILE"] == "/etc/sluice/pseudonym/k"
    assert env["SLUICE_SPOOL_BYTES"] == str(1 << 30)
    assert "SLUICE_REPLICAS" not in env  # scaling the gateway must not restart it
    assert "secretKeyRef" not in json.dumps(pod)


def test_a_shared_cache_comes_from_its_secret_and_is_believed_by_its_own_ca(make: Any, tmp_path: Path) -> None:
    redis = {"secretRef": SECRET, "caSecretRef": {"name": "tls", "key": "ca.crt"}, "timeoutMilliseconds": 20}
    kept = {"pseudonymKeySecretRef": {"name": "hash", "key": "k"}}
    pod = pod_of(make, interactions=kept, cache={"maxEntries": 9, "redis": redis})
    assert volume(pod, "redis") == {"secret": {"secretName": "db", "items": [{"key": "url", "path": "url"}]}}
    assert volume(pod, "redis-ca") == {"secret": {"secretName": "tls", "items": [{"key": "ca.crt", "path": "ca.crt"}]}}
    env = env_of(pod)
    assert env["SLUICE_CACHE_REDIS_URL_FILE"] == "/etc/sluice/redis/url"
    (tmp_path / "url").write_text("rediss://:secret@cache:6380/2")
    found = read_settings(env | {"SLUICE_CACHE_REDIS_URL_FILE": str(tmp_path / "url")}).redis
    assert found is not None
    assert (found.ca_file, found.timeout) == (Path("/etc/sluice/redis-ca/ca.crt"), 0.02)
    assert (found.address().host, found.address().port, found.address().tls) == ("cache", 6380, True)


def test_gateways_without_a_shared_database_know_how_many_they_are(make: Any) -> None:
    env = env_of(pod_of(make, replicas=3))
    assert env["SLUICE_REPLICAS"] == "3"
    assert "SLUICE_DATABASE_URL_FILE" not in env


def test_drift_arrives_as_it_is_in_the_spec_and_not_at_all_unless_it_is_there(make: Any) -> None:
    assert "SLUICE_DRIFT" not in env_of(pod_of(make))
    drift = {"intents": [{"name": "refund", "phrases": ["money back"]}], "reference": {"days": 7}, "minCell": 20}
    env = env_of(pod_of(make, drift=drift, interactions={"databaseSecretRef": SECRET}))
    found = read_settings({k: v for k, v in env.items() if k != "SLUICE_DATABASE_URL_FILE"}).drift
    assert found is not None
    assert (found.intents[0].phrases, found.reference.days, found.min_cell) == (["money back"], 7, 20)


def test_what_is_rendered_is_what_the_gateway_reads(make: Any) -> None:
    keys = {"keysConfigMapRef": {"name": "issuer", "key": "jwks.json"}}
    jwt = ISSUER | keys | {"tenantClaim": "org", "algorithms": ["ES256", "EdDSA"]}
    auth = {"secretRef": {"name": "keys"}, "plainKeys": "refuse", "jwt": jwt}
    pod = pod_of(make, auth=auth, interactions={"contextsPerTenant": 7, "retention": "1h"})
    assert volume(pod, "issuer") == {
        "configMap": {"name": "issuer", "items": [{"key": "jwks.json", "path": "jwks.json"}]}
    }
    found = read_settings(env_of(pod))
    assert (found.plain_keys, found.contexts_per_tenant, found.retention_seconds) == (False, 7, 3600)
    assert found.jwt is not None
    assert (found.jwt.issuer, found.jwt.audience, found.jwt.tenant_claim) == ("https://issuer.example", "sluice", "org")
    assert (str(found.jwt.keys_file), found.jwt.algorithms) == ("/etc/sluice/issuer/jwks.json", ("ES256", "EdDSA"))


def test_an_issuer_may_be_asked_for_its_keys_and_stand_for_one_tenant(make: Any) -> None:
    jwt = ISSUER | {"keysUrl": "https://issuer.example/keys", "tenant": "acme"}
    found = read_settings(env_of(pod_of(make, auth={"secretRef": {"name": "keys"}, "jwt": jwt}))).jwt
    assert found is not None
    assert (found.keys_url, found.tenant, found.keys_file) == ("https://issuer.example/keys", "acme", None)


def test_traces_go_where_the_pool_says_with_a_token_that_is_only_mounted(make: Any) -> None:
    said = {
        "endpoint": "https://collector.example/v1/traces",
        "sampleRatio": 0.25,
        "trustedTenants": ["acme", "beta"],
        "headersSecretRef": {"name": "collector", "key": "headers"},
    }
    pod = pod_of(make, tracing=said)
    assert volume(pod, "tracing") == {
        "secret": {"secretName": "collector", "items": [{"key": "headers", "path": "headers"}]}
    }
    found = read_settings(env_of(pod)).tracing
    assert found is not None
    assert (found.endpoint, found.ratio, found.service) == (said["endpoint"], 0.25, "chat-gateway")
    assert (found.trusted_tenants, str(found.headers_file)) == ({"acme", "beta"}, "/etc/sluice/tracing/headers")
    assert not [name for name in env_of(pod_of(make)) if "TRACING" in name]


def test_engines_send_spans_only_where_they_are_told_to(make: Any) -> None:
    def read(**tracing: Any) -> ServeArguments:
        gateway = {"auth": {"secretRef": {"name": "keys"}}} | tracing
        manifest = ManifestReference(uri="gs://sluice/runs/a/m.json", digest=make.digest)
        version = Version("v1", "support-bot", "l", manifest)
        made = ray_service(make.meta("chat"), make.pool_spec(gateway=gateway), version, make.settings())
        (application,) = yaml.safe_load(made["spec"]["serveConfigV2"])["applications"]
        return parse_arguments(application["args"])

    url = "http://collector.observability:4318/v1/traces"
    assert read().traces_endpoint is None
    assert read(tracing={"endpoint": url}).traces_endpoint is None
    assert read(tracing={"endpoint": url, "engines": True}).traces_endpoint == url
