"""Parts of a pool's plan: what a rollout needs, how many engines there are room for, and the optional HTTPRoute."""

from typing import Any

import pytest
import yaml
from sluice_contracts.hardware import ReplicaHardware
from sluice_contracts.inference_pool import Replicas
from sluice_contracts.training_run import ManifestReference
from sluice_operator.children.gateway import gateway_objects
from sluice_operator.children.rayservice import Version, ray_service
from sluice_operator.children.routes import routing_table
from sluice_operator.inference_pool.capacity import asleep, engines, room
from sluice_operator.inference_pool.engine_state import EngineState, read_ray_service
from sluice_operator.inference_pool.needs import rollout_needs
from sluice_operator.inference_pool.route import ObservedRoute, RouteState, plan_route, read_parents

GPU, TPU = {"accelerator": "nvidia-l4", "count": 2}, {"accelerator": "tpu-v6e-slice", "topology": "4x4"}


@pytest.mark.parametrize("replicas", [1, 3])
def test_drains_take_the_gateways_one_after_the_other_and_a_single_one_too(make: Any, replicas: int) -> None:
    spec = make.pool_spec(gateway={"auth": {"secretRef": {"name": "keys"}}, "replicas": replicas})
    found = {r.kind: body for r, body in gateway_objects(make.meta("chat"), spec, make.settings())}
    budget = found["PodDisruptionBudget"]
    assert (budget["metadata"]["name"], budget["spec"]["maxUnavailable"]) == ("chat-gateway", 1)
    # The gateways' pods, and not the engines', which have the pool's label as well.
    assert budget["spec"]["selector"] == found["Deployment"]["spec"]["selector"]


class TestNeeds:
    @pytest.mark.parametrize(
        ("hardware", "replicas", "takes_over", "now", "most"),
        [
            (GPU, {"min": 1, "max": 1}, False, 2, 2),
            (GPU, {"min": 2, "max": 5, "warm": 1}, False, 6, 10),
            (GPU, {"min": 2, "max": 5}, True, 0, 6),
            (TPU, {"min": 1, "max": 2}, False, 16, 32),
            ({"accelerator": "cpu"}, {"min": 3, "max": 3}, False, 0, 0),
        ],
    )
    def test_accelerators_beyond_todays(
        self, hardware: Any, replicas: Any, takes_over: bool, now: int, most: int
    ) -> None:
        found = rollout_needs(
            ReplicaHardware.model_validate(hardware), Replicas.model_validate(replicas), takes_over=takes_over
        )
        assert (found.accelerators, found.accelerators_at_most) == (now, most)
        assert found.replicas == replicas["min"] + replicas.get("warm", 0)

    def test_the_text_names_what_is_scarce(self) -> None:
        spot = ReplicaHardware.model_validate(GPU | {"spot": True})
        text = rollout_needs(spot, Replicas(min=2, max=2), takes_over=False).message
        assert text == "2 x 2 spot nvidia-l4: 4 beyond today's"


