"""Verdicts: rarely wrong however often one looks, and soon right where something is really wrong."""

import random
from math import exp, inf, log

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sluice_contracts.analysis import (
    CLIENT_CLOSED,
    LATENCY_EDGES,
    REQUEST_BYTES_EDGES,
    TOKEN_EDGES,
    Histogram,
    Shape,
    VersionCounts,
)
from sluice_contracts.inference_pool import MetricName, MetricVerdict, RolloutMetric, Verdict
from sluice_operator.analysis import judge
from sluice_operator.analysis.e_process import Stream, bets, difference_low, log_evidence
from sluice_operator.analysis.quantiles import Survival, log_evidence_above, log_evidence_below, quantile
from sluice_operator.analysis.shapes import are_close, distance, log_evidence_apart
from sluice_operator.analysis.strata import log_harm, mix_evidence, standardised
from sluice_operator.analysis.verdicts import all_equivalent, any_harmful

METRICS = [
    RolloutMetric(name=MetricName.ERROR_RATE, tolerance=0.02),
    RolloutMetric(name=MetricName.TTFT_P95, tolerance=0.5),
    RolloutMetric(name=MetricName.OUTPUT_LENGTH, tolerance=0.3),
]
BUCKETS = len(REQUEST_BYTES_EDGES) + 1
STREAMS = st.tuples(st.integers(0, 60), st.integers(0, 60)).map(lambda x: Stream(min(x), max(x)))


def counts() -> VersionCounts:
    return VersionCounts(by_length=[Shape() for _ in range(BUCKETS)])


def traffic(
    rng: random.Random,
    found: VersionCounts,
    n: int,
    *,
    errors: float = 0.01,
    slowness: float = 1.0,
    length: float = 30,
    cut: float = 0.0,
    left: float = 0.0,
    long: float = 0.5,
) -> None:
    """`n` requests of a version: some fail, first tokens take about 0.13 s, answers have about `length` tokens. A share
    `long` of the requests is long: first tokens take three times as long, and answers are three times as long."""
    for _ in range(n):
        found.requests += 1
        if rng.random() < errors:
            found.errors += 1
            continue
        word = CLIENT_CLOSED if rng.random() < left else "length" if rng.random() < cut else "stop"
        found.finish_reasons[word] = found.finish_reasons.get(word, 0) + 1
        bucket = 2 if rng.random() < long else 0
        factor = 3.0 if bucket else 1.0
        seconds, tokens = rng.lognormvariate(-2, 0.4) * slowness, max(1.0, rng.expovariate(1 / length))
        for shape in (found, found.by_length[bucket]):
            shape.ttft.observe(LATENCY_EDGES, seconds * factor)
            shape.inter_token.observe(LATENCY_EDGES, seconds / 10)
            shape.output_tokens.observe(TOKEN_EDGES, tokens * factor)


def verdict(verdicts: list[MetricVerdict], name: MetricName) -> MetricVerdict:
    return next(v for v in verdicts if v.name is name)


def only(name: MetricName, tolerance: float, stable: VersionCounts, candidate: VersionCounts) -> MetricVerdict:
    return judge([RolloutMetric(name=name, tolerance=tolerance)], stable, candidate, 0.95)[0]


