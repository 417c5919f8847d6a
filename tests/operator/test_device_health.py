"""Stages that a bad health report halts: the bound, and the plan."""

import random
from typing import Any

import pytest
from sluice_contracts.health import HealthReport, VersionHealth
from sluice_contracts.manifest import Manifest
from sluice_contracts.model_version import ModelVersionSpec, ModelVersionStatus
from sluice_operator.artifacts import Artifacts, Problem
from sluice_operator.model_version.health import failure_share_at_least
from sluice_operator.model_version.observe import Observed, PublishJobState, _health
from sluice_operator.model_version.plan import plan
from sluice_operator.plan import Plan

LINEAGE = "a" * 64
REPORT = "gs://sluice/health/support-bot.json"
Json = dict[str, Any]


def told(requests: int, failures: int, design_effect: float = 1.0) -> VersionHealth:
    return VersionHealth(lineage=LINEAGE, batches=9, requests=requests, failures=failures, design_effect=design_effect)


class TestBound:
    def test_it_lies_below_the_share_and_closes_in(self) -> None:
        bounds = [failure_share_at_least(told(n, n // 5)) for n in (50, 500, 5_000, 500_000)]
        assert bounds == sorted(bounds)
        assert bounds[-1] == pytest.approx(0.2, abs=0.005)
        assert all(b < 0.2 for b in bounds)

    def test_without_failures_it_is_zero_and_with_failures_alone_it_is_high(self) -> None:
        assert failure_share_at_least(told(10_000, 0)) == 0
        assert 0.9 < failure_share_at_least(told(100, 100)) < 1

    def test_one_broken_device_counts_as_one(self) -> None:
        assert failure_share_at_least(told(400, 80)) > 0.1
        assert failure_share_at_least(told(400, 80, design_effect=40)) < 0.1

    def test_looking_after_every_batch_does_not_raise_false_alarms(self) -> None:
        """300 releases that fail exactly as often as is allowed, looked at 60 times each."""
        rng, alarms = random.Random(7), 0
        for _ in range(300):
            failures = 0
            for look in range(1, 61):
                failures += sum(rng.random() < 0.1 for _ in range(25))
                if failure_share_at_least(told(look * 25, failures)) > 0.1:
                    alarms += 1
                    break
        assert alarms <= 6, "1 % is promised; 6 of 300 would be 2 %"


class World:
    """A version of two stages, the first of which was opened at second 0."""

    def __init__(self, bucket: Any, make: Any) -> None:
        self.make = make
        reference = bucket.version(LINEAGE)
        self.body: Json = {"model": "support-bot", "version": "v1", "manifest": reference.wire()}
        self.manifest = Manifest.model_validate_json((bucket.root / f"runs/{LINEAGE}/manifest.json").read_bytes())
        self.status = ModelVersionStatus()
        self.plan(0, None, job=PublishJobState(0, succeeded=True, message='{"tufVersion": 3}', channel="stable"))

    def spec(self, **health: Any) -> ModelVersionSpec:
        stages = [{"percent": 10, "soak": "1h"}, {"percent": 100}]
        publish = {"stages": stages, "health": {"report": REPORT, "minRequests": 50} | health}
        return ModelVersionSpec.model_validate(self.body | {"publish": publish})

    def plan(self, at: float, report: Any, generation: int = 1, gate: Json | None = None, **seen: Any) -> Plan:
        observed = Observed(status=self.status, manifest=self.manifest, gated=True, health=report, **seen)
        now = self.make.now.fromisoformat(self.make.at(at).replace("Z", "+00:00"))
        meta = self.make.meta("v1", generation=generation)
        made = plan(meta, self.spec(**(gate or {})), observed, self.make.settings(), now)
        self.status = ModelVersionStatus.model_validate(made.status)
        return made

    def report(self, requests: int, failures: int, made: float = 60) -> HealthReport:
        versions = [told(requests, failures)] if requests else []
        return HealthReport(model="support-bot", made_at=self.make.at(made), batches=9, versions=versions)

    def published(self) -> tuple[str, str]:
        found = next(c for c in self.status.conditions if c.type == "Published")
        return found.status, found.reason


@pytest.fixture
def world(bucket: Any, make: Any) -> World:
    return World(bucket, make)


class TestHalt:
    def test_a_good_report_lets_the_next_stage_open_after_its_soak(self, world: World) -> None:
        made = world.plan(100, world.report(500, 10))
        assert world.published() == ("True", "StageOpen")
        assert made.requeue_after == pytest.approx(60), "the report is looked at while the stage soaks"
        (job,) = world.plan(3600, world.report(500, 10)).apply
        assert job.object["metadata"]["name"] == "v1-publish-2"

    def test_a_bad_one_halts_at_once_and_names_the_numbers(self, world: World) -> None:
        made = world.plan(100, world.report(500, 120))
        assert world.published() == ("False", "HealthHalted")
        (event,) = made.events
        assert (event.reason, event.type.value) == ("HealthHalted", "Warning")
        assert "120 of 500 requests failed on devices (24.0%, surely at least 17." in event.message
        assert "the limit is 10.0%" in event.message
        assert world.plan(4000, world.report(500, 120)).apply == []

    def test_a_halt_holds_until_a_person_changes_the_spec(self, world: World) -> None:
        world.plan(100, world.report(500, 120))
        world.plan(4000, world.report(90_000, 130))
        assert world.published() == ("False", "HealthHalted")
        (job,) = world.plan(4000, world.report(500, 120), generation=2, gate={"maxFailureShare": 0.5}).apply
        assert job.object["metadata"]["name"] == "v1-publish-2"

    def test_above_the_limit_by_chance_is_no_halt(self, world: World) -> None:
        (job,) = world.plan(3600, world.report(60, 9)).apply
        assert job.object["metadata"]["name"] == "v1-publish-2"

    @pytest.mark.parametrize(
        "report",
        [None, Problem("NotFound", "it is not there"), (49, 0, 60), (0, 0, 60), (500, 0, -60)],
        ids=["none", "unreadable", "too few", "silence", "older than the stage"],
    )
    def test_without_evidence_no_further_stage_opens(self, world: World, report: Any) -> None:
        report = world.report(*report) if isinstance(report, tuple) else report
        assert world.plan(3600, report).apply == []
        assert world.published() == ("False", "HealthUnknown")

    def test_what_is_open_stays_open_meanwhile(self, world: World) -> None:
        world.plan(100, None)
        assert world.published() == ("True", "StageOpen")

    def test_the_first_stage_needs_no_report(self, bucket: Any, make: Any) -> None:
        world = World(bucket, make)
        world.status = ModelVersionStatus()
        (job,) = world.plan(0, None).apply
        assert job.object["metadata"]["name"] == "v1-publish"

    def test_all_at_rest_changes_nothing(self, world: World) -> None:
        world.plan(100, world.report(500, 120))
        before = world.status
        again = world.plan(400, world.report(500, 120))
        assert (again.apply, again.events) == ([], [])
        assert world.status == before


async def test_a_report_on_another_model_is_refused(world: World, bucket: Any) -> None:
    report = world.report(500, 0).model_copy(update={"model": "other"})
    bucket.put("health.json", report.canonical())
    found = await _health(world.spec(report=f"{bucket.uri}/health.json"), world.status, Artifacts())
    assert isinstance(found, Problem)
    assert "is of model other, not of support-bot" in found.message
