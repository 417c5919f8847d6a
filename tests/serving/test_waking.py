"""Engines that sleep: when they are asked, who is held, what those are told who wait in vain; then made-up crowds."""

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sluice_contracts.inference_pool import Replicas, ScaleToZero
from sluice_contracts.routing import Backend, RoutingLimits, RoutingTable, Waking
from sluice_serving.gateway.admission import Lane, LaneClosed, Overloaded
from sluice_serving.gateway.holding import Holding
from sluice_serving.gateway.wake import AWAKE_SECONDS, GRACE_SECONDS, LEAST_SECONDS, Asleep, ColdStart, Sleepers

URL = "http://engine"


DOCUMENT = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text()


def backend(name: str = "v1", weight: int = 100, url: str = URL, **more: Any) -> Backend:
    digest = "sha256:" + name.encode().hex().ljust(64, "0")[:64]
    return Backend(model_version=name, lineage="x", manifest_digest=digest, url=url, weight=weight, **more)


async def settle() -> None:
    """Let everything run that can."""
    for _ in range(10):
        await asyncio.sleep(0)


@dataclass
class Engine:
    """Answers a question when told to."""

    asked: list[str] = field(default_factory=list)
    pending: "list[asyncio.Future[int | None]]" = field(default_factory=list)

    async def look(self, url: str, seconds: float) -> int | None:
        self.asked.append(url)
        answer: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        self.pending.append(answer)
        return await answer

    def answer(self, status: int | None = 200) -> None:
        for answer in self.pending:
            if not answer.done():
                answer.set_result(status)
        self.pending.clear()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def sleepers(engine: Engine, clock: Clock, waiting: Callable[[str], int] = lambda _: 0, **waking: float) -> Sleepers:
    found = Sleepers(engine.look, waiting, lambda: None, clock)
    found.follow([URL], Waking(**{"timeout_seconds": 100, "cold_start_seconds": 40} | waking))
    return found


class TestColdStart:
    def test_before_one_was_seen_it_is_what_the_owner_believes(self) -> None:
        cold = ColdStart()
        cold.believed = 120
        assert (cold.left(0), cold.left(100)) == (120, 20)

    def test_the_newest_counts_most(self) -> None:
        cold = ColdStart()
        cold.believed = 500
        cold.observe(40)
        assert cold.seconds == 40
        cold.observe(80)
        assert cold.seconds == 60

    def test_one_that_is_late_is_still_expected(self) -> None:
        cold = ColdStart()
        cold.believed = 60
        assert cold.left(600) == 6


