"""A candidate that is only an adapter is tried on the pods that serve its base: no second RayService, no GPU."""

from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import pytest
import yaml
from sluice_contracts.adapters import AdapterArguments, adapter_application, adapter_name
from sluice_contracts.analysis import VersionCounts
from sluice_contracts.inference_pool import Adapters, InferencePoolSpec, InferencePoolStatus
from sluice_contracts.model_version import BuildsOn
from sluice_contracts.names import RolloutRequest
from sluice_contracts.routing import RoutingTable
from sluice_contracts.training_run import ManifestReference
from sluice_operator.children.adapters import room
from sluice_operator.children.rayservice import Version, service_name
from sluice_operator.inference_pool.engine_state import AdapterState, EngineState, read_ray_service
from sluice_operator.inference_pool.evidence import Evidence
from sluice_operator.inference_pool.observe import (
    GatewayState,
    Observed,
    VersionState,
    analysis_due,
    named_versions,
)
from sluice_operator.inference_pool.plan import plan
from sluice_operator.kinds import references
from sluice_operator.kube.resources import INFERENCE_POOL
from sluice_operator.model_version.observe import users

GPU = {"accelerator": "nvidia-l4", "count": 2}
BASES = {"v2": "v1", "v3": "v1", "v4": "v2", "v5": "v1"}
"""Which version each was trained from: v4 from an adapter, v5 with too high a rank."""


def digest(version: str) -> str:
    return "sha256:" + version[-1] * 64


def version(name: str) -> Version:
    manifest = ManifestReference(uri=f"gs://sluice/runs/{name}/manifest.json", digest=digest(name))
    base = BASES.get(name)
    rank = 64 if name == "v5" else 12
    made = BuildsOn(digest=digest(base), rank=rank) if base is not None else None
    return Version(name, "support-bot", name[-1] * 64, manifest, made)


def application(name: str) -> str:
    return adapter_application(digest(name))


@dataclass
class World:
    """A pool with engines that have room for adapters; v1 serves."""

    make: Any
    spec: InferencePoolSpec
    status: InferencePoolStatus = field(default_factory=InferencePoolStatus)
    engines: dict[str, EngineState] = field(default_factory=dict)
    services: dict[str, Any] = field(default_factory=dict)
    routes: RoutingTable | None = None
    seconds: float = 0
    requests: int = 0
    """Answered by each version in the rollout so far."""
    unknown: set[str] = field(default_factory=set)
    needs: list[str] = field(default_factory=list)

    def want(self, name: str) -> None:
        self.spec = self.spec.model_copy(update={"model_version": name})

    def step(self, errors: int | None = None, request: RolloutRequest | None = None) -> None:
        """One look, after a step's time; with traffic, and so many `errors` of the last version that has a share."""
        self.seconds += 31
        now = self.make.now + timedelta(seconds=self.seconds)
        evidence = None
        if errors is not None and analysis_due(self.spec, self.status, None, now):
            assert self.routes is not None
            share = {b.model_version: b.weight for b in self.routes.backends if b.weight}
            last = len(share) - 1
            bad = [errors if i == last else 0 for i in range(len(share))]
            self.requests += 1200
            counts = {n: VersionCounts(requests=self.requests, errors=e) for n, e in zip(share, bad, strict=True)}
            evidence = Evidence(counts, asked=1, answered=1)
        names = {self.spec.model_version, *named_versions(self.status)}
        observed = Observed(
            status=self.status,
            versions={n: VersionState(None if n in self.unknown else version(n)) for n in names},
            engines=dict(self.engines),
            gateway=GatewayState(1),
            evidence=evidence,
            window=self.routes.window if self.routes else "",
            request=request,
        )
        made = plan(self.make.meta("chat"), self.spec, observed, self.make.settings(), now)
        self.status = InferencePoolStatus.model_validate(made.status)
        self.needs += [self.status.rollout_needs.message] if self.status.rollout_needs else []
        for apply in made.apply:
            name = apply.object["metadata"]["name"]
            if apply.resource.kind == "RayService":
                self.services[name] = yaml.safe_load(apply.object["spec"]["serveConfigV2"])["applications"]
                self.engines.setdefault(name, EngineState(name))
            if name == "chat-routes":
                self.routes = RoutingTable.model_validate_json(apply.object["data"]["routes.json"])
        for delete in made.delete:
            self.engines.pop(delete.name, None)

    def engine(self, name: str = "v1", **adapters: AdapterState) -> None:
        """The engines that run version `name` are ready, with the adapters of these versions on them."""
        service = service_name("chat", digest(name))
        found = {application(n): state for n, state in adapters.items()}
        self.engines[service] = replace(self.engines[service], ready=True, adapters=found)

    def configured(self, name: str = "v1") -> list[str]:
        return [a["name"] for a in self.services[service_name("chat", digest(name))]]

    @property
    def ready(self) -> tuple[str, str, str]:
        found = next(c for c in self.status.conditions if c.type == "Ready")
        return found.status, found.reason, found.message


