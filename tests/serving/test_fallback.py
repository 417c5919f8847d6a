"""What clients get when no version of the pool can answer: another pool's model, or a template that fits."""

import asyncio
import json
import sqlite3
from hashlib import sha256
from types import SimpleNamespace
from typing import Any

import pytest
from sluice_contracts.routing import FallbackModelRoute, Price, RoutingLimits, RoutingTable, TemplateRoute, Waking
from sluice_serving.gateway.completion import read_completion
from sluice_serving.gateway.other_model import for_other_model
from sluice_serving.gateway.template_choice import choose_template, templates_of

from tests.serving.conftest import until

MODEL = "support-bot"
HI: Any = [{"role": "user", "content": "hi"}]
SCHEMA = {"type": "object", "properties": {"intent": {"enum": ["unknown", "refund"]}}, "required": ["intent"]}
WANTS_JSON = {"response_format": {"type": "json_schema", "json_schema": {"name": "i", "schema": SCHEMA}}}


def other(backend: Any, **more: Any) -> FallbackModelRoute:
    return FallbackModelRoute(pool="small", model="small-bot", backend=backend, **more)


def template(name: str, body: str, **more: Any) -> TemplateRoute:
    return TemplateRoute.model_validate({"name": name, "version": "1", "body": body, **more})


def recorded(gateway: Any, *columns: str) -> list[tuple[Any, ...]]:
    """The records, once the gateway has written them."""
    with sqlite3.connect(f"{gateway.folder}/interactions.db") as found:
        return found.execute(f"SELECT {', '.join(columns)} FROM ai_interactions ORDER BY time").fetchall()


@pytest.fixture
async def failing(gateway: Any, engines: Any, served: Any) -> Any:
    """A pool whose one version fails, and the engine of another; `route` puts the other's settings in force."""
    bad, small = await engines(), await engines("small talk")
    bad.status = 500

    async def route(backend: Any = None, *, table: Any = None, **more: Any) -> None:
        model = other(backend or served(small, "small-3", 0), **more)
        await gateway.route(served(bad), fallback_model=model, **(table or {}))

    gateway.small, gateway.bad, gateway.fall_back = small, bad, route
    return gateway


