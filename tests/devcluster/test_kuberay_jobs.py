"""A RayJob goes through the states that the real operator went through, in the same order."""

import datetime
from itertools import count
from typing import Any

import pytest
from sluice_devcluster.kuberay import rayjob
from sluice_devcluster.kuberay.rayjob import Action, Answer

JSON = dict[str, Any]
START = datetime.datetime(2026, 11, 21, 7, 0, tzinfo=datetime.UTC)
CLUSTER_READY = {"state": "ready"}


def ray_says(status: str, message: str) -> JSON:
    """Ray's description of a job, as its REST API gives it."""
    ended = {"end_time": 1_795_244_410_000} if status in rayjob.TERMINAL else {"end_time": None}
    return {"status": status, "message": message, "start_time": 1_795_244_400_000} | ended


PENDING = ray_says("PENDING", "Job has not started yet.")
RUNNING = ray_says("RUNNING", "Job is currently running.")
SUCCEEDED = ray_says("SUCCEEDED", "Job finished successfully.")
STOPPED = ray_says("STOPPED", "Job was intentionally stopped.")
FAILED = ray_says("FAILED", "Job entrypoint command failed with exit code 3")


class World:
    """A RayJob, its cluster and a clock, moved by the stand-in's steps and by the events of a scenario."""

    def __init__(self, spec: JSON, name: str = "job") -> None:
        metadata = {"name": name, "namespace": "default", "uid": "1"}
        self.job: JSON = {"kind": "RayJob", "metadata": metadata, "spec": {"rayClusterSpec": {"x": 1}} | spec}
        self.cluster: JSON | None = None
        self.now = START
        self.states: list[JSON] = []
        self.submitted: list[str] = []
        self.clusters = 0
        self._suffixes = (f"{n:05d}" for n in count(12345))
        self.settle()

    def settle(self, answer: JSON | Answer = Answer.NOT_ASKED) -> None:
        """Steps until nothing changes any more."""
        for _ in range(20):
            step = rayjob.step(self.job, self.cluster, answer, self.now, next(self._suffixes))
            answer = Answer.NOT_ASKED
            for action in step.actions:
                self._do(action)
            status = {k: v for k, v in step.status.items() if k != "rayClusterStatus"}
            changed = bool(step.actions) or step.status != self.job.get("status")
            if status and (not self.states or self.states[-1] != status):
                self.states.append(status)
            self.job["status"] = step.status
            if not changed:
                return
        raise AssertionError("the steps do not come to rest")

    def _do(self, action: Action) -> None:
        if action is Action.CREATE_CLUSTER:
            self.clusters += 1
            self.cluster = {"metadata": {"name": self.job["status"]["rayClusterName"]}, "status": {}}
        elif action is Action.DELETE_CLUSTER:
            self.cluster = None
        elif action is Action.SUBMIT:
            self.submitted.append(self.job["status"]["jobId"])

    def play(self, *events: object) -> None:
        """Events: "ready", "suspend", "resume", seconds that pass, or what Ray answers."""
        for event in events:
            answer: JSON | Answer = Answer.NOT_ASKED
            if event == "ready":
                assert self.cluster is not None
                self.cluster = self.cluster | {"status": CLUSTER_READY}
            elif event in ("suspend", "resume"):
                self.job["spec"]["suspend"] = event == "suspend"
            elif isinstance(event, int):
                self.now += datetime.timedelta(seconds=event)
            else:
                assert isinstance(event, dict | Answer)
                answer = event
            self.settle(answer)


def shape(states: list[JSON]) -> list[JSON]:
    """States with generated names numbered as they appear; times and long messages only as being there."""
    known: dict[str, str] = {}
    found = []
    for state in states:
        new: JSON = {}
        for key, value in state.items():
            if key in ("jobId", "rayClusterName"):
                new[key] = known.setdefault(value, f"{key} {len(known)}")
            elif key.endswith("Time"):
                new[key] = "time"
            elif key == "rayJobInfo":
                new[key] = sorted(value)
            elif key == "dashboardURL":
                new[key] = "url"
            elif key == "message":
                new[key] = value.split(",")[0].split(". StartTime")[0]
            else:
                new[key] = value
        found.append(new)
    return found


