"""Signals weigh the data: each batch once, small counts never, and within bounds."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sluice_contracts.names import Domain
from sluice_contracts.signal import SignalBatch
from sluice_training.dataset.build import build
from sluice_training.dataset.config import BuildConfig, SignalPolicy
from sluice_training.dataset.generate import focus_domains, plan
from sluice_training.dataset.intents import DOMAINS
from sluice_training.dataset.signals import Evidence, parse_batch, read_batches, weigh
from sluice_training.errors import InvalidInputError

MakeBatch = Callable[..., SignalBatch]
POLICY = SignalPolicy(min_count=25, max_factor=4)


def put(store: str, name: str, data: bytes) -> None:
    path = Path(store.removeprefix("file://")) / "signals" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def test_a_domain_that_fails_on_devices_weighs_more(make_batch: MakeBatch) -> None:
    batch = make_batch(
        1, (Domain.LEADERSHIP, "failure", 38), (Domain.LEADERSHIP, "success", 2), (Domain.BUSINESS, "success", 40)
    )
    evidence = weigh([batch], POLICY)
    assert evidence.factor(Domain.LEADERSHIP) > 3
    assert evidence.factor(Domain.BUSINESS) == 1
    assert evidence.factor(Domain.CREATIVE) == 1
    assert "of 40 requests failed" in next(w for w in evidence.weights if w.domain is Domain.LEADERSHIP).reason


def test_disliked_answers_count_as_failures_and_partial_ones_half(make_batch: MakeBatch) -> None:
    disliked = weigh([make_batch(1, (Domain.BUSINESS, "success", 50), feedback=-1)], POLICY)
    partial = weigh([make_batch(1, (Domain.BUSINESS, "partial", 50))], POLICY)
    assert 1 < partial.factor(Domain.BUSINESS) < disliked.factor(Domain.BUSINESS)


def test_small_counts_are_suppressed_before_anything_is_derived(make_batch: MakeBatch) -> None:
    evidence = weigh([make_batch(1, (Domain.LEADERSHIP, "failure", 24))], POLICY)
    assert evidence.weights == ()
    assert evidence.suppressed == 1
    assert weigh([make_batch(1, (Domain.LEADERSHIP, "failure", 25))], POLICY).weights


def test_a_batch_that_was_uploaded_twice_counts_once(store: str, make_batch: MakeBatch) -> None:
    batch = make_batch(7, (Domain.LEADERSHIP, "failure", 20))
    put(store, "a.json", batch.canonical())
    put(store, "b.json", batch.canonical())
    assert len(read_batches(f"{store}/signals")) == 1


def test_a_folder_without_batches_is_named(store: str) -> None:
    with pytest.raises(InvalidInputError, match=r"signals: there is no batch below file://.*/nowhere"):
        read_batches(f"{store}/nowhere")


def test_two_batches_with_one_id_are_refused(store: str, make_batch: MakeBatch) -> None:
    put(store, "a.json", make_batch(7, (Domain.LEADERSHIP, "failure", 20)).canonical())
    put(store, "b.json", make_batch(7, (Domain.LEADERSHIP, "failure", 2000)).canonical())
    with pytest.raises(InvalidInputError, match=r"b\.json and a\.json have the batch id"):
        read_batches(f"{store}/signals")


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b'{"batchId":\n oops', "line 2: not JSON"),
        (b'{"batchId": "\xff"}', "UTF-8"),
        (b'{"schemaVersion": 1}', "batchId"),
    ],
)
def test_a_file_that_is_no_batch_is_named(data: bytes, named: str) -> None:
    with pytest.raises(InvalidInputError) as error:
        parse_batch(data, "signals/x.json")
    assert "signals/x.json" in str(error.value)
    assert named in str(error.value)


def test_free_text_cannot_come_in(make_batch: MakeBatch) -> None:
    wire = make_batch(1, (Domain.BUSINESS, "success", 1)).wire()
    wire["cells"][0]["prompt"] = "my secret"
    with pytest.raises(InvalidInputError, match=r"cells\.0\.prompt: unknown field") as error:
        parse_batch(json.dumps(wire).encode(), "x.json")
    assert "my secret" not in str(error.value)


CELLS = st.tuples(st.sampled_from(DOMAINS), st.sampled_from(["success", "partial", "failure"]), st.integers(1, 100_000))


@given(cells=st.lists(CELLS, min_size=1, max_size=20))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_flood_of_signals_leaves_the_bounds(make_batch: MakeBatch, cells: list[tuple[Domain, str, int]]) -> None:
    evidence = weigh([make_batch(i, cell) for i, cell in enumerate(cells)], POLICY)
    assert all(1 <= w.factor <= POLICY.max_factor for w in evidence.weights)


def test_the_order_of_batches_does_not_matter(make_batch: MakeBatch) -> None:
    batches = [make_batch(i, (Domain.LEADERSHIP, "failure", 10 + i)) for i in range(5)]
    assert weigh(batches, POLICY) == weigh(batches[::-1], POLICY)


def test_the_signals_choose_the_focus_and_are_written_down(make_batch: MakeBatch) -> None:
    config = BuildConfig.model_validate(
        {"name": "v2", "seed": 1, "size": 400, "focus": {"fromSignals": True}, "replay": 0.5}
    )
    evidence = weigh([make_batch(1, (Domain.CREATIVE, "failure", 40), (Domain.BUSINESS, "success", 40))], POLICY)
    assert focus_domains(config, evidence) == [Domain.CREATIVE]
    manifest = build(config, evidence).manifest
    assert manifest.signals_digest == evidence.digest
    assert manifest.signal_batches == 1
    assert {w.domain for w in manifest.weights} == {Domain.CREATIVE, Domain.BUSINESS}


def test_without_a_failing_domain_there_is_nothing_to_focus_on() -> None:
    config = BuildConfig.model_validate(
        {"name": "v2", "seed": 1, "size": 400, "focus": {"fromSignals": True}, "replay": 0.5}
    )
    with pytest.raises(InvalidInputError, match=r"focus\.fromSignals"):
        build(config, Evidence())


def test_factors_weigh_the_domains_of_the_mix(make_batch: MakeBatch) -> None:
    evidence = weigh([make_batch(1, (Domain.BUSINESS, "failure", 4000))], POLICY)
    rows = {s.domain: s.rows for s in plan(BuildConfig(name="x", seed=1, size=1000), evidence) if s.task == "intent"}
    assert rows[Domain.BUSINESS] > 3 * rows[Domain.CREATIVE]