class TestAnotherModel:
    @pytest.mark.parametrize("stream", [False, True])
    async def test_answers_under_its_own_name(self, failing: Any, served: Any, stream: bool) -> None:
        price = Price(output_token=0.5)
        await failing.fall_back(served(failing.small, "small-3", 0, price=price), table={"fallback_template": "Sorry."})
        async with failing.chat(stream=stream, stream_options={"include_usage": True} if stream else None) as got:
            text = await got.text()
        assert (got.status, got.headers["x-sluice-fallback"]) == (200, "model")
        assert (got.headers["x-sluice-version"], got.headers["x-sluice-lineage"]) == ("small-3", "lineage-of-small-3")
        first = json.loads(text.split("\n")[0].removeprefix("data: "))
        assert first["model"] == "small-bot"
        (asked,) = failing.small.requests
        assert asked["model"] == "small-bot"
        counts = (await failing.analysis())["versions"]
        assert set(counts) == {"v1"}, "it is no version of this pool"
        assert (counts["v1"]["requests"], counts["v1"]["errors"]) == (1, 1), "whoever answers, the failure is v1's"
        metrics = await failing.metrics()
        assert 'sluice_fallback_answers_total{kind="model",name="small-3"} 1.0' in metrics
        assert 'sluice_fallback_model_total{result="answered"} 1.0' in metrics
        assert 'sluice_requests_total{outcome="ok",version="small-3"} 1.0' in metrics
        assert 'sluice_cost_total{version="small-3"} 1.0' in metrics, "two tokens by its own price"

    async def test_an_adapter_is_asked_and_named_for_what_it_is(self, failing: Any, served: Any) -> None:
        name = "small-bot:0123456789abcdef"
        await failing.fall_back(served(failing.small, "small-3", 0, engine_model=name))
        answer = await failing.openai().chat.completions.create(model=MODEL, messages=HI)
        assert (answer.model, failing.small.requests[0]["model"]) == ("small-bot", name)
        stream = await failing.openai().chat.completions.create(model=MODEL, messages=HI, stream=True)
        assert {chunk.model async for chunk in stream} == {"small-bot"}

    async def test_its_record_says_who_answered_and_how_and_at_whose_price(self, failing: Any, served: Any) -> None:
        await failing.fall_back(served(failing.small, "small-3", 0, price=Price(prompt_token=1)))
        async with failing.chat() as got:
            assert got.status == 200
        await failing.close()
        assert recorded(failing, "model", "version", "lineage", "route", "outcome", "cost") == [
            ("small-bot", "small-3", "lineage-of-small-3", "model", "ok", 7.0)
        ]

    async def test_is_no_evidence_even_if_it_has_a_versions_name(self, failing: Any, served: Any) -> None:
        await failing.fall_back(served(failing.small, "v1", 0))
        assert await ask(failing) == (200, "model")
        counts = (await failing.analysis())["versions"]["v1"]
        assert (counts["requests"], counts["errors"], sum(counts["outputTokens"]["counts"])) == (1, 1, 0)

    async def test_a_budget_of_money_is_not_spent_where_there_is_no_price(self, failing: Any, served: Any) -> None:
        key = {"id": "web", "digest": "sha256:" + sha256(b"sk-money").hexdigest()}
        policy = {"keys": [key], "budgets": [{"window": "day", "money": "9"}]}
        (failing.folder / "keys" / "globex").write_text(json.dumps(policy))
        model = other(served(failing.small, "small-3", 0))
        for price, wanted in ((None, (502, None)), (Price(output_token=0.5), (200, "model"))):
            paid = model.model_copy(update={"backend": model.backend.model_copy(update={"price": price})})
            await failing.route(served(failing.bad, price=Price()), fallback_model=paid)

            async def known() -> bool:
                return (await ask(failing, key="sk-money"))[0] != 401

            await until(known, "the key is known")
            assert await ask(failing, key="sk-money") == wanted

    async def test_a_client_may_rather_have_the_error(self, failing: Any) -> None:
        await failing.fall_back(table={"fallback_template": "Sorry."})
        found = [await ask(failing, headers={"x-sluice-fallback": wish}) for wish in ("none", "non", "template")]
        assert found == [(502, None), (502, None), (200, "template")]
        assert failing.small.requests == []

    async def test_one_that_fails_too_leaves_it_to_the_template_and_the_failure_counts_once(self, failing: Any) -> None:
        await failing.fall_back(table={"fallback_template": "Sorry."})
        failing.small.status = 400
        async with failing.chat() as got:
            assert (got.status, got.headers["x-sluice-fallback"]) == (200, "template")
        failing.small.status = 500
        async with failing.chat(headers={"x-sluice-fallback": "none"}) as got:
            assert got.status == 502
        await failing.small.stop()
        await failing.fall_back(table={"window": "w2"})
        async with failing.chat() as got:
            assert (got.status, (await got.json())["error"]["code"]) == (502, "engine_error")
        counts = (await failing.analysis())["versions"]["v1"]
        assert (counts["requests"], counts["errors"]) == (1, 1)
        metrics = await failing.metrics()
        assert 'sluice_fallback_model_total{result="refused"} 1.0' in metrics
        assert 'sluice_fallback_model_total{result="failed"} 1.0' in metrics
        assert 'sluice_errors_total{version="v1"} 3.0' in metrics

    async def test_its_deadline_is_its_own_and_a_stream_that_breaks_says_so(self, failing: Any) -> None:
        await failing.fall_back(timeout_seconds=0.2, table={"fallback_template": "Sorry."})
        failing.small.first_delay = 30
        async with failing.chat() as got:
            assert got.headers["x-sluice-fallback"] == "template"
        failing.small.first_delay, failing.small.break_after = 0, 1
        await failing.fall_back()
        async with failing.chat(stream=True) as got:
            assert '"code": "engine_error"' in await got.text()
        assert 'sluice_fallback_model_total{result="broken"} 1.0' in await failing.metrics()

    async def test_an_engine_that_hangs_is_given_up_for_requests_that_may_go_elsewhere(self, failing: Any) -> None:
        failing.bad.status, failing.bad.hold = 200, asyncio.Event()
        await failing.fall_back(patience_seconds=0.1)
        elsewhere = asyncio.create_task(ask(failing, logit_bias={"5": 1}))
        assert await ask(failing) == (200, "model")
        assert not elsewhere.done()
        failing.bad.hold.set()
        assert await elsewhere == (200, None)
        counts = (await failing.analysis())["versions"]["v1"]
        assert (counts["requests"], counts["errors"]) == (2, 1)
        assert failing.bad.aborted == 1, "its work is stopped"
        failing.bad.word_delay = 0.1
        async with failing.chat(stream=True) as got:
            assert "x-sluice-fallback" not in got.headers, "an answer that has begun may take its time"
            assert "[DONE]" in await got.text()

    async def test_takes_so_many_at_once_and_no_more(self, failing: Any) -> None:
        await failing.fall_back(max_in_flight=1)
        failing.small.first_delay = 0.05

        async def ask() -> int:
            async with failing.chat() as got:
                return int(got.status)

        assert await asyncio.gather(*(ask() for _ in range(4))) == [200] * 4
        assert failing.small.most_running == 1

    async def test_overload_is_answered_only_where_the_pool_says_so(
        self, gateway: Any, engines: Any, served: Any
    ) -> None:
        engine, small = await engines(), await engines("small talk")
        engine.hold = asyncio.Event()
        told = {"limits": RoutingLimits(in_flight_per_replica=1, queue=0)}
        await gateway.route(served(engine), fallback_model=other(served(small, "small-3", 0)), **told)
        first = asyncio.create_task(ask(gateway))
        await until(lambda: engine.running, "the only place is taken")
        assert await ask(gateway) == (429, None)
        model = other(served(small, "small-3", 0), when=["overloaded"])
        await gateway.route(served(engine), fallback_model=model, fallback_template="Sorry.", **told)
        assert await ask(gateway) == (200, "model")
        await small.stop()
        assert await ask(gateway) == (429, None), "overload passes: no template says when"
        engine.hold.set()
        assert await first == (200, None)

    async def test_sleep_is_answered_only_where_the_pool_says_so(self, gateway: Any, engines: Any, served: Any) -> None:
        engine, small = await engines(), await engines("small talk")
        engine.asleep = asyncio.Event()
        told = {"waking": Waking(timeout_seconds=0, cold_start_seconds=30)}
        sleeping = served(engine, may_sleep=True)
        await gateway.route(sleeping, fallback_model=other(served(small, "small-3", 0)), **told)
        assert await ask(gateway) == (503, None)
        model = other(served(small, "small-3", 0), when=["asleep"])
        await gateway.route(sleeping, fallback_model=model, **told)
        assert await ask(gateway) == (200, "model")
        engine.asleep.set()

    async def test_is_never_mirrored_nor_kept(self, failing: Any, served: Any, engines: Any) -> None:
        candidate = await engines()
        candidate.status = 500
        model = other(served(failing.small, "small-3", 0))
        table = {"mirror": {"percent": 100, "candidate": "v2"}, "cache": {"max_entries": 10}, "fallback_model": model}
        await failing.route(served(failing.bad, "v1", 50), served(candidate, "v2", 50), **table)
        for i in range(4):
            async with failing.chat(temperature=0, user=f"u{i % 2}") as got:
                assert (got.headers["x-sluice-version"], "x-sluice-cache" in got.headers) == ("small-3", False)
        assert len(failing.small.requests) == 4
        assert "sluice_mirror_requests_total{" not in await failing.metrics()