class TestEvidenceForADifferenceOfRates:
    @given(STREAMS, STREAMS, st.floats(-0.9, 0.9), st.booleans())
    @settings(max_examples=60, deadline=None)
    def test_is_the_least_stake_over_all_rates_that_obey(
        self, up: Stream, low: Stream, margin: float, minority: bool
    ) -> None:
        def stake(p: float) -> float:
            return log(
                sum(
                    exp(bet.log_share + up.k * bet.up - low.k * bet.low)
                    / (1 + (p + margin) * (exp(bet.up) - 1)) ** up.n
                    / (1 + p * (exp(-bet.low) - 1)) ** low.n
                    for bet in bets(minority)
                )
            )

        bottom, top = max(0.0, -margin), min(1.0, 1 - margin)
        found = log_evidence(up, low, margin, minority_up=minority)
        for i in range(101):
            assert found <= stake(bottom + (top - bottom) * i / 100) + 1e-6

    @given(STREAMS, STREAMS, st.floats(-0.5, 0.5), st.floats(-1, 20))
    @settings(max_examples=60, deadline=None)
    def test_ends_early_on_the_right_side(self, up: Stream, low: Stream, margin: float, enough: float) -> None:
        whole = log_evidence(up, low, margin, minority_up=True)
        early = log_evidence(up, low, margin, minority_up=True, enough=enough)
        if abs(whole - enough) > 0.01:
            assert (early >= enough) == (whole >= enough)

    def test_a_step_wins_nothing_on_average_at_any_rates_that_obey(self) -> None:
        """The supermartingale itself, summed out exactly: one more outcome of either stream."""
        for p_low, margin in ((0.01, 0.0), (0.3, 0.1), (0.9, 0.1), (0.5, -0.4)):
            for bet in bets(True):
                for p, tilt, top in ((p_low + margin, bet.up, 1.0), (p_low, -bet.low, 1.0), (p_low, -bet.low, 0.5)):
                    # outcomes 0 and `top` with mean p/…: also fractions, as of buckets, win nothing
                    one = min(1.0, p / top)
                    mean = one * exp(tilt * top) + (1 - one)
                    assert mean / (1 + one * top * (exp(tilt) - 1)) <= 1 + 1e-12

    def test_false_alarms_are_rare_over_whole_histories_looked_at_after_every_request(self) -> None:
        rng, alarms, histories, bound = random.Random(5), 0, 120, log(20)
        for _ in range(histories):
            k = [0, 0]
            n = [0, 0]
            for _request in range(240):
                which = rng.random() < 0.3
                n[which] += 1
                failed = rng.random() < 0.1
                k[which] += failed
                # the evidence of harm rises with a failure of the candidate only, or a success of stable
                if (failed == which) and n[0] and n[1]:
                    mine, theirs = Stream(k[1], n[1]), Stream(k[0], n[0])
                    if log_evidence(mine, theirs, 0.0, minority_up=True, enough=bound) >= bound:
                        alarms += 1
                        break
        assert alarms / histories <= 0.05

    def test_a_candidate_at_the_tolerance_hardly_ever_passes(self) -> None:
        rng, passed, histories, bound = random.Random(8), 0, 150, log(20)
        for _ in range(histories):
            mine, theirs = [0, 0], [0, 0]
            for _look in range(40):
                mine = [mine[0] + sum(rng.random() < 0.15 for _ in range(15)), mine[1] + 15]
                theirs = [theirs[0] + sum(rng.random() < 0.05 for _ in range(30)), theirs[1] + 30]
                if log_evidence(Stream(*theirs), Stream(*mine), -0.1, minority_up=False, enough=bound) >= bound:
                    passed += 1
                    break
        assert passed / histories <= 0.05

    def test_finds_one_per_cent_against_two_with_fewer_requests_than_two_intervals_would_take(self) -> None:
        """Two separate confidence sequences would need 5,900 of the candidate with 17,700 of stable."""
        assert log_evidence(Stream(36, 1800), Stream(54, 5400), 0.0, minority_up=True) >= log(20)

    def test_bounds_hold_the_difference_and_close_in(self) -> None:
        widths = []
        for n in (10, 100, 1000, 10_000):
            mine, theirs = Stream(n // 10, n), Stream(3 * n // 10, 3 * n)
            low = difference_low(mine, theirs, 0.05, minority_up=True)
            high = -difference_low(theirs, mine, 0.05, minority_up=False)
            assert low <= 0 <= high
            widths.append(high - low)
        assert widths == sorted(widths, reverse=True)
        assert widths[-1] < 0.03

    def test_says_nothing_without_trials(self) -> None:
        assert difference_low(Stream(0, 0), Stream(3, 5), 0.05, minority_up=True) == -1.0
        assert log_evidence(Stream(0, 0), Stream(0, 0), 0.0, minority_up=True) <= 1e-9


class TestQuantiles:
    def test_estimates_a_known_quantile(self) -> None:
        rng, h = random.Random(3), Histogram.empty(LATENCY_EDGES)
        for _ in range(20_000):
            h.observe(LATENCY_EDGES, rng.lognormvariate(-2, 0.4))
        true = exp(-2 + 0.4 * 1.645)
        assert quantile(h.counts, LATENCY_EDGES, 0.95) == pytest.approx(true, rel=0.02)
        place = Survival(h.counts).quantile(0.95)
        assert LATENCY_EDGES[int(place)] <= true * 1.05
        assert Survival(h.counts)(place) == pytest.approx(1000)
        with pytest.raises(ValueError, match="without values"):
            quantile([0, 0], LATENCY_EDGES, 0.5)

    @given(
        st.lists(st.integers(0, 255), min_size=1, max_size=60),
        st.lists(st.integers(0, 255), min_size=1, max_size=60),
        st.floats(0.5, 3),
    )
    @settings(max_examples=15, deadline=None)
    def test_evidence_is_the_least_over_all_places(self, mine: list[int], theirs: list[int], factor: float) -> None:
        candidate, stable = (Survival([x.count(i) for i in range(257)]) for x in (mine, theirs))
        found = log_evidence_above(candidate, stable, factor, 0.95)
        shift = log(factor) / log(LATENCY_EDGES[1] / LATENCY_EDGES[0])
        for i in range(-30, 2900):
            x = i / 10
            least = log(
                sum(
                    exp(bet.log_share + candidate(x + shift) * bet.up - stable(x) * bet.low)
                    / (1 + 0.05 * (exp(bet.up) - 1)) ** candidate.n
                    / (1 + 0.05 * (exp(-bet.low) - 1)) ** stable.n
                    for bet in bets(True)
                )
            )
            assert found <= least + 0.02

    def test_sees_a_growth_of_a_fifth_and_no_more(self) -> None:
        rng = random.Random(7)
        h = [Histogram.empty(LATENCY_EDGES) for _ in range(2)]
        for _ in range(6000):
            h[0].observe(LATENCY_EDGES, rng.lognormvariate(-2, 0.4))
            h[1].observe(LATENCY_EDGES, rng.lognormvariate(-2, 0.4) * 1.2)
        stable, candidate = (Survival(x.counts) for x in h)
        assert log_evidence_above(candidate, stable, 1.1, 0.95) > log(20)
        assert log_evidence_above(candidate, stable, 1.2, 0.95) < log(20)
        assert log_evidence_below(candidate, stable, 1.3, 0.95) > log(20)
        assert log_evidence_below(candidate, stable, 1.2, 0.95) < log(20)

    def test_few_values_prove_nothing(self) -> None:
        few = Survival([0] * 100 + [20] + [0] * 156)
        assert log_evidence_above(few, few, 0.5, 0.95) < log(20)
        assert log_evidence_below(few, few, 2.0, 0.95, enough=log(20)) < log(20)

    def test_values_past_the_last_edge_count_as_slow(self) -> None:
        fast, slow = counts(), counts()
        for _ in range(1000):
            fast.ttft.observe(LATENCY_EDGES, 0.1)
            slow.ttft.observe(LATENCY_EDGES, 500.0)
            fast.by_length[0].ttft.observe(LATENCY_EDGES, 0.1)
            slow.by_length[0].ttft.observe(LATENCY_EDGES, 500.0)
        assert only(MetricName.TTFT_P95, 0.5, fast, slow).verdict is Verdict.HARMFUL


class TestShapes:
    def test_are_close_or_apart_by_their_distance(self) -> None:
        a, b = [300, 700], [300, 700]
        assert distance(a, b) == 0
        assert are_close(a, b, 0.15, log(20))
        assert not are_close(a, b, 0.05, log(20))
        assert log_evidence_apart(a, b, 0.0) == -inf
        c = [600, 400]
        assert distance(a, c) == pytest.approx(0.3)
        assert log_evidence_apart(c, a, 0.2) > log(20)
        assert log_evidence_apart(c, a, 0.29) < log(20)
        assert not are_close(c, a, 0.3, log(20))


class TestLikeWithLike:
    def test_the_mix_costs_nothing_where_it_is_the_same(self) -> None:
        assert mix_evidence([(10, 30), (20, 60), (0, 0)]) == pytest.approx(0, abs=1e-9)
        assert mix_evidence([(30, 0), (0, 60)]) > 50

    def test_one_bucket_is_worth_about_itself(self) -> None:
        assert log_harm(5.0, [5.0], 0.0) == pytest.approx(5.0, abs=0.15)

    def test_harm_in_one_bucket_is_not_drowned_by_the_others(self) -> None:
        assert log_harm(-inf, [12.0, -20.0, -20.0], 0.0) > log(20)
        assert log_harm(-inf, [0.0, 0.0], 0.0) <= 0

    def test_standardised_histograms_have_the_same_mix(self) -> None:
        short, long = [10, 0], [0, 10]
        mine, theirs = standardised([short, [x * 9 for x in long]], [[x * 9 for x in short], long])
        assert distance(mine, theirs) == pytest.approx(0)

    def test_a_shift_of_traffic_towards_long_requests_is_no_harm(self) -> None:
        """The candidate's share grew while requests grew longer: pooled, it looks slow and talkative."""
        rng, stable, candidate = random.Random(21), counts(), counts()
        for long, n, m in ((0.1, 100, 1900), (0.9, 1000, 1000)):
            traffic(rng, candidate, n, long=long)
            traffic(rng, stable, m, long=long)
        strict = [RolloutMetric(name=n, tolerance=0.05) for n in (MetricName.TTFT_P95, MetricName.OUTPUT_LENGTH)]
        found = judge(strict, stable, candidate, 0.95)
        assert not any_harmful(found)
        assert all(abs(v.effect or 0) < 0.1 for v in found)
        for shape in (stable, candidate):
            shape.by_length = []
        assert any_harmful(judge(strict, stable, candidate, 0.95))

    def test_harm_hidden_by_a_shift_of_traffic_is_found(self) -> None:
        """The candidate answers ten times as long, and gets more of the short ones."""
        rng, stable, candidate = random.Random(22), counts(), counts()
        traffic(rng, stable, 1200, long=0.8)
        traffic(rng, candidate, 400, long=0.2, length=300)
        assert verdict(judge(METRICS, stable, candidate, 0.95), MetricName.OUTPUT_LENGTH).verdict is Verdict.HARMFUL

    def test_counts_stay_apart_when_gateways_are_added_up(self) -> None:
        rng, a, b = random.Random(23), counts(), counts()
        traffic(rng, a, 50)
        traffic(rng, b, 50)
        both = VersionCounts().plus(a).plus(b)
        assert sum(shape.ttft.n for shape in both.by_length) == both.ttft.n == a.ttft.n + b.ttft.n
        assert both.plus(VersionCounts(requests=1)).by_length == []


def test_false_alarms_are_rare_over_whole_rollouts_of_equal_versions() -> None:
    """A/A: looked at after every thirty requests, with a tolerance near zero, so that any alarm at all would show."""
    strict = [RolloutMetric(name=m.name, tolerance=1e-6) for m in METRICS]
    rng, alarms, rollouts = random.Random(11), 0, 8
    for _ in range(rollouts):
        stable, candidate = counts(), counts()
        for _look in range(3):
            traffic(rng, stable, 60, errors=0.05)
            traffic(rng, candidate, 30, errors=0.05)
            if any_harmful(judge(strict, stable, candidate, 0.95)):
                alarms += 1
                break
    assert alarms / rollouts <= 0.05


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"errors": 0.3}, MetricName.ERROR_RATE),
        ({"slowness": 3.0}, MetricName.TTFT_P95),
        ({"slowness": 3.0}, MetricName.INTER_TOKEN_P95),
        ({"length": 3.0}, MetricName.OUTPUT_LENGTH),
        ({"cut": 0.6}, MetricName.FINISH_REASONS),
        ({"left": 0.6}, MetricName.ABORT_RATE),
    ],
)
def test_a_strong_regression_is_found_in_most_rollouts(change: dict[str, float], name: MetricName) -> None:
    rng, found, rollouts = random.Random(12), 0, 10
    for _ in range(rollouts):
        stable, candidate = counts(), counts()
        for _look in range(8):
            traffic(rng, stable, 100)
            traffic(rng, candidate, 50, **change)
            if only(name, 0.3 if name is not MetricName.ERROR_RATE else 0.02, stable, candidate).verdict is (
                Verdict.HARMFUL
            ):
                found += 1
                break
    assert found >= 0.9 * rollouts


