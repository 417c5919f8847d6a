"""The plan of a TrainingRun, one situation after another."""

import hashlib
import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sluice_contracts.job import JobConfig, JobOutcome, JobResult
from sluice_contracts.manifest import Manifest
from sluice_contracts.training_run import GateResult, ManifestReference, Progress, Stage, TrainingRunStatus
from sluice_operator.artifacts import Problem
from sluice_operator.plan import Plan
from sluice_operator.training_run.observe import Inputs, Observed
from sluice_operator.training_run.plan import gates_text, plan
from sluice_operator.training_run.ray_job_state import JobPhase, RayJobState

LINEAGE = "a" * 64
INPUTS = Inputs(LINEAGE, "c0ffee")
OWN = hashlib.sha256(b"uid-run").hexdigest()[:16]
"""What the folder of the object with this uid is called."""
BUDGET = "PodDisruptionBudget/run-pods"


def job(attempt: int = 1, phase: JobPhase = JobPhase.RUNNING, **fields: Any) -> RayJobState:
    name = "run" if attempt == 1 else f"run-{attempt}"
    return RayJobState(name=name, attempt=attempt, phase=phase, **fields)


def status(**fields: Any) -> TrainingRunStatus:
    return TrainingRunStatus(
        **({"attempts": 1, "ray_job": "run", "lineage": LINEAGE, "observed_generation": 1} | fields)
    )


def decide(make: Any, observed: Observed, *, seconds: float = 0, generation: int = 1, **spec: Any) -> Plan:
    now = make.now + timedelta(seconds=seconds)
    return plan(make.meta("run", generation=generation), make.run_spec(**spec), observed, make.settings(), now)


def after(made: Plan) -> TrainingRunStatus:
    return TrainingRunStatus.model_validate(made.status)


def reason(made: Plan, type_: str = "Ready") -> tuple[str, str]:
    found = next(c for c in after(made).conditions if c.type == type_)
    return found.status, found.reason


def kinds(made: Plan) -> list[str]:
    return [f"{a.resource.kind}/{a.object['metadata']['name']}" for a in made.apply]


