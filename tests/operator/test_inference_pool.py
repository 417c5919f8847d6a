"""The plan of an InferencePool: its first version, its rollouts, what their evidence is."""

from dataclasses import replace
from typing import Any

import pytest
from sluice_contracts.analysis import AnalysisSnapshot, VersionCounts
from sluice_contracts.inference_pool import InferencePoolStatus, RolloutOutcome
from sluice_contracts.names import RolloutRequest
from sluice_operator.children.rayservice import service_name
from sluice_operator.inference_pool.evidence import add_up
from sluice_operator.inference_pool.observe import Observed, VersionState
from sluice_operator.inference_pool.plan import plan

from tests.operator.pool_world import World, digest, look, rolling, serving, version_state


@pytest.fixture
def world(make: Any) -> World:
    return serving(make)


class TestFirstDeployment:
    def test_goes_straight_to_stable_but_is_ready_only_when_it_answers(self, make: Any) -> None:
        world = World(make, make.pool_spec(), gateway=0)
        world.step()
        assert world.reason() == ("False", "EngineStarting")
        assert world.routes is not None
        assert [(b.weight, b.ready) for b in world.routes.backends] == [(100, False)]
        world.engine("v1", ready=True)
        world.step()
        assert world.reason() == ("False", "GatewayStarting")
        world.gateway = 1
        world.step()
        assert world.reason() == ("True", "Serving")
        assert [(r.model_version, r.outcome) for r in world.status.history] == [("v1", RolloutOutcome.PROMOTED)]

    def test_a_version_that_never_came_up_may_be_replaced_without_a_canary(self, make: Any) -> None:
        world = World(make, make.pool_spec())
        world.step()
        world.engine("v1", failure="application llm failed to deploy: wrong digest")
        world.step()
        assert world.reason("Stalled") == ("True", "EngineFailed")
        world.want("v2")
        world.step()
        assert world.status.stable is not None
        assert world.status.stable.model_version == "v2"
        assert list(world.engines) == [service_name("chat", digest("v2"))]

    @pytest.mark.parametrize(
        ("state", "wanted"),
        [
            (VersionState(missing=True, why_not="there is no ModelVersion v1"), ("Reconciling", "VersionNotFound")),
            (VersionState(stalled=True, why_not="not verified: a file is gone"), ("Stalled", "VersionNotVerified")),
        ],
    )
    def test_an_unverified_version_is_not_rolled_out(self, make: Any, state: VersionState, wanted: Any) -> None:
        observed = Observed(status=InferencePoolStatus(), versions={"v1": state})
        made = plan(make.meta("chat"), make.pool_spec(), observed, make.settings(), make.now)
        conditions = {c["type"]: c for c in (made.status or {})["conditions"]}
        assert (conditions[wanted[0]]["status"], conditions[wanted[0]]["reason"]) == ("True", wanted[1])
        assert "spec.modelVersion" in conditions["Ready"]["message"]
        assert not [a for a in made.apply if a.resource.kind == "RayService"]

    def test_a_version_that_is_being_deleted_is_not_rolled_out_but_what_serves_it_goes_on(self, world: World) -> None:
        state = replace(version_state("v1"), missing=True, why_not="ModelVersion v1 is being deleted")
        observed = replace(world.observe(), versions={"v1": state})
        made = plan(world.make.meta("chat"), world.spec, observed, world.make.settings(), world.now)
        assert [a.object["metadata"]["name"] for a in made.apply if a.resource.kind == "RayService"] == list(
            world.engines
        )
        fresh = replace(observed, status=InferencePoolStatus(), engines={})
        told = plan(world.make.meta("chat"), world.spec, fresh, world.make.settings(), world.now)
        assert not [a for a in told.apply if a.resource.kind == "RayService"]
        assert "is being deleted" in str(told.status)


