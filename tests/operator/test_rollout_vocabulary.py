"""The words of spec.rollout that say which looks count: initialDelay, failureLimit, consecutiveErrorLimit."""

from datetime import timedelta
from typing import Any

from sluice_contracts.analysis import VersionCounts
from sluice_contracts.inference_pool import InferencePoolStatus, RolloutOutcome, ServedVersion
from sluice_contracts.routing import RoutingTable
from sluice_contracts.training_run import ManifestReference
from sluice_operator.children.rayservice import Version, service_name
from sluice_operator.inference_pool.engine_state import EngineState
from sluice_operator.inference_pool.evidence import Evidence
from sluice_operator.inference_pool.observe import GatewayState, Observed, VersionState, analysis_due, current_window
from sluice_operator.inference_pool.plan import plan
from sluice_operator.plan import Plan


class Canary:
    """A pool in the middle of a rollout from v1 to v2, whose engine has just become ready."""

    def __init__(self, make: Any, **rollout: Any) -> None:
        self.make, self.seconds, self.watching = make, 0.0, True
        self.events: list[str] = []
        self.counts: dict[str, VersionCounts] = {}
        self.window = ""
        self.spec = make.pool_spec(modelVersion="v2", rollout={"minRequests": 1, "stepDuration": "10s", **rollout})
        served = {}
        self.versions, self.engines = {}, {}
        for name in ("v1", "v2"):
            manifest = ManifestReference(uri=f"gs://sluice/{name}/manifest.json", digest="sha256:" + name[1] * 64)
            engine = service_name("chat", manifest.digest)
            self.versions[name] = VersionState(Version(name, self.spec.model, name[1] * 64, manifest))
            self.engines[engine] = EngineState(engine, ready=True)
            served[name] = ServedVersion(
                model_version=name,
                lineage=name[1] * 64,
                manifest_digest=manifest.digest,
                ray_service=engine,
                ready=True,
                since=make.at(-600) if name == "v1" else None,
            )
        self.status = InferencePoolStatus(stable=served["v1"], candidate=served["v2"], rollout_started_at=make.at(-60))
        self.look(0)

    def look(self, after: float = 10, found: Evidence | None = None) -> Plan:
        """One pass, so many seconds later. A gateway starts its counts anew with another window; `found` stands for
        what it would have said."""
        self.seconds += after
        now = self.make.now + timedelta(seconds=self.seconds)
        evidence, candidate = None, self.status.candidate
        if candidate is not None and analysis_due(self.spec, self.status, None, now):
            heard = self.watching and self.window == current_window(candidate, self.status, now)
            evidence = found or Evidence(dict(self.counts) if heard else {}, asked=1, answered=int(heard))
        state = Observed(
            self.status,
            versions=self.versions,
            engines=self.engines,
            gateway=GatewayState(1, "1 of 1 gateway pods are ready"),
            evidence=evidence,
            window=self.window,
        )
        done = plan(self.make.meta("chat"), self.spec, state, self.make.settings(), now)
        self.status = InferencePoolStatus.model_validate(done.status)
        routes = next(a.object for a in done.apply if a.object["metadata"]["name"] == "chat-routes")
        table = RoutingTable.model_validate_json(routes["data"]["routes.json"])
        if table.window != self.window:
            self.window, self.counts = table.window, {}
        self.events += [event.reason for event in done.events]
        return done

    def answers(self, n: int, errors: int = 0) -> None:
        """Requests of both versions; only the candidate fails any."""
        for name, failed in (("v1", 0), ("v2", errors)):
            before = self.counts.get(name, VersionCounts())
            self.counts[name] = before.plus(VersionCounts(requests=n, errors=failed))


def test_without_a_delay_the_first_look_comes_after_an_interval(make: Any) -> None:
    canary = Canary(make)
    window = canary.window
    canary.answers(400)
    canary.look()
    assert canary.status.verdicts
    assert canary.window == window


def test_what_happens_in_the_initial_delay_is_not_judged(make: Any) -> None:
    canary = Canary(make, initialDelay="25s")
    cold = canary.window
    canary.answers(100, errors=90)  # cold caches
    done = canary.look()
    assert not canary.status.verdicts
    assert done.requeue_after == 15  # the end of the delay
    canary.look(15)
    assert canary.window != cold, "the gateways count anew"
    assert not canary.status.verdicts
    canary.answers(400)
    canary.look(10)
    assert canary.status.candidate is not None
    assert canary.status.verdicts[0].samples == 400
    assert "NoAnalysisData" not in canary.events


def test_harm_after_the_initial_delay_is_caught_as_ever(make: Any) -> None:
    canary = Canary(make, initialDelay="25s")
    canary.look(25)
    canary.answers(400, errors=300)
    canary.look(10)
    assert canary.status.history[-1].outcome is RolloutOutcome.ROLLED_BACK


def test_a_clock_set_back_does_not_blind_the_canary(make: Any) -> None:
    canary = Canary(make, initialDelay="25s")
    assert analysis_due(canary.spec, canary.status, None, make.now - timedelta(hours=1))


def test_the_first_harmful_look_rolls_back(make: Any) -> None:
    canary = Canary(make)
    canary.answers(400, errors=300)
    canary.look()
    assert canary.status.candidate is None
    assert [(w.model_version, w.percent) for w in canary.status.weights] == [("v1", 100)]


def test_a_failure_limit_bears_harmful_looks_but_takes_no_step(make: Any) -> None:
    canary = Canary(make, failureLimit=2)
    canary.answers(400, errors=300)
    for borne in (1, 2):
        canary.look()
        assert canary.status.harmful_looks == borne
        assert canary.status.step == 0
        assert canary.events.count("HarmfulLook") == borne
    canary.look()
    assert canary.status.candidate is None
    assert canary.status.harmful_looks == 0
    assert canary.status.history[-1].outcome is RolloutOutcome.ROLLED_BACK


def test_a_canary_that_nobody_watches_loses_its_traffic(make: Any) -> None:
    canary = Canary(make, consecutiveErrorLimit=2)
    canary.watching = False
    for _ in range(2):
        canary.look()
        assert canary.status.candidate is not None
    canary.look()
    assert canary.status.candidate is None
    assert "nobody watches" in canary.status.history[-1].message


def test_one_look_with_counts_forgives_the_blind_ones_before(make: Any) -> None:
    canary = Canary(make, consecutiveErrorLimit=2)
    for _ in range(3):
        canary.watching = False
        canary.look()
        canary.look()
        assert canary.status.failed_looks == 2
        canary.watching = True
        canary.look()
        assert canary.status.failed_looks == 0
    assert canary.status.candidate is not None
