"""Queue time, schema validity, cost and scores of mirrored answers: harmful, equivalent, undecided; rarely wrong."""

import random
from typing import Any

import pytest
from sluice_contracts.analysis import COST_EDGES, LATENCY_EDGES, VersionCounts
from sluice_contracts.inference_pool import MetricName, MetricVerdict, RolloutMetric, Verdict
from sluice_operator.analysis import judge


def verdict(name: MetricName, tolerance: float, stable: VersionCounts, candidate: VersionCounts) -> MetricVerdict:
    (found,) = judge([RolloutMetric(name=name, tolerance=tolerance)], stable, candidate, 0.95)
    return found


def checked(n: int, invalid: int) -> VersionCounts:
    return VersionCounts(requests=n * 2, schema_checked=n, schema_invalid=invalid)


def scored(n: int, mean: float) -> VersionCounts:
    return VersionCounts(mirror_scored=n, mirror_score=n * mean)


def spent(rng: random.Random, n: int, dearness: float = 1.0) -> VersionCounts:
    found = VersionCounts(requests=n)
    for _ in range(n):
        found.cost.observe(COST_EDGES, 0.0004 * dearness * rng.lognormvariate(0, 0.6))
    return found


def waited(rng: random.Random, n: int, slowness: float = 1.0) -> VersionCounts:
    found = VersionCounts(requests=n)
    for _ in range(n):
        found.queue.observe(LATENCY_EDGES, max(0.025, 0.2 * slowness * rng.lognormvariate(0, 0.5)))
    return found


@pytest.mark.parametrize(
    ("stable", "candidate", "expected"),
    [
        (checked(600, 6), checked(200, 40), Verdict.HARMFUL),
        (checked(3000, 30), checked(1000, 10), Verdict.EQUIVALENT),
        (checked(60, 1), checked(20, 1), Verdict.UNDECIDED),
        (checked(600, 120), checked(2000, 10), Verdict.EQUIVALENT),
    ],
)
def test_answers_that_break_their_schema(stable: VersionCounts, candidate: VersionCounts, expected: Verdict) -> None:
    found = verdict(MetricName.SCHEMA_INVALID_RATE, 0.03, stable, candidate)
    assert found.verdict is expected
    assert found.samples == candidate.schema_checked, "requests without a schema say nothing"
    assert "broke their schema" in found.message


@pytest.mark.parametrize(
    ("stable", "candidate", "expected"),
    [
        (scored(300, 0.8), scored(300, 0.5), Verdict.HARMFUL),
        (scored(1500, 0.4), scored(1500, 0.4), Verdict.EQUIVALENT),
        (scored(300, 0.5), scored(300, 0.9), Verdict.EQUIVALENT),
        (scored(10, 0.8), scored(10, 0.6), Verdict.UNDECIDED),
    ],
)
def test_mirrored_answers_are_measured_against_stables_own(
    stable: VersionCounts, candidate: VersionCounts, expected: Verdict
) -> None:
    found = verdict(MetricName.MIRROR_SCORE, 0.1, stable, candidate)
    assert found.verdict is expected
    assert found.effect == pytest.approx(
        stable.mirror_score / stable.mirror_scored - candidate.mirror_score / candidate.mirror_scored, abs=1e-5
    )


def test_scores_of_an_equal_version_raise_no_alarm_however_often_one_looks() -> None:
    alarms = 0
    for seed in range(40):
        rng, streams = random.Random(seed), [VersionCounts(), VersionCounts()]
        for _ in range(10):
            for one in streams:
                for _ in range(40):
                    one.mirror_scored += 1
                    one.mirror_score += rng.betavariate(2, 1.5)
            if verdict(MetricName.MIRROR_SCORE, 1e-9, streams[0], streams[1]).verdict is Verdict.HARMFUL:
                alarms += 1
                break
    assert alarms <= 2  # 5 % of 40


def test_a_dearer_version_is_found_and_an_equal_one_passes() -> None:
    rng = random.Random(7)
    stable = spent(rng, 6000)
    dear = verdict(MetricName.COST_P95, 0.25, stable, spent(rng, 1000, dearness=2))
    assert dear.verdict is Verdict.HARMFUL
    assert dear.effect == pytest.approx(1, abs=0.2)
    assert "mean" in dear.message
    assert verdict(MetricName.COST_P95, 0.25, stable, spent(rng, 3000)).verdict is Verdict.EQUIVALENT
    assert verdict(MetricName.COST_P95, 0.25, stable, spent(rng, 30)).verdict is Verdict.UNDECIDED


def test_longer_waits_are_found_and_waits_that_nobody_notices_are_not() -> None:
    rng = random.Random(9)
    stable = waited(rng, 3000)
    assert verdict(MetricName.QUEUE_TIME_P95, 0.5, stable, waited(rng, 800, 4)).verdict is Verdict.HARMFUL
    assert verdict(MetricName.QUEUE_TIME_P95, 0.5, stable, waited(rng, 2000)).verdict is Verdict.EQUIVALENT
    none = VersionCounts(requests=2000)
    for _ in range(2000):
        none.queue.observe(LATENCY_EDGES, 0.025)
    assert verdict(MetricName.QUEUE_TIME_P95, 0.5, none, none).verdict is Verdict.EQUIVALENT


@pytest.mark.parametrize(
    ("name", "lacks"),
    [
        (MetricName.COST_P95, "spec.costs.tokens"),
        (MetricName.MIRROR_SCORE, "scored answers to mirrored requests"),
        (MetricName.SCHEMA_INVALID_RATE, "owed a JSON shape"),
        (MetricName.QUEUE_TIME_P95, "came to the queue"),
    ],
)
def test_without_data_nothing_passes_and_the_reason_is_given(name: MetricName, lacks: str) -> None:
    some: Any = VersionCounts(requests=5000)
    found = verdict(name, 0.1, some, some)
    assert found.verdict is Verdict.UNDECIDED
    assert lacks in found.message