def test_equal_versions_become_equivalent_with_enough_traffic_and_stay_undecided_before() -> None:
    metrics = [
        *METRICS,
        *(RolloutMetric(name=n, tolerance=0.1) for n in (MetricName.FINISH_REASONS, MetricName.ABORT_RATE)),
    ]
    rng, stable, candidate = random.Random(13), counts(), counts()
    traffic(rng, stable, 40)
    traffic(rng, candidate, 20)
    early = judge(metrics, stable, candidate, 0.95)
    assert {v.verdict for v in early} == {Verdict.UNDECIDED}
    traffic(rng, stable, 4000)
    traffic(rng, candidate, 4000)
    assert all_equivalent(judge(metrics, stable, candidate, 0.95))


def test_bounds_hold_the_effect_and_agree_with_the_verdict() -> None:
    rng, stable, candidate = random.Random(16), counts(), counts()
    traffic(rng, stable, 900)
    traffic(rng, candidate, 300, errors=0.04, length=15, slowness=1.1)
    for tolerance in (0.001, 0.05, 0.2, 0.6):
        for name in MetricName:
            found = only(name, tolerance, stable, candidate)
            if found.effect is None:
                continue
            assert found.low is not None
            assert found.low <= found.effect + 0.01
            assert found.high is None or found.effect <= found.high + 0.01
            assert (found.verdict is Verdict.HARMFUL) == (found.low >= tolerance)
            assert (found.verdict is Verdict.EQUIVALENT) == (found.high is not None and found.high <= tolerance)


