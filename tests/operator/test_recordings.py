"""Every state that the real KubeRay 1.7.0 was recorded in, read and planned for."""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sluice_contracts.base import parse_timestamp
from sluice_contracts.job import JobOutcome, JobResult
from sluice_contracts.training_run import TrainingRunStatus
from sluice_operator.artifacts import Problem
from sluice_operator.inference_pool.engine_state import read_ray_service
from sluice_operator.plan import Plan
from sluice_operator.training_run.observe import Inputs, Observed
from sluice_operator.training_run.plan import plan
from sluice_operator.training_run.ray_job_state import JobPhase, RayJobState, read_ray_job

RECORDINGS = Path(__file__).parent / "recordings"
LINEAGE = "f" * 64


def recorded(scenario: str, kind: str) -> Iterator[dict[str, Any]]:
    """The states of the scenario's objects of one kind, in their order."""
    for line in (RECORDINGS / f"{scenario}.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if entry["object"]["kind"] == kind and entry.get("type") != "DELETED":
            yield entry["object"]


def job_states(scenario: str) -> list[RayJobState]:
    found = []
    for obj in recorded(scenario, "RayJob"):
        state = read_ray_job(obj["metadata"]["name"], obj)
        assert state is not None
        found.append(state)
    return found


def phases(states: list[RayJobState]) -> list[str]:
    """The phases, each once."""
    found: list[str] = []
    for state in states:
        if not found or found[-1] != state.phase:
            found.append(state.phase.value)
    return found


@pytest.mark.parametrize(
    ("scenario", "wanted"),
    [
        ("rayjob_http_success", ["starting", "running", "succeeded"]),
        ("rayjob_worker_success", ["starting", "running", "succeeded"]),
        ("rayjob_k8sjob_success", ["starting", "running", "succeeded"]),
        ("rayjob_entrypoint_fails", ["starting", "failed"]),
        ("rayjob_active_deadline", ["starting", "running", "failed"]),
        ("rayjob_stopped_by_user", ["starting", "running", "stopped"]),
        ("rayjob_suspended_while_running", ["starting", "running", "suspended"]),
        (
            "rayjob_suspended_then_resumed",
            ["starting", "suspended", "starting", "running", "succeeded"],
        ),
        ("rayjob_head_pod_killed", ["starting", "running", "starting", "running", "succeeded"]),
        ("rayjob_retry_backoff1", ["starting", "failed"]),
        ("rayjob_deleted_while_running", ["starting", "running"]),
    ],
)
def test_a_jobs_life_reads_as_it_was(scenario: str, wanted: list[str]) -> None:
    assert phases(job_states(scenario)) == wanted


def test_a_refused_job_is_final_at_once() -> None:
    assert {s.phase for s in job_states("rayjob_validation") if s.message} == {JobPhase.REJECTED}


def replay(make: Any, scenario: str, outcome: JobOutcome | Problem | None = None) -> list[tuple[RayJobState, Plan]]:
    """Feed the recorded states to the planner, each with the status the plan before left behind."""
    status = TrainingRunStatus(attempts=1, ray_job="run", lineage=LINEAGE, observed_generation=1)
    steps: list[tuple[RayJobState, Plan]] = []
    spec, meta = make.run_spec(), make.meta("run")
    moment = make.now
    for obj in recorded(scenario, "RayJob"):
        obj["metadata"]["name"] = "run"
        state = read_ray_job("run", obj)
        assert state is not None
        moment = max(moment, parse_timestamp(state.started_at or make.at(0))) + timedelta(seconds=1)
        observed = Observed(
            status=status,
            inputs=Inputs(LINEAGE, "c0ffee"),
            ray_jobs=(state,),
            outcome=outcome if state.phase is JobPhase.SUCCEEDED else None,
        )
        made = plan(meta, spec, observed, make.settings(), moment)
        assert made.status is not None
        status = TrainingRunStatus.model_validate(made.status)
        steps.append((state, made))
    return steps


def ready(made: Plan) -> dict[str, Any]:
    assert made.status is not None
    return next(c for c in made.status["conditions"] if c["type"] == "Ready")


def test_a_lost_head_is_one_preemption_and_no_failure(make: Any) -> None:
    last = replay(make, "rayjob_head_pod_killed", Problem("StorageUnavailable", "later", lasting=False))[-1][1]
    assert last.status is not None
    assert last.status["preemptions"] == 1
    assert last.status["failures"] == 0


@pytest.mark.parametrize("scenario", ["rayjob_http_success", "rayjob_suspended_then_resumed", "rayjob_worker_success"])
def test_nothing_else_counts_as_a_preemption(make: Any, scenario: str) -> None:
    last = replay(make, scenario, Problem("StorageUnavailable", "later", lasting=False))[-1][1]
    assert last.status is not None
    assert last.status["preemptions"] == 0


@pytest.mark.parametrize("scenario", sorted(p.stem for p in RECORDINGS.glob("rayjob_*.jsonl")))
def test_the_meter_and_the_budget_follow_the_cluster(make: Any, scenario: str) -> None:
    """Pods are paid for and kept from eviction while they run, and no longer."""
    steps = replay(make, scenario, Problem("StorageUnavailable", "later", lasting=False))
    for state, made in steps:
        assert made.status is not None
        applied = {a.resource.kind for a in made.apply}
        if "finishedAt" in made.status or "RayJob" in applied:
            break  # the run has ended, or another attempt has begun
        at_work = state.phase in {JobPhase.STARTING, JobPhase.RUNNING} and not state.deleting
        usage = made.status["usage"]
        assert (usage["running"], "PodDisruptionBudget" in applied) == (at_work, at_work)
        assert usage["workers"] == (state.workers if at_work else 0)
    if "validation" not in scenario:
        assert max(state.workers for state, _ in steps) == 1, "each was recorded with one worker, or a head alone"


def test_a_job_deleted_while_it_runs_is_a_failure_and_leaves_nothing_held(make: Any) -> None:
    state, made = replay(make, "rayjob_deleted_while_running")[-1]
    assert state.deleting
    assert made.status is not None
    assert (made.status["failures"], made.status["preemptions"], made.status["usage"]["running"]) == (1, 0, False)
    assert "was deleted" in made.status["message"]
    assert (ready(made)["reason"], [a.resource.kind for a in made.apply]) == ("BackOff", ["ConfigMap"])


def test_a_lost_head_is_not_paid_for_until_there_is_another(make: Any) -> None:
    workers = [state.workers for state, _ in replay(make, "rayjob_head_pod_killed", Problem("Away", "", lasting=False))]
    assert [w for i, w in enumerate(workers) if i == 0 or w != workers[i - 1]] == [0, 1, 0, 1]


def test_a_resumed_job_has_another_id_and_a_restarted_one_the_same() -> None:
    def ids(scenario: str) -> list[str]:
        found: list[str] = []
        for state in job_states(scenario):
            if state.job_id is not None and state.job_id not in found:
                found.append(state.job_id)
        return found

    assert len(ids("rayjob_head_pod_killed")) == 1
    assert len(ids("rayjob_suspended_then_resumed")) == 2


def test_a_missed_suspension_is_no_preemption(make: Any) -> None:
    """The operator saw the job before it was suspended and after it was resumed, and nothing in between."""
    seen = [s for s in job_states("rayjob_suspended_while_running") if s.phase is JobPhase.RUNNING][:1]
    seen += [s for s in job_states("rayjob_head_pod_killed") if s.phase is JobPhase.RUNNING][:1]
    status = TrainingRunStatus(attempts=1, ray_job="run", lineage=LINEAGE, observed_generation=1)
    for state in seen:
        observed = Observed(
            status=status, inputs=Inputs(LINEAGE, "c0ffee"), ray_jobs=(replace(state, name="run", attempt=1),)
        )
        made = plan(make.meta("run"), make.run_spec(), observed, make.settings(), make.now)
        status = TrainingRunStatus.model_validate(made.status)
    assert (seen[0].started_at or "") < (seen[1].started_at or "")
    assert status.preemptions == 0


def test_a_refused_job_ends_the_run_with_kuberays_words(make: Any) -> None:
    steps = [(state, made) for state, made in replay(make, "rayjob_validation") if state.phase is JobPhase.REJECTED]
    for _, made in steps:
        assert made.status is not None
        assert ready(made)["reason"] == "JobRejected"
        assert "The RayJob" in ready(made)["message"]
        assert "finishedAt" in made.status


def test_a_stopped_job_ends_the_run(make: Any) -> None:
    made = replay(make, "rayjob_stopped_by_user")[-1][1]
    assert ready(made)["reason"] == "JobStopped"
    assert made.status is not None
    assert "finishedAt" in made.status


@pytest.mark.parametrize("scenario", ["rayjob_entrypoint_fails", "rayjob_active_deadline"])
def test_a_failed_job_is_a_failure_with_its_reason(make: Any, scenario: str) -> None:
    steps = replay(make, scenario)
    failed = next(made for state, made in steps if state.phase is JobPhase.FAILED)
    assert failed.status is not None
    assert failed.status["failures"] == 1
    assert ("AppFailed" if "entry" in scenario else "DeadlineExceeded") in json.dumps(failed.status)


def test_a_success_is_judged_by_its_outcome(make: Any) -> None:
    outcome = JobOutcome(result=JobResult.GATE_FAILED, lineage=LINEAGE, message="no", finished_at=make.at(0))
    assert ready(replay(make, "rayjob_http_success", outcome)[-1][1])["reason"] == "GateFailed"


@pytest.mark.parametrize("scenario", sorted(p.stem for p in RECORDINGS.glob("rayjob_*.jsonl")))
def test_no_recorded_state_makes_a_plan_that_repeats_itself(make: Any, scenario: str) -> None:
    """A second look at the same state changes nothing: no status moves and no event is told again."""
    status = TrainingRunStatus(attempts=1, ray_job="run", lineage=LINEAGE, observed_generation=1)
    for obj in recorded(scenario, "RayJob"):
        obj["metadata"]["name"] = "run"
        state = read_ray_job("run", obj)
        assert state is not None
        observed = Observed(status=status, inputs=Inputs(LINEAGE, "c0ffee"), ray_jobs=(state,))
        if state.phase is JobPhase.SUCCEEDED:
            break
        first = plan(make.meta("run"), make.run_spec(), observed, make.settings(), make.now)
        assert first.status is not None
        status = TrainingRunStatus.model_validate(first.status)
        if any(a.resource.kind == "RayJob" for a in first.apply) or status.finished_at:
            break
        again = plan(
            make.meta("run"),
            make.run_spec(),
            Observed(status=status, inputs=Inputs(LINEAGE, "c0ffee"), ray_jobs=(state,)),
            make.settings(),
            make.now + timedelta(seconds=3),
        )
        assert again.status == first.status
        assert again.events == []


def test_a_service_is_ready_only_when_condition_and_application_agree() -> None:
    seen: list[bool] = []
    for obj in recorded("rayservice_ready_none_strategy_headkill", "RayService"):
        ready_now = read_ray_service(obj).ready
        if not seen or seen[-1] != ready_now:
            seen.append(ready_now)
    assert seen == [False, True, False, True], "starts, serves, loses its head, heals"


def test_a_bad_application_shows_as_a_failure_though_the_service_never_fails() -> None:
    states = [read_ray_service(obj) for obj in recorded("rayservice_bad_import", "RayService")]
    assert not any(s.ready for s in states)
    failure = states[-1].failure
    assert failure is not None
    assert "hello" in failure


def test_the_reason_a_replica_gives_is_told() -> None:
    """Ray keeps it with the deployment; the application's own message only points there."""
    reason = (
        "The deployment failed to start 3 times in a row. Error:\nray::Replica()\nArtifactError: model.gguf altered"
    )
    deployments = {"llm": {"status": "DEPLOY_FAILED", "message": reason}, "router": {"status": "UPDATING"}}
    application = {"status": "DEPLOY_FAILED", "message": "see deployments", "serveDeploymentStatuses": deployments}
    obj = {
        "metadata": {"name": "pool"},
        "status": {"pendingServiceStatus": {"applicationStatuses": {"app": application}}},
    }
    expected = "application app failed to deploy: llm: ArtifactError: model.gguf altered; see deployments"
    assert read_ray_service(obj).failure == expected
