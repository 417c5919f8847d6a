"""The decision for a TrainingRun: a pure function of its spec, what was observed, and the time.

No phase is kept: attempts are counted from RayJobs, failures from attempts, preemptions from start times, cost from a
meter. A person's word (suspend), a limit or the job's own outcome ends it; the reasons of the Ready condition tell.
"""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import cached_property

from sluice_contracts.base import parse_timestamp, seconds, timestamp
from sluice_contracts.job import JobConfig, JobOutcome, JobResult
from sluice_contracts.kubernetes import Condition
from sluice_contracts.names import ConditionType
from sluice_contracts.training_run import GateResult, Stage, TrainingRunSpec, TrainingRunStatus, Usage

from sluice_operator.artifacts import Problem
from sluice_operator.children.disruption_budget import budget_name, disruption_budget
from sluice_operator.children.hardware import HardwareError
from sluice_operator.children.job_config import job_config_map
from sluice_operator.children.model_version import model_version
from sluice_operator.children.rayjob import attempt_name, ray_job, suspended
from sluice_operator.conditions import ConditionSet, find
from sluice_operator.kube.resources import CONFIG_MAP, MODEL_VERSION, POD_DISRUPTION_BUDGET, RAY_JOB
from sluice_operator.plan import Apply, Delete, Event, EventType, Meta, Plan, bounded
from sluice_operator.settings import Settings
from sluice_operator.training_run import live, usage
from sluice_operator.training_run.limits import LIMIT_REASONS, PRICE_UNKNOWN, limit_reached, price_unknown, seconds_left
from sluice_operator.training_run.observe import Inputs, Observed, run_uri
from sluice_operator.training_run.ray_job_state import JobPhase, RayJobState

POLL_SECONDS = 5.0
"""How often a running job's folder is looked at."""
EVENTS_SECONDS = 60.0
"""How often a job is looked at that changes by events only: for the case that one was lost."""
LOOK_AGAIN_SECONDS = 30.0
"""After a lasting problem that somebody may mend outside Kubernetes, such as a missing bucket."""
BACKOFF_SECONDS, BACKOFF_LIMIT_SECONDS = 10.0, 300.0
CLOCK_SKEW_SECONDS = 60
SUSPEND_MANAGER = "sluice-suspend"


def plan(meta: Meta, spec: TrainingRunSpec, observed: Observed, settings: Settings, now: datetime) -> Plan:
    """What to do about this run now."""
    return _Planner(meta, spec, observed, settings, now).plan()


@dataclass(frozen=True)
class _Attempt:
    """The attempt that counts: its number, its RayJob if there is one, and what went wrong in it."""

    number: int
    job: RayJobState | None
    failure: str | None

    @property
    def over(self) -> bool:
        """Nothing of it runs any more, or ever will again."""
        return self.number > 0 and (self.failure is not None or self.job is None)


