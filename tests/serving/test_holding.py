"""A gateway before engines that sleep, and before engines that cannot be reached yet."""

import asyncio
from typing import Any

import openai
import pytest
from sluice_contracts.routing import RoutingLimits, Waking
from sluice_serving.gateway.wake import Sleepers

MODEL = "support-bot"
HI: Any = [{"role": "user", "content": "hi"}]
PATIENT = Waking(timeout_seconds=60, cold_start_seconds=40)


async def until(condition: Any, what: str, seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not (await value if asyncio.iscoroutine(value := condition()) else value):
            await asyncio.sleep(0.005)


async def metric(gateway: Any, name: str) -> float:
    """A series of /metrics by its name and labels; 0 where there is none."""
    lines = (await gateway.metrics()).splitlines()
    return next((float(line.split()[-1]) for line in lines if line.rsplit(" ", 1)[0] == name), 0.0)


async def waits(gateway: Any, n: int) -> bool:
    return await metric(gateway, 'sluice_waiting{version="v1"}') == n


@pytest.fixture
async def sleeping(engines: Any) -> Any:
    """An engine that sleeps until its event is set."""
    engine = await engines("one two three")
    engine.asleep = asyncio.Event()
    yield engine
    engine.asleep.set()


class TestSleep:
    async def test_requests_are_held_until_the_engine_is_up_and_then_answered(
        self, gateway: Any, sleeping: Any, served: Any
    ) -> None:
        await gateway.route(served(sleeping, may_sleep=True), waking=PATIENT)
        client = gateway.openai()

        async def streamed() -> list[str | None]:
            stream = await client.chat.completions.create(model=MODEL, messages=HI, stream=True)
            return [chunk.choices[0].delta.content async for chunk in stream if chunk.choices]

        asking = [asyncio.create_task(streamed()) for _ in range(3)]
        await until(lambda: waits(gateway, 3), "three wait")
        await until(lambda: metric(gateway, 'sluice_asleep{version="v1"}'), "it is known to sleep")
        assert (sleeping.requests, sleeping.questions) == ([], 1), "one question for all"
        sleeping.asleep.set()
        assert await asyncio.gather(*asking) == [["one ", "two ", "three "]] * 3
        counts = (await gateway.analysis())["versions"]["v1"]
        assert (counts["requests"], counts["errors"]) == (3, 0)
        assert counts["ttft"]["total"] < 1, "what the engine took, not what waking took"
        assert counts["queue"]["total"] < 1, "and not the queue's fault either"
        assert await metric(gateway, 'sluice_wakes_total{result="woke"}') == 1
        assert 1 <= await metric(gateway, "sluice_cold_start_seconds") < 40, "what was seen, not what was believed"
        async with gateway.chat() as got:
            assert got.status == 200
        assert sleeping.questions == 1, "it has just answered"

    async def test_a_request_has_its_own_time_once_the_engine_is_up(
        self, start_gateway: Any, sleeping: Any, served: Any
    ) -> None:
        gateway = await start_gateway(request_timeout=0.5)
        await gateway.route(served(sleeping, may_sleep=True), waking=PATIENT)
        asking = asyncio.create_task(gateway.openai().chat.completions.create(model=MODEL, messages=HI))
        # It is said to sleep after 1 s: longer than a request may take.
        await until(lambda: metric(gateway, 'sluice_asleep{version="v1"}'), "it is known to sleep")
        sleeping.asleep.set()
        assert (await asking).choices

    async def test_each_answer_shows_that_the_engine_is_awake(
        self, gateway: Any, engines: Any, served: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[str] = []
        monkeypatch.setattr(Sleepers, "answered", lambda _, url: seen.append(url))
        engine = await engines()
        await gateway.route(served(engine, may_sleep=True), waking=PATIENT)
        async with gateway.chat() as got:
            assert got.status == 200
        assert seen == [engine.url] * 2, "the question, and the request"
        engine.status = 400
        async with gateway.chat() as got:
            assert got.status == 400
        assert seen == [engine.url] * 3, "the question"

    async def test_a_full_queue_says_when_the_engine_should_be_up(
        self, gateway: Any, sleeping: Any, served: Any
    ) -> None:
        await gateway.route(served(sleeping, may_sleep=True), waking=PATIENT, limits=RoutingLimits(queue=1))
        first = asyncio.create_task(gateway.openai().chat.completions.create(model=MODEL, messages=HI))
        await until(lambda: waits(gateway, 1), "one waits")
        async with gateway.chat(stream=True) as got:
            assert (got.status, got.content_type) == (429, "application/json")
            assert 20 <= int(got.headers["retry-after"]) <= 40
            assert "waking" in (await got.json())["error"]["message"]
        sleeping.asleep.set()
        assert (await first).choices

    async def test_who_cannot_wait_so_long_is_told_so_and_the_engine_wakes(
        self, gateway: Any, sleeping: Any, served: Any
    ) -> None:
        hasty = Waking(timeout_seconds=0, cold_start_seconds=90)
        await gateway.route(served(sleeping, may_sleep=True), waking=hasty)
        async with gateway.chat(stream=True) as got:
            assert (got.status, (await got.json())["error"]["code"]) == (503, "waking")
            assert 80 <= int(got.headers["retry-after"]) <= 90
        assert sleeping.questions == 1
        assert (await gateway.analysis())["versions"]["v1"]["requests"] == 0, "no data, good or bad"
        assert await metric(gateway, 'sluice_rejected_total{reason="asleep"}') == 1
        sleeping.asleep.set()

        async def awake() -> bool:
            async with gateway.chat() as got:
                return bool(got.status == 200)

        await until(awake, "it answers")

    async def test_waiting_ends_at_its_deadline(self, gateway: Any, sleeping: Any, served: Any) -> None:
        await gateway.route(
            served(sleeping, may_sleep=True), waking=Waking(timeout_seconds=0.3, cold_start_seconds=0.2)
        )
        with pytest.raises(openai.InternalServerError) as refused:
            await gateway.openai().chat.completions.create(model=MODEL, messages=HI, stream=True)
        assert refused.value.code == "waking"
        assert await waits(gateway, 0)

    async def test_an_awake_engine_serves_those_who_would_not_wait(
        self, gateway: Any, engines: Any, served: Any
    ) -> None:
        engine = await engines()
        await gateway.route(served(engine, may_sleep=True), waking=Waking(timeout_seconds=0, cold_start_seconds=90))
        async with gateway.chat() as got:
            assert got.status == 200
        assert engine.questions == 1

    async def test_the_template_answers_for_a_sleeper_if_there_is_one(
        self, gateway: Any, sleeping: Any, served: Any
    ) -> None:
        waking = Waking(timeout_seconds=0, cold_start_seconds=90)
        await gateway.route(served(sleeping, may_sleep=True), waking=waking, fallback_template="Back in a minute.")
        async with gateway.chat() as got:
            assert (got.status, got.headers["x-sluice-fallback"]) == (200, "template")

    async def test_a_client_that_leaves_frees_its_place(self, gateway: Any, sleeping: Any, served: Any) -> None:
        await gateway.route(served(sleeping, may_sleep=True), waking=PATIENT, limits=RoutingLimits(queue=1))
        leaver = asyncio.create_task(gateway.openai().chat.completions.create(model=MODEL, messages=HI))
        await until(lambda: waits(gateway, 1), "one waits")
        leaver.cancel()
        await until(lambda: waits(gateway, 0), "none waits")
        stayer = asyncio.create_task(gateway.openai().chat.completions.create(model=MODEL, messages=HI))
        await until(lambda: waits(gateway, 1), "its place is another's")
        sleeping.asleep.set()
        assert (await stayer).choices
        assert len(sleeping.requests) == 1

    async def test_one_version_that_sleeps_keeps_no_one_from_the_other(
        self, gateway: Any, engines: Any, sleeping: Any, served: Any
    ) -> None:
        other = await engines()
        await gateway.route(
            served(sleeping, "v1", 50, may_sleep=True), served(other, "v2", 50, may_sleep=True), waking=PATIENT
        )
        asking = [
            asyncio.create_task(gateway.openai().chat.completions.create(model=MODEL, messages=HI, user=f"u{i}"))
            for i in range(12)
        ]
        await until(lambda: len(other.requests) + len(sleeping.requests) > 0, "someone is answered")
        await until(lambda: waits(gateway, 12 - len(other.requests)), "the others wait")
        assert sleeping.requests == []
        sleeping.asleep.set()
        await asyncio.gather(*asking)
        assert sleeping.requests

    async def test_a_gateway_that_stops_tells_those_who_wait(
        self, start_gateway: Any, sleeping: Any, served: Any
    ) -> None:
        gateway = await start_gateway()
        await gateway.route(served(sleeping, may_sleep=True), waking=PATIENT)
        asking = asyncio.create_task(gateway.openai().chat.completions.create(model=MODEL, messages=HI))
        await until(lambda: waits(gateway, 1), "one waits")
        gateway.stop.set()
        with pytest.raises(openai.InternalServerError) as refused:
            await asking
        assert refused.value.status_code == 503
        assert refused.value.response.headers["retry-after"]


class TestNewcomers:
    async def test_nobody_meets_an_engine_that_cannot_be_reached_yet(
        self, start_gateway: Any, engines: Any, served: Any
    ) -> None:
        gateway = await start_gateway(probe_seconds=60.0)
        good, late = await engines(), await engines()
        await late.stop()
        await gateway.route(served(good, "v1", 1), served(late, "v2", 99))
        assert await metric(gateway, 'sluice_backend_probing{version="v2"}') == 1
        for i in range(8):
            async with gateway.chat(user=f"u{i}") as got:
                assert (got.status, got.headers["x-sluice-version"]) == (200, "v1")
        assert await metric(gateway, 'sluice_backend_spared_total{version="v2"}') >= 6
        await late.start()

        async def reached() -> bool:
            return await metric(gateway, 'sluice_backend_probing{version="v2"}') == 0

        await until(reached, "it is found")
        versions = []
        for i in range(8):
            async with gateway.chat(user=f"u{i}") as got:
                versions.append(got.headers["x-sluice-version"])
        assert versions.count("v2") >= 6, "people come back to the version that is theirs"
        counts = (await gateway.analysis())["versions"]["v2"]
        assert counts["errors"] == 0
        assert await metric(gateway, 'sluice_backend_probes_total{result="failed",version="v2"}') >= 1
        assert await metric(gateway, 'sluice_backend_probes_total{result="answered",version="v2"}') == 1

    async def test_one_that_nobody_can_reach_is_found_out_in_the_end(
        self, start_gateway: Any, engines: Any, served: Any
    ) -> None:
        gateway = await start_gateway(probe_seconds=0.3)
        good, dead = await engines(), await engines()
        await dead.stop()
        await gateway.route(served(good, "v1", 1), served(dead, "v2", 99))

        async def gave_up() -> bool:
            return await metric(gateway, 'sluice_backend_probes_total{result="gave_up",version="v2"}') == 1

        await until(gave_up, "it is taken as it is")
        for i in range(5):
            async with gateway.chat(user=f"u{i}") as got:
                assert got.status == 200
        counts = (await gateway.analysis())["versions"]["v2"]
        assert counts["errors"] == counts["requests"] >= 4

    @pytest.mark.parametrize("between", ["another url", "not ready"])
    async def test_an_engine_that_is_new_again_is_asked_again(
        self, start_gateway: Any, engines: Any, served: Any, between: str
    ) -> None:
        gateway = await start_gateway(probe_seconds=60.0)
        engine, other = await engines(), await engines()
        await gateway.route(served(engine, "v1", 50), served(other, "v2", 50))

        async def probing(version: str, truth: int) -> bool:
            return await metric(gateway, f'sluice_backend_probing{{version="{version}"}}') == truth

        await until(lambda: probing("v2", 0), "both answer")
        await until(lambda: probing("v1", 0), "both answer")
        await other.stop()
        if between == "not ready":
            await gateway.route(served(engine, "v1", 50), served(other, "v2", 50, ready=False))
        else:
            moved = await engines()
            await moved.stop()
            other = moved
        await gateway.route(served(engine, "v1", 50), served(other, "v2", 50))
        assert await probing("v2", 1)
        for i in range(10):
            async with gateway.chat(user=f"u{i}") as got:
                assert (got.status, got.headers["x-sluice-version"]) == (200, "v1")
        assert (await gateway.analysis())["versions"]["v2"]["requests"] == 0

    async def test_where_there_is_no_other_people_wait_for_it(
        self, start_gateway: Any, engines: Any, served: Any
    ) -> None:
        gateway = await start_gateway(probe_seconds=60.0)
        engine = await engines("word")
        await engine.stop()
        await gateway.route(served(engine))
        asking = asyncio.create_task(gateway.openai().chat.completions.create(model=MODEL, messages=HI))
        await until(lambda: waits(gateway, 1), "it waits")
        await engine.start()
        assert (await asking).choices
        assert (await gateway.analysis())["versions"]["v1"]["errors"] == 0
