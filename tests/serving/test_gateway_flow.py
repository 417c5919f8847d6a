"""Limits, the queue, stickiness, routing changes, clients that leave, and stopping."""

import asyncio
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sluice_contracts.base import sha256
from sluice_contracts.routing import Backend, RoutingLimits
from sluice_serving.gateway.admission import Lane, LaneClosed, Overloaded
from sluice_serving.gateway.split import choose

MODEL = "support-bot"
HI: Any = [{"role": "user", "content": "hi"}]


async def until(condition: Any, what: str, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not (await value if asyncio.iscoroutine(value := condition()) else value):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.005)


async def waiting(gateway: Any) -> int:
    """How many requests stand in the queue of v1, by its own account."""
    line = next(line for line in (await gateway.metrics()).splitlines() if line.startswith("sluice_waiting{"))
    return int(float(line.split()[-1]))


def version(name: str, weight: int, **more: Any) -> Backend:
    digest = "sha256:" + name.encode().hex().ljust(64, "0")[:64]
    return Backend(model_version=name, lineage="x", manifest_digest=digest, url="http://e", weight=weight, **more)


@given(st.lists(st.integers(0, 100), min_size=2, max_size=12), st.text(max_size=40))
def test_as_the_weight_grows_a_person_moves_to_the_candidate_at_most_once(weights: list[int], person: str) -> None:
    path = [
        choose([version("stable", 100 - weight), version("candidate", weight)], person) for weight in sorted(weights)
    ]
    names = [chosen.model_version for chosen in path if chosen is not None]
    assert names == sorted(names, reverse=True)  # first stable, then candidate, never back


@given(
    st.lists(st.integers(1, 97), min_size=3, max_size=3), st.integers(0, 2), st.integers(1, 100), st.text(max_size=40)
)
def test_of_three_versions_only_the_one_that_grows_gains_people(
    weights: list[int], grows: int, by: int, person: str
) -> None:
    names = ["v1", "v2", "v3"]
    before = choose([version(n, w) for n, w in zip(names, weights, strict=True)], person)
    weights[grows] = min(100, weights[grows] + by)
    after = choose([version(n, w) for n, w in zip(names, weights, strict=True)], person)
    assert before is not None
    assert after is not None
    assert after.model_version in {before.model_version, names[grows]}


@given(st.text(max_size=40), st.integers(0, 100))
def test_the_order_of_the_table_does_not_matter(person: str, weight: int) -> None:
    a, b = version("stable", 100 - weight), version("candidate", weight)
    assert choose([a, b], person) == choose([b, a], person)


@pytest.mark.parametrize("weight", [5, 25, 50, 95])
def test_the_share_of_people_is_the_weight(weight: int) -> None:
    table = [version("stable", 100 - weight), version("candidate", weight)]
    n = 20_000
    share = Counter(choose(table, f"person {i}").model_version for i in range(n))["candidate"] / n  # type: ignore[union-attr]
    assert abs(share - weight / 100) < 4 * (weight / 100 * (1 - weight / 100) / n) ** 0.5


def test_another_candidate_meets_other_people() -> None:
    people = [f"person {i}" for i in range(2000)]

    def guinea_pigs(name: str) -> set[str]:
        table = [version("stable", 90), version(name, 10)]
        return {p for p in people if choose(table, p).model_version == name}  # type: ignore[union-attr]

    first, second = guinea_pigs("candidate-a"), guinea_pigs("candidate-b")
    assert len(first & second) < len(first) / 3


def test_a_version_that_is_not_ready_gets_no_one() -> None:
    table = [version("stable", 50), version("candidate", 50, ready=False)]
    assert {choose(table, f"p{i}").model_version for i in range(50)} == {"stable"}  # type: ignore[union-attr]
    assert choose([version("only", 100, ready=False)], "p") is None


async def test_a_lane_gives_freed_slots_to_tenants_in_turn() -> None:
    lane, order = Lane(capacity=1, queue=10), []
    taken = await lane.acquire("greedy", 1)

    async def one(tenant: str) -> None:
        at = await lane.acquire(tenant, 5)
        order.append(tenant)
        lane.release(at, served=True)

    tasks = [asyncio.create_task(one(t)) for t in ["greedy"] * 4 + ["modest"]]
    await until(lambda: lane.waiting == 5, "all wait")
    lane.release(taken, served=True)
    await asyncio.gather(*tasks)
    assert order.index("modest") == 1
    assert (lane.in_flight, lane.waiting) == (0, 0)