class TestAutoscaling:
    @pytest.mark.parametrize(
        ("pods", "hosts", "engines_now", "room_now"),
        [(None, 1, 1, 2), (0, 1, 1, 2), (2, 1, 2, 3), (4, 1, 4, 4), (9, 1, 4, 4), (8, 4, 2, 3)],
    )
    def test_room_is_made_for_one_engine_more(
        self, make: Any, pods: int | None, hosts: int, engines_now: int, room_now: int
    ) -> None:
        spec = make.pool_spec(hardware=TPU if hosts == 4 else GPU, replicas={"min": 1, "max": 4})
        state = EngineState("chat-1", ready=True, pods=pods)
        assert (engines(spec, state), room(spec, state)) == (engines_now, room_now)

    def test_a_fixed_size_is_what_it_is(self, make: Any) -> None:
        spec = make.pool_spec(hardware=GPU, replicas={"min": 3, "max": 3})
        assert room(spec, EngineState("chat-1", pods=1)) == 3
        alone = make.pool_spec()
        assert (engines(alone, EngineState("chat-1", pods=0)), room(alone, None)) == (1, 1)

    def test_machines_are_read_from_the_clusters_status(self) -> None:
        status = {"activeServiceStatus": {"rayClusterStatus": {"availableWorkerReplicas": 3}}}
        assert read_ray_service({"metadata": {"name": "a"}, "status": status}).pods == 3
        assert read_ray_service({"metadata": {"name": "a"}}).pods is None

    def test_ray_serve_and_kuberays_autoscaler_are_told_the_same_range(self, make: Any) -> None:
        spec = make.pool_spec(hardware=GPU, replicas={"min": 1, "max": 5, "warm": 1, "targetOngoing": 3})
        body = service(make, spec)
        cluster = body["rayClusterConfig"]
        (group,) = cluster["workerGroupSpecs"]
        assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (2, 2, 5), "one is warm"
        assert cluster["enableInTreeAutoscaling"] is True
        assert cluster["autoscalerOptions"]["securityContext"]["allowPrivilegeEscalation"] is False
        assert scaling(body) == {
            "min_replicas": 1,
            "max_replicas": 5,
            "target_ongoing_requests": 3,
            "upscale_delay_s": 30,
            "downscale_delay_s": 600,
        }

    def test_another_size_is_no_reason_to_start_the_engines_anew(self, make: Any) -> None:
        small = service(make, make.pool_spec(hardware=GPU, replicas={"min": 1, "max": 2}))
        large = service(make, make.pool_spec(hardware=GPU, replicas={"min": 0, "max": 4, "scaleUpDelay": "5s"}))
        (one,), (other,) = (yaml.safe_load(s["serveConfigV2"])["applications"] for s in (small, large))
        assert one.pop("deployments") != other.pop("deployments")
        assert one == other, "Ray Serve builds an application anew when any of this differs"

    def test_ray_serve_takes_the_range_over_what_the_application_says(self, make: Any) -> None:
        schema = pytest.importorskip("ray.serve.schema")
        for replicas in ({"min": 3, "max": 3}, {"min": 0, "max": 4}, {"min": 1, "max": 4, "scaleDownDelay": "1h"}):
            spec = make.pool_spec(hardware=GPU, replicas=replicas)
            (application,) = yaml.safe_load(service(make, spec)["serveConfigV2"])["applications"]
            (deployment,) = schema.ServeApplicationSchema.model_validate(application).deployments
            assert deployment.name == application["args"]["model"], "the deployment is called after the model"

    def test_no_autoscaler_runs_where_the_machines_are_always_the_same(self, make: Any) -> None:
        cluster = service(make, make.pool_spec(hardware=GPU, replicas={"min": 1, "max": 2, "warm": 1}))[
            "rayClusterConfig"
        ]
        assert "enableInTreeAutoscaling" not in cluster
        assert cluster["workerGroupSpecs"][0]["minReplicas"] == 2

    def test_on_cpu_each_engine_has_a_machine_of_its_own(self, make: Any) -> None:
        resources = {"cpu": "8", "memory": "8Gi"}
        spec = make.pool_spec(hardware={"accelerator": "cpu", "resources": resources}, replicas={"min": 2, "max": 2})
        (group,) = service(make, spec)["rayClusterConfig"]["workerGroupSpecs"]
        assert group["rayStartParams"]["num-cpus"] == "1", "an engine takes one of Ray's CPUs"