@pytest.fixture
def world(make: Any) -> World:
    found = World(make, make.pool_spec(engine={"adapters": {"maxRank": 16}}, hardware=GPU))
    found.step()
    found.engine()
    found.step()
    assert found.ready[:2] == ("True", "Serving")
    return found


def promoted(world: World, name: str = "v2") -> World:
    """An adapter on v1 is stable."""
    world.want(name)
    world.step()
    world.engine(**{name: AdapterState(running=True)})
    for _ in range(4):
        world.step(errors=0)
    assert world.status.stable is not None
    assert world.status.stable.model_version == name
    return world


class TestRollout:
    def test_takes_the_same_pods_and_no_accelerator(self, world: World) -> None:
        world.want("v2")
        world.step()
        assert world.status.rollout_needs is not None
        assert (world.status.rollout_needs.accelerators, world.status.rollout_needs.accelerators_at_most) == (0, 0)
        assert world.needs == ["no machine: it is an adapter on the engines of v1"]
        assert list(world.engines) == [service_name("chat", digest("v1"))]
        assert world.configured() == ["llm", application("v2")]
        assert world.ready[1:] == (
            "CandidateStarting",
            "the engines of RayService chat-11111111 load adapter v2, on no machine: it is an adapter on the engines "
            "of v1",
        )
        world.engine(v2=AdapterState(running=False))
        world.step()
        assert world.status.step is None, "it is sent nothing before its engines answer for it"
        world.engine(v2=AdapterState(running=True))
        world.step()
        assert world.routes is not None
        stable, candidate = world.routes.backends
        assert (stable.url, stable.engine_model, stable.weight) == (candidate.url, None, 80)
        assert (candidate.engine_model, candidate.weight) == (adapter_name("support-bot", digest("v2")), 20)

    def test_its_application_is_told_what_to_verify(self, world: World) -> None:
        world.want("v2")
        world.step()
        engine, adapter = world.services[service_name("chat", digest("v1"))]
        assert (engine["args"]["adapterSlots"], engine["args"]["maxAdapterRank"]) == (2, 16)
        assert engine["args"]["manifestDigest"] == digest("v1")
        told = AdapterArguments.model_validate(adapter["args"])
        assert (told.manifest_digest, told.base_digest, told.model_version) == (digest("v2"), digest("v1"), "v2")
        assert (adapter["import_path"], adapter["route_prefix"]) == ("sluice_serving.adapter_app:build", None)

    def test_nothing_about_the_engine_that_serves_changes(self, world: World) -> None:
        (before,) = world.services[service_name("chat", digest("v1"))]
        world.want("v2")
        world.step()
        assert world.services[service_name("chat", digest("v1"))][0] == before

    def test_promotion_makes_it_the_pools_model_and_keeps_the_base_within_reach(self, world: World) -> None:
        promoted(world)
        assert world.ready[:2] == ("True", "Serving")
        assert world.routes is not None
        assert [(b.model_version, b.weight) for b in world.routes.backends] == [("v2", 100)]
        assert world.routes.backends[0].engine_model == adapter_name("support-bot", digest("v2"))
        assert world.status.replicas == 1, "engines that two versions share are counted once"
        world.want("v1")
        world.step()
        assert world.status.stable is not None
        assert (world.status.stable.model_version, world.status.stable.base) == ("v1", None)
        assert world.ready[:2] == ("True", "Serving")

    def test_an_adapter_follows_another_on_the_same_base(self, world: World) -> None:
        promoted(world)
        world.seconds += 4000  # the window in which v1 could come back at once
        world.want("v3")
        world.step()
        assert list(world.engines) == [service_name("chat", digest("v1"))]
        assert world.configured() == ["llm", application("v2"), application("v3")]

    def test_rollback_takes_it_off_and_the_engine_goes_on(self, world: World) -> None:
        world.want("v2")
        world.step()
        world.engine(v2=AdapterState(running=True))
        world.step()
        world.step(errors=700)
        assert world.ready[1] == "RolledBack"
        assert world.configured() == ["llm"]
        assert world.routes is not None
        assert [(b.model_version, b.weight) for b in world.routes.backends] == [("v1", 100)]
        assert list(world.engines) == [service_name("chat", digest("v1"))]

    def test_one_that_the_engines_refuse_is_rolled_back_with_their_words(self, world: World) -> None:
        world.want("v2")
        world.step()
        world.engine(v2=AdapterState(failure="application adapter-22222222 failed to deploy: weights have digest x"))
        world.step()
        assert world.ready[1] == "RolledBack"
        assert "weights have digest x" in world.ready[2]
        assert world.status.stable is not None
        assert world.status.stable.ready