async def test_a_lane_refuses_when_full_and_after_the_deadline_with_a_retry_after_from_its_rate() -> None:
    now = [0.0]
    lane = Lane(capacity=2, queue=1, clock=lambda: now[0])
    first, second = await lane.acquire("a", 1), await lane.acquire("a", 1)
    now[0] = 8.0
    lane.release(first, served=True)
    await lane.acquire("a", 1)
    waiting = asyncio.create_task(lane.acquire("a", 0.05))
    await until(lambda: lane.waiting == 1, "one waits")
    with pytest.raises(Overloaded) as full:
        await lane.acquire("b", 1)
    assert full.value.retry_after == pytest.approx(8.0)  # two before it, 8 s each, two at a time
    with pytest.raises(Overloaded, match=r"waited 0\.05 s"):
        await waiting
    assert lane.waiting == 0
    lane.release(second, served=False)
    assert lane.in_flight == 1


async def test_a_lane_loses_no_slot_to_clients_that_leave_or_to_changes() -> None:
    lane = Lane(capacity=1, queue=5)
    taken = await lane.acquire("a", 1)
    leaver, stayer = (asyncio.create_task(lane.acquire("a", 5)) for _ in range(2))
    await until(lambda: lane.waiting == 2, "both wait")
    leaver.cancel()
    lane.release(taken, served=True)  # granted to the one that is leaving
    await asyncio.gather(leaver, return_exceptions=True)
    await stayer
    assert (lane.in_flight, lane.waiting) == (1, 0)
    later = asyncio.create_task(lane.acquire("b", 5))
    await until(lambda: lane.waiting == 1, "one waits")
    lane.resize(2, 5)
    await later
    last = asyncio.create_task(lane.acquire("c", 5))
    await until(lambda: lane.waiting == 1, "one waits")
    lane.close()
    with pytest.raises(LaneClosed):
        await last


async def test_no_more_requests_than_slots_reach_the_engine_and_the_rest_wait(
    gateway: Any, engines: Any, served: Any
) -> None:
    engine = await engines("word")
    engine.hold = asyncio.Event()
    await gateway.route(served(engine), limits=RoutingLimits(in_flight_per_replica=2, queue=2))
    client = gateway.openai()
    four = [asyncio.create_task(client.chat.completions.create(model=MODEL, messages=HI)) for _ in range(4)]
    await until(lambda: engine.running == 2, "two run")

    async def two_wait() -> bool:
        return await waiting(gateway) == 2

    await until(two_wait, "two wait")
    began = time.monotonic()
    with pytest.raises(openai.RateLimitError) as refused:
        await client.chat.completions.create(model=MODEL, messages=HI)
    assert time.monotonic() - began < 0.5
    assert int(refused.value.response.headers["retry-after"]) >= 1
    engine.hold.set()
    await asyncio.gather(*four)
    assert engine.most_running == 2
    counts = (await gateway.analysis())["versions"]["v1"]
    assert (counts["requests"], counts["errors"]) == (4, 0)
    assert 'sluice_rejected_total{reason="queue_full"} 1.0' in await gateway.metrics()


async def test_a_request_waits_no_longer_than_the_deadline(gateway: Any, engines: Any, served: Any) -> None:
    engine = await engines("word")
    engine.hold = asyncio.Event()
    limits = RoutingLimits(in_flight_per_replica=1, queue=2, queue_timeout_seconds=0.1)
    await gateway.route(served(engine), limits=limits)
    client = gateway.openai()
    running = asyncio.create_task(client.chat.completions.create(model=MODEL, messages=HI))
    await until(lambda: engine.running == 1, "one runs")
    with pytest.raises(openai.RateLimitError):
        await client.chat.completions.create(model=MODEL, messages=HI)
    engine.hold.set()
    await running


async def test_a_client_that_leaves_frees_its_slot_and_stops_the_engine(
    gateway: Any, engines: Any, served: Any
) -> None:
    engine = await engines(" ".join(["word"] * 1000))
    engine.word_delay = 0.02
    await gateway.route(served(engine), limits=RoutingLimits(in_flight_per_replica=1, queue=0))
    client = gateway.openai()
    stream = await client.chat.completions.create(model=MODEL, messages=HI, stream=True)
    await anext(stream)
    await stream.close()
    await until(lambda: engine.running == 0, "the engine stops")
    assert engine.aborted == 1
    engine.words = ["short"]
    await client.chat.completions.create(model=MODEL, messages=HI)
    counts = (await gateway.analysis())["versions"]["v1"]
    assert (counts["requests"], counts["errors"]) == (2, 0)