def test_harm_takes_more_evidence_with_every_metric_that_decides() -> None:
    rng, stable, candidate = random.Random(17), counts(), counts()
    traffic(rng, stable, 300, errors=0.0)
    traffic(rng, candidate, 100, errors=0.13)
    lows = []
    for others in (0, 1, 2):
        found = judge([METRICS[0], *METRICS[1 : 1 + others]], stable, candidate, 0.95)
        lows.append(verdict(found, MetricName.ERROR_RATE).low or 0)
    assert lows == sorted(lows, reverse=True)
    assert lows[0] > lows[2]


def test_reasons_nobody_foresaw_count_together() -> None:
    stable, candidate = counts(), counts()
    stable.finish_reasons = {"stop": 500}
    candidate.finish_reasons = {"stop": 250, **{f"new-{i}": 10 for i in range(25)}}
    found = only(MetricName.FINISH_REASONS, 0.2, stable, candidate)
    assert found.verdict is Verdict.HARMFUL
    assert found.effect == pytest.approx(0.5)


def test_no_data_is_undecided_and_says_whose_it_is() -> None:
    every = [RolloutMetric(name=name, tolerance=0.1) for name in MetricName]
    rng, stable, candidate = random.Random(14), counts(), counts()
    nothing = judge(every, stable, candidate, 0.95)
    assert {v.verdict for v in nothing} == {Verdict.UNDECIDED}
    assert all("neither version" in v.message for v in nothing)
    assert not all_equivalent(nothing)
    traffic(rng, stable, 500)
    one_sided = judge(METRICS, stable, candidate, 0.95)
    assert {v.verdict for v in one_sided} == {Verdict.UNDECIDED}
    assert all("the candidate" in v.message for v in one_sided)


