"""Whole lives of an InferencePool, made up by hypothesis.

Any order of wishes, words, engines, traffic, lost and repeated events, broken requests, killed operators, clocks that
jump: nothing illegal may ever be asked for, and when the world is calm again the pool must get where its spec wants it.
"""

import copy
import json
from datetime import timedelta
from typing import Any

import yaml
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from sluice_contracts.adapters import adapter_application
from sluice_contracts.analysis import VersionCounts
from sluice_contracts.inference_pool import InferencePoolStatus, RolloutOutcome, ServedVersion
from sluice_contracts.kubernetes import Condition
from sluice_contracts.names import ANNOTATION_ROLLOUT, ConditionType, RolloutRequest
from sluice_operator.analysis.verdicts import all_equivalent
from sluice_operator.children.boundaries import pod_labels
from sluice_operator.children.gateway import gateway_name
from sluice_operator.children.rayservice import service_name
from sluice_operator.children.routes import read_routes, routes_name
from sluice_operator.conditions import find
from sluice_operator.inference_pool.engine_state import read_ray_service
from sluice_operator.inference_pool.observe import analysis_due
from sluice_operator.kube.resources import CONFIG_MAP, DEPLOYMENT, INFERENCE_POOL, RAY_SERVICE

from tests.operator.simulation import ADAPTERS, NAMESPACE, Fault, Make, Simulation

POOL = "chat"
VERSIONS = ("v1", "v2", "v3", "v4", *ADAPTERS)
RUNNING: dict[str, Any] = {
    "conditions": [{"type": "Ready", "status": "True", "reason": "NonZeroServeEndpoints"}],
    "activeServiceStatus": {"applicationStatuses": {"llm": {"status": "RUNNING"}}},
}
STATES: dict[str, dict[str, Any]] = {
    "ready": RUNNING,
    "starting": {"conditions": [{"type": "Ready", "status": "False", "reason": "Initializing"}]},
    "failed": {
        "conditions": [{"type": "Ready", "status": "False", "reason": "Initializing"}],
        "pendingServiceStatus": {"applicationStatuses": {"llm": {"status": "DEPLOY_FAILED", "message": "no memory"}}},
    },
    "head lost": RUNNING | {"conditions": [{"type": "Ready", "status": "False", "reason": "ZeroServeEndpoints"}]},
    "deploying": RUNNING | {"activeServiceStatus": {"applicationStatuses": {"llm": {"status": "DEPLOYING"}}}},
    "awake": RUNNING
    | {"activeServiceStatus": RUNNING["activeServiceStatus"] | {"rayClusterStatus": {"availableWorkerReplicas": 1}}},
    "nothing": {},
}
QUIET_LOOKS = 4
"""Looks after which nothing more is written while the clock stands still: the status, what children answer to it, and
an annotation that is removed each take one."""
CALM_LOOKS = 60