class TestSleepers:
    async def test_an_engine_is_asked_once_for_all_who_wait_and_then_taken_to_be_awake_for_a_while(self) -> None:
        engine, clock = Engine(), Clock()
        found = sleepers(engine, clock)
        assert [found.rouse(URL, busy=False) for _ in range(3)] == [100, 100, 100]
        await settle()
        assert engine.asked == [f"{URL}/v1/models"]
        engine.answer()
        await settle()
        assert not found.held(URL)
        assert found.rouse(URL, busy=False) is None
        clock.now += AWAKE_SECONDS
        assert found.rouse(URL, busy=True) is None, "it is at work"
        assert found.rouse(URL, busy=False) == 100, "asked anew"
        found.close()

    async def test_an_answer_to_somebody_is_an_answer(self) -> None:
        engine, clock = Engine(), Clock()
        found = sleepers(engine, clock)
        found.answered(URL)
        clock.now += AWAKE_SECONDS - 1
        assert found.rouse(URL, busy=False) is None
        assert engine.asked == []

    async def test_a_cold_start_is_measured_and_a_question_to_one_that_is_awake_is_none(self) -> None:
        engine, clock = Engine(), Clock()
        found = sleepers(engine, clock)
        found.rouse(URL, busy=False)
        await settle()
        clock.now += 0.02
        engine.answer()
        await settle()
        assert (found.cold_start.seen, dict(found.wakes)) == (None, {})
        clock.now += AWAKE_SECONDS
        found.rouse(URL, busy=False)
        await settle()
        clock.now += 25
        assert found.asleep(URL)
        assert found.left(URL) == 15
        engine.answer()
        await settle()
        assert (found.cold_start.seen, dict(found.wakes)) == (25, {"woke": 1})
        assert not found.asleep(URL)

    async def test_who_would_wait_too_long_is_told_at_once_but_only_if_the_engine_sleeps(self) -> None:
        engine, clock = Engine(), Clock()
        found = sleepers(engine, clock, timeout_seconds=10)
        assert found.rouse(URL, busy=False) == GRACE_SECONDS, "it may be awake"
        await settle()
        clock.now += GRACE_SECONDS
        with pytest.raises(Asleep) as refused:
            found.rouse(URL, busy=False)
        assert refused.value.retry_after == 39
        clock.now += 29
        assert found.rouse(URL, busy=False) == 10, "soon enough now"
        assert len(engine.asked) == 1, "and it is woken for those who come again"
        found.close()

    async def test_other_answers_do_not_count_and_it_gives_up_when_nobody_waits(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sluice_serving.gateway.wake.PAUSE_SECONDS", (0.0, 0.0))
        engine, clock, crowd = Engine(), Clock(), [1]
        found = sleepers(engine, clock, lambda _: crowd[0], timeout_seconds=5, cold_start_seconds=1)
        found.rouse(URL, busy=False)
        for status in (503, 404, None):
            await settle()
            engine.answer(status)
        await settle()
        clock.now += LEAST_SECONDS
        engine.answer(503)
        await settle()
        assert found.held(URL), "somebody waits"
        crowd[0] = 0
        engine.answer(503)
        await settle()
        assert not found.held(URL)
        assert dict(found.wakes) == {"gave_up": 1}
        assert found.rouse(URL, busy=False) is not None, "the next request tries again"
        found.close()

    async def test_an_engine_that_left_the_table_is_woken_no_more(self) -> None:
        engine, clock = Engine(), Clock()
        found = sleepers(engine, clock)
        found.rouse(URL, busy=False)
        await settle()
        found.follow([], Waking())
        await settle()
        assert engine.pending[0].cancelled()
        assert found.rouse(URL, busy=False) is None


@dataclass
class Crowd:
    """A gateway's lane before one engine that may sleep, and requests that come, leave, and end."""

    engine: Engine
    lane: Lane
    holding: Holding
    table: RoutingTable
    tasks: "list[asyncio.Task[str]]" = field(default_factory=list)
    ends: "dict[int, asyncio.Event]" = field(default_factory=dict)
    running: set[int] = field(default_factory=set)
    order: list[tuple[str, int]] = field(default_factory=list)

    def come(self, key: str) -> None:
        number = len(self.tasks)
        self.ends[number] = asyncio.Event()
        self.tasks.append(asyncio.create_task(self._request(key, number)))

    async def _request(self, key: str, number: int) -> str:
        (version,) = self.table.backends
        try:
            taken = await self.lane.acquire(key, self.holding.patience(version, self.table))
        except Overloaded as error:
            told = self.holding.explained(error, version)
            # Of an engine that wakes, what is left of a cold start, which may have been seen to take longer.
            assert 0 < told.retry_after <= max(60, self.holding.sleepers.cold_start.seconds)
            return type(told).__name__
        except Asleep:
            return "Asleep"
        except LaneClosed:
            return "LaneClosed"
        assert not self.holding.held(version), "let through before the engine answered"
        self.running.add(number)
        self.order.append((key, number))
        try:
            await self.ends[number].wait()
            return "served"
        finally:
            self.running.discard(number)
            self.lane.release(taken, served=True)
            self.holding.answered(version)

    def check(self) -> None:
        limits = self.table.limits
        assert self.lane.in_flight == len(self.running) <= limits.in_flight_per_replica
        assert 0 <= self.lane.waiting <= limits.queue
        undone = sum(not task.done() for task in self.tasks)
        assert undone == self.lane.waiting + self.lane.in_flight, "every other request has its answer"
        held = self.holding.held(self.table.backends[0])
        if self.lane.waiting and not held:
            assert self.lane.in_flight == self.lane.capacity, "nobody waits for a place that is free"


EVENTS = st.one_of(
    st.tuples(st.just("come"), st.sampled_from("abc")),
    st.tuples(st.just("leave"), st.integers(0, 30)),
    st.tuples(st.just("end"), st.integers(0, 30)),
    st.tuples(st.just("wake"), st.just(0)),
    st.tuples(st.just("doze"), st.just(0)),
    st.tuples(st.just("tick"), st.sampled_from([0.5, 5, 50])),
)


@settings(max_examples=80, deadline=None)
@given(st.lists(EVENTS, max_size=40), st.integers(1, 3), st.integers(0, 5))
def test_whatever_a_crowd_does_each_request_gets_one_answer_and_the_bounds_hold(
    events: list[tuple[str, Any]], places: int, queue: int
) -> None:
    async def live() -> None:
        crowd, clock = make_crowd(places, queue)
        for what, which in events:
            if what == "come":
                crowd.come(which)
            elif what == "leave" and which < len(crowd.tasks):
                crowd.tasks[which].cancel()
            elif what == "end" and which in crowd.ends:
                crowd.ends[which].set()
            elif what == "wake":
                crowd.engine.answer()
            elif what == "doze":
                clock.now += AWAKE_SECONDS + 1
            elif what == "tick":
                clock.now += which
            await settle()
            crowd.check()
        for _ in range(len(crowd.tasks) + 1):  # at the end the engine is awake, and everybody is served
            crowd.engine.answer()
            for end in crowd.ends.values():
                end.set()
            await settle()
        results = await asyncio.gather(*crowd.tasks, return_exceptions=True)
        assert all(isinstance(r, asyncio.CancelledError) or r in {"served", "Overloaded", "Asleep"} for r in results)
        assert (crowd.lane.in_flight, crowd.lane.waiting) == (0, 0)
        for key in "abc":  # who came first of a key went first
            mine = [number for k, number in crowd.order if k == key]
            assert mine == sorted(mine)
        crowd.holding.close()

    asyncio.run(live())


def make_crowd(places: int, queue: int) -> tuple[Crowd, Clock]:
    engine, clock = Engine(), Clock()
    lane = Lane(0, queue)
    holding = Holding(engine.look, {"v1": lane}, probe_seconds=0)
    holding.sleepers = Sleepers(engine.look, lambda _: lane.waiting, holding._resize, clock)
    table = RoutingTable(
        pool="p",
        namespace="n",
        model="m",
        backends=[backend(may_sleep=True)],
        limits=RoutingLimits(in_flight_per_replica=places, queue=queue, queue_timeout_seconds=60),
        waking=Waking(timeout_seconds=60, cold_start_seconds=20),
    )
    holding.follow(table)
    return Crowd(engine, lane, holding, table), clock


async def test_those_who_are_held_take_turns_when_the_engine_wakes() -> None:
    crowd, _ = make_crowd(places=1, queue=10)
    for key in ("a", "a", "a", "b"):
        crowd.come(key)
    await settle()
    assert (crowd.lane.waiting, crowd.order) == (4, [])
    crowd.engine.answer()
    for _ in range(4):
        await settle()
        crowd.ends[crowd.order[-1][1]].set()
    await asyncio.gather(*crowd.tasks)
    assert [key for key, _ in crowd.order] == ["a", "b", "a", "a"]


async def test_the_documents_table_lists_the_metrics_there_are() -> None:
    crowd, _ = make_crowd(places=1, queue=1)
    found = {m.name + ("_total" if m.type == "counter" else "") for m in crowd.holding.collect()}
    assert set(re.findall(r"^\| `(sluice_\w+)`", DOCUMENT, re.MULTILINE)) == found
    crowd.holding.close()


def test_the_documents_table_has_the_fields_and_defaults_of_replicas() -> None:
    told = dict(re.findall(r"^\| `([\w.]+)` \| (\w+) \|", DOCUMENT, re.MULTILINE))
    replicas, sleep = Replicas().wire(), ScaleToZero().wire()
    assert told == {k: str(v) for k, v in replicas.items()} | {f"scaleToZero.{k}": v for k, v in sleep.items()}
