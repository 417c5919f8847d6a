"""Verdicts: rarely wrong however often one looks, and soon right where something is really wrong."""

import random
from math import exp, inf, log

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sluice_contracts.analysis import LATENCY_EDGES, TOKEN_EDGES, Histogram, VersionCounts
from sluice_contracts.inference_pool import MetricName, MetricVerdict, RolloutMetric, Verdict
from sluice_operator.analysis import judge
from sluice_operator.analysis.distributions import distance_interval, quantile, quantile_interval
from sluice_operator.analysis.rates import interval, log_martingale
from sluice_operator.analysis.verdicts import all_equivalent, any_harmful

METRICS = [
    RolloutMetric(name=MetricName.ERROR_RATE, tolerance=0.02),
    RolloutMetric(name=MetricName.TTFT_P95, tolerance=0.5),
    RolloutMetric(name=MetricName.OUTPUT_LENGTH, tolerance=0.3),
]


def traffic(
    rng: random.Random,
    counts: VersionCounts,
    n: int,
    *,
    errors: float = 0.01,
    slowness: float = 1.0,
    length: float = 30,
) -> None:
    """`n` requests of a version: some fail, first tokens take about 0.13 s, answers have about `length` tokens."""
    for _ in range(n):
        counts.requests += 1
        if rng.random() < errors:
            counts.errors += 1
            continue
        counts.ttft.observe(LATENCY_EDGES, rng.lognormvariate(-2, 0.4) * slowness)
        counts.output_tokens.observe(TOKEN_EDGES, max(1.0, rng.expovariate(1 / length)))


def verdict(verdicts: list[MetricVerdict], name: MetricName) -> MetricVerdict:
    return next(v for v in verdicts if v.name is name)


class TestConfidenceSequenceOfARate:
    def test_covers_the_true_rate_at_all_looks_of_nearly_all_histories(self) -> None:
        rng, alpha, misses, histories = random.Random(5), 0.05, 0, 1000
        for _ in range(histories):
            k = 0
            for n in range(1, 401):
                k += rng.random() < 0.1
                # rejecting p = 0.1 is the martingale's exceeding 1/alpha: cheaper than the interval's ends
                if log_martingale(k, n, 0.1) >= -(log(alpha)):
                    misses += 1
                    break
        assert misses / histories <= alpha

    @given(st.integers(0, 300), st.integers(0, 300), st.floats(0.001, 0.2))
    def test_holds_the_mean_and_agrees_with_the_martingale(self, k: int, failures: int, alpha: float) -> None:
        n = k + failures
        low, high = interval(k, n, alpha)
        assert 0 <= low <= high <= 1
        if n:
            assert low <= k / n <= high
            inside = (low + k / n) / 2
            assert log_martingale(k, n, inside) <= -log(alpha) + 1e-6

    def test_narrows_with_evidence(self) -> None:
        widths = [interval(n // 10, n, 0.05)[1] - interval(n // 10, n, 0.05)[0] for n in (10, 100, 1000, 10_000)]
        assert widths == sorted(widths, reverse=True)
        assert widths[-1] < 0.03

    def test_says_nothing_without_trials_and_refuses_impossible_counts(self) -> None:
        assert interval(0, 0, 0.05) == (0.0, 1.0)
        with pytest.raises(ValueError, match="impossible"):
            interval(3, 2, 0.05)


class TestQuantiles:
    def test_estimates_a_known_quantile_within_a_bucket(self) -> None:
        rng, h = random.Random(3), Histogram.empty(LATENCY_EDGES)
        for _ in range(20_000):
            h.observe(LATENCY_EDGES, rng.lognormvariate(-2, 0.4))
        true = exp(-2 + 0.4 * 1.645)
        low, high = quantile_interval(h, LATENCY_EDGES, 0.95, 0.05)
        assert low < true < high
        assert high / low < 1.12
        assert quantile(h, LATENCY_EDGES, 0.95) == pytest.approx(true, rel=0.05)

    def test_the_true_quantile_is_covered_at_all_looks_of_nearly_all_histories(self) -> None:
        rng, alpha, misses, histories, p = random.Random(6), 0.05, 0, 400, 0.95
        true = LATENCY_EDGES[20]  # an edge, so that no rounding to a bucket can help or harm
        for _ in range(histories):
            h = Histogram.empty(LATENCY_EDGES)
            for look in range(1, 31):
                for _value in range(15):
                    h.observe(LATENCY_EDGES, true * (0.9 if rng.random() < p else 1.1))
                low, high = quantile_interval(h, LATENCY_EDGES, p, alpha)
                if not low <= true <= high:
                    misses += 1
                    break
                assert look
        assert misses / histories <= alpha

    def test_few_values_leave_the_upper_end_open(self) -> None:
        h = Histogram.empty(LATENCY_EDGES)
        for _ in range(20):
            h.observe(LATENCY_EDGES, 0.1)
        assert quantile_interval(h, LATENCY_EDGES, 0.95, 0.05)[1] == inf
        assert quantile_interval(Histogram.empty(LATENCY_EDGES), LATENCY_EDGES, 0.95, 0.05) == (0.0, inf)

    def test_values_past_the_last_edge_count_as_slow(self) -> None:
        fast, slow = VersionCounts(), VersionCounts()
        for _ in range(1000):
            fast.ttft.observe(LATENCY_EDGES, 0.1)
            slow.ttft.observe(LATENCY_EDGES, 500.0)
        found = judge([METRICS[1]], fast, slow, 0.95)
        assert found[0].verdict is Verdict.HARMFUL


def test_the_distance_of_a_distribution_from_itself_shrinks_to_nothing() -> None:
    rng, a, b = random.Random(4), Histogram.empty(TOKEN_EDGES), Histogram.empty(TOKEN_EDGES)
    for _ in range(5000):
        a.observe(TOKEN_EDGES, rng.expovariate(1 / 30))
        b.observe(TOKEN_EDGES, rng.expovariate(1 / 30))
    low, high = distance_interval(a, b, 0.05)
    assert low == 0.0
    assert high < 0.1


def test_false_alarms_are_rare_over_whole_rollouts_of_equal_versions() -> None:
    """A/A: looked at after every twenty requests, with a tolerance near zero, so that any alarm at all would show."""
    strict = [RolloutMetric(name=m.name, tolerance=1e-6) for m in METRICS]
    rng, alarms, rollouts = random.Random(11), 0, 300
    for _ in range(rollouts):
        stable, candidate = VersionCounts(), VersionCounts()
        for _look in range(12):
            traffic(rng, stable, 30, errors=0.05)
            traffic(rng, candidate, 15, errors=0.05)
            if any_harmful(judge(strict, stable, candidate, 0.95)):
                alarms += 1
                break
    assert alarms / rollouts <= 0.05


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"errors": 0.3}, MetricName.ERROR_RATE),
        ({"slowness": 3.0}, MetricName.TTFT_P95),
        ({"length": 3.0}, MetricName.OUTPUT_LENGTH),
    ],
)
def test_a_strong_regression_is_found_in_most_rollouts(change: dict[str, float], name: MetricName) -> None:
    rng, found, rollouts = random.Random(12), 0, 20
    for _ in range(rollouts):
        stable, candidate = VersionCounts(), VersionCounts()
        for _look in range(20):
            traffic(rng, stable, 60)
            traffic(rng, candidate, 30, **change)
            if verdict(judge(METRICS, stable, candidate, 0.95), name).verdict is Verdict.HARMFUL:
                found += 1
                break
    assert found >= 0.9 * rollouts