class TestRollout:
    def test_no_traffic_before_the_candidate_is_ready(self, world: World) -> None:
        world.want("v2")
        world.step()
        assert world.reason() == ("False", "CandidateStarting")
        assert world.weights() == {"v1": 100}
        world.seconds += 100
        world.step()
        assert world.weights() == {"v1": 100}

    def test_steps_wait_for_time_and_for_requests(self, world: World) -> None:
        rolling(world)
        look(world, seconds=29)
        assert world.weights() == {"v1": 80, "v2": 20}, "too early"
        world.counts["v2"] = VersionCounts(requests=49)
        look(world, seconds=30, candidate=0)
        assert world.weights() == {"v1": 80, "v2": 20}, "too few requests"
        look(world, seconds=10)
        assert world.weights() == {"v1": 50, "v2": 50}

    def test_counts_accumulate_over_steps_but_each_step_needs_its_own_requests(self, world: World) -> None:
        rolling(world)
        window = world.routes.window if world.routes else ""
        look(world)
        assert world.status.step == 1
        assert world.status.step_base_requests == 100
        look(world, candidate=40)
        assert world.reason() == ("False", "RollingOut"), "equivalent, but only 40 requests on this step"
        look(world, candidate=400)
        assert world.reason() == ("True", "Serving")
        assert world.routes is not None
        assert world.routes.window == window

    def test_promotion_keeps_the_former_stable_for_a_while(self, world: World) -> None:
        rolling(world)
        for _ in range(3):
            look(world, candidate=400)
        assert world.status.stable is not None
        assert world.status.stable.model_version == "v2"
        assert world.weights() == {"v2": 100}
        assert len(world.engines) == 2
        world.seconds += 301
        world.step()
        assert list(world.engines) == [service_name("chat", digest("v2"))]

    def test_undecided_is_never_promoted(self, world: World) -> None:
        rolling(world)
        for _ in range(20):
            look(world, stable=2, candidate=2)
        assert world.status.stable is not None
        assert world.status.stable.model_version == "v1"

    def test_no_data_is_told_and_promotes_nothing(self, world: World) -> None:
        rolling(world)
        for _ in range(5):
            look(world, stable=0, candidate=0)
        assert "NoAnalysisData" in world.events
        assert world.status.step == 0

    def test_harm_takes_the_traffic_away_in_the_same_look(self, world: World) -> None:
        rolling(world)
        asked = world.step().requeue_after
        assert asked is not None
        assert asked <= 10, "an interval: no breach lives longer"
        look(world, seconds=10, errors=60)
        assert world.weights() == {"v1": 100}
        assert world.reason("Stalled") == ("True", "RolledBack")
        assert world.reason("Available") == ("True", "Serving")
        assert world.status.history[-1].outcome is RolloutOutcome.ROLLED_BACK
        assert "60 of 100 failed" in world.status.history[-1].message
        degraded = next(c for c in world.status.conditions if c.type == "Degraded")
        assert (degraded.status, degraded.reason) == ("True", "RolledBack")
        assert "60 of 100 failed" in degraded.message
        assert len(world.engines) == 2, "answers under way may end"
        world.seconds += 31
        world.step()
        assert len(world.engines) == 1
        world.seconds += 100_000
        world.step()
        assert world.reason("Stalled") == ("True", "RolledBack"), "it stays until a person speaks"
        assert world.spec.model_version == "v2"

    def test_a_candidate_that_loses_its_engine_loses_its_weight_until_it_is_back(self, world: World) -> None:
        rolling(world)
        world.engine("v2", ready=False)
        world.step()
        assert world.weights() == {"v1": 100, "v2": 0}
        world.engine("v2", ready=True)
        world.step()
        assert world.weights() == {"v1": 80, "v2": 20}

    def test_a_lost_stable_engine_is_degraded_until_it_is_back(self, world: World) -> None:
        world.engine("v1", ready=False)
        world.step()
        assert world.reason("Degraded") == ("True", "StableNotReady")
        world.engine("v1", ready=True)
        world.step()
        assert world.reason("Degraded") == ("False", "Serving")

    def test_what_a_rollout_takes_is_said_before_it_starts(self, make: Any) -> None:
        world = World(make, make.pool_spec(hardware={"accelerator": "nvidia-l4"}, replicas={"min": 2, "max": 3}))
        world.step()
        world.engine("v1", ready=True)
        world.step()
        world.want("v2")
        world.request = RolloutRequest.PAUSE
        world.step()
        assert world.status.candidate is None
        assert world.status.rollout_needs is not None
        assert (world.status.rollout_needs.accelerators, world.status.rollout_needs.accelerators_at_most) == (2, 3)
        world.want("v1")
        world.step()
        assert world.status.rollout_needs is None
        world.want("v2")
        world.request = None
        made = world.step()
        started = next(e.message for e in made.events if e.reason == "RolloutStarted")
        assert "2 x 1 nvidia-l4: 2 beyond today's, 1 more if it grows" in started
        assert "2 beyond today's" in next(c.message for c in world.status.conditions if c.type == "Ready")
        world.want("v1")
        world.step()
        assert world.status.rollout_needs is None

    def test_a_rollout_over_a_former_stable_takes_its_machines_over(self, world: World) -> None:
        rolling(world)
        for _ in range(3):
            look(world, candidate=400)
        assert len(world.engines) == 2
        world.want("v3")
        made = world.step()
        assert "in place of an engine that goes first" in next(e.message for e in made.events)

    def test_an_engine_that_cannot_start_ends_the_rollout(self, world: World) -> None:
        world.want("v2")
        world.step()
        world.engine("v2", failure="application llm failed to deploy: ArtifactError")
        world.step()
        assert world.reason("Stalled") == ("True", "RolledBack")
        assert "ArtifactError" in world.status.history[-1].message

    def test_the_deadline_pauses_for_a_person_or_rolls_back(self, world: World, make: Any) -> None:
        rolling(world)
        look(world, seconds=3601, stable=2, candidate=2)
        assert world.reason("Stalled") == ("True", "Inconclusive")
        assert world.weights() == {"v1": 80, "v2": 20}
        world.request = RolloutRequest.APPROVE
        world.step()
        assert world.reason() == ("True", "Serving")
        assert "approved by a person" in world.status.history[-1].message

    def test_the_deadline_rolls_back_where_that_is_asked_for(self, make: Any) -> None:
        world = World(make, make.pool_spec(rollout={"onInconclusive": "rollback"}))
        world.step()
        world.engine("v1", ready=True)
        world.step()
        rolling(world)
        look(world, seconds=3601, stable=2, candidate=2)
        assert world.reason("Stalled") == ("True", "RolledBack")


def test_snapshots_of_another_window_have_no_say() -> None:
    def snapshot(window: str, requests: int) -> AnalysisSnapshot:
        counts = {"v1": VersionCounts(requests=requests)}
        return AnalysisSnapshot(instance="i", window=window, since="2026-11-21T12:00:00Z", versions=counts)

    found = add_up("w2", [snapshot("w1", 1000), snapshot("w2", 5), snapshot("w2", 7)], asked=3)
    assert found.counts["v1"].requests == 12
    assert (found.asked, found.answered) == (3, 2)
