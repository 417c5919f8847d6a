"""Whole lives of a TrainingRun, made up by hypothesis.

Any order of job states, vanished jobs, preemptions, files in the bucket, suspend and resume, raised limits, lost and
repeated events, broken requests, killed operators and clocks that jump: attempts are never lost count of, never is a
second job started beside a running one or after the end, and in a calm world the run ends.
"""

from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from sluice_contracts.base import timestamp
from sluice_contracts.dataset import DatasetManifest
from sluice_contracts.job import JobOutcome, JobResult
from sluice_contracts.manifest import Manifest
from sluice_contracts.training_run import ManifestReference, Progress, Stage, TrainingRunStatus
from sluice_operator.children.rayjob import attempt_number
from sluice_operator.kube.resources import CONFIG_MAP, MODEL_VERSION, RAY_JOB, TRAINING_RUN
from sluice_operator.training_run.plan import LIMIT_REASONS
from sluice_operator.training_run.ray_job_state import read_ray_job

from tests.operator.simulation import NAMESPACE, Fault, Make, Simulation

RUN = "run"
DATASET = "gs://sluice/distillation_dataset/run-1"
STATES: dict[str, dict[str, Any]] = {
    "new": {},
    "initializing": {"jobDeploymentStatus": "Initializing"},
    "running": {"jobStatus": "RUNNING", "jobDeploymentStatus": "Running"},
    "waiting": {"jobDeploymentStatus": "Waiting"},
    "suspended": {"jobDeploymentStatus": "Suspended"},
    "succeeded": {"jobStatus": "SUCCEEDED", "jobDeploymentStatus": "Complete"},
    "failed": {"jobStatus": "FAILED", "jobDeploymentStatus": "Failed", "reason": "AppFailed", "message": "exit 3"},
    "deadline": {"jobStatus": "RUNNING", "jobDeploymentStatus": "Failed", "reason": "DeadlineExceeded"},
    "stopped": {"jobStatus": "STOPPED", "jobDeploymentStatus": "Complete"},
    "invalid": {"jobDeploymentStatus": "ValidationFailed", "reason": "ValidationFailed", "message": "no"},
}
QUIET_LOOKS = 4
CALM_LOOKS = 40


