"""Money, time, spot machines and leftovers of a TrainingRun: what its plan does about them."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sluice_contracts.training_run import Progress, Stage, TrainingRunStatus
from sluice_operator.artifacts import Problem
from sluice_operator.plan import Plan
from sluice_operator.prices import parse_prices
from sluice_operator.training_run.live import eta
from sluice_operator.training_run.observe import Inputs, Observed
from sluice_operator.training_run.plan import plan
from sluice_operator.training_run.ray_job_state import JobPhase, RayJobState

LINEAGE = "a" * 64
INPUTS = Inputs(LINEAGE, "c0ffee")
PRICES = parse_prices('{"currency": "EUR", "onDemand": {"nvidia-l4": 0.70}, "spot": {"nvidia-l4": 0.25}}')
L4 = {"accelerator": "nvidia-l4", "count": 4, "workers": {"min": 2, "max": 2}}
HOURLY = 4 * 0.70 * 2
"""Of a run on L4."""


class Run:
    """One run and the world around it, look after look: what a plan leaves behind is what the next one sees."""

    def __init__(self, make: Any, prices: Any = PRICES, **spec: Any) -> None:
        self.make, self.spec, self.generation = make, {"hardware": L4} | spec, 1
        self.status, self.jobs, self.budget, self.prices = TrainingRunStatus(), {}, False, prices
        self.writes: list[float] = []
        self.progress: Progress | None = None
        self.made = Plan()

    def look(self, seconds: float) -> Plan:
        """Look at the run, and obey: RayJobs, the budget and the status become what the plan says."""
        make = self.make
        observed = Observed(
            status=self.status,
            inputs=INPUTS,
            ray_jobs=tuple(self.jobs[name] for name in sorted(self.jobs)),
            progress=self.progress,
            budget=self.budget,
        )
        meta = make.meta("run", generation=self.generation)
        settings = make.settings(prices=self.prices)
        now = make.now + timedelta(seconds=seconds)
        self.made = made = plan(meta, make.run_spec(**self.spec), observed, settings, now)
        for apply in made.apply:
            name, body = apply.object["metadata"]["name"], apply.object.get("spec", {})
            if apply.resource.kind == "PodDisruptionBudget":
                self.budget = True
            elif apply.resource.kind == "RayJob" and name in self.jobs:
                self.jobs[name] = replace(self.jobs[name], suspend=body["suspend"])
            elif apply.resource.kind == "RayJob":
                attempt = 1 if name == "run" else int(name.removeprefix("run-"))
                self.jobs[name] = RayJobState(name=name, attempt=attempt, phase=JobPhase.STARTING)
        for delete in made.delete:
            if delete.resource.kind == "RayJob":
                del self.jobs[delete.name]
            else:
                self.budget = False
        after = TrainingRunStatus.model_validate(made.status)
        if after != self.status:
            self.writes.append(seconds)
        self.status = after
        return made

    def job(self, name: str, phase: JobPhase, **fields: Any) -> None:
        self.jobs[name] = replace(self.jobs[name], phase=phase, **fields)

    def running(self, seconds: float = 0, workers: int = 2) -> None:
        """Create the run at `seconds`, and have all its workers there at once."""
        self.look(seconds)
        self.job("run", JobPhase.RUNNING, workers=workers, started_at=self.make.at(seconds), job_id="j-1")
        self.look(seconds)

    def change(self, **spec: Any) -> None:
        """`kubectl apply` of a changed spec."""
        self.spec |= spec
        self.generation += 1

    def ready(self) -> tuple[str, str]:
        """Reason and message of Ready."""
        found = next(c for c in self.status.conditions if c.type == "Ready")
        return found.reason, found.message

    def stalled(self) -> str:
        return next(c.status for c in self.status.conditions if c.type == "Stalled")

    def live(self) -> list[str]:
        return [name for name, job in self.jobs.items() if not job.phase.over]


class TestCost:
    def test_status_shows_what_the_run_has_cost_so_far(self, make: Any) -> None:
        run = Run(make)
        run.running()
        run.look(1800)
        assert run.status.cost is not None
        assert (run.status.cost.total, run.status.cost.currency) == (f"{HOURLY / 2:.2f}", "EUR")
        assert run.status.cost.per_worker_hour == "2.8"

    def test_without_a_price_there_is_no_cost_and_no_obstacle(self, make: Any) -> None:
        run = Run(make, parse_prices(""))
        run.running()
        run.look(1800)
        assert run.status.cost is None
        assert run.ready()[0] == "Running"

    def test_the_limit_stops_the_run_and_says_what_it_had_cost(self, make: Any) -> None:
        run = Run(make, limits={"maxCost": "11.20"})
        run.running()
        run.look(7199)
        assert (run.ready()[0], run.live()) == ("Running", ["run"])
        run.look(7197)
        assert run.made.requeue_after == 3, "it is looked at again when the limit is reached"
        run.look(7200)
        assert run.ready() == (
            "CostExceeded",
            "cost 11.20 EUR (limits.maxCost 11.20): 4.00 hours of workers at 2.8 EUR an hour",
        )
        assert (run.stalled(), run.live(), run.budget) == ("True", [], False)
        assert run.status.cost is not None
        assert run.status.cost.total == "11.20"
        run.look(90_000)
        assert run.status.cost.total == "11.20", "it costs nothing any more"

    def test_a_raised_limit_lets_it_go_on_and_nothing_of_the_stop_counts_as_a_failure(self, make: Any) -> None:
        run = Run(make, limits={"maxCost": "5.60", "maxFailures": 0})
        run.running()
        run.look(3600)
        assert run.ready()[0] == "CostExceeded"
        run.change(limits={"maxCost": "5.60", "maxFailures": 1})
        run.look(5000)
        assert run.ready()[0] == "CostExceeded", "another limit does not help"
        assert run.live() == []
        run.change(limits={"maxCost": "11.20", "maxFailures": 0})
        run.look(90_000)
        assert run.live() == ["run-2"]
        assert [e.reason for e in run.made.events] == ["AttemptStarted"], "and no AttemptFailed"
        assert (run.status.failures, run.status.stops, run.status.finished_at) == (0, 1, None)
        run.job("run-2", JobPhase.RUNNING, workers=2, started_at=make.at(90_000), job_id="j-2")
        run.look(90_000)
        run.look(93_599)
        assert (run.ready()[0], run.status.preemptions) == ("Running", 0)
        run.look(93_600)
        assert run.ready()[0] == "CostExceeded"
        assert run.status.cost is not None
        assert run.status.cost.total == "11.20", "over all attempts"

    def test_suspended_time_is_free(self, make: Any) -> None:
        run = Run(make)
        run.running()
        run.change(suspend=True)
        run.look(3600)
        run.job("run", JobPhase.SUSPENDED, workers=0)
        run.look(3600)
        run.look(36_000)
        run.change(suspend=False)
        run.look(36_000)
        run.job("run", JobPhase.RUNNING, workers=2, started_at=make.at(36_000), job_id="j-2")
        run.look(36_000)
        run.look(39_600)
        assert run.status.cost is not None
        assert run.status.cost.total == f"{HOURLY * 2:.2f}"
        assert run.status.preemptions == 0

    @pytest.mark.parametrize(
        ("spot", "named"), [(True, "prices.spot.nvidia-b200"), (False, "prices.onDemand.nvidia-b200")]
    )
    def test_a_limit_that_cannot_be_kept_holds_the_run_before_anything_starts(
        self, make: Any, spot: bool, named: str
    ) -> None:
        hardware = {"accelerator": "nvidia-b200", "count": 8, "spot": spot}
        run = Run(make, limits={"maxCost": "40"}, hardware=hardware)
        run.look(0)
        assert (run.stalled(), run.ready()[0], run.made.apply) == ("True", "PriceUnknown", [])
        assert named in run.ready()[1]
        run.prices = parse_prices('{"onDemand": {"nvidia-b200": 9}, "spot": {"nvidia-b200": 4}}')
        run.look(60)
        assert run.live() == ["run"], "the table knows it now: the operator was started anew"

    def test_a_limit_without_a_price_added_later_holds_the_job_until_one_is_there(self, make: Any) -> None:
        run = Run(make, parse_prices(""))
        run.running()
        run.change(limits={"maxCost": "40"})
        run.look(60)
        assert (run.stalled(), run.ready()[0], run.jobs["run"].suspend) == ("True", "PriceUnknown", True)
        run.prices = PRICES
        run.look(120)
        assert run.jobs["run"].suspend is False

    def test_a_price_that_was_taken_out_stands_for_runs_that_had_it(self, make: Any) -> None:
        run = Run(make, limits={"maxCost": "5.60"})
        run.running()
        run.prices = parse_prices("")
        run.look(3599)
        assert run.ready()[0] == "Running"
        run.look(3600)
        assert run.ready()[0] == "CostExceeded"


class TestDuration:
    def test_suspended_and_queued_time_is_not_counted(self, make: Any) -> None:
        run = Run(make, limits={"maxDuration": "1h"}, queueName="team-a")
        run.look(0)
        run.job("run", JobPhase.SUSPENDED, suspend=True)
        run.look(0)
        run.look(100_000)
        assert run.ready()[0] == "Queued"
        run.job("run", JobPhase.RUNNING, suspend=False, workers=2, started_at=make.at(100_000))
        run.look(100_000)
        run.look(103_599)
        assert run.ready()[0] == "Running"
        assert run.made.requeue_after == 1, "it is looked at again when the limit is reached"
        run.look(103_600)
        assert run.ready()[0] == "DurationExceeded"

    def test_pods_that_never_start_are_counted(self, make: Any) -> None:
        run = Run(make, limits={"maxDuration": "1h"})
        run.look(0)
        run.look(3600)
        assert run.ready()[0] == "DurationExceeded"

    def test_a_run_of_which_nobody_noted_the_start_counts_from_its_job(self, make: Any) -> None:
        """Killed between creating the RayJob and writing the status."""
        run = Run(make, limits={"maxDuration": "1h"})
        run.jobs["run"] = RayJobState("run", 1, JobPhase.RUNNING, started_at=make.at(20), created_at=make.at(0))
        run.look(3599)
        assert (run.ready()[0], run.status.started_at) == ("Running", make.at(0))
        run.look(3600)
        assert run.ready()[0] == "DurationExceeded"


class TestSpot:
    def test_the_pods_end_within_the_window_that_a_spot_node_leaves_them(self, make: Any) -> None:
        """GKE leaves user pods 15 s of a spot node's last 30; Ray's own drain would take 30."""
        run = Run(make, hardware=L4 | {"spot": True})
        cluster = next(a.object for a in run.look(0).apply if a.resource.kind == "RayJob")["spec"]["rayClusterSpec"]
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            pod = group["template"]["spec"]
            env = {e["name"]: e["value"] for e in pod["containers"][0]["env"]}
            assert float(env["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]) < pod["terminationGracePeriodSeconds"] <= 15
        head = cluster["headGroupSpec"]["template"]["spec"]
        assert "nodeSelector" not in head, "a head that only coordinates must not be taken away with a spot node"

    def test_a_new_submission_is_no_preemption_even_if_nobody_saw_the_suspension(self, make: Any) -> None:
        run = Run(make)
        run.running()
        run.job("run", JobPhase.RUNNING, started_at=make.at(500), job_id="j-2")
        run.look(600)
        assert run.status.preemptions == 0
        run.job("run", JobPhase.RUNNING, started_at=make.at(900), job_id="j-2")
        run.look(900)
        assert (run.status.preemptions, run.status.failures) == (1, 0)

    def test_an_elastic_run_starts_small_and_lets_rays_autoscaler_add_workers(self, make: Any) -> None:
        run = Run(make, hardware=L4 | {"workers": {"min": 1, "max": 4}})
        cluster = next(a.object for a in run.look(0).apply if a.resource.kind == "RayJob")["spec"]["rayClusterSpec"]
        (group,) = cluster["workerGroupSpecs"]
        assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (1, 1, 4)
        assert cluster["enableInTreeAutoscaling"] is True
        restricted = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert cluster["autoscalerOptions"]["securityContext"] == restricted

    def test_a_run_of_fixed_size_needs_no_autoscaler(self, make: Any) -> None:
        run = Run(make)
        cluster = next(a.object for a in run.look(0).apply if a.resource.kind == "RayJob")["spec"]["rayClusterSpec"]
        assert "enableInTreeAutoscaling" not in cluster
        assert cluster["workerGroupSpecs"][0]["replicas"] == 2


class TestEviction:
    def budget(self, run: Run) -> Any:
        return next(a.object for a in run.made.apply if a.resource.kind == "PodDisruptionBudget")

    def test_pods_at_work_are_not_evicted(self, make: Any) -> None:
        run = Run(make, hardware=L4 | {"workers": {"min": 1, "max": 3}})
        run.running()
        budget = self.budget(run)
        job = run.look(1).apply and self.budget(run)
        assert job == budget, "it stays as it is"
        assert budget["spec"]["minAvailable"] == 4, "the head and three workers: none may go"
        assert "maxUnavailable" not in budget["spec"], "Kubernetes does not honour it for pods of a RayCluster"
        assert budget["metadata"]["ownerReferences"][0]["kind"] == "TrainingRun"

    def test_it_finds_the_runs_pods_and_no_others(self, make: Any) -> None:
        run = Run(make)
        run.look(0)
        wanted = self.budget(run)["spec"]["selector"]["matchLabels"]
        cluster = next(a.object for a in run.made.apply if a.resource.kind == "RayJob")["spec"]["rayClusterSpec"]
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            assert wanted.items() <= group["template"]["metadata"]["labels"].items()
        assert wanted["sluice.dev/training-run"] == "run"

    @pytest.mark.parametrize(
        ("phase", "held"),
        [
            (JobPhase.STARTING, True),
            (JobPhase.RUNNING, True),
            (JobPhase.SUSPENDED, False),
            (JobPhase.FAILED, False),
            (JobPhase.STOPPED, False),
            (JobPhase.REJECTED, False),
        ],
    )
    def test_it_lasts_as_long_as_the_work(self, make: Any, phase: JobPhase, held: bool) -> None:
        run = Run(make)
        run.running()
        run.job("run", phase, ended_at=make.at(60))
        run.look(60)
        assert run.budget is held

    def test_it_outlives_a_bucket_that_is_away(self, make: Any) -> None:
        run = Run(make)
        run.running()
        problem = Observed(status=run.status, inputs=None, ray_jobs=tuple(run.jobs.values()), budget=True)
        away = replace(problem, inputs=Problem("StorageUnavailable", "timeout", lasting=False))
        made = plan(make.meta("run"), make.run_spec(**run.spec), away, make.settings(), make.now)
        assert made.delete == []


class TestLeftovers:
    def ended(self, make: Any, **spec: Any) -> Run:
        run = Run(make, **spec)
        run.running()
        run.job("run", JobPhase.STOPPED, ended_at=make.at(60))
        run.look(60)
        assert run.ready()[0] == "JobStopped"
        return run

    def test_rayjobs_of_an_ended_run_are_kept_for_their_time(self, make: Any) -> None:
        run = self.ended(make, ttlAfterFinished="1h")
        assert run.look(61).requeue_after == 3599
        assert list(run.jobs) == ["run"]
        before = run.status
        run.look(3660)
        assert (run.jobs, run.status) == ({}, before)
        assert run.look(3700).requeue_after is None
        assert run.made.delete == []

    def test_without_a_time_they_are_kept_with_the_run(self, make: Any) -> None:
        run = self.ended(make)
        assert run.look(10**8).requeue_after is None
        assert list(run.jobs) == ["run"]

    def test_a_job_that_a_limit_ended_is_stopped_though_the_operator_died_before_it_could(self, make: Any) -> None:
        run = Run(make, limits={"maxDuration": "1m"})
        run.running()
        job = run.jobs["run"]
        run.look(60)
        run.jobs["run"] = job  # the status was written, the deletion was not
        run.look(61)
        assert run.live() == []

    def test_rayjobs_that_are_gone_do_not_become_failures_when_a_limit_is_raised(self, make: Any) -> None:
        run = Run(make, limits={"maxFailures": 0}, ttlAfterFinished="1m")
        run.running()
        run.job("run", JobPhase.FAILED, ended_at=make.at(10), message="AppFailed: exit code 3")
        run.look(10)
        run.look(1000)
        assert (run.ready()[0], run.jobs) == ("FailuresExceeded", {})
        run.change(limits={"maxFailures": 1})
        run.look(2000)
        assert (run.live(), run.status.failures) == (["run-2"], 1)


class TestLiveStatus:
    @pytest.mark.parametrize("every", [1, 13], ids=["a job that tells much", "a job that tells now and then"])
    def test_it_is_written_every_ten_seconds_at_the_most_whatever_the_job_says(self, make: Any, every: int) -> None:
        run = Run(make, prices=parse_prices('{"onDemand": {"nvidia-l4": 90000}}'))
        run.running()
        run.writes.clear()
        for second in range(1, 301):
            step = second - second % every
            run.progress = Progress(
                stage=Stage.TRAINING, step=step, total_steps=300, eta_seconds=300 - step, updated_at=make.at(step)
            )
            run.look(second)
        gaps = [b - a for a, b in zip(run.writes, run.writes[1:], strict=False)]
        assert min(gaps[1:]) >= 10, "but for the first, which shows a new stage"
        assert len(run.writes) >= 20
        assert run.status.progress is not None
        assert run.status.progress.step >= 273

    def test_nothing_is_written_while_nothing_changes(self, make: Any) -> None:
        run = Run(make, prices=parse_prices(""))
        run.running()
        run.progress = Progress(stage=Stage.TRAINING, step=5, updated_at=make.at(10))
        run.look(10)
        run.writes.clear()
        for second in range(11, 200):
            run.look(second)
        assert run.writes == []

    @pytest.mark.parametrize(
        ("seconds", "shown"),
        [(None, None), (0, "0s"), (59, "59s"), (60, "1m"), (270, "4m30s"), (7500, "2h5m"), (273_700, "3d4h")],
    )
    def test_the_time_left_is_written_as_people_do(self, seconds: int | None, shown: str | None) -> None:
        assert eta(Progress(stage=Stage.TRAINING, eta_seconds=seconds)) == shown
