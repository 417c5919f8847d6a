"""What the children look like: pods, gateway, engines, settings."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from sluice_contracts.training_run import ManifestReference
from sluice_operator.children.gateway import gateway_objects
from sluice_operator.children.hardware import quantity
from sluice_operator.children.metadata import short_name
from sluice_operator.children.pods import overlay
from sluice_operator.children.rayjob import ray_job
from sluice_operator.children.rayservice import Version, ray_service
from sluice_operator.children.routes import routing_table
from sluice_operator.settings import SettingsError, from_environment
from sluice_serving.gateway.main import FLUSH_SECONDS
from sluice_serving.gateway.settings import Settings as GatewaySettings


def test_quantities() -> None:
    assert [quantity(q) for q in ("2", "500m", "1Ki", "1.5G")] == [2, 0.5, 1024, 1.5e9]
    with pytest.raises(ValueError, match="no quantity"):
        quantity("much")


def test_a_pod_template_merges_by_name_and_adds_the_rest() -> None:
    base = {"spec": {"containers": [{"name": "main", "image": "a", "env": [{"name": "X", "value": "1"}]}]}}
    patch = {
        "metadata": {"labels": {"team": "a"}},
        "spec": {
            "containers": [{"name": "main", "env": [{"name": "Y", "value": "2"}]}, {"name": "side", "image": "b"}],
            "nodeSelector": {"zone": "z"},
        },
    }
    merged = overlay(base, patch)
    main, side = merged["spec"]["containers"]
    assert main == {"name": "main", "image": "a", "env": [{"name": "X", "value": "1"}, {"name": "Y", "value": "2"}]}
    assert side["name"] == "side"
    assert merged["spec"]["nodeSelector"] == {"zone": "z"}
    assert overlay(base, None) == base


def test_a_persons_tolerations_are_added_to_those_the_hardware_needs() -> None:
    gpu, team = {"key": "nvidia.com/gpu", "operator": "Exists"}, {"key": "team", "operator": "Equal", "value": "a"}
    base: dict[str, Any] = {"spec": {"tolerations": [gpu], "containers": []}}
    assert overlay(base, {"spec": {"tolerations": [team, gpu]}})["spec"]["tolerations"] == [gpu, team]
    assert overlay(base, {"spec": {"tolerations": []}})["spec"]["tolerations"] == [gpu]
    assert overlay({"spec": {}}, {"spec": {"tolerations": [team]}})["spec"]["tolerations"] == [team]
    assert base["spec"]["tolerations"] == [gpu]


def test_long_names_stay_unique_within_a_labels_bounds() -> None:
    a, b = short_name("x" * 70 + "a"), short_name("x" * 70 + "b")
    assert len(a) == len(b) == 63
    assert a != b
    assert short_name("short") == "short"


def version() -> Version:
    manifest = ManifestReference(uri="gs://sluice/runs/a/manifest.json", digest="sha256:" + "c" * 64)
    return Version("v1", "support-bot", "a" * 64, manifest)


def test_an_engines_application_carries_the_manifests_digest(make: Any) -> None:
    spec = make.pool_spec(engine={"maxModelLen": 256, "args": {"enforce_eager": "true"}})
    made = ray_service(make.meta("chat"), spec, version(), make.settings(storage_emulator="http://10.250.0.2:4443"))
    assert made["metadata"]["name"] == "chat-cccccccc"
    assert made["spec"]["upgradeStrategy"] == {"type": "None"}
    (application,) = yaml.safe_load(made["spec"]["serveConfigV2"])["applications"]
    assert application["import_path"] == "sluice_serving.app:build"
    assert application["args"]["manifestDigest"] == "sha256:" + "c" * 64
    assert application["args"]["engineArgs"] == {"enforce_eager": "true"}
    assert "workerGroupSpecs" not in made["spec"]["rayClusterConfig"]
    pod = made["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]
    env = {e["name"]: e["value"] for e in pod["containers"][0]["env"]}
    assert env["STORAGE_EMULATOR_HOST"] == "http://10.250.0.2:4443"
    assert {"name": "shm", "emptyDir": {"medium": "Memory"}} in pod["volumes"]


def test_engines_on_accelerators_scale_in_a_worker_group(make: Any) -> None:
    spec = make.pool_spec(hardware={"accelerator": "nvidia-l4"}, replicas={"min": 1, "max": 4})
    cluster = ray_service(make.meta("chat"), spec, version(), make.settings())["spec"]["rayClusterConfig"]
    (group,) = cluster["workerGroupSpecs"]
    assert (group["minReplicas"], group["maxReplicas"], cluster["enableInTreeAutoscaling"]) == (1, 4, True)
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_a_worker_is_ready_when_its_serve_proxy_is_without_a_program_of_the_image(make: Any) -> None:
    spec = make.pool_spec(hardware={"accelerator": "nvidia-l4"})
    cluster = ray_service(make.meta("chat"), spec, version(), make.settings())["spec"]["rayClusterConfig"]
    worker = cluster["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    assert worker["readinessProbe"]["httpGet"] == {"path": "/-/healthz", "port": 8000}


def test_a_pod_of_ray_is_ready_as_soon_as_ray_answers(make: Any) -> None:
    """KubeRay leaves a probe alone that a pod brings along; its own first asks after 10 s."""
    hardware = {"accelerator": "nvidia-l4", "workers": {"min": 2, "max": 2}}
    engines = ray_service(make.meta("chat"), make.pool_spec(), version(), make.settings())["spec"]["rayClusterConfig"]
    job = ray_job(make.meta("run"), make.run_spec(hardware=hardware), "a" * 64, 1, make.settings())
    training = job["spec"]["rayClusterSpec"]
    groups = [engines["headGroupSpec"], training["headGroupSpec"], *training["workerGroupSpecs"]]
    for group in groups:
        probe = group["template"]["spec"]["containers"][0]["readinessProbe"]
        assert probe["httpGet"] == {"path": "/api/healthz", "port": 52365}
        assert probe["initialDelaySeconds"] + probe["periodSeconds"] < 10
        assert probe["periodSeconds"] * probe["failureThreshold"] >= 50, "as patient as KubeRay's once it was ready"


def test_every_pod_is_restricted_and_no_secret_is_in_an_argument(make: Any) -> None:
    spec = make.pool_spec(
        gateway={
            "auth": {"secretRef": {"name": "keys"}},
            "interactions": {"databaseSecretRef": {"name": "db", "key": "url"}},
        }
    )
    settings = make.settings(runtime_class="sluice-host")
    deployment = gateway_objects(make.meta("chat"), spec, settings)[-1][1]
    pod = deployment["spec"]["template"]["spec"]
    assert pod["runtimeClassName"] == "sluice-host"
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
    env = {e["name"]: e["value"] for e in pod["containers"][0]["env"]}
    assert env["SLUICE_DATABASE_URL_FILE"] == "/etc/sluice/database/url"
    assert env["SLUICE_ROUTES_CONFIGMAP"] == "support/chat-routes"
    assert "secretKeyRef" not in json.dumps(deployment)


def test_a_cache_reaches_the_gateways_with_the_memory_it_needs(make: Any) -> None:
    keys = {"auth": {"secretRef": {"name": "keys"}}}
    for cache, route, memory in (
        ({}, None, "512Mi"),
        ({"maxEntries": 50, "maxMegabytes": 100, "ttl": "90s"}, (50, 100 << 20, 90), "612Mi"),
    ):
        spec = make.pool_spec(gateway=keys | {"cache": cache})
        told = routing_table(make.meta("chat"), spec, [], "").cache
        assert (told and (told.max_entries, told.max_bytes, told.ttl_seconds)) == route
        pod = gateway_objects(make.meta("chat"), spec, make.settings())[-1][1]["spec"]["template"]["spec"]
        assert pod["containers"][0]["resources"]["limits"] == {"memory": memory}


def test_the_limits_reach_the_gateways_as_they_are_written(make: Any) -> None:
    limits = {"maxOutputTokens": 77, "outputTokenPolicy": "refuse", "inFlightPerReplica": 4, "queue": 9}
    spec = make.pool_spec(limits=limits | {"queueTimeout": "2m", "maxRequestBytes": 4096})
    told = routing_table(make.meta("chat"), spec, [], "").limits
    assert (told.max_output_tokens, told.output_token_policy) == (77, "refuse")
    assert (told.in_flight_per_replica, told.queue, told.queue_timeout_seconds) == (4, 9, 120)
    assert told.max_request_bytes == 4096


def test_a_gateways_pod_has_time_to_let_every_answer_end(make: Any) -> None:
    gateway = GatewaySettings(keys_dir=Path("/keys"))
    deployment = gateway_objects(make.meta("chat"), make.pool_spec(), make.settings())[-1][1]
    grace = deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert gateway.drain_seconds >= gateway.request_timeout
    assert grace >= gateway.drain_delay + gateway.drain_seconds + FLUSH_SECONDS


class TestSettings:
    full = {
        "SLUICE_NAMESPACE": "sluice-system",
        "SLUICE_STORAGE_URI": "gs://sluice/",
        "SLUICE_IMAGE_TRAINER": "t",
        "SLUICE_IMAGE_SERVE": "s",
        "SLUICE_IMAGE_GATEWAY": "g",
        "SLUICE_IMAGE_PUBLISHER": "p",
    }

    def test_defaults(self) -> None:
        found = from_environment(self.full)
        assert (found.storage_uri, found.watch_namespaces, found.runtime_class) == ("gs://sluice", (), None)
        assert from_environment(self.full | {"SLUICE_WATCH_NAMESPACES": "a, b"}).watch_namespaces == ("a", "b")

    @pytest.mark.parametrize(
        ("changes", "named"),
        [
            ({"SLUICE_STORAGE_URI": ""}, "SLUICE_STORAGE_URI is not set"),
            ({"SLUICE_STORAGE_URI": "s3://b"}, "SLUICE_STORAGE_URI is 's3://b'"),
            ({"SLUICE_HTTP_PORT": "99999"}, "SLUICE_HTTP_PORT is '99999'"),
            ({"SLUICE_CONCURRENCY": "many"}, "SLUICE_CONCURRENCY is 'many'"),
            ({"SLUICE_PRICES": '{"spot": {"cpu": "x"}}'}, "SLUICE_PRICES spot.cpu is 'x'"),
        ],
    )
    def test_a_wrong_variable_is_named(self, changes: dict[str, str], named: str) -> None:
        with pytest.raises(SettingsError, match=named):
            from_environment(self.full | changes)
