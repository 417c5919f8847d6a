"""How a pool gets from its stable version to the one its spec wants: the rollout, as a pure function.

Everything is decided from the status (what has been decided before), the engines (what is ready) and the evidence (what
requests did). Rules that hold in every state: one stable, at most one candidate; no weight on a version that is not
ready; a harmful verdict takes the candidate's traffic away in the same pass; nobody is promoted without equivalent
verdicts or a person's word; the spec is never touched.
"""

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sluice_contracts.analysis import VersionCounts
from sluice_contracts.base import parse_timestamp, seconds, timestamp
from sluice_contracts.inference_pool import (
    InferencePoolSpec,
    InferencePoolStatus,
    MetricVerdict,
    RefusedVersion,
    RolloutNeeds,
    RolloutOutcome,
    RolloutRecord,
    ServedBase,
    ServedVersion,
    Weight,
)
from sluice_contracts.names import ConditionType, RolloutRequest

from sluice_operator.analysis import judge
from sluice_operator.analysis.verdicts import all_equivalent, any_harmful
from sluice_operator.children.hardware import HardwareError
from sluice_operator.children.rayservice import Version, service_name
from sluice_operator.conditions import find
from sluice_operator.inference_pool import adapters
from sluice_operator.inference_pool.capacity import asleep
from sluice_operator.inference_pool.evidence import Evidence
from sluice_operator.inference_pool.needs import adapter_needs, rollout_needs
from sluice_operator.inference_pool.observe import Observed
from sluice_operator.inference_pool.standing import Manner, Standing, candidate_weight, evidence_text, paused
from sluice_operator.plan import Event, EventType, Meta, bounded

HISTORY = 10
REFUSAL = 2048
"""Characters of a refusal's message in status."""


@dataclass
class Turn:
    """What one pass over the rollout decided."""

    status: InferencePoolStatus
    standing: Standing
    events: list[Event] = field(default_factory=list)
    consume: bool = False
    """The rollout annotation has been obeyed, or cannot be."""
    consume_first: bool = False


def turn(meta: Meta, spec: InferencePoolSpec, observed: Observed, now: datetime) -> Turn:
    """One pass: the new status (without conditions), where the pool stands, and what to tell."""
    return _Turning(meta, spec, observed, now).turn()