class TestScaleToZero:
    replicas: dict[str, Any] = {
        "min": 0,
        "max": 3,
        "scaleToZero": {"idle": "5m", "wakeTimeout": "90s", "coldStart": "45s"},
    }

    def test_the_last_engine_goes_when_idle_and_its_machine_with_it(self, make: Any) -> None:
        body = service(make, make.pool_spec(hardware=GPU, replicas=self.replicas))
        assert (scaling(body)["min_replicas"], scaling(body)["downscale_to_zero_delay_s"]) == (0, 300)
        (group,) = body["rayClusterConfig"]["workerGroupSpecs"]
        assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (1, 0, 3), "it runs once first"
        assert body["rayClusterConfig"]["enableInTreeAutoscaling"] is True

    def test_what_must_stay_awake_does(self, make: Any) -> None:
        spec = make.pool_spec(hardware=GPU, replicas=self.replicas)
        assert scaling(service(make, spec, awake=True))["min_replicas"] == 1
        single = make.pool_spec(hardware=GPU, replicas={"min": 0, "max": 1})
        assert scaling(service(make, single, awake=True))["min_replicas"] == 1

    def test_on_cpu_too_the_machine_can_go_and_the_head_stays(self, make: Any) -> None:
        cluster = service(make, make.pool_spec(replicas={"min": 0, "max": 1}))["rayClusterConfig"]
        assert cluster["workerGroupSpecs"][0]["minReplicas"] == 0
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"

    def test_a_warm_machine_stays_for_an_engine_that_sleeps(self, make: Any) -> None:
        replicas = {"min": 0, "max": 1, "warm": 1}
        cluster = service(make, make.pool_spec(hardware=GPU, replicas=replicas))["rayClusterConfig"]
        (group,) = cluster["workerGroupSpecs"]
        assert (group["replicas"], group["minReplicas"]) == (1, 1)

    def test_the_gateway_is_told_how_long_to_hold(self, make: Any) -> None:
        spec = make.pool_spec(hardware=GPU, replicas=self.replicas)
        table = routing_table(make.meta("chat"), spec, [], "")
        assert (table.waking.timeout_seconds, table.waking.cold_start_seconds) == (90, 45)
        endless = make.pool_spec(replicas={"min": 0, "scaleToZero": {"wakeTimeout": "99999d", "coldStart": "0s"}})
        assert routing_table(make.meta("chat"), endless, [], "").waking.timeout_seconds == 86_400

    @pytest.mark.parametrize(
        ("replicas", "ready", "pods", "sleeps"),
        [
            ({"min": 0, "max": 1}, True, None, True),
            ({"min": 0, "max": 1}, True, 0, True),
            ({"min": 0, "max": 1}, True, 1, False),
            ({"min": 0, "max": 1}, False, 0, False),
            ({"min": 1, "max": 1}, True, 0, False),
        ],
    )
    def test_a_version_without_machines_sleeps_if_it_may(
        self, make: Any, replicas: Any, ready: bool, pods: int | None, sleeps: bool
    ) -> None:
        spec = make.pool_spec(hardware=GPU, replicas=replicas)
        state = EngineState("chat-1", ready=ready, pods=pods)
        assert asleep(spec, state) is sleeps
        assert asleep(spec, None) is False
        if sleeps:
            assert (engines(spec, state), room(spec, state)) == (0, 1)

    def test_a_rollout_needs_the_machine_its_candidate_is_awake_on(self) -> None:
        found = rollout_needs(ReplicaHardware.model_validate(GPU), Replicas(min=0, max=2), takes_over=False)
        assert (found.replicas, found.accelerators, found.accelerators_at_most) == (1, 2, 4)

    @pytest.mark.parametrize(
        ("ready", "application", "deploying"),
        [("True", "DEPLOYING", True), ("False", "DEPLOYING", False), ("True", "RUNNING", False)],
    )
    def test_ray_serve_at_work_on_an_application_that_answers(
        self, ready: str, application: str, deploying: bool
    ) -> None:
        status = {
            "conditions": [{"type": "Ready", "status": ready}],
            "activeServiceStatus": {"applicationStatuses": {"llm": {"status": application}}},
        }
        assert read_ray_service({"metadata": {"name": "a"}, "status": status}).deploying is deploying


def scaling(body: Any) -> Any:
    (deployment,) = yaml.safe_load(body["serveConfigV2"])["applications"][0]["deployments"]
    return deployment["autoscaling_config"]


