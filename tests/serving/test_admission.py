"""The lanes: slots, lines, whose turn it is, and who is turned away."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sluice_serving.gateway.admission import Lane, Overloaded

KEYS = st.sampled_from(["a", "b", "c"])


async def settle() -> None:
    """Let every task that can run do so."""
    for _ in range(5):
        await asyncio.sleep(0)


class Crowd:
    """Requests at one lane, and what became of them."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.order: list[str] = []
        self.refused: list[tuple[str, Overloaded]] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self.holds: list[float] = []

    async def come(self, key: str, priority: int = 5) -> None:
        task = asyncio.create_task(self._one(key, priority))
        self.tasks.add(task)
        await settle()

    async def _one(self, key: str, priority: int) -> None:
        try:
            self.holds.append(await self.lane.acquire(key, 60, priority))
        except Overloaded as error:
            self.refused.append((key, error))
        else:
            self.order.append(key)

    async def finish(self, n: int = 1) -> None:
        for _ in range(n):
            self.lane.release(self.holds.pop(0), served=True)
            await settle()

    async def end(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


def run(work: Callable[[Crowd], Awaitable[Any]], **limits: Any) -> Any:
    async def main() -> Any:
        crowd = Crowd(Lane(**limits))
        try:
            return await work(crowd)
        finally:
            await crowd.end()

    return asyncio.run(main())


@given(st.lists(st.integers(1, 8), min_size=2, max_size=4), st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_keys_that_wait_get_the_same_number_of_slots_however_many_requests_they_have(
    lines: list[int], capacity: int
) -> None:
    async def work(crowd: Crowd) -> None:
        for _ in range(capacity):
            await crowd.come("first")
        for key, n in enumerate(lines):
            for _ in range(n):
                await crowd.come(f"key {key}")
        shortest = min(lines)
        await crowd.finish(shortest * len(lines))
        served = Counter(crowd.order[capacity:])
        assert all(served[f"key {key}"] == shortest for key in range(len(lines)))

    run(work, capacity=capacity, queue=100)


def test_who_fills_the_queue_is_turned_away_not_who_comes_after() -> None:
    async def work(crowd: Crowd) -> None:
        for _ in range(5):
            await crowd.come("greedy")  # one runs, four wait: the queue is full
        await crowd.come("modest")
        assert [key for key, _ in crowd.refused] == ["greedy"]
        assert crowd.refused[0][1].kind == "queue_full"
        await crowd.come("modest")
        await crowd.come("modest")  # two lines of two: nobody has less than another by now
        assert [key for key, _ in crowd.refused] == ["greedy", "greedy", "modest"]
        assert crowd.lane.waiting == 4
        await crowd.finish(4)
        assert crowd.order == ["greedy", "greedy", "modest", "greedy", "modest"]

    run(work, capacity=1, queue=4)


def test_a_higher_priority_goes_first_and_is_turned_away_last() -> None:
    async def work(crowd: Crowd) -> None:
        await crowd.come("running")
        await crowd.come("low", 1)
        await crowd.come("low", 1)
        await crowd.come("high", 9)
        assert [key for key, _ in crowd.refused] == ["low"]
        await crowd.come("low", 1)  # cannot push out one that is above it
        assert [key for key, _ in crowd.refused] == ["low", "low"]
        await crowd.finish(2)
        assert crowd.order == ["running", "high", "low"]

    run(work, capacity=1, queue=2)


def test_without_a_queue_nobody_waits() -> None:
    async def work(crowd: Crowd) -> None:
        await crowd.come("a")
        await crowd.come("b")
        assert [key for key, _ in crowd.refused] == ["b"]

    run(work, capacity=1, queue=0)


def test_retry_after_is_what_that_key_would_wait_by_the_observed_rate() -> None:
    now = [0.0]

    async def work(crowd: Crowd) -> None:
        for _ in range(2):
            await crowd.come("first")
        now[0] = 6.0
        await crowd.finish(2)  # 6 s each, two at a time: one every 3 s
        for key in ["first", "first", *["greedy"] * 8]:
            await crowd.come(key)
        lane = crowd.lane
        assert lane.expected_wait("greedy") == pytest.approx(9 * 3)  # behind its own eight
        assert lane.expected_wait("modest") == pytest.approx(2 * 3)  # one of greedy's goes before it
        assert lane.expected_wait("urgent", priority=9) == pytest.approx(3)
        assert lane.expected_wait("patient", priority=0) == pytest.approx(9 * 3)

    run(work, capacity=2, queue=8, clock=lambda: now[0])


@given(
    st.lists(st.tuples(st.sampled_from(["come", "finish", "leave"]), KEYS, st.integers(4, 6)), max_size=40),
    st.integers(0, 3),
    st.integers(0, 4),
)
@settings(max_examples=60, deadline=None)
def test_whatever_happens_the_limits_hold_and_no_slot_is_lost(
    events: list[tuple[str, str, int]], capacity: int, queue: int
) -> None:
    async def work(crowd: Crowd) -> None:
        lane = crowd.lane
        for event, key, priority in events:
            if event == "come":
                await crowd.come(key, priority)
            elif event == "finish" and crowd.holds:
                await crowd.finish()
            elif event == "leave" and (waiting := [t for t in crowd.tasks if not t.done()]):
                waiting[0].cancel()
                await settle()
            assert lane.in_flight == len(crowd.holds) <= capacity
            assert lane.waiting == sum(not t.done() for t in crowd.tasks) <= queue
            assert not lane.waiting or lane.in_flight == capacity
            assert all(1 <= error.retry_after <= 60 for _, error in crowd.refused)

    run(work, capacity=capacity, queue=queue)