class _Turning:
    def __init__(self, meta: Meta, spec: InferencePoolSpec, observed: Observed, now: datetime) -> None:
        self.meta, self.spec, self.observed, self.now = meta, spec, observed, now
        self.status: InferencePoolStatus = observed.status.model_copy(deep=True)
        self.events: list[Event] = []
        self.consume = self.consume_first = False
        self.wanted = observed.versions[spec.model_version]

    def turn(self) -> Turn:
        self._note_readiness()
        self._drop_previous()
        self._forget()
        self._time_pause()
        standing = self._stand()
        if self.observed.request in {RolloutRequest.ABORT, RolloutRequest.RETRY, RolloutRequest.APPROVE}:
            if not self.consume:
                word = self.observed.request.value
                self._event(
                    "NothingToDo", f"the rollout annotation asks to {word}, and there is nothing to {word}", True
                )
            self.consume = True
        elif self.observed.bad_request is not None:
            words = ", ".join(r.value for r in RolloutRequest)
            self._event("UnknownRequest", f"the rollout annotation is {self.observed.bad_request!r}; use {words}", True)
            self.consume = True
        self._weigh()
        return Turn(self.status, standing, self.events, self.consume, self.consume_first)

    # -- facts ------------------------------------------------------------------------------------------------------

    def _note_readiness(self) -> None:
        for served in (self.status.stable, self.status.candidate, self.status.previous):
            if served is not None:
                engine = self.observed.engines.get(served.ray_service)
                well = engine is not None and (engine.ready or (engine.deploying and self._drowsy(served)))
                if engine is not None and served.base is not None:
                    well = well and adapters.answers(engine, served)
                served.ready = well and engine is not None and not engine.deleting
        stable = self.status.stable
        if stable is not None and stable.ready and stable.since is None:
            stable.since = timestamp(self.now)
            self._record(stable, RolloutOutcome.PROMOTED, "first deployment: there was nothing to compare with", [])
            self._event("FirstDeployment", f"{stable.model_version} serves")

    def _drowsy(self, served: ServedVersion) -> bool:
        """Whether a version that has served, and answered up to now, may sleep. Ray Serve deploys when it is told that
        it may or may not: its engines go on meanwhile, or wake, and the gateway holds requests. Traffic stays."""
        return self.spec.replicas.min == 0 and served.ready and served.since is not None

    def _drop_previous(self) -> None:
        previous = self.status.previous
        if previous is None or previous.since is None:
            return
        window = timedelta(seconds=seconds(self.spec.rollout.rollback_window))
        if self.now - parse_timestamp(previous.since) >= window and previous.model_version != self.spec.model_version:
            self.status.previous = None

    def _forget(self) -> None:
        """What is no longer so."""
        refused = self.status.refused
        if refused is not None and refused.model_version != self.spec.model_version:
            self.status.refused = None
        if self.status.candidate is None:
            self.status.rollout_needs = None  # of a rollout that a pause held back; said anew if it still does

    def _time_pause(self) -> None:
        """How long a person has held the rollout: the deadline is for the analysis, not for people."""
        held = self.observed.request is RolloutRequest.PAUSE and self.status.candidate is not None
        if held and self.status.paused_at is None:
            self.status.paused_at = timestamp(self.now)
        elif not held and self.status.paused_at is not None:
            self.status.paused_seconds = int(paused(self.status, self.now).total_seconds())
            self.status.paused_at = None

    # -- where it stands --------------------------------------------------------------------------------------------

    def _stand(self) -> Standing:
        stable, candidate = self.status.stable, self.status.candidate
        wants = self.spec.model_version
        if stable is None or (stable.since is None and stable.model_version != wants):
            return self._first_deployment()
        if candidate is not None and wants == stable.model_version:
            self._finish(RolloutOutcome.ABORTED, f"spec.modelVersion was set back to {stable.model_version}")
            return self._serving()
        if candidate is not None and wants != candidate.model_version:
            self._finish(RolloutOutcome.SUPERSEDED, f"spec.modelVersion is {wants} now")
            candidate = None
        if candidate is not None:
            return self._rolling(candidate)
        if wants == stable.model_version:
            return self._serving()
        return self._begin(stable)

    def _first_deployment(self) -> Standing:
        """Nothing serves yet, so nothing can be compared: the version goes straight to stable."""
        version = self._offered()
        if version is None:
            return self._not_rolled_out()
        self.status.stable = self._served(version)
        self.status.candidate = self.status.previous = None
        self.status.verdicts = []
        self._note_readiness()
        return self._serving()

    def _serving(self) -> Standing:
        """Stable is what spec wants."""
        stable = self.status.stable
        assert stable is not None, "something is stable"
        engine = self.observed.engines.get(stable.ray_service)
        failure = adapters.failure(engine, stable)
        if not stable.ready and failure is not None:
            return Standing(Manner.STALLED, "EngineFailed", f"{stable.model_version}: {failure}")
        if not stable.ready:
            told = f": {engine.message}" if engine is not None and engine.message else ""
            return Standing(Manner.RECONCILING, "EngineStarting", f"RayService {stable.ray_service}{told}")
        if self.observed.gateway.ready == 0:
            secret = self.spec.gateway.auth.secret_ref.name
            hint = f"they need Secret {secret} (spec.gateway.auth.secretRef) with a key in it"
            return Standing(Manner.RECONCILING, "GatewayStarting", f"{self.observed.gateway.message}; {hint}")
        if asleep(self.spec, engine):
            return Standing(Manner.READY, "ScaledToZero", f"{stable.model_version} sleeps; the next request wakes it")
        return Standing(Manner.READY, "Serving", f"{stable.model_version} serves, lineage {stable.lineage[:16]}")

    def _begin(self, stable: ServedVersion) -> Standing:
        """Spec wants another version than stable, and no rollout is under way."""
        version, request = self._offered(), self.observed.request
        if version is None:
            return self._not_rolled_out()
        previous = self.status.previous
        if previous is not None and previous.model_version == version.name and previous.ready:
            return self._go_back(stable, previous)
        refused = self.status.refused
        same = refused is not None and refused.manifest_digest == version.manifest.digest
        if refused is not None and same and request is not RolloutRequest.RETRY:
            return Standing(Manner.STALLED, refused.reason, refused.message)
        if version.manifest.digest == stable.manifest_digest:
            self.status.stable = stable.model_copy(update={"model_version": version.name, "lineage": version.lineage})
            self._record(self.status.stable, RolloutOutcome.PROMOTED, "the same manifest as the stable version's", [])
            return self._serving()
        base = adapters.base_to_share(self.spec, stable, version)
        self.status.rollout_needs = self._needs(stable, base)
        takes = f"; it takes {self.status.rollout_needs.message}" if self.status.rollout_needs is not None else ""
        if request is RolloutRequest.PAUSE:
            return Standing(Manner.WAITING, "Paused", f"the rollout annotation holds {version.name} back{takes}")
        self.consume = request is RolloutRequest.RETRY
        self.status.refused = None
        self.status.candidate = self._served(version, base)
        self.status.rollout_started_at = timestamp(self.now)
        self.status.step = self.status.step_started_at = self.status.analyzed_at = None
        self.status.step_base_requests = 0
        self.status.verdicts = []
        self.status.previous = None  # its accelerators are the candidate's now
        text = f"from {stable.model_version} to {version.name}, lineage {version.lineage[:16]}{takes}"
        self._event("RolloutStarted", text)
        self._note_readiness()
        return self._rolling(self.status.candidate)

    def _not_rolled_out(self) -> Standing:
        if self.wanted.version is not None and not self.wanted.missing:
            text = f"ModelVersion {self.wanted.version.name} is of model {self.wanted.version.model}"
            return Standing(Manner.STALLED, "ModelMismatch", f"{text}, this pool serves {self.spec.model}")
        reason = "VersionNotFound" if self.wanted.missing else "VersionNotVerified"
        manner = Manner.STALLED if self.wanted.stalled else Manner.RECONCILING
        return Standing(manner, reason, f"spec.modelVersion: {self.wanted.why_not}")

    def _offered(self) -> Version | None:
        """The version spec wants, if a rollout to it may begin."""
        version = self.wanted.version
        return version if version is not None and not self.wanted.missing and version.model == self.spec.model else None

    def _needs(self, stable: ServedVersion, base: ServedBase | None) -> RolloutNeeds | None:
        """What the rollout takes. An engine that is not stable's goes first: a former stable's, or a refused one's."""
        if base is not None:
            return adapter_needs(self.spec.hardware, base.model_version)
        try:
            return rollout_needs(
                self.spec.hardware,
                self.spec.replicas,
                takes_over=any(name != stable.ray_service for name in self.observed.engines),
            )
        except HardwareError:
            return None  # the pool stalls on it anyway

    def _go_back(self, stable: ServedVersion, previous: ServedVersion) -> Standing:
        """The former stable's pods are still there: no canary is needed to return to what served before."""
        moment = timestamp(self.now)
        self.status.stable = previous.model_copy(update={"since": moment})
        self.status.previous = stable.model_copy(update={"since": moment})
        self.status.verdicts = []
        text = f"back from {stable.model_version} within the rollback window"
        self._record(self.status.stable, RolloutOutcome.PROMOTED, text, [])
        self._event("WentBack", f"{previous.model_version} serves again: {text}", True)
        return self._serving()

    # -- a rollout under way ----------------------------------------------------------------------------------------

    def _rolling(self, candidate: ServedVersion) -> Standing:
        request, engine = self.observed.request, self.observed.engines.get(candidate.ray_service)
        if request is RolloutRequest.ABORT:
            self.consume = True
            return self._refuse(RolloutOutcome.ABORTED, "Aborted", "a person asked for it")
        failure = adapters.failure(engine, candidate)
        if self.status.step is None and failure is not None:
            return self._refuse(RolloutOutcome.ROLLED_BACK, "RolledBack", f"its engine did not start: {failure}")
        self._analyse(candidate)
        if (breach := self._breach()) is not None:
            return self._refuse(RolloutOutcome.ROLLED_BACK, "RolledBack", breach)
        if request is RolloutRequest.PAUSE:
            return Standing(
                Manner.WAITING, "Paused", f"held by the rollout annotation at {self._share()} % of the traffic"
            )
        if self._overdue():
            return self._inconclusive(candidate)
        if self.status.step is None:
            return self._first_step(candidate, engine.message if engine is not None else "")
        if self.observed.evidence is not None:
            return self._advance(candidate)
        return self._under_way(candidate)

    def _first_step(self, candidate: ServedVersion, told: str) -> Standing:
        if not candidate.ready:
            text = f"RayService {candidate.ray_service} of {candidate.model_version} is starting"
            if candidate.base is not None:
                text = f"the engines of RayService {candidate.ray_service} load adapter {candidate.model_version}"
            if self.status.rollout_needs is not None:
                text = f"{text}, on {self.status.rollout_needs.message}"
            return Standing(Manner.RECONCILING, "CandidateStarting", f"{text}: {told}" if told else text)
        self._enter_step(0, answered=0)
        self.status.analyzed_at = timestamp(self.now)
        delay = timedelta(seconds=seconds(self.spec.rollout.initial_delay))
        self.status.judged_from = timestamp(self.now + delay) if delay else None
        return self._under_way(candidate)

    def _analyse(self, candidate: ServedVersion) -> None:
        """Judge fresh evidence."""
        evidence, stable = self.observed.evidence, self.status.stable
        if evidence is None or stable is None:
            return
        mine, theirs = self._counts(evidence, candidate), self._counts(evidence, stable)
        self.status.verdicts = judge(self.spec.rollout.metrics, theirs, mine, self.spec.rollout.confidence)
        self.status.analyzed_at = timestamp(self.now)
        self.status.analysis_error = bounded(evidence.trouble, 256)
        if mine.requests < self.status.step_base_requests:  # a gateway restarted and counts anew
            self.status.step_base_requests = 0
        if evidence.answered == 0:
            why = evidence.trouble or f"none of {evidence.asked} ready gateways has counts"
            self._event("NoAnalysisData", f"no counts of this rollout: {why}", True)
        else:
            for served, counts, share in ((candidate, mine, self._share()), (stable, theirs, 100 - self._share())):
                if counts.requests == 0 and share > 0:
                    text = f"{served.model_version} was sent no requests in this rollout yet"
                    self._event("NoAnalysisData", text, True)

    def _breach(self) -> str | None:
        """Why the candidate must go, by fresh evidence or for want of any: more harmful looks, or more looks in a row
        without counts while it has traffic, than the spec bears."""
        evidence, rollout = self.observed.evidence, self.spec.rollout
        if evidence is None:
            return None
        blind = evidence.answered == 0 and self._share() > 0
        self.status.failed_looks = self.status.failed_looks + 1 if blind else 0
        if any_harmful(self.status.verdicts):
            self.status.harmful_looks += 1
            text = f"harmful at {self._share()} % of the traffic: {evidence_text(self.status.verdicts)}"
            if self.status.harmful_looks > rollout.failure_limit:
                return text
            borne = f"harmful look {self.status.harmful_looks}, rollout.failureLimit bears {rollout.failure_limit}"
            self._event("HarmfulLook", f"{borne}: {text}", True)
        if self.status.failed_looks > rollout.consecutive_error_limit:
            return f"at {self.status.failed_looks} looks in a row no gateway had counts of it: nobody watches"
        return None

    @staticmethod
    def _counts(evidence: Evidence, served: ServedVersion) -> VersionCounts:
        return evidence.counts.get(served.model_version, VersionCounts())

    def _advance(self, candidate: ServedVersion) -> Standing:
        """Fresh evidence, nothing harmful: take the next step or promote, if everything for it is there."""
        assert self.observed.evidence is not None, "only fresh evidence moves a rollout"
        assert self.status.step is not None, "a rollout moves from step to step"
        answered = self._counts(self.observed.evidence, candidate).requests
        enough = answered - self.status.step_base_requests >= self.spec.rollout.min_requests
        harmful = any_harmful(self.status.verdicts)  # borne by failureLimit, but no reason to go on
        if not candidate.ready or not self._step_is_old() or not enough or harmful:
            return self._under_way(candidate)
        if self.status.step < len(self.spec.rollout.steps) - 1:
            self._enter_step(self.status.step + 1, answered)
            return self._under_way(candidate)
        if not all_equivalent(self.status.verdicts):
            return self._under_way(candidate)
        if self.spec.rollout.manual_gate and self.observed.request is not RolloutRequest.APPROVE:
            return Standing(
                Manner.WAITING, "AwaitingApproval", f"all metrics are equivalent; {self._how_to('approve')}"
            )
        by = "; approved by a person" if self.spec.rollout.manual_gate else ""
        return self._promote(candidate, evidence_text(self.status.verdicts) + by)

    def _under_way(self, candidate: ServedVersion) -> Standing:
        waits = find(self.status.conditions, ConditionType.READY)
        at_gate = (
            self.spec.rollout.manual_gate and all_equivalent(self.status.verdicts) and self.observed.evidence is None
        )
        if waits is not None and waits.reason == "AwaitingApproval" and at_gate:
            return Standing(Manner.WAITING, waits.reason, waits.message)
        assert self.status.step is not None, "a rollout under way has a step"
        where = f"step {self.status.step + 1} of {len(self.spec.rollout.steps)}"
        share = f"{candidate.model_version} at {self._share()} %"
        held = "" if candidate.ready else ", held at 0 % until its engine is ready again"
        blind = f"; not all counts: {self.status.analysis_error}" if self.status.analysis_error else ""
        return Standing(Manner.RECONCILING, "RollingOut", f"{where}: {share}{held}{blind}")

    def _inconclusive(self, candidate: ServedVersion) -> Standing:
        """The deadline has passed without a decision."""
        if self.status.step is None:
            text = f"its engine was not ready within rollout.deadline {self.spec.rollout.deadline}"
            return self._refuse(RolloutOutcome.ROLLED_BACK, "RolledBack", text)
        text = f"no decision within rollout.deadline {self.spec.rollout.deadline}"
        if self.spec.rollout.on_inconclusive == "rollback":
            return self._refuse(
                RolloutOutcome.ROLLED_BACK, "RolledBack", f"{text}: {evidence_text(self.status.verdicts)}"
            )
        if self.observed.request is RolloutRequest.APPROVE and candidate.ready:
            return self._promote(candidate, f"{text}; approved by a person: {evidence_text(self.status.verdicts)}")
        hint = f"{self._how_to('approve')}, or abort"
        return Standing(Manner.STALLED, "Inconclusive", f"{text}; {hint}: {evidence_text(self.status.verdicts)}")

    # -- changes of state -------------------------------------------------------------------------------------------

    def _enter_step(self, step: int, answered: int) -> None:
        self.status.step = step
        self.status.step_started_at = timestamp(self.now)
        self.status.step_base_requests = answered
        share = self.spec.rollout.steps[step]
        self._event("StepStarted", f"step {step + 1} of {len(self.spec.rollout.steps)}: {share} % of the traffic")

    def _promote(self, candidate: ServedVersion, evidence: str) -> Standing:
        moment, stable = timestamp(self.now), self.status.stable
        assert stable is not None, "a candidate is compared with something"
        if self.observed.request is RolloutRequest.APPROVE:
            self.consume = self.consume_first = True
        self._record(candidate, RolloutOutcome.PROMOTED, evidence, self.status.verdicts)
        self._event("Promoted", f"{candidate.model_version} is stable now: {evidence}")
        self.status.previous = stable.model_copy(update={"since": moment})
        self.status.stable = candidate.model_copy(update={"since": moment})
        self._clear()
        return self._serving()

    def _refuse(self, outcome: RolloutOutcome, reason: str, why: str) -> Standing:
        """The candidate goes; stable keeps all traffic; the spec stays what it is, so the object stalls."""
        candidate, stable = self.status.candidate, self.status.stable
        assert candidate is not None, "only a candidate is refused"
        assert stable is not None, "stable takes the traffic back"
        self._finish(outcome, why)
        hint = f"; {self._how_to('retry')}"
        text = f"{candidate.model_version} was refused, {stable.model_version} serves: {why}"
        text = bounded(text, REFUSAL - len(hint)) + hint
        self.status.refused = RefusedVersion(
            model_version=candidate.model_version,
            manifest_digest=candidate.manifest_digest,
            reason=reason,
            message=text,
        )
        return Standing(Manner.STALLED, reason, text)

    def _finish(self, outcome: RolloutOutcome, why: str) -> None:
        candidate = self.status.candidate
        assert candidate is not None, "a rollout has a candidate"
        self._record(candidate, outcome, why, self.status.verdicts)
        self._event(outcome.value, f"{candidate.model_version}: {why}", True)
        self._clear()

    def _clear(self) -> None:
        self.status.candidate = None
        self.status.step = self.status.step_started_at = None
        self.status.rollout_started_at = self.status.analyzed_at = None
        self.status.rollout_needs = None
        self.status.paused_at, self.status.paused_seconds = None, 0
        self.status.step_base_requests = self.status.harmful_looks = self.status.failed_looks = 0
        self.status.judged_from = None
        self.status.analysis_error = ""

    def _record(self, served: ServedVersion, outcome: RolloutOutcome, why: str, verdicts: list[MetricVerdict]) -> None:
        record = RolloutRecord(
            model_version=served.model_version,
            lineage=served.lineage,
            outcome=outcome,
            started_at=self.status.rollout_started_at,
            ended_at=timestamp(self.now),
            message=bounded(why, 1024),
            verdicts=[v.model_copy() for v in verdicts],
        )
        self.status.history = [*self.status.history, record][-HISTORY:]

    def _weigh(self) -> None:
        stable, candidate = self.status.stable, self.status.candidate
        share = candidate_weight(self.spec, self.status)
        self.status.weights = []
        if stable is not None:
            self.status.weights.append(Weight(model_version=stable.model_version, percent=100 - share))
        if candidate is not None:
            self.status.weights.append(Weight(model_version=candidate.model_version, percent=share))

    # -- small things -----------------------------------------------------------------------------------------------

    def _served(self, version: Version, base: ServedBase | None = None) -> ServedVersion:
        weights = version.manifest.digest if base is None else base.manifest_digest
        return ServedVersion(
            model_version=version.name,
            lineage=version.lineage,
            manifest_digest=version.manifest.digest,
            ray_service=service_name(self.meta.name, weights),
            base=base,
        )

    def _share(self) -> int:
        return candidate_weight(self.spec, self.status)

    def _step_is_old(self) -> bool:
        if self.status.step_started_at is None:
            return False
        least = timedelta(seconds=seconds(self.spec.rollout.step_duration))
        return self.now - parse_timestamp(self.status.step_started_at) >= least

    def _overdue(self) -> bool:
        if self.status.rollout_started_at is None:
            return False
        longest = timedelta(seconds=seconds(self.spec.rollout.deadline)) + paused(self.status, self.now)
        return self.now - parse_timestamp(self.status.rollout_started_at) >= longest

    def _how_to(self, verb: str) -> str:
        return f"to {verb}: sluice rollout {verb} {self.meta.name} -n {self.meta.namespace}"

    def _event(self, reason: str, message: str, warning: bool = False) -> None:
        self.events.append(Event(reason, bounded(message, 1000), EventType.WARNING if warning else EventType.NORMAL))