class RunLife(RuleBasedStateMachine):
    """One run. Every look is checked for moves that are never allowed."""

    def __init__(self) -> None:
        super().__init__()
        self.sim = Simulation()
        self.attempts = 0
        self.sim.artifacts.files[f"{DATASET}/manifest.json"] = DatasetManifest(
            run_id="run-1",
            generator="test/1",
            inputs_digest=Make.digest,
            slices=[],
            files=[],
            split={"train": 0.8, "val": 0.1, "test": 0.1},
        )
        self.spec: dict[str, Any] = Make.run_spec(
            dataset={"uri": f"{DATASET}/", "digest": Make.digest}, limits={"maxDuration": "2h", "maxFailures": 1}
        ).wire()
        self._apply()
        self.sim.relist()

    def teardown(self) -> None:
        self.sim.close()

    # -- the world ----------------------------------------------------------------------------------------------------

    def _apply(self) -> None:
        body = {
            "apiVersion": TRAINING_RUN.api_version,
            "kind": TRAINING_RUN.kind,
            "metadata": {"name": RUN, "namespace": NAMESPACE},
            "spec": self.spec,
        }
        self.sim.api.put(TRAINING_RUN, body)

    @property
    def status(self) -> TrainingRunStatus:
        found = self.sim.api.all(TRAINING_RUN)[0]
        return TrainingRunStatus.model_validate(found.get("status") or {})

    def _jobs(self) -> list[str]:
        return [obj["metadata"]["name"] for obj in self.sim.api.all(RAY_JOB)]

    def _at_work(self) -> list[str]:
        """Jobs that may still cost something."""
        states = [read_ray_job(RUN, obj) for obj in self.sim.api.all(RAY_JOB)]
        return [s.name for s in states if s is not None and not s.phase.over]

    def _move(self, job: str, state: str) -> None:
        """KubeRay writes a status; a job that is over stays over."""
        obj = next(o for o in self.sim.api.all(RAY_JOB) if o["metadata"]["name"] == job)
        if job not in self._at_work():
            return
        began = (obj.get("status") or {}).get("rayJobInfo") or {"startTime": timestamp(self.sim.now)}
        ended = {"endTime": timestamp(self.sim.now)} if state in {"failed", "deadline", "succeeded", "stopped"} else {}
        self.sim.api.set_status(RAY_JOB, job, STATES[state] | ended | {"rayJobInfo": began})

    @precondition(lambda self: self._jobs())
    @rule(data=st.data(), state=st.sampled_from([*STATES]))
    def job_moves(self, data: st.DataObject, state: str) -> None:
        self._move(data.draw(st.sampled_from(self._jobs())), state)

    @precondition(lambda self: self._at_work())
    @rule(data=st.data())
    def head_is_lost(self, data: st.DataObject) -> None:
        info = {"rayJobInfo": {"startTime": timestamp(self.sim.now)}}
        self.sim.api.set_status(RAY_JOB, data.draw(st.sampled_from(self._at_work())), STATES["running"] | info)

    @precondition(lambda self: self._jobs())
    @rule(data=st.data())
    def job_vanishes(self, data: st.DataObject) -> None:
        self.sim.api.remove(RAY_JOB, data.draw(st.sampled_from(self._jobs())))

    @rule(suspend=st.booleans())
    def suspend(self, suspend: bool) -> None:
        self.spec = self.spec | {"suspend": suspend}
        self._apply()

    @rule(failures=st.integers(0, 4), hours=st.sampled_from([1, 2, 50]))
    def limits(self, failures: int, hours: int) -> None:
        self.spec = self.spec | {"limits": {"maxFailures": failures, "maxDuration": f"{hours}h"}}
        self._apply()

    @rule(result=st.sampled_from([*JobResult, None]), mine=st.booleans())
    def job_writes_its_outcome(self, result: JobResult | None, mine: bool) -> None:
        lineage = self.status.lineage
        if lineage is None:
            return
        folder = str(self.status.run_uri)
        self.sim.artifacts.files.pop(f"{folder}/outcome.json", None)
        if result is not None:
            self._write_outcome(folder, lineage if mine else "f" * 64, result)

    def _write_outcome(self, folder: str, lineage: str, result: JobResult) -> None:
        made = None
        if result is JobResult.SUCCEEDED:
            made = ManifestReference(uri=f"{folder}/manifest.json", digest=Make.digest)
            self.sim.artifacts.files[made.uri] = manifest(folder, lineage)
        self.sim.artifacts.files[f"{folder}/outcome.json"] = JobOutcome(
            result=result,
            lineage=lineage,
            message="done",
            gates=[],
            report_uri=f"{folder}/eval/report.json",
            manifest=made,
            finished_at=timestamp(self.sim.now),
        )

    @rule(step=st.integers(0, 100))
    def job_writes_progress(self, step: int) -> None:
        uri = f"{self.status.run_uri}/progress.json"
        found = Progress(stage=Stage.TRAINING, step=step, total_steps=100, updated_at=timestamp(self.sim.now))
        self.sim.artifacts.files[uri] = found

    @rule(away=st.booleans())
    def storage(self, away: bool) -> None:
        self.sim.artifacts.away = away

    @rule(resource=st.sampled_from([CONFIG_MAP, MODEL_VERSION]))
    def child_is_deleted(self, resource: Any) -> None:
        self.sim.api.remove(resource, f"{RUN}-job" if resource == CONFIG_MAP else RUN)

    @rule(seconds=st.sampled_from([0, 1, 12, 60, 400, 8000, -5, -3600]))
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

    @rule(fault=st.sampled_from(["", "", "", "lost", "unanswered", "killed"]), after=st.integers(0, 3))
    def look(self, fault: str, after: int) -> None:
        self.sim.api.fault = Fault(fault, after) if fault else None
        self._look()

    def _look(self) -> float | None:
        before, made = self.status, len(self.sim.api.created)
        cached = self.sim.cache.get(TRAINING_RUN, NAMESPACE, RUN) or {}
        known = TrainingRunStatus.model_validate(cached.get("status") or {})
        spec = cached.get("spec") or {}
        again = self.sim.look(TRAINING_RUN, RUN)
        started = [key.name for key in self.sim.api.created[made:] if key.resource == RAY_JOB]
        assert len(started) <= 1, "one job a look"
        for name in started:
            number = attempt_number(RUN, name)
            assert number is not None
            assert number > known.attempts or number == 1, "an attempt is never begun twice"
            assert not spec.get("suspend"), "a suspended run starts nothing"
            ready = next((c for c in known.conditions if c.type == "Ready"), None)
            raised = (
                ready is not None and ready.reason in LIMIT_REASONS and known.observed_generation != _generation(cached)
            )
            assert known.finished_at is None or raised, "a finished run starts nothing"
        after = self.status
        if before.finished_at is not None and before.manifest is not None:
            assert after.manifest == before.manifest, "what a run has made stays"
        return again

    # -- what always holds --------------------------------------------------------------------------------------------

    @invariant()
    def one_job_at_work(self) -> None:
        assert len(self._at_work()) <= 1, self._at_work()

    @invariant()
    def attempts_are_never_lost_count_of(self) -> None:
        found = self.status
        assert found.attempts >= self.attempts
        self.attempts = found.attempts
        assert found.failures <= found.attempts

    @invariant()
    def a_version_is_made_of_a_finished_run_only(self) -> None:
        for obj in self.sim.api.all(MODEL_VERSION):
            assert obj["spec"]["manifest"]["digest"] == Make.digest
            assert any(isinstance(f, Manifest) for f in self.sim.artifacts.files.values())

    @rule(
        moves=st.lists(st.sampled_from([*STATES, "running", "failed", "lost", "gone"]), min_size=1, max_size=6),
        seconds=st.sampled_from([1, 12, 60, 900]),
    )
    def some_days(self, moves: list[str], seconds: int) -> None:
        """Events arrive and are looked at: without this, few lives would see a second attempt."""
        self.sim.relist()
        for move in moves:
            for job in self._at_work():
                if move == "lost":
                    info = {"rayJobInfo": {"startTime": timestamp(self.sim.now)}}
                    self.sim.api.set_status(RAY_JOB, job, STATES["running"] | info)
                elif move == "gone":
                    self.sim.api.remove(RAY_JOB, job)
                else:
                    self._move(job, move)
            self.all_events_arrive()
            self._look()
            self.sim.seconds += seconds

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

    @rule()
    def calm(self) -> None:
        """Storage answers, jobs run and succeed: the run ends, one way or another, and then rests."""
        self.sim.artifacts.away = False
        self.suspend(False)
        self.sim.relist()  # as every resync does: what was lost is heard of at last
        for turn in range(CALM_LOOKS):
            lineage = self.status.lineage
            if lineage is not None:
                self._write_outcome(str(self.status.run_uri), lineage, JobResult.SUCCEEDED)
            for job in self._at_work():
                self._move(job, "running" if turn % 2 else "succeeded")
            self.all_events_arrive()
            again = self._look()
            if again is None and self.status.finished_at is not None:
                break
            self.sim.seconds += min(max(again or 1.0, 1.0), 400)
        assert self.status.finished_at is not None, self.status
        self.all_events_arrive()
        self._look()
        self.nothing_is_written_twice()
        assert self._at_work() == [], "an ended run leaves nothing running"
        ready = next(c for c in self.status.conditions if c.type == "Ready")
        if ready.status == "True":
            (version,) = self.sim.api.all(MODEL_VERSION)
            assert version["spec"]["manifest"]["digest"] == Make.digest


def _generation(obj: Any) -> int:
    return int((obj.get("metadata") or {}).get("generation") or 0)


def manifest(folder: str, lineage: str) -> Manifest:
    """What a run that went well leaves behind."""
    return Manifest.model_validate(
        {
            "model": "support-bot",
            "lineage": lineage,
            "trainingRun": RUN,
            "runUri": folder,
            "dataset": {"runId": "run-1", "uri": DATASET, "digest": Make.digest},
            "baseDigest": Make.digest,
            "code": {"gitSha": "c0ffee"},
            "recipe": {"method": "scratch", "steps": 1},
            "evaluation": {"uri": f"{folder}/eval/report.json", "digest": Make.digest, "passed": True},
            "parityUri": f"{folder}/parity.json",
            "parityDigest": Make.digest,
            "artifacts": [{"path": "export/model.safetensors", "role": "served", "size": 1, "sha256": Make.digest}],
            "createdAt": timestamp(Make.now),
        }
    )


TestRunLife = RunLife.TestCase
TestRunLife.settings = settings(
    max_examples=100,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    phases=(Phase.explicit, Phase.generate),  # shrinking a life takes minutes; the failing one says enough
)