class TestOwnEngines:
    @pytest.mark.parametrize(
        ("name", "why"), [("v4", "its base is an adapter"), ("v5", "there is no room for its rank")]
    )
    def test_are_made_where_it_does_not_fit(self, world: World, name: str, why: str) -> None:
        world.want(name)
        world.step()
        assert set(world.engines) == {service_name("chat", digest("v1")), service_name("chat", digest(name))}, why
        assert world.status.rollout_needs is not None
        assert world.status.rollout_needs.accelerators == 2

    def test_are_made_where_the_pool_leaves_no_room(self, make: Any) -> None:
        world = World(make, make.pool_spec())
        world.step()
        world.engine()
        world.step()
        world.want("v2")
        world.step()
        assert set(world.engines) == {service_name("chat", digest("v1")), service_name("chat", digest("v2"))}

    def test_are_made_for_what_was_trained_from_the_adapter_that_serves(self, world: World) -> None:
        promoted(world)
        world.want("v4")
        world.step()
        assert service_name("chat", digest("v4")) in world.engines
        assert world.configured() == ["llm", application("v2")], "stable's adapter stays on its engines"

    def test_are_made_for_a_first_deployment(self, make: Any) -> None:
        world = World(make, make.pool_spec(modelVersion="v2", engine={"adapters": {}}))
        world.step()
        assert list(world.engines) == [service_name("chat", digest("v2"))]
        assert world.configured("v2") == ["llm"], "from its merged weights"


class TestStable:
    def test_goes_on_while_its_application_comes_up_again(self, world: World) -> None:
        promoted(world)
        world.engine(v2=AdapterState(running=False))
        world.step()
        assert world.ready[:2] == ("True", "Serving")

    def test_keeps_its_room_when_the_spec_takes_it_away(self, world: World) -> None:
        promoted(world)
        engine = world.spec.engine.model_copy(update={"adapters": None})
        world.spec = world.spec.model_copy(update={"engine": engine})
        world.step()
        args = world.services[service_name("chat", digest("v1"))][0]["args"]
        assert (args["adapterSlots"], args["maxAdapterRank"]) == (2, 16)
        assert room(None, []) is None
        found = room(Adapters(slots=3, max_rank=8), [12, 33])
        assert found is not None
        assert (found.slots, found.max_rank) == (3, 64), "the least that is enough"

    def test_is_not_ready_where_the_engines_refuse_it(self, world: World) -> None:
        promoted(world)
        world.engine(v2=AdapterState(failure="application adapter-22222222 failed to deploy: gone"))
        world.step()
        assert world.ready[1] == "EngineFailed"
        assert "gone" in world.ready[2]

    def test_keeps_its_adapter_when_its_version_cannot_be_read(self, world: World) -> None:
        promoted(world)
        world.services.clear()
        world.unknown = {"v2"}
        world.step()
        assert not world.services, "the RayService is left as it is: writing it anew would take the adapter off"

    def test_holds_the_base_as_one_in_use(self, world: World) -> None:
        promoted(world)
        world.seconds += 4000
        world.step()
        assert world.status.previous is None
        pool = {"metadata": {"name": "chat", "namespace": "team"}, "spec": {}, "status": world.status.wire()}

        class Pools:
            def list(self, *_: Any) -> list[Any]:
                return [pool]

        def used(name: str) -> bool:
            return bool(users(world.make.meta(name), Pools()))  # type: ignore[arg-type]

        assert (used("v1"), used("v2"), used("v3")) == (True, True, False)
        assert {k.name for k in references(INFERENCE_POOL, pool)} == {"v1", "v2"}


def test_an_adapters_state_is_read_apart_from_the_engines() -> None:
    def applications(adapter: str) -> dict[str, Any]:
        broken = {"status": adapter, "message": "line\nArtifactError: refused"}
        return {"applicationStatuses": {"llm": {"status": "RUNNING"}, "adapter-22222222": broken}}

    def state(adapter: str) -> EngineState:
        status = {
            "conditions": [{"type": "Ready", "status": "True", "reason": "NonZeroServeEndpoints"}],
            "activeServiceStatus": applications(adapter),
        }
        return read_ray_service({"metadata": {"name": "chat-11111111"}, "status": status})

    failed = state("DEPLOY_FAILED")
    assert (failed.ready, failed.failure) == (True, None), "a bad adapter does not take its base out of the traffic"
    assert failed.adapters["adapter-22222222"] == AdapterState(
        failure="application adapter-22222222 failed to deploy: ArtifactError: refused"
    )
    assert state("DEPLOYING").adapters["adapter-22222222"] == AdapterState()
    assert state("RUNNING").adapters["adapter-22222222"] == AdapterState(running=True)