async def test_a_client_that_leaves_before_a_whole_answer_stops_the_engine_too(
    gateway: Any, engines: Any, served: Any
) -> None:
    engine = await engines("word")
    engine.hold = asyncio.Event()
    await gateway.route(served(engine), limits=RoutingLimits(in_flight_per_replica=1, queue=0))
    leaver = asyncio.create_task(gateway.openai().chat.completions.create(model=MODEL, messages=HI))
    await until(lambda: engine.running == 1, "it runs")
    leaver.cancel()
    await until(
        lambda: engine.aborted == 1, "the engine stops", seconds=2
    )  # a few milliseconds where nothing else runs
    engine.hold.set()
    await gateway.openai().chat.completions.create(model=MODEL, messages=HI)
    counts = (await gateway.analysis())["versions"]["v1"]
    assert (counts["requests"], counts["errors"], counts["finishReasons"].get("client_closed")) == (2, 0, 1)


async def test_a_client_that_leaves_the_queue_leaves_no_trace(gateway: Any, engines: Any, served: Any) -> None:
    engine = await engines("word")
    engine.hold = asyncio.Event()
    await gateway.route(served(engine), limits=RoutingLimits(in_flight_per_replica=1, queue=5))
    client = gateway.openai()
    running = asyncio.create_task(client.chat.completions.create(model=MODEL, messages=HI))
    await until(lambda: engine.running == 1, "one runs")
    leaver = asyncio.create_task(client.chat.completions.create(model=MODEL, messages=HI))

    async def waits(n: int) -> bool:
        return await waiting(gateway) == n

    await until(lambda: waits(1), "one waits")
    leaver.cancel()
    await until(lambda: waits(0), "none waits")
    engine.hold.set()
    await running
    assert len(engine.requests) == 1


async def test_people_stay_with_their_version_and_the_weights_change_at_once(
    gateway: Any, engines: Any, served: Any
) -> None:
    a, b = await engines(), await engines()
    client = gateway.openai()

    async def versions() -> dict[str, str]:
        async def one(user: str) -> tuple[str, str]:
            raw = await client.chat.completions.with_raw_response.create(model=MODEL, messages=HI, user=user)
            return user, raw.headers["x-sluice-version"]

        return dict(await asyncio.gather(*(one(f"user{i}") for i in range(30))))

    await gateway.route(served(a, "v1", 70), served(b, "v2", 30))
    before, again = await versions(), await versions()
    assert before == again
    assert {"v1", "v2"} == set(before.values())
    began = time.monotonic()
    await gateway.route(served(a, "v1", 0), served(b, "v2", 100))
    assert time.monotonic() - began < 1.0
    assert set((await versions()).values()) == {"v2"}


async def test_a_session_header_and_the_key_stand_in_for_a_user(gateway: Any, engines: Any, served: Any) -> None:
    a, b = await engines(), await engines()
    await gateway.route(served(a, "v1", 50), served(b, "v2", 50))

    async def one(headers: dict[str, str]) -> str:
        async with gateway.chat(headers=headers) as got:
            return str(got.headers["x-sluice-version"])

    assert len({await one({}) for _ in range(12)}) == 1
    assert len({await one({"x-session-id": "s1"}) for _ in range(12)}) == 1
    assert len({await one({"x-session-id": f"s{i}"}) for i in range(30)}) == 2


async def test_each_key_of_a_tenant_stands_for_itself(
    start_gateway: Any, engines: Any, served: Any, tmp_path: Path
) -> None:
    keys = tmp_path / "tenants"
    keys.mkdir()
    entries = [{"id": f"k{i}", "digest": sha256(f"sk-{i}".encode())} for i in range(30)]
    (keys / "acme").write_text(json.dumps({"keys": entries}))
    gateway = await start_gateway(keys_dir=keys)
    await gateway.route(served(await engines(), "v1", 50), served(await engines(), "v2", 50))

    async def one(i: int) -> str:
        async with gateway.chat(key=f"sk-{i}") as got:
            return str(got.headers["x-sluice-version"])

    first, again = [await one(i) for i in range(30)], [await one(i) for i in range(30)]
    assert first == again
    assert set(first) == {"v1", "v2"}


async def test_without_stickiness_each_request_is_drawn_anew(gateway: Any, engines: Any, served: Any) -> None:
    a, b = await engines(), await engines()
    await gateway.route(served(a, "v1", 50), served(b, "v2", 50), sticky=False)
    for _ in range(40):
        async with gateway.chat(user="one") as got:
            assert got.status == 200
    assert a.requests
    assert b.requests


async def test_a_new_window_starts_the_counts_anew_and_others_keep_them(
    gateway: Any, engines: Any, served: Any
) -> None:
    engine = await engines()
    await gateway.route(served(engine), window="first")
    async with gateway.chat() as got:
        assert got.status == 200
    assert (await gateway.analysis())["versions"]["v1"]["requests"] == 1
    await gateway.route(served(engine), window="second")
    snapshot = await gateway.analysis()
    assert (snapshot["window"], snapshot["versions"]["v1"]["requests"]) == ("second", 0)
    assert 'sluice_requests_total{outcome="ok",version="v1"} 1.0' in await gateway.metrics()


