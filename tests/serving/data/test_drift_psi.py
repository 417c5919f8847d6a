"""Drift's arithmetic: the index itself, merged small counts, and what a report makes of them."""

import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sluice_contracts.drift import RARE, Drift, DriftReference, DriftThresholds
from sluice_serving.gateway.drift.cells import Cell, History, Window, day_before, merged, publishable, windows
from sluice_serving.gateway.drift.psi import Level, Sample, chance, compare, place_rare, psi
from sluice_serving.gateway.drift.report import as_json, as_text, make_report

BINS = "abcdefgh"
COUNTS = st.dictionaries(st.sampled_from(BINS), st.integers(0, 10_000), min_size=1).filter(
    lambda c: sum(c.values()) > 0
)
SMALL = st.dictionaries(st.sampled_from([*BINS, RARE]), st.integers(0, 60), min_size=1)
LAST = "2026-11-20"


def test_known_values() -> None:
    # (0.8-0.5) ln(0.8/0.5) + (0.2-0.5) ln(0.2/0.5)
    assert psi({"a": 500_000, "b": 500_000}, {"a": 800_000, "b": 200_000}) == pytest.approx(0.41589, abs=1e-4)
    # Three bins, worked out by hand: 0.1 ln(0.6/0.5) - 0.05 ln(0.25/0.3) - 0.05 ln(0.15/0.2)
    found = psi({"a": 50e6, "b": 30e6, "c": 20e6}, {"a": 60e6, "b": 25e6, "c": 15e6})
    assert found == pytest.approx(0.1 * math.log(1.2) - 0.05 * math.log(25 / 30) - 0.05 * math.log(0.75), abs=1e-6)


@settings(deadline=None)
@given(COUNTS, COUNTS, st.permutations(BINS), st.integers(2, 50))
def test_the_index_is_symmetric_never_negative_and_knows_no_names(
    one: dict[str, int], other: dict[str, int], names: list[str], times: int
) -> None:
    found = psi(one, other)
    assert found >= 0
    assert psi(other, one) == pytest.approx(found)
    renamed = dict(zip(BINS, names, strict=True))
    assert psi({renamed[b]: n for b, n in one.items()}, {renamed[b]: n for b, n in other.items()}) == pytest.approx(
        found
    )
    assert psi(one | {"nobody": 0}, other) == pytest.approx(found)
    assert psi(one, {b: n * times for b, n in one.items()}) == pytest.approx(0, abs=1e-9)


@settings(deadline=None)
@given(COUNTS)
def test_an_empty_bin_says_no_more_than_the_sample_can(counts: dict[str, int]) -> None:
    found = [psi(counts | {"new": 0}, {"new": n}) for n in (10, 1000)]
    assert all(map(math.isfinite, found))
    assert psi({"a": 10}, {"a": 9, "b": 1}) < psi({"a": 1000}, {"a": 900, "b": 100})


@pytest.mark.parametrize("sides", [({}, {"a": 1}), ({"a": 0}, {"a": 1}), ({"a": 3, "b": -1}, {"a": 1})])
def test_sides_that_are_no_counts_are_refused(sides: tuple[dict[str, int], dict[str, int]]) -> None:
    with pytest.raises(ValueError, match="both sides need counts"):
        psi(*sides)


@pytest.mark.parametrize(("bins", "chi_squared"), [(2, 6.635), (5, 13.277), (11, 23.209)])
def test_chance_is_the_99th_percentile_of_chi_squared(bins: int, chi_squared: float) -> None:
    assert chance(1000, 500, bins) == pytest.approx((1 / 1000 + 1 / 500) * chi_squared, rel=0.01)


def test_chance_is_what_unchanged_samples_exceed_once_in_a_hundred() -> None:
    draw = random.Random(7)
    shares = [0.4, 0.3, 0.2, 0.1]
    values = [
        psi(Counter(draw.choices(BINS[:4], shares, k=1000)), Counter(draw.choices(BINS[:4], shares, k=400)))
        for _ in range(400)
    ]
    assert sum(value > chance(1000, 400, 4) for value in values) <= 12  # 4 expected; more than 12 once in 3,000


@settings(deadline=None)
@given(SMALL, st.integers(5, 40))
def test_no_small_count_is_kept_and_none_can_be_had_by_subtraction(counts: dict[str, int], least: int) -> None:
    kept = merged(counts, least)
    assert all(n >= least for n in kept.values())
    assert sum(kept.values()) in ({0} if sum(counts.values()) < least else {sum(counts.values())})
    assert kept.keys() <= counts.keys() | {RARE}


def test_a_handful_in_a_large_day_does_not_hide_the_rest() -> None:
    assert merged({"answered": 5000, "refused": 3}, 10) == {"answered": 5003}
    assert merged({"answered": 200, "refused": 9}, 10) == {RARE: 209}  # 9 of 209 would be a lie either way
    assert merged({"en": 500, "de": 9, "fr": 4, "es": 12}, 10) == {"en": 500, "es": 12, RARE: 13}


