"""Parts of a pool's plan: what a rollout needs, how many engines there are room for, and the optional HTTPRoute."""

from typing import Any

import pytest
import yaml
from sluice_contracts.hardware import ReplicaHardware
from sluice_contracts.inference_pool import Replicas
from sluice_contracts.training_run import ManifestReference
from sluice_operator.children.rayservice import Version, ray_service
from sluice_operator.inference_pool.capacity import engines, room
from sluice_operator.inference_pool.engine_state import EngineState, read_ray_service
from sluice_operator.inference_pool.needs import rollout_needs
from sluice_operator.inference_pool.route import ObservedRoute, RouteState, plan_route, read_parents

GPU, TPU = {"accelerator": "nvidia-l4", "count": 2}, {"accelerator": "tpu-v6e-slice", "topology": "4x4"}


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
        args = yaml.safe_load(body["serveConfigV2"])["applications"][0]["args"]
        assert (args["minReplicas"], args["maxReplicas"], args["targetOngoing"]) == (1, 5, 3)

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


def service(make: Any, spec: Any) -> Any:
    manifest = ManifestReference(uri="gs://sluice/runs/a/manifest.json", digest="sha256:" + "c" * 64)
    version = Version("v1", "support-bot", "a" * 64, manifest)
    return ray_service(make.meta("chat"), spec, version, make.settings())["spec"]


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
