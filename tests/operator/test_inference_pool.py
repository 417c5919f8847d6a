"""The plan of an InferencePool: one situation after another, then whole lives made up by hypothesis."""

import json
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import pytest
import yaml
from hypothesis import Phase
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from sluice_contracts.analysis import AnalysisSnapshot, VersionCounts
from sluice_contracts.inference_pool import InferencePoolSpec, InferencePoolStatus, RolloutOutcome
from sluice_contracts.names import ANNOTATION_ROLLOUT, RolloutRequest
from sluice_contracts.routing import RoutingTable
from sluice_contracts.training_run import ManifestReference
from sluice_operator.analysis.verdicts import all_equivalent
from sluice_operator.children.rayservice import Version, service_name
from sluice_operator.inference_pool.engine_state import EngineState
from sluice_operator.inference_pool.evidence import Evidence, add_up
from sluice_operator.inference_pool.observe import GatewayState, Observed, VersionState, analysis_due, window_of
from sluice_operator.inference_pool.plan import plan
from sluice_operator.plan import Plan


def digest(version: str) -> str:
    return "sha256:" + (version[-1] * 64)


def version_state(name: str) -> VersionState:
    manifest = ManifestReference(uri=f"gs://sluice/runs/{name}/manifest.json", digest=digest(name))
    return VersionState(Version(name, "support-bot", name[-1] * 64, manifest))


@dataclass
class World:
    """A pool and everything around it, moved by hand. What the operator writes is carried out as it asks."""

    make: Any
    spec: InferencePoolSpec
    status: InferencePoolStatus = field(default_factory=InferencePoolStatus)
    engines: dict[str, EngineState] = field(default_factory=dict)
    counts: dict[str, VersionCounts] = field(default_factory=dict)
    seconds: float = 0
    gateway: int = 1
    routes: RoutingTable | None = None
    request: RolloutRequest | None = None
    unverified: set[str] = field(default_factory=set)
    events: list[str] = field(default_factory=list)

    @property
    def now(self) -> Any:
        return self.make.now + timedelta(seconds=self.seconds)

    def want(self, version: str) -> None:
        self.spec = self.spec.model_copy(update={"model_version": version})

    def engine(self, version: str, **state: Any) -> None:
        name = service_name("chat", digest(version))
        self.engines[name] = replace(self.engines[name], **state)

    def traffic(self, version: str, requests: int, errors: int = 0) -> None:
        self.counts[version] = self.counts.get(version, VersionCounts()).plus(
            VersionCounts(requests=requests, errors=errors)
        )

    def observe(self) -> Observed:
        status = self.status
        names = {
            self.spec.model_version,
            *(s.model_version for s in (status.stable, status.candidate, status.previous) if s),
        }
        evidence = None
        if status.candidate is not None and analysis_due(self.spec, status, self.request, self.now):
            same = self.routes is not None and self.routes.window == window_of(
                status.candidate, status.rollout_started_at
            )
            evidence = Evidence(
                dict(self.counts) if same else {}, asked=self.gateway, answered=self.gateway if same else 0
            )
        bad = VersionState(stalled=True, why_not="ModelVersion is not verified: file missing")
        return Observed(
            status=status,
            versions={n: bad if n in self.unverified else version_state(n) for n in names},
            engines=dict(self.engines),
            gateway=GatewayState(self.gateway, f"{self.gateway} of 1 gateway pods are ready"),
            evidence=evidence,
            window=self.routes.window if self.routes is not None else "",
            request=self.request,
        )

    def decide(self) -> Plan:
        annotations = {ANNOTATION_ROLLOUT: self.request.value} if self.request else {}
        meta = self.make.meta("chat", annotations=annotations)
        return plan(meta, self.spec, self.observe(), self.make.settings(), self.now)

    def step(self, children: bool = True) -> Plan:
        """One look. Without `children` the operator dies after its first write, the status."""
        made = self.decide()
        self.status = InferencePoolStatus.model_validate(made.status)
        self.events += [e.reason for e in made.events]
        if not children:
            return made
        for apply in made.apply:
            name = apply.object["metadata"]["name"]
            if apply.resource.kind == "RayService":
                self.engines.setdefault(name, EngineState(name))
                proven = {s.ray_service for s in (self.status.stable, self.status.previous) if s and s.since}
                assert name in proven or keeps(apply.object) >= 1, f"{name} may sleep and has not served yet"
            if name == "chat-routes":
                before = self.routes
                self.routes = RoutingTable.model_validate_json(apply.object["data"]["routes.json"])
                if before is None or before.window != self.routes.window:
                    self.counts = {}
        for delete in made.delete:
            self.engines.pop(delete.name, None)
        if made.consume is not None:
            self.request = None
        return made

    def reason(self, type_: str = "Ready") -> tuple[str, str]:
        found = next(c for c in self.status.conditions if c.type == type_)
        return found.status, found.reason

    def weights(self) -> dict[str, int]:
        assert self.routes is not None
        return {b.model_version: b.weight for b in self.routes.backends}