@settings(deadline=None)
@given(COUNTS, COUNTS, st.sets(st.sampled_from(BINS)))
def test_what_was_merged_is_put_back_whole_and_only_where_it_can_have_been(
    counts: dict[str, int], beside: dict[str, int], hidden: set[str]
) -> None:
    loose = Counter(counts) + Counter({RARE: 500})
    placed = place_rare(loose, beside, hidden)
    assert sum(placed.values()) == pytest.approx(sum(loose.values()))
    for name in {*placed, *counts} - {RARE}:
        assert placed.get(name, 0) >= counts.get(name, 0) * (1 - 1e-9)
        assert name in hidden or placed.get(name, 0) == pytest.approx(counts.get(name, 0))


def test_merging_alone_is_no_drift_and_hides_no_large_one() -> None:
    """A version with a twentieth of the traffic, most of whose bins are too small to be kept."""
    draw = random.Random(11)
    shares = {"a": 0.55, "b": 0.25, "c": 0.06, "d": 0.05, "e": 0.04, "f": 0.03, "g": 0.02}

    def day(name: str, n: int, chosen: dict[str, float], version: str) -> list[Cell]:
        seen = Counter(draw.choices(list(chosen), list(chosen.values()), k=n))
        return [Cell(name, version, "intent", b, k) for b, k in seen.items()]

    drift = Drift(window_days=7, min_samples=500)
    levels, moved = Counter[Level](), Counter[Level]()
    for _ in range(25):
        cells = [c for back in range(35) for c in day(day_before(LAST, back), 1500, shares, "old")]
        cells += [c for back in range(7) for c in day(day_before(LAST, back), 90, shares, "new")]
        other = {**shares, "a": 0.25, "f": 0.33}
        cells += [c for back in range(7) for c in day(day_before(LAST, back), 90, other, "moved")]
        report = make_report("n/p", publishable(cells, 10), drift, trend=0)
        found = {f.version: f.comparison.level for f in report.findings}
        levels[found["new"]] += 1
        moved[found["moved"]] += 1
    assert levels == {Level.STABLE: 25}
    assert moved == {Level.MAJOR: 25}


def test_a_few_requests_decide_nothing_and_chance_is_no_drift() -> None:
    limits = DriftThresholds()
    few = compare(Sample({"a": 400}), Sample({"b": 10_000}), limits, 500)
    assert (few.level, few.psi) == (Level.UNDECIDED, None)
    noisy = compare(Sample({"a": 30, "b": 30, "c": 30}), Sample({"a": 16, "b": 30, "c": 44}), limits, 50)
    assert noisy.psi is not None
    assert noisy.chance is not None
    assert 0.1 < noisy.psi < noisy.chance
    assert noisy.level is Level.STABLE


def test_the_reference_trails_or_stays() -> None:
    now, before = windows(LAST, "v2", 7, DriftReference(days=28))
    assert (now, before) == (Window("2026-11-14", LAST, "v2"), Window("2026-10-17", "2026-11-13", None))
    fixed = DriftReference(first_day="2026-01-01", last_day="2026-01-31", model_version="v1")
    assert windows(LAST, "v2", 1, fixed) == (Window(LAST, LAST, "v2"), Window("2026-01-01", "2026-01-31", "v1"))
    cells = [
        Cell("2026-01-31", "v1", "task", "x", 5),
        Cell("2026-01-31", "v2", "task", "x", 7),
        Cell(LAST, "v2", "task", "x", 9),
    ]
    history = History.of(cells)
    assert history.sample("task", windows(LAST, "v2", 1, fixed)[1]).counts == {"x": 5}
    assert history.versions(Window(LAST, LAST)) == ["v2"]


def languages(back: int, german: int) -> list[Cell]:
    day = day_before(LAST, back)
    return [Cell(day, "v7", "language", "en", 2000 - german), Cell(day, "v7", "language", "de", german)]


def test_a_report_says_what_moved_by_how_much_and_since_when() -> None:
    cells = [c for back in range(40) for c in languages(back, 800 if back < 3 else 60)]
    cells += [Cell(LAST, "v7", "feedback", "1", 12), Cell(day_before(LAST, 9), "v7", "feedback", "-1", 30)]
    drift = Drift()
    report = make_report("support/chat", cells, drift)
    moved = next(f for f in report.findings if f.feature == "language")
    assert (moved.comparison.level, moved.since) == (Level.MAJOR, day_before(LAST, 2))
    text = as_text(report, drift)
    assert "support/chat: 2026-11-20 against 2026-10-23 to 2026-11-19: 1 of 1 features moved, 1 undecided" in text
    assert "2026-11-18" in text
    assert "de 5.6% -> 40%, en 94% -> 60%" in text
    assert "12 requests, 30 in the reference" in text
    found = as_json(report, drift)["findings"]
    assert [(f["feature"], f["level"], f["since"]) for f in found] == [
        ("language", "major", "2026-11-18"),
        ("feedback", "undecided", None),
    ]
    assert [b["bin"] for b in found[0]["bins"]] == ["de", "en"]


def test_a_day_without_counts_is_said_to_be_one() -> None:
    assert "no day with counts yet" in as_text(make_report("n/p", [], Drift()), Drift())
