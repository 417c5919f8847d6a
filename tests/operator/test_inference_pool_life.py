"""Whole lives of an InferencePool's plan, made up by hypothesis."""

import json

from hypothesis import Phase
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from sluice_contracts.inference_pool import InferencePoolStatus, RolloutOutcome
from sluice_contracts.names import RolloutRequest
from sluice_operator.analysis.verdicts import all_equivalent
from sluice_operator.inference_pool.engine_state import EngineState

from tests.operator.pool_world import World

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