def keeps(service: Any) -> int:
    """Engines that a RayService keeps at least."""
    (application,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    (deployment,) = application["deployments"]
    scaling = deployment.get("autoscaling_config")
    return int(scaling["min_replicas"] if scaling else deployment["num_replicas"])


@pytest.fixture
def world(make: Any) -> World:
    """v1 serves."""
    found = World(make, make.pool_spec())
    found.step()
    found.engine("v1", ready=True)
    found.step()
    assert found.reason() == ("True", "Serving")
    return found


def rolling(world: World) -> World:
    """v2 is on its first step."""
    world.want("v2")
    world.step()
    world.engine("v2", ready=True)
    world.step()
    assert world.weights() == {"v1": 80, "v2": 20}
    return world


def look(world: World, seconds: float = 30, stable: int = 400, candidate: int = 100, errors: int = 0) -> None:
    """Traffic without complaints, time, and a look."""
    world.traffic("v1", stable)
    world.traffic("v2", candidate, errors)
    world.seconds += seconds
    world.step()


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


def least(world: World) -> dict[str, int]:
    """Engines that each version keeps at least, by the RayServices the operator wants now."""
    services = [a.object for a in world.decide().apply if a.resource.kind == "RayService"]
    return {s["metadata"]["labels"]["sluice.dev/model-version"]: keeps(s) for s in services}


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


def test_snapshots_of_another_window_have_no_say() -> None:
    def snapshot(window: str, requests: int) -> AnalysisSnapshot:
        counts = {"v1": VersionCounts(requests=requests)}
        return AnalysisSnapshot(instance="i", window=window, since="2026-11-21T12:00:00Z", versions=counts)

    found = add_up("w2", [snapshot("w1", 1000), snapshot("w2", 5), snapshot("w2", 7)], asked=3)
    assert found.counts["v1"].requests == 12
    assert (found.asked, found.answered) == (3, 2)


VERSIONS = st.sampled_from(["v1", "v2", "v3", "v4"])


class PoolLife(RuleBasedStateMachine):
    """Any order of wishes, engines, traffic, words, crashes and time."""

    def __init__(self) -> None:
        super().__init__()
        from tests.operator.conftest import Make  # hypothesis builds the machine itself: no fixture reaches it

        self.world = World(Make(), Make.pool_spec())

    @rule(version=VERSIONS)
    def want(self, version: str) -> None:
        self.world.want(version)

    @precondition(lambda self: self.world.engines)
    @rule(data=st.data(), ready=st.booleans(), fails=st.integers(0, 5))
    def engine(self, data: st.DataObject, ready: bool, fails: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.world.engines)))
        failure = "failed to deploy" if fails == 0 else None
        self.world.engines[name] = EngineState(name, ready=ready and failure is None, failure=failure)

    @rule(least=st.integers(0, 1))
    def size(self, least: int) -> None:
        replicas = self.world.spec.replicas.model_copy(update={"min": least, "max": 2})
        self.world.spec = self.world.spec.model_copy(update={"replicas": replicas})

    @precondition(lambda self: self.world.engines)
    @rule(data=st.data(), pods=st.sampled_from([None, 0, 1, 2]), deploying=st.booleans())
    def engines_sleep_and_wake(self, data: st.DataObject, pods: int | None, deploying: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.world.engines)))
        self.world.engines[name] = EngineState(name, ready=not deploying, deploying=deploying, pods=pods)

    @rule(version=VERSIONS)
    def engines_up(self, version: str) -> None:
        for name in self.world.engines:
            self.world.engines[name] = EngineState(name, ready=True)

    @rule(requests=st.integers(0, 800), bad=st.sampled_from([0.0, 0.0, 0.0, 0.01, 0.5]))
    def traffic(self, requests: int, bad: float) -> None:
        if self.world.routes is None:
            return
        for backend in self.world.routes.backends:
            if backend.weight and backend.ready:
                candidate = self.world.status.candidate
                is_candidate = candidate is not None and candidate.model_version == backend.model_version
                self.world.traffic(backend.model_version, requests, int(requests * bad) if is_candidate else 0)

    @rule(version=st.sampled_from(["v1", "v2", "v3"]), looks=st.integers(1, 8), requests=st.sampled_from([5, 60, 400]))
    def quiet_days(self, version: str, looks: int, requests: int) -> None:
        """Nothing goes wrong for a while: without this, few lives would ever see the end of a rollout."""
        self.world.request = None
        self.world.unverified.clear()
        self.want(version)
        for _ in range(looks):
            self.engines_up(version)
            self.traffic(requests, 0.0)
            self.time(31)
            self.look(crash=False)

    @rule(request=st.sampled_from([*RolloutRequest, None, None, None, None]))
    def word(self, request: RolloutRequest | None) -> None:
        self.world.request = request

    @rule(seconds=st.sampled_from([0, 1, 10, 31, 60, 400, 4000]))
    def time(self, seconds: int) -> None:
        self.world.seconds += seconds

    @rule(version=VERSIONS)
    def verified_or_not(self, version: str) -> None:
        self.world.unverified ^= {version}

    @rule()
    def gateway_restarts(self) -> None:
        self.world.counts = {}

    @rule(crash=st.sampled_from([False, False, False, True]))
    def look(self, crash: bool) -> None:
        before, word = self.world.status, self.world.request
        made = self.world.step(children=not crash)
        if crash and made.consume is not None and made.consume_first:
            self.world.request = None
        self._legal(before, self.world.status, word)
        if not crash and made.consume is None:
            again = self.world.decide()
            assert again.events == [], "a second look at the same world tells nothing new"

    def _legal(self, before: InferencePoolStatus, after: InferencePoolStatus, word: RolloutRequest | None) -> None:
        if before.stable is None or after.stable is None:
            return
        old, new = before.stable.model_version, after.stable.model_version
        if old == new or before.stable.since is None:
            return
        record = after.history[-1]
        assert (record.model_version, record.outcome) == (new, RolloutOutcome.PROMOTED)
        went_back = before.previous is not None and before.previous.model_version == new
        proven = (
            before.candidate is not None and before.candidate.model_version == new and all_equivalent(record.verdicts)
        )
        assert went_back or proven or word is RolloutRequest.APPROVE, "promoted without a verdict"
        if proven:
            assert before.candidate is not None
            assert self.world.engines[before.candidate.ray_service].ready

    @invariant()
    def weights_are_whole_and_go_to_ready_versions(self) -> None:
        status = self.world.status
        if status.weights:
            assert sum(w.percent for w in status.weights) == 100
        assert len({w.model_version for w in status.weights}) == len(status.weights) <= 2
        if self.world.routes is not None and self.world.routes.backends:
            assert sum(b.weight for b in self.world.routes.backends) == 100
            assert all(b.ready for b in self.world.routes.backends[1:] if b.weight)

    @invariant()
    def never_more_than_two_engines_nor_a_candidate_that_is_stable(self) -> None:
        assert len(self.world.engines) <= 2
        status = self.world.status
        if status.candidate is not None:
            assert status.stable is not None
            assert status.candidate.ray_service != status.stable.ray_service

    @invariant()
    def the_status_fits_its_bounds(self) -> None:
        assert len(json.dumps(self.world.status.wire())) < 60_000


TestPoolLife = PoolLife.TestCase
TestPoolLife.settings = hypothesis_settings(
    max_examples=150,
    stateful_step_count=25,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # shrinking a life takes minutes; the failing one says enough
)