class PoolLife(RuleBasedStateMachine):
    """One pool. Every look is checked for moves that are never allowed."""

    def __init__(self) -> None:
        super().__init__()
        self.sim = Simulation()
        for version in VERSIONS:
            self.sim.version(version)
        self.sim.gateway_pod(pod_labels("gateway", POOL))
        self.spec: dict[str, Any] = Make.pool_spec(engine={"adapters": {}}).wire()
        self._apply()
        self.sim.relist()

    def teardown(self) -> None:
        self.sim.close()

    # -- the world ----------------------------------------------------------------------------------------------------

    def _apply(self) -> None:
        body = {
            "apiVersion": INFERENCE_POOL.api_version,
            "kind": INFERENCE_POOL.kind,
            "metadata": {"name": POOL, "namespace": NAMESPACE},
            "spec": self.spec,
        }
        self.sim.api.put(INFERENCE_POOL, body)

    @property
    def status(self) -> InferencePoolStatus:
        found = self.sim.api.objects[next(k for k in self.sim.api.objects if k.resource == INFERENCE_POOL)]
        return InferencePoolStatus.model_validate(found.get("status") or {})

    def _engines(self) -> list[str]:
        return [obj["metadata"]["name"] for obj in self.sim.api.all(RAY_SERVICE)]

    def _engine_is(self, name: str, state: str, adapters: str = "RUNNING") -> None:
        """A RayService's state, and that of the adapters it is told to have."""
        status = copy.deepcopy(STATES[state])
        (service,) = [obj for obj in self.sim.api.all(RAY_SERVICE) if obj["metadata"]["name"] == name]
        declared = yaml.load(
            service["spec"]["serveConfigV2"], yaml.CSafeLoader
        )  # the plain one took a quarter of a life
        for application in declared["applications"][1:]:
            for part in ("activeServiceStatus", "pendingServiceStatus"):
                if part in status:
                    status[part]["applicationStatuses"][application["name"]] = {"status": adapters}
        self.sim.api.set_status(RAY_SERVICE, name, status)

    def _routes(self) -> Any:
        return read_routes(next(iter(self.sim.api.all(CONFIG_MAP)), None))

    @rule(version=st.sampled_from(VERSIONS))
    def want(self, version: str) -> None:
        self.spec = self.spec | {"modelVersion": version}
        self._apply()

    @rule(gate=st.booleans(), inconclusive=st.sampled_from(["pause", "rollback"]))
    def change_the_rules(self, gate: bool, inconclusive: str) -> None:
        rollout = self.spec["rollout"] | {"manualGate": gate, "onInconclusive": inconclusive}
        self.spec = self.spec | {"rollout": rollout}
        self._apply()

    @rule(least=st.integers(0, 1))
    def size(self, least: int) -> None:
        self.spec = self.spec | {"replicas": self.spec["replicas"] | {"min": least, "max": 2}}
        self._apply()

    @rule(word=st.sampled_from([*RolloutRequest, "nonsense", None, None]))
    def say(self, word: str | None) -> None:
        self.sim.api.annotate(INFERENCE_POOL, POOL, {ANNOTATION_ROLLOUT: None if word is None else str(word)})

    @precondition(lambda self: self._engines())
    @rule(
        data=st.data(),
        state=st.sampled_from(["ready", *STATES]),
        adapters=st.sampled_from(["RUNNING", "RUNNING", "DEPLOYING", "DEPLOY_FAILED"]),
    )
    def engine(self, data: st.DataObject, state: str, adapters: str) -> None:
        self._engine_is(data.draw(st.sampled_from(self._engines())), state, adapters)

    @precondition(lambda self: self._engines())
    @rule(data=st.data())
    def engine_is_deleted(self, data: st.DataObject) -> None:
        self.sim.api.remove(RAY_SERVICE, data.draw(st.sampled_from(self._engines())))

    @rule(version=st.sampled_from(VERSIONS), verified=st.booleans())
    def version_changes(self, version: str, verified: bool) -> None:
        self.sim.version(version, verified)

    @rule(ready=st.integers(0, 1))
    def gateway(self, ready: int) -> None:
        if self.sim.api.all(DEPLOYMENT):
            self.sim.api.set_status(DEPLOYMENT, gateway_name(POOL), {"readyReplicas": ready})

    @rule(child=st.sampled_from([CONFIG_MAP, DEPLOYMENT]))
    def child_is_deleted(self, child: Any) -> None:
        self.sim.api.remove(child, routes_name(POOL) if child == CONFIG_MAP else gateway_name(POOL))

    @rule(
        requests=st.integers(0, 800),
        bad=st.sampled_from([0.0, 0.0, 0.01, 0.6]),
        answers=st.sampled_from([True] * 4 + [False]),
    )
    def traffic(self, requests: int, bad: float, answers: bool) -> None:
        routes, gateways = self._routes(), self.sim.gateways
        gateways.answers = answers
        if routes is None:
            return
        if routes.window != gateways.window:
            gateways.window, gateways.counts = routes.window, {}
        for place, backend in enumerate(routes.backends):
            if backend.weight:
                errors = int(requests * bad) if place else 0
                known = gateways.counts.get(backend.model_version, VersionCounts())
                gateways.counts[backend.model_version] = known.plus(VersionCounts(requests=requests, errors=errors))

    @rule()
    def gateway_restarts(self) -> None:
        self.sim.gateways.counts = {}

    @rule(seconds=st.sampled_from([0, 1, 10, 31, 400, 4000, -5, -3600]))
    def clock_jumps(self, seconds: int) -> None:
        self.sim.seconds += seconds

    # -- what the operator hears --------------------------------------------------------------------------------------

    @rule(picked=st.lists(st.integers(0, 50), max_size=6), keep=st.booleans())
    def some_events_arrive(self, picked: list[int], keep: bool) -> None:
        self.sim.deliver(picked, keep=keep)

    @rule(picked=st.lists(st.integers(0, 60), min_size=1, max_size=20))
    def old_events_arrive_again(self, picked: list[int]) -> None:
        self.sim.deliver_again(picked)
        self._look()

    @rule()
    def all_events_arrive(self) -> None:
        self.sim.deliver(list(range(len(self.sim.api.events))))

    @rule()
    def restart(self) -> None:
        self.sim.restart()

    # -- a look -------------------------------------------------------------------------------------------------------

    @rule(fault=st.sampled_from(["", "", "", "lost", "unanswered", "killed"]), after=st.integers(0, 4))
    def look(self, fault: str, after: int) -> None:
        self.sim.api.fault = Fault(fault, after) if fault else None
        self._look()

    def _look(self) -> float | None:
        """One look, judged by what the operator could know at that moment."""
        before = self.status
        cached = self.sim.cache.get(INFERENCE_POOL, NAMESPACE, POOL)
        known = InferencePoolStatus.model_validate((cached or {}).get("status") or {})
        word = ((cached or {}).get("metadata") or {}).get("annotations", {}).get(ANNOTATION_ROLLOUT)
        services = self.sim.cache.children(INFERENCE_POOL, NAMESPACE, POOL, RAY_SERVICE)
        engines = [e for e in map(read_ray_service, services) if e.ready and not e.deleting]
        ready = {e.name for e in engines}
        adapters = {(e.name, app) for e in engines for app, state in e.adapters.items() if state.failure is None}
        routes_before = self._routes()
        again = self.sim.look(INFERENCE_POOL, POOL)
        after = self.status
        if after != before:
            self._legal_promotion(known, after, word, ready)
            self._legal_step(known, after, ready)
        routes = self._routes()
        if routes is not None and routes != routes_before:
            for backend in routes.backends[1:]:
                hosts = {name for name in ready if name in backend.url}
                assert not backend.weight or hosts, f"{backend.model_version} has traffic and is not ready"
                loaded = {(host, adapter_application(backend.manifest_digest)) for host in hosts} & adapters
                assert not backend.weight or backend.engine_model is None or loaded, "traffic to an adapter not loaded"
        return again

    @staticmethod
    def _legal_step(before: InferencePoolStatus, after: InferencePoolStatus, ready: set[str]) -> None:
        """A further step of the same rollout is one forward, and only for an engine that is ready."""
        one, two = before.candidate, after.candidate
        same = one is not None and two is not None and one.manifest_digest == two.manifest_digest
        if not same or before.rollout_started_at != after.rollout_started_at or before.step == after.step:
            return
        assert after.step == (0 if before.step is None else before.step + 1), "a step was left out or taken back"
        assert two is not None
        assert two.ray_service in ready, f"{two.model_version} went on to step {after.step} and is not ready"

    @staticmethod
    def _legal_promotion(
        before: InferencePoolStatus, after: InferencePoolStatus, word: str | None, ready: set[str]
    ) -> None:
        if before.stable is None or after.stable is None or before.stable.since is None:
            return
        new = after.stable.model_version
        if before.stable.model_version == new:
            return
        record = after.history[-1]
        assert (record.model_version, record.outcome) == (new, RolloutOutcome.PROMOTED)
        went_back = before.previous is not None and before.previous.model_version == new
        same_files = before.stable.manifest_digest == after.stable.manifest_digest
        candidate = before.candidate
        proven = candidate is not None and candidate.model_version == new and all_equivalent(record.verdicts)
        assert went_back or same_files or proven or word == "approve", f"{new} was promoted without a verdict"
        assert same_files or after.stable.ray_service in ready, f"{new} was promoted and is not ready"

    # -- what always holds --------------------------------------------------------------------------------------------

    @invariant()
    def weights_are_whole(self) -> None:
        status, routes = self.status, self._routes()
        assert sum(w.percent for w in status.weights) in ({100} if status.stable is not None else {0})
        assert len({w.model_version for w in status.weights}) == len(status.weights)
        if routes is not None and routes.backends:
            assert sum(b.weight for b in routes.backends) == 100

    @invariant()
    def an_adapter_lies_on_its_own_base(self) -> None:
        for served in (self.status.stable, self.status.candidate, self.status.previous):
            if served is not None and served.base is not None:
                assert served.base.model_version == ADAPTERS[served.model_version]
                assert served.ray_service == service_name(POOL, served.base.manifest_digest)

    @invariant()
    def at_most_two_engines(self) -> None:
        assert len(self._engines()) <= 2

    @invariant()
    def the_status_is_bounded(self) -> None:
        assert len(json.dumps(self.status.wire())) < 60_000

    @rule(
        version=st.sampled_from(VERSIONS),
        bad=st.sampled_from([0.0, 0.07, 0.08, 0.6]),
        requests=st.sampled_from([60, 60, 400]),
        unready=st.sampled_from([None, None, "always", "odd looks"]),
        word=st.sampled_from([None, None, None, *RolloutRequest]),
        seconds=st.sampled_from([31, 31, 31, 11, 900]),
    )
    def a_rollout(
        self, version: str, bad: float, requests: int, unready: str | None, word: str | None, seconds: int
    ) -> None:
        """Events arrive and engines come up for a while: without this, few lives would see a rollout end."""
        self.sim.version(version)
        self.want(version)
        self.say(word)
        self.sim.relist()
        for number in range(6):
            for name in self._engines():
                self._engine_is(name, "ready")
            self.gateway(1)
            self.traffic(requests, bad, True)
            candidate = self.status.candidate
            sick = self.status.step is not None and (unready == "always" or (unready is not None and number % 2 == 1))
            if sick and candidate is not None and candidate.ray_service in self._engines():
                self._engine_is(candidate.ray_service, "head lost")
            self.all_events_arrive()
            self._look()
            self.sim.seconds += seconds

    @rule(adapter=st.sampled_from(list(ADAPTERS)), word=st.sampled_from([None, *RolloutRequest]))
    def an_adapter(self, adapter: str, word: str | None) -> None:
        """After its base, while that serves: by chance alone few lives would come so far."""
        stable = self.status.stable
        if stable is None or (stable.base is None and stable.model_version != ADAPTERS[adapter]):
            self.a_rollout(ADAPTERS[adapter], bad=0.0, requests=400, unready=None, word=None, seconds=31)
        self.a_rollout(adapter, bad=0.0, requests=400, unready=None, word=word, seconds=31)

    @rule(versions=st.lists(st.sampled_from(VERSIONS), min_size=2, max_size=4))
    def impatience(self, versions: list[str]) -> None:
        """A person wants one version after another, each before the last has gone anywhere."""
        self.sim.relist()
        for version in versions:
            self.want(version)
            for _ in range(2):
                for name in self._engines():
                    self._engine_is(name, "ready")
                self.all_events_arrive()
                self._look()
                assert len(self._engines()) <= 2
            self.sim.seconds += 3

    @rule()
    def nothing_is_written_twice(self) -> None:
        """While the clock stands still, looks come to rest: the plan of its own result is empty."""
        for _ in range(QUIET_LOOKS):
            before = self.sim.api.writes
            self.sim.relist()
            self._look()
            if self.sim.api.writes == before:
                return
        raise AssertionError(f"still writing after {QUIET_LOOKS} looks at the same world")

    @rule(version=st.sampled_from(VERSIONS))
    def calm(self, version: str) -> None:
        """Everything works and requests are answered well: the pool arrives, and then rests."""
        for other in VERSIONS:
            self.sim.version(other)
        self.change_the_rules(gate=False, inconclusive="pause")
        self.say(None)
        self.want(version)
        self.sim.relist()  # as every resync does: what was lost is heard of at last
        for _ in range(CALM_LOOKS):
            for name in self._engines():
                self._engine_is(name, "ready")
            self.gateway(1)
            self.traffic(200, 0.0, True)
            if self._ready().reason in {"RolledBack", "Aborted"}:
                self.say("retry")
            elif self._ready().reason == "Inconclusive":
                self.say("approve")
            self.sim.deliver(list(range(len(self.sim.api.events))))
            writes = self.sim.api.writes
            again = self._look()
            if again is None and self.sim.api.writes == writes and self._arrived(version):
                break
            self.sim.seconds += min(max(again or 1.0, 1.0), 400)
        assert self._arrived(version), self.status
        self.nothing_is_written_twice()
        assert len(self._engines()) == 1, "only what serves is left"

    def _ready(self) -> Condition:
        found = find(self.status.conditions, ConditionType.READY)
        return found or Condition(type="Ready", status="Unknown", reason="New", last_transition_time=Make.at(0))

    def _arrived(self, version: str) -> bool:
        status = self.status
        done = status.stable is not None and status.stable.model_version == version and status.candidate is None
        return done and self._ready().status == "True" and status.previous is None


def test_a_clock_that_is_set_back_does_not_blind_a_canary() -> None:
    spec = Make.pool_spec()
    served = ServedVersion(model_version="v2", lineage="2" * 64, manifest_digest=Make.digest, ray_service="chat-2")
    status = InferencePoolStatus(candidate=served, step=0, analyzed_at=Make.at(0))
    assert not analysis_due(spec, status, None, Make.now + timedelta(seconds=9))
    assert analysis_due(spec, status, None, Make.now + timedelta(seconds=10))
    assert analysis_due(spec, status, None, Make.now - timedelta(hours=1))


TestPoolLife = PoolLife.TestCase
TestPoolLife.settings = settings(
    max_examples=30,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    phases=(Phase.explicit, Phase.generate),  # shrinking a life takes minutes; the failing one says enough
)