SCENARIOS: dict[str, tuple[object, ...]] = {
    "rayjob_http_success": ("ready", Answer.UNKNOWN_JOB, PENDING, RUNNING, SUCCEEDED),
    "rayjob_worker_success": ("ready", Answer.UNKNOWN_JOB, PENDING, RUNNING, SUCCEEDED),
    "rayjob_entrypoint_fails": ("ready", Answer.UNKNOWN_JOB, Answer.UNREACHABLE, PENDING, FAILED),
    "rayjob_stopped_by_user": ("ready", Answer.UNKNOWN_JOB, PENDING, RUNNING, STOPPED),
    "rayjob_active_deadline": ("ready", Answer.UNKNOWN_JOB, PENDING, RUNNING, 40),
    "rayjob_deleted_while_running": ("ready", Answer.UNKNOWN_JOB, PENDING, RUNNING),
    "rayjob_retry_backoff1": (
        *("ready", Answer.UNKNOWN_JOB, PENDING, FAILED),
        *("ready", Answer.UNKNOWN_JOB, PENDING, FAILED),
    ),
    "rayjob_suspended_while_running": ("ready", Answer.UNKNOWN_JOB, PENDING, RUNNING, "suspend"),
    "rayjob_suspended_then_resumed": ("resume", "ready", Answer.UNKNOWN_JOB, PENDING, RUNNING, SUCCEEDED),
    "rayjob_head_pod_killed": (
        *("ready", Answer.UNKNOWN_JOB, PENDING, RUNNING),
        *(Answer.UNREACHABLE, Answer.UNKNOWN_JOB, PENDING, RUNNING, SUCCEEDED),
    ),
}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_states_and_their_order_are_the_recorded_ones(recorded: Any, scenario: str) -> None:
    ((_, there),) = recorded(scenario).items()
    spec = dict(there["spec"])
    if scenario == "rayjob_suspended_then_resumed":
        spec["suspend"] = True
    world = World(spec)

    world.play(*SCENARIOS[scenario])

    assert shape(world.states) == shape(there["states"])


def test_invalid_jobs_fail_at_once_with_kuberays_words(recorded: Any) -> None:
    for name, there in recorded("rayjob_validation").items():
        world = World(there["spec"], name)

        assert shape(world.states) == shape(there["states"])
        assert world.clusters == 0


def test_a_lost_head_starts_the_same_job_again(recorded: Any) -> None:
    ((_, there),) = recorded("rayjob_head_pod_killed").items()
    world = World(there["spec"])

    world.play(*SCENARIOS["rayjob_head_pod_killed"])

    assert len(world.submitted) == 2
    assert len(set(world.submitted)) == 1
    assert world.clusters == 1


def test_the_cluster_goes_when_the_job_ended_and_its_time_is_over() -> None:
    spec = {"entrypoint": "x", "submissionMode": "HTTPMode", "shutdownAfterJobFinishes": True}
    world = World(spec | {"ttlSecondsAfterFinished": 30})
    world.play("ready", Answer.UNKNOWN_JOB, SUCCEEDED)
    assert world.cluster is not None

    world.play(31)

    assert world.cluster is None
    assert world.job["status"]["jobStatus"] == "SUCCEEDED"


def test_a_job_whose_status_cannot_be_had_fails_after_five_minutes() -> None:
    world = World({"entrypoint": "x", "submissionMode": "HTTPMode"})

    world.play("ready", Answer.UNKNOWN_JOB, RUNNING, Answer.UNREACHABLE, 299, Answer.UNREACHABLE)
    assert world.job["status"]["jobDeploymentStatus"] == "Running"
    world.play(2, Answer.UNREACHABLE)

    assert world.job["status"]["reason"] == "JobStatusCheckTimeoutExceeded"
    assert world.job["status"]["message"] == (
        "Job status checks have been failing since 2026-11-21 07:00:00; exceeded timeout of 300s"
    )


def test_a_submission_that_ray_does_not_take_counts_as_a_failed_check_until_one_is_taken() -> None:
    world = World({"entrypoint": "x", "submissionMode": "HTTPMode"})
    world.play("ready")
    job, later = world.job, START + datetime.timedelta(seconds=300)

    refused = rayjob.after_submission(job, job["status"], START, taken=False)
    taken = rayjob.after_submission(job, refused, later, taken=True)
    given_up = rayjob.after_submission(job, refused, later, taken=False)

    assert refused == job["status"] | {"jobStatusCheckFailureStartTime": "2026-11-21T07:00:00Z"}
    assert taken == job["status"]
    assert given_up["reason"] == "JobStatusCheckTimeoutExceeded"


def test_a_job_that_does_not_begin_in_time_fails_with_kuberays_words() -> None:
    world = World({"entrypoint": "x", "submissionMode": "HTTPMode", "preRunningDeadlineSeconds": 60})

    world.play(61)

    assert world.job["status"]["reason"] == "PreRunningDeadlineExceeded"
    assert world.job["status"]["message"] == (
        "The RayJob has passed the preRunningDeadlineSeconds. StartTime: 2026-11-21 07:00:00 +0000 UTC. "
        "PreRunningDeadlineSeconds: 60"
    )


def test_the_stand_in_says_what_it_does_not_know() -> None:
    world = World({"entrypoint": "x", "submissionMode": "K8sJobMode"})

    assert world.job["status"]["jobDeploymentStatus"] == "ValidationFailed"
    assert "stand-in" in world.job["status"]["message"]