def test_a_dry_run_metric_is_judged_and_decides_nothing() -> None:
    rng, stable, candidate = random.Random(15), counts(), counts()
    traffic(rng, stable, 3000)
    traffic(rng, candidate, 3000, errors=0.5)
    dry = [METRICS[0].model_copy(update={"dry_run": True}), METRICS[2]]
    found = judge(dry, stable, candidate, 0.95)
    assert verdict(found, MetricName.ERROR_RATE).verdict is Verdict.HARMFUL
    assert not any_harmful(found)
    assert all_equivalent(found)


def test_the_demos_rollouts_end_as_soon_as_they_should() -> None:
    """The example pool's tolerances: a tenfold output is refused within twenty of the candidate's answers, an equal
    version is through with three hundred of each."""
    metrics = [
        RolloutMetric(name=MetricName.ERROR_RATE, tolerance=0.1),
        RolloutMetric(name=MetricName.TTFT_P95, tolerance=1.0),
        RolloutMetric(name=MetricName.OUTPUT_LENGTH, tolerance=0.4),
    ]

    def answers(rng: random.Random, n: int, tokens: float) -> VersionCounts:
        found = counts()
        for _ in range(n):
            found.requests += 1
            seconds, length = rng.lognormvariate(-3, 0.5), max(1, rng.gauss(tokens, tokens / 3))
            for shape in (found, found.by_length[rng.randrange(2)]):
                shape.ttft.observe(LATENCY_EDGES, seconds)
                shape.output_tokens.observe(TOKEN_EDGES, length)
        return found

    for seed in range(5):
        rng = random.Random(seed)
        stable = answers(rng, 60, 6)
        assert any_harmful(judge(metrics, stable, answers(rng, 20, 78), 0.95))
        assert all_equivalent(judge(metrics, answers(rng, 300, 6), answers(rng, 300, 6), 0.95))
