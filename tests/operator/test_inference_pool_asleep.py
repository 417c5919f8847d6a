"""The plan of an InferencePool whose engines may sleep."""

from typing import Any

import pytest

from tests.operator.pool_world import World, least, look, serving


@pytest.fixture
def world(make: Any) -> World:
    return serving(make)


class TestScaleToZero:
    @pytest.fixture
    def drowsy(self, make: Any) -> World:
        """v1 served, and sleeps."""
        found = World(make, make.pool_spec(replicas={"min": 0, "max": 2}))
        found.step()
        assert found.reason() == ("False", "EngineStarting")
        assert least(found) == {"v1": 1}, "it runs once before it may sleep"
        found.engine("v1", ready=True, pods=1)
        found.step()
        assert least(found) == {"v1": 0}
        found.engine("v1", pods=None)
        found.step()
        return found

    def test_asleep_is_ready_and_available_and_not_degraded(self, drowsy: World) -> None:
        assert drowsy.reason() == drowsy.reason("Available") == ("True", "ScaledToZero")
        assert drowsy.reason("Degraded")[0] == drowsy.reason("Reconciling")[0] == drowsy.reason("Stalled")[0] == "False"
        assert drowsy.status.replicas == 0
        assert drowsy.routes is not None
        assert [(b.ready, b.may_sleep, b.weight) for b in drowsy.routes.backends] == [(True, True, 100)]
        drowsy.engine("v1", pods=1)
        drowsy.step()
        assert drowsy.reason() == drowsy.reason("Available") == ("True", "Serving")

    def test_a_pool_that_never_sleeps_tells_the_gateway_so(self, world: World) -> None:
        assert world.routes is not None
        assert [b.may_sleep for b in world.routes.backends] == [False]

    def test_being_told_that_it_may_sleep_takes_no_version_out_of_the_traffic(self, drowsy: World) -> None:
        drowsy.engine("v1", ready=False, deploying=True, pods=1)
        drowsy.step()
        assert drowsy.reason() == ("True", "Serving")
        drowsy.engine("v1", deploying=False)
        drowsy.step()
        assert drowsy.reason("Degraded") == ("True", "StableNotReady"), (
            "an engine that does not answer is another matter"
        )
        drowsy.engine("v1", deploying=True)
        drowsy.step()
        assert drowsy.reason("Degraded") == ("True", "StableNotReady"), "and starts from the beginning"

    def test_a_stable_engine_that_is_woken_for_a_rollout_keeps_its_traffic_and_a_candidate_gets_none(
        self, drowsy: World
    ) -> None:
        drowsy.want("v2")
        drowsy.step()
        for version in ("v1", "v2"):  # as both are where an adapter is tried on the engine that sleeps
            drowsy.engine(version, ready=False, deploying=True)
        drowsy.step()
        assert drowsy.routes is not None
        assert [(b.model_version, b.weight, b.ready) for b in drowsy.routes.backends] == [("v1", 100, True)]
        assert drowsy.reason() == ("False", "CandidateStarting")
        assert drowsy.reason("Degraded")[0] == "False"

    def test_a_candidate_is_awake_before_it_gets_traffic_and_as_long_as_it_is_tried(self, drowsy: World) -> None:
        drowsy.want("v2")
        drowsy.step()
        assert least(drowsy) == {"v1": 0, "v2": 1}
        assert drowsy.weights() == {"v1": 100}
        drowsy.engine("v2", ready=True, pods=1)
        drowsy.step()
        assert drowsy.weights() == {"v1": 80, "v2": 20}
        look(drowsy)
        assert least(drowsy) == {"v1": 0, "v2": 1}
        for _ in range(3):
            look(drowsy, candidate=400)
        assert drowsy.status.stable is not None
        assert drowsy.status.stable.model_version == "v2"
        assert least(drowsy)["v2"] == 0, "stable may sleep"

    def test_a_sleeping_version_gives_no_data_and_never_a_pass(self, drowsy: World) -> None:
        drowsy.want("v2")
        drowsy.step()
        drowsy.engine("v2", ready=True, pods=1)
        drowsy.step()
        for _ in range(30):
            look(drowsy, stable=0, candidate=100)
        assert drowsy.status.stable is not None
        assert drowsy.status.stable.model_version == "v1", "nothing to compare with: not promoted"
        assert {v.verdict.value for v in drowsy.status.verdicts} == {"undecided"}
        assert "NoAnalysisData" in drowsy.events, "and somebody hears of it"
        drowsy.want("v1")
        drowsy.step()
        drowsy.want("v3")
        drowsy.seconds += 60
        drowsy.step()
        drowsy.step()
        drowsy.engine("v3", ready=True, pods=1)
        drowsy.step()
        drowsy.events.clear()
        for _ in range(5):
            look(drowsy, stable=0, candidate=0)
        assert drowsy.status.step == 0, "no one asked: no step"
        assert "NoAnalysisData" in drowsy.events
