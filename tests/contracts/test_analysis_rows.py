"""Counts as named numbers, and back."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sluice_contracts.analysis import LATENCY_EDGES, REQUEST_BYTES_EDGES, TOKEN_EDGES, Histogram, Shape, VersionCounts
from sluice_contracts.analysis_rows import Row, from_rows, to_rows


def counted(answers: list[tuple[float, int]], *, apart: bool) -> VersionCounts:
    found = VersionCounts(requests=len(answers) + 3, errors=3, finish_reasons={"stop": len(answers)})
    found.by_length = [Shape() for _ in range(len(REQUEST_BYTES_EDGES) + 1)] if apart else []
    for i, (one, n) in enumerate(answers):
        for shape in [found, *([found.by_length[i % 3]] if apart else [])]:
            shape.ttft.observe(LATENCY_EDGES, one)
            shape.cost.counts[i % 400] += 1
            shape.output_tokens.observe(TOKEN_EDGES, n)
        found.queue.observe(LATENCY_EDGES, one)
    found.schema_checked, found.schema_invalid = 5, 2
    found.mirror_scored, found.mirror_score = 4, 2.75
    return found


ANSWERS = st.lists(st.tuples(st.floats(0.0001, 200), st.integers(1, 5000)), max_size=12)


def same(a: VersionCounts, b: VersionCounts) -> bool:
    """Equal where a verdict looks: the sums of the buckets' own values are of no use to it."""

    def bare(counts: VersionCounts) -> VersionCounts:
        copy = counts.model_copy(deep=True)
        for shape in copy.by_length:
            for name in Shape.model_fields:
                getattr(shape, name).total = 0
        copy.queue.total = 0
        return copy

    left, right = bare(a).model_dump(), bare(b).model_dump()
    for name in Shape.model_fields:
        assert left[name].pop("total") == pytest.approx(right[name].pop("total"))
    return left == right


@settings(max_examples=25, deadline=None)
@given(ANSWERS, st.booleans())
def test_counts_come_back_as_they_were(answers: list[tuple[float, int]], apart: bool) -> None:
    counts = counted(answers, apart=apart)
    back = from_rows(to_rows(counts))
    if not any(shape.ttft.n for shape in counts.by_length):
        counts.by_length = []  # nothing to keep apart
    assert same(back, counts)


@settings(max_examples=25, deadline=None)
@given(ANSWERS, ANSWERS, st.booleans())
def test_rows_may_be_added_up_before_they_are_read(
    one: list[tuple[float, int]], other: list[tuple[float, int]], apart: bool
) -> None:
    a, b = counted(one, apart=apart), counted(other, apart=apart)
    sums: dict[tuple[str, str, str], float] = {}
    for row in [*to_rows(a), *to_rows(b)]:
        sums[row[:3]] = sums.get(row[:3], 0) + row.value
    both = a.plus(b)
    if not any(shape.ttft.n for shape in both.by_length):
        both.by_length = []
    assert same(from_rows(Row(*key, value) for key, value in sums.items()), both)


def test_what_a_newer_gateway_counts_besides_is_left_out() -> None:
    rows = [*to_rows(VersionCounts(requests=2)), Row("toxicity", "", "", 1)]
    assert from_rows(rows) == VersionCounts(requests=2)


@pytest.mark.parametrize("row", [Row("ttft", "", "999", 1), Row("ttft", "9", "1", 1), Row("queue", "", "x", 1)])
def test_a_bucket_that_does_not_exist_is_an_error(row: Row) -> None:
    with pytest.raises(ValueError, match="there is no bucket"):
        from_rows([row])


def test_counts_that_contradict_each_other_are_an_error() -> None:
    with pytest.raises(ValueError, match="errors cannot outnumber requests"):
        from_rows([Row("requests", "", "", 1), Row("errors", "", "", 2)])
    with pytest.raises(ValueError, match="mirrored answers score 1 at most"):
        VersionCounts(mirror_scored=1, mirror_score=1.5)
    with pytest.raises(ValueError, match="invalid answers cannot outnumber"):
        VersionCounts(schema_checked=1, schema_invalid=2)


def test_empty_buckets_make_no_rows() -> None:
    assert [row.name for row in to_rows(VersionCounts())] == ["requests"]
    one = VersionCounts(requests=1, ttft=Histogram.empty(LATENCY_EDGES))
    one.ttft.observe(LATENCY_EDGES, 0.2)
    assert len(list(to_rows(one))) == 3