class TestStarting:
    def test_the_config_map_comes_before_the_job_that_mounts_it(self, make: Any) -> None:
        made = decide(make, Observed(status=TrainingRunStatus(), inputs=INPUTS))
        assert kinds(made) == ["ConfigMap/run-job", "RayJob/run", BUDGET]
        assert reason(made) == ("False", "Starting")
        assert after(made).attempts == 1
        config = JobConfig.model_validate_json(made.apply[0].object["data"]["run.json"])
        assert (config.lineage, config.run_uri) == (LINEAGE, f"gs://sluice/runs/{LINEAGE}/{OWN}")

    def test_each_object_has_a_folder_of_its_own_and_keeps_what_its_job_was_told(self, make: Any) -> None:
        def folder(uid: str, inputs: Inputs) -> str:
            observed = Observed(status=TrainingRunStatus(), inputs=inputs)
            made = plan(make.meta("run", uid=uid), make.run_spec(), observed, make.settings(), make.now)
            assert after(made).run_uri is not None
            return str(after(made).run_uri)

        assert folder("one", INPUTS) == folder("one", INPUTS) != folder("two", INPUTS)
        told = replace(INPUTS, run_uri="gs://sluice/runs/of-an-older-operator")
        assert folder("one", told) == told.run_uri

    def test_one_cpu_worker_trains_in_the_head_pod(self, make: Any) -> None:
        made = decide(make, Observed(status=TrainingRunStatus(), inputs=INPUTS))
        spec = made.apply[1].object["spec"]
        assert "workerGroupSpecs" not in spec["rayClusterSpec"]
        assert spec["submissionMode"] == "HTTPMode"
        assert (spec["shutdownAfterJobFinishes"], spec["backoffLimit"]) == (True, 0)
        pod = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
        env = {e["name"]: e["value"] for e in pod["containers"][0]["env"]}
        assert env["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] == "10"
        assert env["RAY_USAGE_STATS_ENABLED"] == "0"
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert {"name": "job", "mountPath": "/etc/sluice", "readOnly": True} in pod["containers"][0]["volumeMounts"]

    def test_gpus_get_a_worker_group_with_the_node_pools_label(self, make: Any) -> None:
        hardware = {"accelerator": "nvidia-l4", "count": 2, "workers": {"min": 1, "max": 3}, "spot": True}
        made = decide(make, Observed(status=TrainingRunStatus(), inputs=INPUTS), hardware=hardware)
        (group,) = made.apply[1].object["spec"]["rayClusterSpec"]["workerGroupSpecs"]
        pod = group["template"]["spec"]
        assert (group["minReplicas"], group["maxReplicas"], group["rayStartParams"]["num-gpus"]) == (1, 3, "2")
        assert group["rayStartParams"]["num-cpus"] == "2", "a process for each GPU asks for the pod's CPU"
        assert pod["nodeSelector"] == {
            "cloud.google.com/gke-accelerator": "nvidia-l4",
            "cloud.google.com/gke-spot": "true",
        }
        assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "2"

    def test_a_topology_that_does_not_exist_is_named(self, make: Any) -> None:
        hardware = {"accelerator": "tpu-v6e-slice", "topology": "2x2x2"}
        made = decide(make, Observed(status=TrainingRunStatus(), inputs=INPUTS), hardware=hardware)
        assert reason(made, "Stalled") == ("True", "InvalidHardware")
        assert kinds(made) == []

    def test_a_suspended_run_starts_nothing(self, make: Any) -> None:
        made = decide(make, Observed(status=TrainingRunStatus(), inputs=INPUTS), suspend=True)
        assert kinds(made) == []
        assert reason(made) == ("False", "Suspended")
        assert reason(made, "Stalled")[0] == "False"

    def test_a_queue_name_is_passed_to_kueue_and_suspend_is_left_to_it(self, make: Any) -> None:
        made = decide(make, Observed(status=TrainingRunStatus(), inputs=INPUTS), queueName="team-a")
        rayjob = made.apply[1].object
        assert rayjob["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
        assert "suspend" not in rayjob["spec"]
        held = decide(
            make,
            Observed(status=status(), inputs=INPUTS, ray_jobs=(job(phase=JobPhase.SUSPENDED, suspend=True),)),
            queueName="team-a",
        )
        assert kinds(held) == ["ConfigMap/run-job"]
        assert reason(held) == ("False", "Queued")

    @pytest.mark.parametrize(("lasting", "stalled"), [(True, "True"), (False, "False")])
    def test_inputs_that_cannot_be_had(self, make: Any, lasting: bool, stalled: str) -> None:
        problem = Problem("DatasetNotFound", "spec.dataset.uri: gone", lasting)
        made = decide(make, Observed(status=TrainingRunStatus(), inputs=problem))
        assert reason(made, "Stalled")[0] == stalled
        assert made.requeue_after is not None
        assert kinds(made) == []


class TestRunning:
    def test_a_running_job_is_never_applied_again(self, make: Any) -> None:
        made = decide(make, Observed(status=status(), inputs=INPUTS, ray_jobs=(job(),)))
        assert kinds(made) == ["ConfigMap/run-job", BUDGET]
        assert reason(made) == ("False", "Running")
        assert made.requeue_after is not None

    def test_suspending_touches_one_field_under_its_own_manager(self, make: Any) -> None:
        made = decide(make, Observed(status=status(), inputs=INPUTS, ray_jobs=(job(),)), suspend=True)
        (apply,) = [a for a in made.apply if a.resource.kind == "RayJob"]
        assert apply.object["spec"] == {"suspend": True}
        assert apply.manager == "sluice-suspend"

    def test_progress_is_shown_every_ten_seconds_or_with_a_new_stage(self, make: Any) -> None:
        def shown(stage: Stage, step: int, seconds: float) -> int:
            found = Progress(stage=stage, step=step, updated_at=make.at(seconds))
            observed = Observed(
                status=status(progress=Progress(stage=Stage.TRAINING, step=10, updated_at=make.at(0))),
                inputs=INPUTS,
                ray_jobs=(job(),),
                progress=found,
            )
            progress = after(decide(make, observed, seconds=seconds)).progress
            assert progress is not None
            return progress.step

        assert shown(Stage.TRAINING, 20, 5) == 10
        assert shown(Stage.TRAINING, 30, 10) == 30
        assert shown(Stage.EVALUATING, 20, 1) == 20

    def test_progress_left_behind_by_an_earlier_run_is_not_shown(self, make: Any) -> None:
        stale = Progress(stage=Stage.FINISHED, step=100, updated_at=make.at(-3600))
        observed = Observed(status=status(started_at=make.at(0)), inputs=INPUTS, ray_jobs=(job(),), progress=stale)
        assert after(decide(make, observed)).progress is None

    def test_a_run_that_takes_too_long_is_stopped(self, make: Any) -> None:
        observed = Observed(status=status(started_at=make.at(0)), inputs=INPUTS, ray_jobs=(job(),))
        limits = {"maxDuration": "1h"}
        assert reason(decide(make, observed, seconds=3599, limits=limits)) == ("False", "Running")
        made = decide(make, observed, seconds=3600, limits=limits)
        assert reason(made, "Stalled") == ("True", "DurationExceeded")
        assert [d.name for d in made.delete] == ["run"]

    def test_too_many_preemptions_stop_it(self, make: Any) -> None:
        observed = Observed(
            status=status(preemptions=3, job_started_at=make.at(0)),
            inputs=INPUTS,
            ray_jobs=(job(started_at=make.at(60)),),
        )
        made = decide(make, observed, limits={"maxPreemptions": 3})
        assert after(made).preemptions == 4
        assert reason(made, "Stalled") == ("True", "PreemptionsExceeded")


class TestFailing:
    def failed(self, attempt: int, seconds: float, make: Any) -> RayJobState:
        return job(attempt, JobPhase.FAILED, ended_at=make.at(seconds), message="AppFailed: exit code 3")

    def test_the_next_attempt_waits_for_its_pause(self, make: Any) -> None:
        observed = Observed(status=status(), inputs=INPUTS, ray_jobs=(self.failed(1, 0, make),))
        early = decide(make, observed, seconds=4)
        assert kinds(early) == ["ConfigMap/run-job"]
        assert reason(early) == ("False", "BackOff")
        assert early.requeue_after == pytest.approx(6)
        assert kinds(decide(make, observed, seconds=10)) == ["ConfigMap/run-job", "RayJob/run-2", BUDGET]

    def test_failures_are_counted_from_attempts_whatever_was_missed(self, make: Any) -> None:
        """The operator was away while attempt 1 failed; it had made attempt 2 before its status said so."""
        jobs = (self.failed(1, 0, make), self.failed(2, 100, make))
        made = decide(make, Observed(status=status(attempts=1), inputs=INPUTS, ray_jobs=jobs), seconds=105)
        assert (after(made).attempts, after(made).failures) == (2, 2)

    def test_one_failure_too_many_ends_it_and_a_raised_limit_goes_on(self, make: Any) -> None:
        jobs = tuple(self.failed(n, 0, make) for n in (1, 2, 3))
        observed = Observed(status=status(attempts=3, ray_job="run-3"), inputs=INPUTS, ray_jobs=jobs)
        ended = decide(make, observed, seconds=500)
        assert reason(ended, "Stalled") == ("True", "FailuresExceeded")
        assert "AppFailed: exit code 3" in next(c.message for c in after(ended).conditions if c.type == "Stalled")
        rest = decide(make, Observed(status=after(ended), ray_jobs=jobs), seconds=600)
        assert rest.status == ended.status
        raised = decide(
            make,
            Observed(status=after(ended), inputs=INPUTS, ray_jobs=jobs),
            seconds=700,
            generation=2,
            limits={"maxFailures": 5},
        )
        assert kinds(raised) == ["ConfigMap/run-job", "RayJob/run-4", BUDGET]
        assert after(raised).finished_at is None

    def test_a_job_that_vanished_is_a_failure_and_followed_after_a_pause(self, make: Any) -> None:
        """It may have gone with the run itself: the news of the two come in any order."""
        missed = decide(make, Observed(status=status(started_at=make.at(-600)), inputs=INPUTS))
        assert kinds(missed) == ["ConfigMap/run-job"]
        assert (after(missed).failures, reason(missed)) == (1, ("False", "BackOff"))
        assert [e.reason for e in missed.events] == ["AttemptFailed", "BackOff"]
        waiting = decide(make, Observed(status=after(missed), inputs=INPUTS), seconds=4)
        assert (waiting.status, waiting.events, waiting.requeue_after) == (missed.status, [], 6)
        made = decide(make, Observed(status=after(missed), inputs=INPUTS), seconds=10)
        assert kinds(made) == ["ConfigMap/run-job", "RayJob/run-2", BUDGET]
        assert after(made).failures == 1
        assert [e.reason for e in made.events] == ["AttemptStarted"]

    def test_a_success_without_an_outcome_is_a_failure(self, make: Any) -> None:
        missing = Problem("NotFound", "no outcome.json")
        observed = Observed(
            status=status(),
            inputs=INPUTS,
            ray_jobs=(job(phase=JobPhase.SUCCEEDED, ended_at=make.at(0)),),
            outcome=missing,
        )
        assert kinds(decide(make, observed, seconds=60)) == ["ConfigMap/run-job", "RayJob/run-2", BUDGET]

    def test_storage_that_is_away_for_a_moment_is_none(self, make: Any) -> None:
        away = Problem("StorageUnavailable", "timeout", lasting=False)
        observed = Observed(status=status(), inputs=INPUTS, ray_jobs=(job(phase=JobPhase.SUCCEEDED),), outcome=away)
        made = decide(make, observed)
        assert reason(made) == ("False", "ReadingOutcome")
        assert after(made).failures == 0
        assert made.requeue_after is not None


class TestEnding:
    def success(self, bucket: Any) -> Observed:
        reference = bucket.version(LINEAGE)
        told = JobConfig.model_construct(lineage=LINEAGE, run_uri=f"{bucket.uri}/runs/{LINEAGE}")
        outcome = bucket.outcome(told, JobResult.SUCCEEDED, manifest=reference)
        manifest = Manifest.model_validate_json((bucket.root / f"runs/{LINEAGE}/manifest.json").read_bytes())
        return Observed(
            status=status(),
            inputs=INPUTS,
            ray_jobs=(job(phase=JobPhase.SUCCEEDED),),
            outcome=outcome,
            manifest=manifest,
        )

    def test_a_success_makes_the_model_version_without_touching_publish(self, make: Any, bucket: Any) -> None:
        made = decide(make, self.success(bucket))
        version = made.apply[-1].object
        assert version["kind"] == "ModelVersion"
        assert sorted(version["spec"]) == ["manifest", "model", "version"]
        assert version["metadata"]["labels"]["sluice.dev/lineage"] == LINEAGE[:16]
        assert reason(made) == ("True", "Succeeded")
        rest = decide(make, Observed(status=after(made)), seconds=3600)
        assert kinds(rest) == ["ModelVersion/run"], "kept, should somebody delete it"
        assert rest.status == made.status
        assert rest.events == []

    def test_a_version_of_the_same_name_with_other_bytes_is_not_overwritten(self, make: Any, bucket: Any) -> None:
        observed = self.success(bucket)
        other = ManifestReference(uri="gs://bucket/other/manifest.json", digest="sha256:" + "9" * 64)
        clash = Observed(**(observed.__dict__ | {"version_manifest": other}))
        made = decide(make, clash)
        assert reason(made, "Stalled") == ("True", "ModelVersionConflict")
        assert "ModelVersion/run" not in kinds(made)

    def test_an_unreadable_manifest_ends_the_run(self, make: Any, bucket: Any) -> None:
        broken = Observed(
            **(self.success(bucket).__dict__ | {"manifest": Problem("ManifestDigestMismatch", "changed")})
        )
        assert reason(decide(make, broken), "Stalled") == ("True", "ManifestDigestMismatch")

    @pytest.mark.parametrize(
        ("result", "wanted"),
        [
            (JobResult.GATE_FAILED, "GateFailed"),
            (JobResult.PARITY_FAILED, "ParityFailed"),
            (JobResult.INVALID_INPUT, "InvalidInput"),
        ],
    )
    def test_a_job_that_says_no_is_not_tried_again(self, make: Any, result: JobResult, wanted: str) -> None:
        outcome = JobOutcome(result=result, lineage=LINEAGE, message="because", finished_at=make.at(0))
        observed = Observed(status=status(), inputs=INPUTS, ray_jobs=(job(phase=JobPhase.SUCCEEDED),), outcome=outcome)
        made = decide(make, observed)
        assert reason(made, "Stalled") == ("True", wanted)
        again = decide(make, Observed(status=after(made)), seconds=86_400, generation=2, limits={"maxFailures": 50})
        assert kinds(again) == []
        assert reason(again, "Stalled") == ("True", wanted)
        assert {c.observed_generation for c in after(again).conditions} == {2}

    def test_an_outcome_of_another_lineage_is_refused(self, make: Any) -> None:
        outcome = JobOutcome(result=JobResult.SUCCEEDED, lineage="b" * 64, message="", finished_at=make.at(0))
        observed = Observed(status=status(), inputs=INPUTS, ray_jobs=(job(phase=JobPhase.SUCCEEDED),), outcome=outcome)
        assert reason(decide(make, observed), "Stalled") == ("True", "OutcomeMismatch")


def test_gates_are_told_with_their_numbers_the_failed_first() -> None:
    passed = GateResult(metric="safety.refusal", value=1.0, bound=">= 0.99", n=200, passed=True)
    failed = GateResult(
        metric="intent.accuracy", slice="leadership", value=0.4, low=0.31, high=0.5, bound=">= 0.9", n=80, passed=False
    )
    text = gates_text([passed, failed])
    assert text.startswith("intent.accuracy[leadership] 0.400 (95 % interval 0.310 to 0.500), n=80, misses >= 0.9")
    assert "safety.refusal 1.000, n=200, holds >= 0.99" in text


def test_equal_situations_give_equal_bytes(make: Any) -> None:
    """Nothing random and no order of sets in what is applied: otherwise something would be written at every look."""
    observed = Observed(status=TrainingRunStatus(), inputs=INPUTS)
    first, second = decide(make, observed), decide(make, observed)
    assert json.dumps([a.object for a in first.apply]) == json.dumps([a.object for a in second.apply])