async def ask(gateway: Any, **how: Any) -> tuple[int, str | None]:
    async with gateway.chat(**how) as got:
        return got.status, got.headers.get("x-sluice-fallback")


def request(kind: Any = "chat", limits: Any = None, **body: Any) -> Any:
    hi = {"input": "hi"}
    asked = {"chat": {"messages": HI}, "text": {"prompt": "hi"}, "embeddings": hi, "responses": hi}[kind]
    return read_completion(kind, json.dumps({"model": MODEL} | asked | body).encode(), MODEL, limits or RoutingLimits())


class TestWhatMayGoToAnotherModel:
    def route(self, served: Any, **more: Any) -> FallbackModelRoute:
        return other(served(SimpleNamespace(url="http://small"), "small-3", 0), **more)

    @pytest.mark.parametrize(
        "asked",
        [
            {"kind": "embeddings"},
            {"logit_bias": {"5": 1}},
            {"stop_token_ids": [2]},
            {"kind": "text", "prompt": [1, 2, 3]},
            {"kind": "text", "prompt": [[1], [2]]},
        ],
    )
    def test_vectors_and_token_ids_mean_nothing_to_it(self, served: Any, asked: Any) -> None:
        assert for_other_model(request(**asked), self.route(served), RoutingLimits()) is None

    def test_an_answer_keeps_to_both_pools_limits(self, served: Any) -> None:
        route = self.route(served, max_output_tokens=64)
        clamped = for_other_model(request(max_tokens=200), route, RoutingLimits())
        assert (clamped.clamped, json.loads(clamped.body)["max_tokens"]) == (64, 64)  # type: ignore[union-attr]
        short = for_other_model(request(max_tokens=20), route, RoutingLimits())
        assert (short.clamped, json.loads(short.body)["max_tokens"]) == (None, 20)  # type: ignore[union-attr]
        strict = RoutingLimits(output_token_policy="refuse")
        assert for_other_model(request(max_tokens=200), route, strict) is None


