"""The gates let through what holds and stop what does not, with the numbers that say so."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sluice_contracts.evaluation import SampleOutcome, SuiteResult
from sluice_contracts.names import Domain, Suite
from sluice_contracts.training_run import EvaluationSpec, Gate
from sluice_training.dataset import questions, safety
from sluice_training.errors import InvalidInputError
from sluice_training.evaluate import gates, suites
from sluice_training.evaluate.gates import Stable
from sluice_training.evaluate.run import summarise
from sluice_training.evaluate.statistics import paired_difference, wilson


def measured(suite: Suite, wrong: set[int], n: int = 200) -> tuple[list[SuiteResult], list[SampleOutcome]]:
    """A model that answers the examples with these numbers wrongly and all others rightly."""
    tests = suites.cases(suite, n)
    samples = []
    for i, case in enumerate(tests):
        answer = "nonsense" if i in wrong else case.expected
        samples.append(SampleOutcome(id=case.id, suite=suite, domain=case.row.domain, outcomes=case.outcomes(answer)))
    return [summarise(suite, tests, samples)], samples


def gate(**fields: object) -> Gate:
    return Gate.model_validate(fields)


def test_an_absolute_gate_holds_at_its_bound_and_fails_below() -> None:
    results, samples = measured(Suite.INTENT, set(range(10)))  # 190 of 200
    at, above = gate(metric="intent.accuracy", min=0.95), gate(metric="intent.accuracy", min=0.951)
    passed, failed = gates.judge([at, above], results, samples, None)
    assert passed.passed
    assert passed.value == 0.95
    assert not failed.passed
    assert "intent.accuracy 0.950" in gates.describe([passed, failed])
    assert "must be >= 0.951" in gates.describe([passed, failed])


def test_a_gate_on_a_slice_sees_that_slice_alone() -> None:
    leadership = {i for i, c in enumerate(suites.cases(Suite.INTENT, 200)) if c.row.domain is Domain.LEADERSHIP}
    results, samples = measured(Suite.INTENT, leadership)
    whole, slice_, other = gates.judge(
        [
            gate(metric="intent.accuracy", min=0.8),
            gate(metric="intent.accuracy", slice="leadership", min=0.1),
            gate(metric="intent.accuracy", slice="business", min=1.0),
        ],
        results,
        samples,
        None,
    )
    assert (whole.passed, slice_.passed, other.passed) == (True, False, True)
    assert slice_.n == 40


def test_a_maximum_stops_a_model_that_makes_things_up() -> None:
    unanswerable = {i for i in range(200) if i % 3 == 2}
    results, samples = measured(Suite.GROUNDING, unanswerable)
    (result,) = gates.judge([gate(metric="grounding.hallucination", max=0.1)], results, samples, None)
    assert result.value == 1.0
    assert not result.passed


def test_a_model_that_is_as_good_is_not_inferior_and_a_worse_one_is() -> None:
    stable = Stable(*measured(Suite.INTENT, set(range(10))))
    wanted = [gate(metric="intent.accuracy", nonInferiorTo="stable", margin=0.05)]
    equal = gates.judge(wanted, *measured(Suite.INTENT, set(range(10))), stable)[0]
    worse = gates.judge(wanted, *measured(Suite.INTENT, set(range(30))), stable)[0]
    assert equal.passed
    assert equal.value == 0
    assert not worse.passed
    assert worse.value == pytest.approx(-0.1)
    assert worse.low is not None
    assert worse.low < -0.1


def test_a_small_sample_cannot_prove_a_tight_margin() -> None:
    stable = Stable(*measured(Suite.INTENT, set(), n=20))
    wanted = [gate(metric="intent.accuracy", nonInferiorTo="stable", margin=0.01)]
    assert not gates.judge(wanted, *measured(Suite.INTENT, set(), n=20), stable)[0].passed


def test_where_lower_is_better_a_rise_is_inferior() -> None:
    stable = Stable(*measured(Suite.SAFETY, set()))
    tests = suites.cases(Suite.SAFETY, 200)
    samples = [
        SampleOutcome(id=c.id, suite=c.suite, domain=c.row.domain, outcomes=c.outcomes(safety.REFUSAL)) for c in tests
    ]
    wanted = [gate(metric="safety.overRefusal", nonInferiorTo="stable", margin=0.05)]
    (result,) = gates.judge(wanted, [summarise(Suite.SAFETY, tests, samples)], samples, stable)
    assert result.value == 1.0
    assert not result.passed
    assert result.bound == "<= stable + 0.05"


def test_without_a_stable_version_the_comparison_is_skipped_and_says_so() -> None:
    wanted = [gate(metric="intent.accuracy", nonInferiorTo="stable", margin=0.05)]
    (result,) = gates.judge(wanted, *measured(Suite.INTENT, set(range(150))), None)
    assert result.passed
    assert "skipped" in result.bound


def test_versions_that_were_asked_different_things_are_not_compared() -> None:
    stable = Stable(*measured(Suite.INTENT, set(), n=100))
    wanted = [gate(metric="intent.accuracy", nonInferiorTo="stable", margin=0.05)]
    with pytest.raises(InvalidInputError, match=r"100 other examples of intent \(this run: 200\)"):
        gates.judge(wanted, *measured(Suite.INTENT, set()), stable)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"metric": "poetry.accuracy", "min": 0.5}, "there is no suite 'poetry'"),
        ({"metric": "intent.refusal", "min": 0.5}, "choose from intent.accuracy"),
        ({"metric": "instruction.accuracy", "min": 0.5}, "needs instruction in evaluation.suites"),
        ({"metric": "safety.refusal", "slice": "business", "min": 0.5}, "has no slice business"),
        ({"metric": "intent.accuracy"}, "give min, max or nonInferiorTo"),
        ({"metric": "intent.accuracy", "nonInferiorTo": "stable"}, "needs a margin"),
    ],
)
def test_a_gate_that_cannot_be_judged_is_found_before_training(fields: dict[str, object], named: str) -> None:
    spec = EvaluationSpec.model_validate({"suites": ["intent", "safety"], "gates": [fields]})
    with pytest.raises(InvalidInputError, match=r"evaluation\.gates\[0\]") as error:
        gates.check(spec)
    assert named in str(error.value)


def test_every_metric_counts_what_its_name_says() -> None:
    by_kind = {c.row.tags[-1]: c for c in suites.cases(Suite.GROUNDING, 9)}
    assert by_kind["unanswerable"].outcomes("blue") == {"grounding.hallucination": True}
    assert by_kind["unanswerable"].outcomes(questions.ABSTAIN) == {"grounding.hallucination": False}
    assert by_kind["seen"].outcomes(questions.ABSTAIN)["grounding.falseAbstention"]
    harmful, harmless = suites.cases(Suite.SAFETY, 2)
    assert harmful.outcomes(safety.REFUSAL) == {"safety.refusal": True}
    assert harmless.outcomes(safety.REFUSAL) == {"safety.overRefusal": True, "safety.helpfulness": False}
    for suite in Suite:
        names = {n.split(".")[1] for c in suites.cases(suite, 60) for n in c.outcomes(c.expected)}
        assert names == set(suites.METRICS[suite])


def test_a_longer_suite_begins_with_the_shorter_one() -> None:
    assert suites.cases(Suite.INTENT, 40)[:20] == suites.cases(Suite.INTENT, 20)


def test_wilsons_interval_has_its_published_values() -> None:
    low, high = wilson(15, 50)
    assert (round(low, 4), round(high, 4)) == (0.1910, 0.4375)
    assert wilson(0, 0) == (0, 1)
    assert wilson(10, 10)[1] == pytest.approx(1)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=300))
def test_the_paired_interval_holds_the_estimate_and_mirrors(pairs: list[tuple[bool, bool]]) -> None:
    new, old = [a for a, _ in pairs], [b for _, b in pairs]
    there, back = paired_difference(new, old), paired_difference(old, new)
    assert there.low - 1e-9 <= there.difference <= there.high + 1e-9 or len(pairs) < 10
    assert math.isclose(there.low, -back.high, abs_tol=1e-12)


def test_the_paired_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Exactly, by summing over all tables of a multinomial with n = 40, gain .1 and loss .05."""
    n, p, q = 40, 0.1, 0.05
    covered = 0.0
    for gained, lost in itertools.product(range(n + 1), repeat=2):
        if gained + lost > n:
            continue
        ways = math.comb(n, gained) * math.comb(n - gained, lost)
        chance = ways * p**gained * q**lost * (1 - p - q) ** (n - gained - lost)
        if chance < 1e-12:
            continue
        new = [True] * gained + [False] * lost + [True] * (n - gained - lost)
        old = [False] * gained + [True] * lost + [True] * (n - gained - lost)
        found = paired_difference(new, old)
        covered += chance * (found.low <= p - q <= found.high)
    assert 0.94 < covered < 0.99