def service(make: Any, spec: Any, **more: Any) -> Any:
    manifest = ManifestReference(uri="gs://sluice/runs/a/manifest.json", digest="sha256:" + "c" * 64)
    version = Version("v1", "support-bot", "a" * 64, manifest)
    return ray_service(make.meta("chat"), spec, version, make.settings(), **more)["spec"]


def route(*parents: dict[str, Any], wanted: int = 1, generation: int = 2) -> dict[str, Any]:
    refs = [{"name": f"gw{i}", "namespace": "infra"} for i in range(wanted)]
    status = [{"parentRef": refs[i], "conditions": list(p["conditions"])} for i, p in enumerate(parents)]
    return {"metadata": {"generation": generation}, "spec": {"parentRefs": refs}, "status": {"parents": status}}


def said(type_: str, status: str, generation: int = 2, message: str = "") -> dict[str, Any]:
    return {"type": type_, "status": status, "observedGeneration": generation, "message": message, "reason": "R"}


class TestRoute:
    @pytest.mark.parametrize(
        ("found", "wanted"),
        [
            (route(), (None, "0 of 1")),
            (route({"conditions": [said("Accepted", "True"), said("ResolvedRefs", "True")]}), (True, "")),
            (route({"conditions": [said("Accepted", "True")]}, wanted=2), (None, "1 of 2")),
            (
                route({"conditions": [said("Accepted", "False", message="no listener")]}),
                (False, "gw0: Accepted is False"),
            ),
            (
                route({"conditions": [said("Accepted", "True"), said("ResolvedRefs", "False", message="no Service")]}),
                (False, "ResolvedRefs is False: no Service"),
            ),
            (route({"conditions": [said("Accepted", "True", generation=1)]}), (None, "0 of 1")),
        ],
    )
    def test_a_route_is_accepted_when_all_its_gateways_say_so_of_its_newest_form(self, found: Any, wanted: Any) -> None:
        accepted, message = read_parents(found)
        assert accepted is wanted[0]
        assert wanted[1] in message

    def test_it_leads_to_the_gateway_and_nowhere_else(self, make: Any) -> None:
        parents = [{"name": "public", "namespace": "infra", "sectionName": "https"}]
        spec = gateway(make, {"parentRefs": parents, "hostnames": ["bot.example.com"]})
        (apply,) = plan_route(make.meta("chat"), spec, ObservedRoute()).apply
        body = apply.object["spec"]
        assert (body["parentRefs"], body["hostnames"]) == (parents, ["bot.example.com"])
        assert body["rules"] == [
            {
                "matches": [{"path": {"type": "PathPrefix", "value": "/v1"}}],
                "backendRefs": [{"name": "chat-gateway", "port": 80}],
            }
        ]
        assert apply.object["metadata"]["ownerReferences"][0]["uid"] == "uid-chat"

    def test_only_an_own_route_is_removed(self, make: Any) -> None:
        meta, spec = make.meta("chat"), make.pool_spec()
        (gone,) = plan_route(meta, spec, ObservedRoute(RouteState.OURS)).delete
        assert gone.name == "chat-gateway"
        for state in (RouteState.NONE, RouteState.FOREIGN, RouteState.UNKNOWN_KIND):
            made = plan_route(meta, spec, ObservedRoute(state))
            assert (made.apply, made.delete, made.condition) == ((), (), None)

    def test_a_foreign_route_is_left_alone_and_told(self, make: Any) -> None:
        spec = gateway(make, {"parentRefs": [{"name": "public"}]})
        made = plan_route(make.meta("chat"), spec, ObservedRoute(RouteState.FOREIGN))
        assert (made.apply, made.delete) == ((), ())
        assert made.condition is not None
        assert made.condition[:2] == (False, "RouteNotOurs")


def gateway(make: Any, route: dict[str, Any]) -> Any:
    return make.pool_spec(gateway={"auth": {"secretRef": {"name": "keys"}}, "route": route})