class TestTemplates:
    @pytest.mark.parametrize(
        ("asked", "wanted"),
        [
            ({}, "general"),
            ({"kind": "text"}, "completions"),
            ({"n": 2, "tools": [{"type": "function", "function": {"name": "f"}}]}, "general"),
            ({"tool_choice": "required", "tools": [{"type": "function", "function": {"name": "f"}}]}, None),
            (WANTS_JSON, "intent"),
            ({"response_format": {"type": "json_object"}}, "empty"),
            ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"required": ["b"]}}}}, None),
            ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"futureWord": 1}}}}, None),
            ({"structured_outputs": {"json": SCHEMA}}, "intent"),
            ({"structured_outputs": {"choice": ["Later.", "Now."]}}, "general"),
            ({"structured_outputs": {"choice": ["yes", "no"]}}, None),
            ({"structured_outputs": {"regex": ".*"}}, None),
            ({"kind": "responses", "text": {"format": {"type": "json_schema", "schema": SCHEMA}}}, "intent"),
            ({"kind": "responses", "text": {"format": {"type": "text"}}}, "general"),
            ({"kind": "embeddings"}, None),
        ],
    )
    def test_the_first_that_has_the_shape_is_chosen(self, asked: Any, wanted: str | None) -> None:
        found = [
            template("completions", "Later!", endpoints=["text"]),
            template("general", "Later."),
            template("empty", "{}", kind="json"),
            template("intent", '{"intent":"unknown"}', kind="json"),
        ]
        made = request(**asked)
        chosen = choose_template(found, made.kind, "acme", [], json.loads(made.body))
        assert (chosen.name if chosen else None) == wanted

    def test_each_is_for_its_route(self) -> None:
        found = [
            template("acme-app", "1", tenants=["acme"], headers=[{"name": "x-app", "value": "bot"}]),
            template("acme", "2", tenants=["acme"]),
        ]

        def name(tenant: str, *headers: tuple[bytes, bytes]) -> str | None:
            chosen = choose_template(found, "chat", tenant, headers, {})
            return chosen.name if chosen else None

        assert name("acme", (b"x-app", b"bot")) == "acme-app"
        assert name("acme", (b"x-app", b"other")) == name("acme") == "acme"
        assert name("globex", (b"x-app", b"bot")) is None

    def test_the_plain_one_comes_last_under_a_digest_of_its_words(self) -> None:
        base = {"pool": "p", "namespace": "n", "model": MODEL, "templates": [template("a", "x").wire()]}
        first, second = (
            RoutingTable.model_validate(base | {"fallbackTemplate": text}) for text in ("Sorry.", "Sorry!")
        )
        assert [t.name for t in templates_of(first)] == ["a", "default"]
        assert templates_of(first)[1].version != templates_of(second)[1].version

    async def test_it_is_named_wherever_it_speaks(self, gateway: Any, engines: Any, served: Any) -> None:
        engine = await engines()
        engine.status = 500
        intent = template("intent", '{"intent":"unknown"}', kind="json", version="2")
        await gateway.route(served(engine), templates=[intent], fallback_template="Sorry.")
        client = gateway.openai()
        raw = await client.chat.completions.with_raw_response.create(model=MODEL, messages=HI, n=2, **WANTS_JSON)
        assert (raw.headers["x-sluice-fallback"], raw.headers["x-sluice-template"]) == ("template", "intent@2")
        choices = raw.parse().choices
        assert [(c.index, c.message.content) for c in choices] == [(i, '{"intent":"unknown"}') for i in (0, 1)]
        stream = await client.chat.completions.create(model=MODEL, messages=HI, stream=True, n=2, **WANTS_JSON)
        said: dict[int, str] = {}
        async for chunk in stream:
            for choice in chunk.choices:
                said[choice.index] = said.get(choice.index, "") + (choice.delta.content or "")
        assert said == {0: '{"intent":"unknown"}', 1: '{"intent":"unknown"}'}
        metrics = await gateway.metrics()
        assert 'sluice_fallback_answers_total{kind="template",name="intent@2"} 2.0' in metrics
        await gateway.close()
        assert recorded(gateway, "route", "outcome", "version") == [("template:intent@2", "template", None)] * 2
