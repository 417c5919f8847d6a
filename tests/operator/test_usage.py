"""The meter of a run, the price table, and their product."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sluice_contracts.base import timestamp
from sluice_contracts.hardware import TrainingHardware
from sluice_contracts.training_run import Usage
from sluice_operator.prices import Prices, PricesError, parse_prices
from sluice_operator.training_run.ray_job_state import JobPhase, RayJobState
from sluice_operator.training_run.usage import advance, begin, cost, used

NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)


def after(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def job(phase: JobPhase, workers: int = 0, **times: float) -> RayJobState:
    moments = {name: timestamp(after(t)) for name, t in times.items()}
    return RayJobState(name="run", attempt=1, phase=phase, workers=workers, **moments)


def watched(looks: Iterable[tuple[float, RayJobState | None]], usage: Usage | None = None) -> Usage:
    """The meter after these looks, each some seconds after NOW."""
    found = usage or begin(None, NOW)
    for at, state in looks:
        found = advance(found, state, after(at))
    return found


class TestMeter:
    def test_pods_that_wait_for_a_node_take_time_but_cost_nothing(self) -> None:
        usage = watched([(10, job(JobPhase.STARTING)), (60, job(JobPhase.STARTING, workers=2))])
        assert used(usage, after(100)) == (100, 80)

    def test_a_suspended_run_uses_nothing(self) -> None:
        usage = watched([(0, job(JobPhase.RUNNING, 2)), (60, job(JobPhase.SUSPENDED, 2))])
        assert used(usage, after(3600)) == (60, 120)
        resumed = watched([(3600, job(JobPhase.RUNNING, 2, started_at=3600))], usage)
        assert used(resumed, after(3660)) == (120, 240)

    def test_workers_that_come_and_go_are_counted_as_they_are(self) -> None:
        usage = watched([(0, job(JobPhase.RUNNING, 4)), (100, job(JobPhase.RUNNING, 1)), (200, job(JobPhase.RUNNING))])
        assert used(usage, after(300)) == (300, 4 * 100 + 1 * 100)

    def test_all_attempts_are_added_up_and_the_pause_between_them_is_free(self) -> None:
        first = watched([(0, job(JobPhase.RUNNING, 2)), (60, job(JobPhase.FAILED, 2, ended_at=50))])
        assert used(first, after(1000)) == (50, 100), "up to its end, not up to when somebody looked"
        second = advance(begin(first, after(1000)), job(JobPhase.RUNNING, 3), after(1000))
        assert used(second, after(1010)) == (60, 130)

    def test_what_happened_while_nobody_looked_is_counted_by_the_jobs_own_times(self) -> None:
        whole_life = watched([(5000, job(JobPhase.SUCCEEDED, 2, started_at=100, ended_at=400))])
        assert used(whole_life, after(9000)) == (400, 600)
        held = watched([(10, job(JobPhase.SUSPENDED))])
        resumed_and_done = watched([(5000, job(JobPhase.SUCCEEDED, 2, started_at=1000, ended_at=1300))], held)
        assert used(resumed_and_done, after(9000)) == (310, 600)
        assert watched([(6000, job(JobPhase.SUCCEEDED, 2, started_at=1000, ended_at=1300))], resumed_and_done) == (
            resumed_and_done
        ), "and only once"

    def test_a_job_that_vanished_counts_until_it_was_missed(self) -> None:
        assert used(watched([(0, job(JobPhase.RUNNING, 1)), (90, None)]), after(500)) == (90, 90)

    def test_a_clock_that_jumps_back_counts_nothing_twice(self) -> None:
        usage = watched(
            [(0, job(JobPhase.RUNNING, 1)), (100, job(JobPhase.RUNNING, 2)), (40, job(JobPhase.RUNNING, 1))]
        )
        assert used(usage, after(40)) == (100, 100)
        assert used(usage, after(160)) == (160, 160)

    @given(
        st.lists(
            st.tuples(
                st.integers(1, 500),
                st.sampled_from([JobPhase.STARTING, JobPhase.RUNNING, JobPhase.SUSPENDED]),
                st.integers(0, 9),
                st.lists(st.integers(0, 500), max_size=3),
            ),
            max_size=12,
        )
    )
    def test_looking_more_often_changes_nothing(self, story: list[tuple[int, JobPhase, int, list[int]]]) -> None:
        seldom = often = begin(None, NOW)
        at, seconds, worker_seconds = 0, 0, 0
        for lasts, phase, workers, looks in story:
            state = job(phase, workers)
            seldom, often = advance(seldom, state, after(at)), advance(often, state, after(at))
            for extra in sorted(looks):
                if extra < lasts:
                    often = advance(often, state, after(at + extra))
            held = phase is not JobPhase.SUSPENDED
            at, seconds, worker_seconds = at + lasts, seconds + lasts * held, worker_seconds + lasts * workers * held
        assert seldom == often
        assert used(seldom, after(at)) == (seconds, worker_seconds)


class TestPrices:
    table = parse_prices('{"currency": "EUR", "onDemand": {"nvidia-l4": 0.7, "cpu": "0.04", "tpu-v6e-slice": 2.7}}')

    @pytest.mark.parametrize(
        ("hardware", "hour"),
        [
            ({"accelerator": "nvidia-l4"}, "0.7"),
            ({"accelerator": "nvidia-l4", "count": 4}, "2.8"),
            ({"accelerator": "cpu", "resources": {"cpu": "2500m", "memory": "4Gi"}}, "0.1"),
            ({"accelerator": "tpu-v6e-slice", "topology": "2x4"}, "21.6"),
            ({"accelerator": "tpu-v6e-slice", "topology": "4x4", "workers": {"min": 4, "max": 4}}, "10.8"),
        ],
        ids=["a GPU", "four GPUs", "2.5 CPUs", "a host of 8 chips", "one of four hosts"],
    )
    def test_the_hour_of_one_worker(self, hardware: dict[str, Any], hour: str) -> None:
        assert self.table.worker_hour(TrainingHardware.model_validate(hardware)) == Decimal(hour)

    def test_spot_has_prices_of_its_own(self) -> None:
        l4 = TrainingHardware.model_validate({"accelerator": "nvidia-l4", "spot": True})
        assert self.table.worker_hour(l4) is None, "never taken from on-demand"
        assert parse_prices('{"spot": {"nvidia-l4": 0.26}}').worker_hour(l4) == Decimal("0.26")

    def test_no_table_knows_no_price(self) -> None:
        assert parse_prices("") == Prices()
        assert Prices().worker_hour(TrainingHardware()) is None

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("{", "is no JSON"),
            ("[]", "is no object"),
            ('{"ondemand": {}}', "unknown field ondemand"),
            ('{"spot": 3}', "spot is no map"),
            ('{"spot": {"cpu": "much"}}', "spot.cpu is 'much'"),
            ('{"onDemand": {"cpu": -1}}', "onDemand.cpu is -1"),
            ('{"onDemand": {"cpu": NaN}}', "onDemand.cpu is"),
            ('{"onDemand": {"cpu": 1e9}}', "onDemand.cpu is"),
        ],
    )
    def test_a_table_that_does_not_read_names_its_entry(self, text: str, told: str) -> None:
        with pytest.raises(PricesError, match=told):
            parse_prices(text)


class TestCost:
    def test_it_is_workers_times_hours_times_price_to_the_cent(self) -> None:
        usage = Usage(since=timestamp(NOW), running=True, workers=3, seconds=600, worker_seconds=1800)
        found = cost(usage, Decimal("2.8"), "EUR", after(1200))
        assert found.total == "4.20"  # (1800 + 3 x 1200) / 3600 x 2.8
        assert (found.currency, found.per_worker_hour, found.as_of) == ("EUR", "2.8", timestamp(after(1200)))

    def test_small_amounts_are_not_lost_by_looking_often(self) -> None:
        usage = begin(None, NOW)
        for second in range(3600):
            usage = advance(usage, job(JobPhase.RUNNING, 1 + second % 2), after(second))
        assert cost(usage, Decimal("0.04"), "USD", after(3600)).total == "0.06"

    def test_a_sum_beyond_all_measure_still_fits_its_field(self) -> None:
        usage = Usage(since=timestamp(NOW), running=True, workers=2048, worker_seconds=10**15)
        assert cost(usage, Decimal(999_999), "USD", NOW).total == "999999999.99"
