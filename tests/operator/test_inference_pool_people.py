"""What people do in the middle of a rollout: abort, pause, approve, want another version."""

from typing import Any

import pytest
from sluice_contracts.inference_pool import RolloutOutcome
from sluice_contracts.names import RolloutRequest
from sluice_operator.children.rayservice import service_name

from tests.operator.pool_world import World, digest, look, rolling, serving


@pytest.fixture
def world(make: Any) -> World:
    return serving(make)


class TestPeople:
    def test_setting_the_spec_back_aborts_and_wanting_it_again_starts_anew(self, world: World) -> None:
        rolling(world)
        world.want("v1")
        world.step()
        assert world.reason() == ("True", "Serving")
        assert world.status.history[-1].outcome is RolloutOutcome.ABORTED
        world.seconds += 60
        world.step()
        world.want("v2")
        world.step()
        assert world.reason() == ("False", "CandidateStarting")

    def test_a_newer_version_supersedes_and_waits_for_the_accelerators(self, world: World) -> None:
        rolling(world)
        world.want("v3")
        world.step()
        assert world.status.history[-1].outcome is RolloutOutcome.SUPERSEDED
        assert world.weights() == {"v1": 100}
        assert len(world.engines) == 2, "v1, and v2 until its answers have ended"
        world.seconds += 31
        world.step()
        world.step()
        assert sorted(world.engines) == sorted(service_name("chat", digest(v)) for v in ("v1", "v3"))

    def test_going_back_within_the_rollback_window_is_instant(self, world: World) -> None:
        rolling(world)
        for _ in range(3):
            look(world, candidate=400)
        world.want("v1")
        world.step()
        assert world.weights() == {"v1": 100}
        assert world.reason() == ("True", "Serving")

    def test_abort_by_annotation_blocks_until_retry(self, world: World) -> None:
        rolling(world)
        world.request = RolloutRequest.ABORT
        world.step()
        assert world.request is None
        assert world.reason("Stalled") == ("True", "Aborted")
        world.seconds += 1000
        world.step()
        assert world.status.candidate is None
        world.request = RolloutRequest.RETRY
        world.step()
        assert world.status.candidate is not None
        assert world.request is None

    def test_a_refused_version_stays_refused_whatever_else_the_conditions_say_meanwhile(self, world: World) -> None:
        """The API server refusing a child, or a ModelVersion that is away for a moment, is no word of a person."""
        rolling(world)
        look(world, errors=60)
        evidence = next(c.message for c in world.status.conditions if c.type == "Degraded")
        for condition in world.status.conditions:
            if condition.type in {"Ready", "Stalled"}:
                condition.reason, condition.message = "ApplyRejected", "Service chat-gateway: no"
        world.unverified = {"v2"}
        world.step()
        world.unverified = set()
        world.step()
        assert world.status.candidate is None
        assert world.reason("Stalled") == ("True", "RolledBack")
        assert evidence == next(c.message for c in world.status.conditions if c.type == "Degraded")
        world.want("v1")
        world.step()
        assert world.reason("Degraded") == ("False", "Serving")
        assert world.status.refused is None

    def test_a_version_of_the_same_name_from_another_manifest_is_another_version(self, world: World) -> None:
        rolling(world)
        look(world, errors=60)
        assert world.status.refused is not None
        world.status.refused.manifest_digest = digest("v9")
        world.step()
        assert world.status.candidate is not None

    def test_a_pause_does_not_use_up_the_deadline(self, world: World) -> None:
        rolling(world)
        world.request = RolloutRequest.PAUSE
        look(world, seconds=10, stable=2, candidate=2)
        look(world, seconds=4000, stable=2, candidate=2)
        world.request = None
        look(world, seconds=100, stable=2, candidate=2)
        assert world.reason() == ("False", "RollingOut"), "an hour is allowed, and seconds were used"
        assert 4000 <= world.status.paused_seconds <= 4100
        look(world, seconds=3600, stable=2, candidate=2)
        assert world.reason("Stalled") == ("True", "Inconclusive")
        world.want("v1")
        world.step()
        assert (world.status.paused_seconds, world.status.paused_at) == (0, None)

    def test_pause_holds_the_step_but_not_a_rollback(self, world: World) -> None:
        rolling(world)
        world.request = RolloutRequest.PAUSE
        for _ in range(5):
            look(world)
        assert world.status.step == 0
        assert world.reason() == ("False", "Paused")
        assert world.request is RolloutRequest.PAUSE, "it holds for as long as it is there"
        look(world, errors=500, candidate=500)
        assert world.reason("Stalled") == ("True", "RolledBack")

    def test_a_manual_gate_waits_for_approval_after_equivalence(self, make: Any) -> None:
        world = World(make, make.pool_spec(rollout={"manualGate": True}))
        world.step()
        world.engine("v1", ready=True)
        world.step()
        rolling(world)
        for _ in range(4):
            look(world, candidate=400)
        assert world.reason() == ("False", "AwaitingApproval")
        world.seconds += 1
        world.step()
        assert world.reason() == ("False", "AwaitingApproval"), "also between two looks at the evidence"
        world.request = RolloutRequest.APPROVE
        made = world.step()
        assert made.consume_first
        assert world.reason() == ("True", "Serving")

    def test_a_word_without_an_object_is_told_and_removed(self, world: World) -> None:
        world.request = RolloutRequest.APPROVE
        world.step()
        assert world.request is None
        assert "NothingToDo" in world.events