class _Planner:
    """One pass over one run. `plan` reads like the life of a run, from its end to its beginning."""

    def __init__(
        self, meta: Meta, spec: TrainingRunSpec, observed: Observed, settings: Settings, now: datetime
    ) -> None:
        self.meta, self.spec, self.observed, self.settings, self.now = meta, spec, observed, settings, now
        self.before = observed.status
        self.status: TrainingRunStatus = observed.status.model_copy(deep=True)
        self.status.observed_generation = meta.generation
        self.conditions = ConditionSet(self.before.conditions, meta.generation, now)
        self.result = Plan()
        self.at_work = False
        """Whether pods train now, which evictions should spare."""

    def plan(self) -> Plan:
        if self.before.finished_at is not None and not self._limit_was_raised():
            return self._rest()
        self.status.finished_at = None
        inputs = self.observed.inputs
        if inputs is None:  # it had ended, and a raised limit lets it go on: the inputs come with the next look
            return Plan(requeue_after=0.5)
        if isinstance(inputs, Problem):
            return self._problem(inputs)
        self.status.lineage = inputs.lineage
        self.status.run_uri = run_uri(self.meta, self.spec, inputs, self.settings)
        attempt = self._attempt()
        self.status.attempts = attempt.number
        ended = attempt.number if attempt.over else max(0, attempt.number - 1)
        self.status.failures = max(0, ended - self.before.stops)
        if attempt.number == 0:
            return self._start(1, inputs)
        self._count_preemptions(attempt)
        self._count_usage(attempt)
        self.status.ray_job = attempt_name(self.meta.name, attempt.number)
        self.result.apply.append(self._config(inputs))
        if attempt.job is not None and attempt.job.phase is JobPhase.SUCCEEDED and attempt.failure is None:
            return self._outcome(inputs)
        if attempt.job is not None and attempt.job.phase is JobPhase.REJECTED:
            return self._end("JobRejected", f"KubeRay refused RayJob {attempt.job.name}: {attempt.job.message}")
        if attempt.job is not None and attempt.job.phase is JobPhase.STOPPED:
            why = f"RayJob {attempt.job.name} was stopped from outside; apply a TrainingRun with another name to train"
            return self._end("JobStopped", why)
        limit = limit_reached(self.spec.limits, self.status, attempt.failure, self.price, self._currency(), self.now)
        if limit is not None:
            return self._stop(attempt, *limit)
        if attempt.job is None or attempt.failure is not None:
            return self._next_attempt(attempt, inputs)
        return self._running(attempt.job, inputs)

    # -- the attempt that counts ------------------------------------------------------------------------------------

    def _attempt(self) -> _Attempt:
        jobs = {job.attempt: job for job in self.observed.ray_jobs}
        number = max([self.before.attempts, *jobs])
        job = jobs.get(number)
        if number == 0:
            return _Attempt(0, None, None)
        if job is None or (job.deleting and not job.phase.over):
            if self._accounted_for(number):
                return _Attempt(number, None, None)
            return _Attempt(number, None, f"RayJob {attempt_name(self.meta.name, number)} was deleted")
        if job.phase is JobPhase.FAILED:
            return _Attempt(number, job, job.message or f"RayJob {job.name} failed")
        outcome = self.observed.outcome
        if job.phase is JobPhase.SUCCEEDED and isinstance(outcome, Problem) and outcome.lasting:
            return _Attempt(number, job, f"RayJob {job.name} ended without a usable outcome: {outcome.message}")
        return _Attempt(number, job, None)

    def _accounted_for(self, number: int) -> bool:
        """Whether the status already tells how attempt `number` ended, so that its absence is no news."""
        return number == self.before.attempts == self.before.failures + self.before.stops

    def _count_preemptions(self, attempt: _Attempt) -> None:
        """A new start time of the same submission means that its head was lost and the entry point began again."""
        job, before = attempt.job, self.before
        if job is None or job.phase is JobPhase.SUSPENDED:
            self.status.job_started_at = self.status.job_id = None
            return
        self.status.job_id = job.job_id
        if job.started_at is None or job.started_at == before.job_started_at:
            return
        self.status.job_started_at = job.started_at
        same = job.name == (before.ray_job or job.name) and job.job_id == (before.job_id or job.job_id)
        if same and before.job_started_at is not None and job.started_at > before.job_started_at:
            self.status.preemptions = before.preemptions + 1
            self._event("Preempted", f"RayJob {job.name} lost its head and began again from its checkpoint", True)

    def _count_usage(self, attempt: _Attempt) -> None:
        job = attempt.job
        if self.status.started_at is None:  # the operator died between creating the RayJob and saying so
            self.status.started_at = (job.created_at if job is not None else None) or timestamp(self.now)
        known = self.before.usage or Usage(since=self.status.started_at, running=True)
        found = usage.advance(known, job, self.now)
        if job is None and attempt.failure is not None:  # news of this look: the pause counts from here
            found = found.model_copy(update={"since": max(found.since, timestamp(self.now))})
        self.status.usage = found

    @cached_property
    def price(self) -> Decimal | None:
        """What a worker pod costs an hour, if it is known."""
        return usage.per_worker_hour(self.spec, self.settings.prices, self.before.cost)

    def _currency(self) -> str:
        return self.settings.prices.currency

    def _limit_was_raised(self) -> bool:
        ready = find(self.before.conditions, ConditionType.READY)
        changed = self.before.observed_generation != self.meta.generation
        return changed and ready is not None and ready.reason in LIMIT_REASONS

    # -- on the way -------------------------------------------------------------------------------------------------

    def _start(self, number: int, inputs: Inputs) -> Plan:
        """Begin attempt `number`, unless the run is held back."""
        name = attempt_name(self.meta.name, number)
        if self.spec.suspend:
            self._stage(Stage.QUEUED)
            self.conditions.waiting("Suspended", "spec.suspend is true: nothing runs until it is false")
            return self._finish()
        try:
            job = ray_job(self.meta, self.spec, inputs.lineage, number, self.settings)
        except HardwareError as error:
            self.conditions.stalled("InvalidHardware", f"spec.{error}")
            return self._finish()
        unpriced = price_unknown(self.spec, self.price)
        if unpriced is not None:
            self._stage(Stage.QUEUED)
            self.conditions.stalled(PRICE_UNKNOWN, unpriced)
            return self._finish()
        if number == 1:
            self.result.apply.append(self._config(inputs))
        self.result.apply.append(Apply(RAY_JOB, job))
        self.at_work = self.spec.queue_name is None  # otherwise nothing runs before Kueue lets it
        if self.at_work:
            self.result.apply.append(self._budget(inputs))
        self.status.attempts = number
        self.status.ray_job = name
        self.status.job_started_at = self.status.job_id = None
        self.status.started_at = self.status.started_at or timestamp(self.now)
        self.status.usage = usage.begin(self.status.usage, self.now)
        self._stage(Stage.QUEUED if self.spec.queue_name else Stage.STARTING)
        self._event("AttemptStarted", f"created RayJob {name}, lineage {inputs.lineage[:16]}")
        self.conditions.reconciling("Starting", f"RayJob {name} is starting")
        return self._finish(POLL_SECONDS)

    def _next_attempt(self, attempt: _Attempt, inputs: Inputs) -> Plan:
        """Another attempt, after a pause that grows with the failures. Also after a RayJob that is gone: perhaps the
        whole run was deleted, and only that news is not here yet."""
        if attempt.failure is not None:
            self.status.message = bounded(attempt.failure, 2048)
        failures = self.status.failures  # none: a limit had ended all attempts, and was raised
        pause = min(BACKOFF_SECONDS * 2 ** (failures - 1), BACKOFF_LIMIT_SECONDS) if failures else 0.0
        ended = attempt.job.ended_at if attempt.job is not None else self._gone_since()
        since = (self.now - parse_timestamp(ended)).total_seconds() if ended is not None else pause
        if since < -CLOCK_SKEW_SECONDS:  # the clocks disagree: the pause is a courtesy, not worth an hour
            since = pause
        text = f"attempt {attempt.number} ended: {self.status.message}"
        starts = since >= pause
        if attempt.failure is not None and (starts or attempt.job is None):
            self._event("AttemptFailed", text, True)
        if not starts:
            self.conditions.reconciling("BackOff", bounded(f"{text}; the next begins {pause:.0f} s after it", 4096))
            return self._finish(max(1.0, pause - since))
        return self._start(attempt.number + 1, inputs)

    def _gone_since(self) -> str | None:
        return self.status.usage.since if self.status.usage is not None else None

    def _running(self, job: RayJobState, inputs: Inputs) -> Plan:
        """A job is there and not over: steer suspend, report progress."""
        steers = self.spec.queue_name is None
        unpriced = price_unknown(self.spec, self.price)
        hold = steers and (self.spec.suspend or unpriced is not None)
        if steers and job.suspend != hold:
            self.result.apply.append(Apply(RAY_JOB, suspended(self.meta, job.name, hold), manager=SUSPEND_MANAGER))
        if hold:
            self._stage(Stage.QUEUED)
            if self.spec.suspend or unpriced is None:
                text = "spec.suspend is true: the job was stopped at its last checkpoint"
                self.conditions.waiting("Suspended", text)
            else:
                self.conditions.stalled(PRICE_UNKNOWN, f"stopped at its last checkpoint: {unpriced}")
            return self._finish()
        self.at_work = job.phase in usage.HOLDING
        if self.at_work:
            self.result.apply.append(self._budget(inputs))
        if job.phase is JobPhase.SUCCEEDED:  # only its outcome could not be read: storage is away for a moment
            outcome = self.observed.outcome
            why = outcome.message if isinstance(outcome, Problem) else ""
            self.conditions.reconciling(
                "ReadingOutcome", f"RayJob {job.name} is done; its outcome cannot be read: {why}"
            )
        elif job.phase is JobPhase.SUSPENDED:
            self._stage(Stage.QUEUED)
            self.conditions.reconciling("Queued", f"RayJob {job.name} waits for its turn")
        elif job.phase is JobPhase.RUNNING:
            self.status.progress = live.progress(self.before, self.observed.progress, self.now)
            held = f"; {unpriced}" if unpriced is not None else ""
            self.conditions.reconciling("Running", f"RayJob {job.name} is running{held}")
        else:
            self._stage(Stage.STARTING)
            self.conditions.reconciling("Starting", f"RayJob {job.name} is starting")
        return self._finish(self._next_look(job))

    def _next_look(self, job: RayJobState) -> float:
        """Soon while something outside Kubernetes moves (the run's folder, its cost), and when a limit will be reached.
        A job that only starts or waits tells of itself by an event: a thousand of them must not be asked all the time.
        """
        usage_ = self.status.usage
        moves = job.phase in {JobPhase.RUNNING, JobPhase.SUCCEEDED} or (usage_ is not None and usage_.workers > 0)
        pause = POLL_SECONDS if moves else EVENTS_SECONDS
        left = None if usage_ is None else seconds_left(self.spec.limits, usage_, self.price, self.now)
        return pause if left is None else max(0.5, min(pause, left))

    def _stage(self, stage: Stage) -> None:
        """Show a stage the job itself cannot report, keeping the steps that are already known."""
        self.status.progress = live.at_stage(self.before.progress, stage)

    # -- the end ----------------------------------------------------------------------------------------------------

    def _outcome(self, inputs: Inputs) -> Plan:
        outcome, manifest = self.observed.outcome, self.observed.manifest
        if not isinstance(outcome, JobOutcome):  # storage is away for a moment
            assert self.observed.ray_jobs, "an outcome is asked for only after a job"
            return self._running(self.observed.ray_jobs[-1], inputs)
        if outcome.lineage != inputs.lineage:
            text = f"the job's outcome is of lineage {outcome.lineage[:16]}, expected {inputs.lineage[:16]}"
            return self._end("OutcomeMismatch", text)
        self.status.gates = outcome.gates
        self.status.report_uri = outcome.report_uri
        if outcome.result is JobResult.GATE_FAILED:
            text = f"{gates_text(outcome.gates)}; report: {outcome.report_uri}"
            self.conditions.set(ConditionType.EVALUATED, False, "GateFailed", text)
            self.conditions.set(ConditionType.EXPORTED, False, "NotExported", "the gate did not let it through")
            return self._end("GateFailed", text)
        if outcome.result is JobResult.PARITY_FAILED:
            self._evaluated(outcome, None)
            self.conditions.set(ConditionType.EXPORTED, False, "ParityFailed", outcome.message)
            return self._end("ParityFailed", outcome.message)
        if outcome.result is JobResult.INVALID_INPUT:
            return self._end("InvalidInput", outcome.message)
        if manifest is None or (isinstance(manifest, Problem) and not manifest.lasting):
            why = manifest.message if manifest is not None else "not read yet"
            self.conditions.reconciling("ReadingManifest", why)
            return self._finish(POLL_SECONDS)
        if isinstance(manifest, Problem):
            return self._end(manifest.reason, manifest.message)
        held, made = self.observed.version_manifest, outcome.manifest
        assert made is not None, "a manifest was read, so the outcome names it"
        if held is not None and held.digest != made.digest:
            text = (
                f"ModelVersion {self.meta.name} already exists with manifest {held.digest}; "
                f"this run made {made.digest}. Delete that ModelVersion, or train under another name"
            )
            self.conditions.stalled("ModelVersionConflict", text)
            return self._finish(LOOK_AGAIN_SECONDS)
        self._evaluated(outcome, manifest.evaluation.waiver.reason if manifest.evaluation.waiver else None)
        count = len(manifest.device())
        self.conditions.set(ConditionType.EXPORTED, True, "ParityPassed", f"{count} device files as good as the model")
        self.status.manifest = made
        self.status.model_version = self.meta.name
        self.status.finished_at = timestamp(self.now)
        self._stage(Stage.FINISHED)
        self.result.apply.append(self._model_version())
        self.conditions.ready("Succeeded", f"ModelVersion {self.meta.name}, lineage {inputs.lineage[:16]}")
        return self._finish()

    def _evaluated(self, outcome: JobOutcome, waiver: str | None) -> None:
        if waiver is not None:
            text = bounded(f"waived: {waiver}; {gates_text(outcome.gates)}", 4096)
            self.conditions.set(ConditionType.EVALUATED, True, "GatesWaived", text)
        elif outcome.gates:
            self.conditions.set(ConditionType.EVALUATED, True, "GatesPassed", gates_text(outcome.gates))
        else:
            self.conditions.set(ConditionType.EVALUATED, True, "NoGates", "spec.evaluation.gates is empty")

    def _stop(self, attempt: _Attempt, reason: str, text: str) -> Plan:
        """A limit was reached: stop what still runs."""
        job = attempt.job
        if job is not None and not job.phase.over:
            self.result.delete.append(Delete(RAY_JOB, self.meta.namespace, job.name))
            self.status.stops = self.before.stops + 1
            self.status.usage = usage.advance(self.status.usage, None, self.now) if self.status.usage else None
        self.status.message = bounded(attempt.failure or text, 2048)
        return self._end(reason, text)

    def _end(self, reason: str, text: str) -> Plan:
        self.status.finished_at = timestamp(self.now)
        self._stage(Stage.FINISHED)
        self.conditions.stalled(reason, text)
        return self._finish()

    def _problem(self, problem: Problem) -> Plan:
        """The inputs cannot be had. Nothing was started, or what runs goes on by itself."""
        self.at_work = self.observed.budget
        if problem.lasting:
            self.conditions.stalled(problem.reason, problem.message)
        else:
            self.conditions.reconciling(problem.reason, problem.message)
        return self._finish(LOOK_AGAIN_SECONDS)

    def _rest(self) -> Plan:
        """It has ended: keep what it left behind, clear away what it no longer needs, say nothing new."""
        if self.status.manifest is not None and self.observed.version_manifest in (None, self.status.manifest):
            self.result.apply.append(self._model_version())
        left = self._time_to_live()
        for job in self.observed.ray_jobs:  # one that still runs was stopped by a limit, and nobody told it yet
            if not job.deleting and (not job.phase.over or (left is not None and left <= 0)):
                self.result.delete.append(Delete(RAY_JOB, self.meta.namespace, job.name))
        for type_ in (ConditionType.READY, ConditionType.RECONCILING, ConditionType.STALLED):
            self.conditions.keep(type_)
        return self._finish(left if self.observed.ray_jobs and left is not None and left > 0 else None)

    def _time_to_live(self) -> float | None:
        """Seconds that the RayJobs of an ended run are still kept; None: for ever."""
        if self.spec.ttl_after_finished is None or self.before.finished_at is None:
            return None
        age = (self.now - parse_timestamp(self.before.finished_at)).total_seconds()
        return seconds(self.spec.ttl_after_finished) - age

    # -- shared -----------------------------------------------------------------------------------------------------

    def _config(self, inputs: Inputs) -> Apply:
        config = JobConfig(
            name=self.meta.name,
            namespace=self.meta.namespace,
            lineage=inputs.lineage,
            git_sha=inputs.git_sha,
            run_uri=run_uri(self.meta, self.spec, inputs, self.settings),
            base_manifest=inputs.base_manifest,
            baseline_manifest=inputs.baseline_manifest,
            spec=self.spec,
        )
        return Apply(CONFIG_MAP, job_config_map(self.meta, config))

    def _budget(self, inputs: Inputs) -> Apply:
        return Apply(POD_DISRUPTION_BUDGET, disruption_budget(self.meta, self.spec, inputs.lineage))

    def _model_version(self) -> Apply:
        assert self.status.manifest is not None, "only a finished run has a version"
        assert self.status.lineage is not None, "a manifest is checked against a lineage"
        made = model_version(self.meta, self.spec.model, self.status.lineage, self.status.manifest)
        return Apply(MODEL_VERSION, made)

    def _event(self, reason: str, message: str, warning: bool = False) -> None:
        type_ = EventType.WARNING if warning else EventType.NORMAL
        self.result.events.append(Event(reason, bounded(message, 1000), type_))

    def _finish(self, requeue_after: float | None = None) -> Plan:
        for type_ in (ConditionType.EVALUATED, ConditionType.EXPORTED):
            self.conditions.keep(type_)
        if self.observed.budget and not self.at_work:
            name = budget_name(self.meta.name)
            self.result.delete.append(Delete(POD_DISRUPTION_BUDGET, self.meta.namespace, name))
        if self.before.finished_at is None or self.status.finished_at is None:
            self.status.cost = live.cost(self.before, self.status, self.price, self._currency(), self.now)
        self.status.eta = live.eta(self.status.progress)
        self.status.conditions = self.conditions.list()
        self._tell_turn(find(self.before.conditions, ConditionType.READY))
        return Plan(
            apply=self.result.apply,
            delete=self.result.delete,
            status=self.status.wire(),
            events=self.result.events,
            requeue_after=requeue_after,
        )

    def _tell_turn(self, before: Condition | None) -> None:
        """An event whenever the reason of Ready changes, except for reasons that have their own."""
        after = find(self.status.conditions, ConditionType.READY)
        if after is None or (before is not None and before.reason == after.reason) or after.reason == "Starting":
            return
        stalled = find(self.status.conditions, ConditionType.STALLED)
        self._event(after.reason, after.message or after.reason, stalled is not None and stalled.status == "True")


def gates_text(gates: list[GateResult]) -> str:
    """Each gate's numbers in one line, the failed ones first."""
    parts = []
    for gate in sorted(gates, key=lambda g: g.passed):
        where = f"{gate.metric}[{gate.slice.value}]" if gate.slice is not None else gate.metric
        interval = f" (95 % interval {gate.low:.3f} to {gate.high:.3f})" if _both(gate.low, gate.high) else ""
        verb = "holds" if gate.passed else "misses"
        parts.append(f"{where} {gate.value:.3f}{interval}, n={gate.n}, {verb} {gate.bound}")
    return bounded("; ".join(parts), 3000)


def _both(low: float | None, high: float | None) -> bool:
    return low is not None and high is not None