async def test_a_request_that_began_in_an_earlier_window_is_not_evidence_for_this_one(
    gateway: Any, engines: Any, served: Any
) -> None:
    engine = await engines()
    engine.hold = asyncio.Event()
    await gateway.route(served(engine), window="first")
    running = asyncio.create_task(gateway.openai().chat.completions.create(model=MODEL, messages=HI))
    await until(lambda: engine.running == 1, "it runs")
    await gateway.route(served(engine), window="second")
    engine.hold.set()
    await running
    assert (await gateway.analysis())["versions"]["v1"]["requests"] == 0


async def test_another_version_answers_when_one_cannot_be_reached_and_the_dead_one_is_charged(
    gateway: Any, engines: Any, served: Any
) -> None:
    good, dead = await engines(), await engines()
    await gateway.route(served(good, "v1", 1), served(dead, "v2", 99))

    async def reached() -> bool:
        return 'sluice_backend_probing{version="v2"} 0.0' in await gateway.metrics()

    await until(reached, "it has answered once: else nobody would be sent there")
    await dead.stop()
    for i in range(5):
        async with gateway.chat(user=f"u{i}") as got:
            assert (got.status, got.headers["x-sluice-version"]) == (200, "v1")
    versions = (await gateway.analysis())["versions"]
    assert versions["v2"]["errors"] == versions["v2"]["requests"] >= 4
    assert versions["v1"]["errors"] == 0


async def test_it_stops_only_when_streams_have_ended(start_gateway: Any, engines: Any, served: Any) -> None:
    gateway = await start_gateway(drain_delay=0.3)
    engine = await engines("one two three four")
    engine.word_delay = 0.15
    await gateway.route(served(engine))
    stream = await gateway.openai().chat.completions.create(model=MODEL, messages=HI, stream=True)
    words = [(await anext(stream)).choices[0].delta.content]
    gateway.stop.set()
    await asyncio.sleep(0)
    async with gateway.session.get(f"{gateway.internal}/readyz") as got:
        assert (got.status, await got.text()) == (503, "draining\n")
    words += [chunk.choices[0].delta.content async for chunk in stream]
    assert words == ["one ", "two ", "three ", "four "]
    await gateway.task
    with pytest.raises(aiohttp.ClientConnectionError):
        await gateway.session.get(f"{gateway.url}/v1/models").__aenter__()


async def test_who_stands_in_the_queue_is_still_answered_when_it_stops(gateway: Any, engines: Any, served: Any) -> None:
    engine = await engines("word")
    engine.hold = asyncio.Event()
    await gateway.route(served(engine), limits=RoutingLimits(in_flight_per_replica=1, queue=5))
    client = gateway.openai()
    asked = [asyncio.create_task(client.chat.completions.create(model=MODEL, messages=HI)) for _ in range(3)]

    async def two_wait() -> bool:
        return await waiting(gateway) == 2

    await until(two_wait, "two wait")
    gateway.stop.set()

    async def port_is_closed() -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", gateway.settings.port)
        except OSError:
            return True
        writer.close()
        return False

    await until(port_is_closed, "nobody new is let in")
    engine.hold.set()
    assert [answer.choices[0].message.content for answer in await asyncio.gather(*asked)] == ["word"] * 3
    await gateway.task


async def test_it_is_ready_only_with_a_table_and_a_key(gateway: Any, engines: Any, served: Any) -> None:
    async with gateway.session.get(f"{gateway.internal}/readyz") as got:
        assert (got.status, await got.text()) == (503, "no routing table\n")
    async with gateway.chat() as got:
        assert got.status == 503
    await gateway.route(served(await engines()))
    async with gateway.session.get(f"{gateway.internal}/readyz") as got:
        assert got.status == 200


async def test_an_engine_that_hangs_is_given_up_on_and_charged(start_gateway: Any, engines: Any, served: Any) -> None:
    gateway = await start_gateway(request_timeout=0.3)
    engine = await engines("word")
    engine.hold = asyncio.Event()
    await gateway.route(served(engine))
    async with gateway.chat() as got:
        assert (got.status, (await got.json())["error"]["code"]) in {(504, "timeout"), (502, "engine_error")}
    await until(lambda: engine.running == 0, "the engine is told to stop")
    counts = (await gateway.analysis())["versions"]["v1"]
    assert (counts["requests"], counts["errors"]) == (1, 1)