def test_equal_versions_become_equivalent_with_enough_traffic_and_stay_undecided_before() -> None:
    rng, stable, candidate = random.Random(13), VersionCounts(), VersionCounts()
    traffic(rng, stable, 40)
    traffic(rng, candidate, 20)
    early = judge(METRICS, stable, candidate, 0.95)
    assert not all_equivalent(early)
    assert {v.verdict for v in early} == {Verdict.UNDECIDED}
    traffic(rng, stable, 4000)
    traffic(rng, candidate, 4000)
    assert all_equivalent(judge(METRICS, stable, candidate, 0.95))


def test_no_data_is_undecided_and_says_whose_it_is() -> None:
    rng, stable, candidate = random.Random(14), VersionCounts(), VersionCounts()
    nothing = judge(METRICS, stable, candidate, 0.95)
    assert {v.verdict for v in nothing} == {Verdict.UNDECIDED}
    assert all("neither version" in v.message for v in nothing)
    traffic(rng, stable, 500)
    one_sided = judge(METRICS, stable, candidate, 0.95)
    assert {v.verdict for v in one_sided} == {Verdict.UNDECIDED}
    assert all("the candidate" in v.message for v in one_sided)


def test_a_dry_run_metric_is_judged_and_decides_nothing() -> None:
    rng, stable, candidate = random.Random(15), VersionCounts(), VersionCounts()
    traffic(rng, stable, 3000)
    traffic(rng, candidate, 3000, errors=0.5)
    dry = [METRICS[0].model_copy(update={"dry_run": True}), METRICS[2]]
    found = judge(dry, stable, candidate, 0.95)
    assert verdict(found, MetricName.ERROR_RATE).verdict is Verdict.HARMFUL
    assert not any_harmful(found)
    assert all_equivalent(found)
