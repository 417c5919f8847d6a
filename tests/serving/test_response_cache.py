"""The response cache: what may be kept, for whom, and what a client sees of it."""

import asyncio
import json
from collections import OrderedDict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sluice_contracts.routing import CacheRoute, RoutingLimits
from sluice_serving.gateway.cache import ResponseCache, Whose, cache_key, question_digest, read_wish
from sluice_serving.gateway.cached_answer import ENTRY_OVERHEAD, Kept
from sluice_serving.gateway.completion import Completion, read_completion

MODEL = "support-bot"
HI: Any = [{"role": "user", "content": "hi"}]
RULES = CacheRoute(max_entries=100, max_bytes=1 << 20, ttl_seconds=60)


def asked(**body: Any) -> Completion:
    content = {"model": MODEL, "messages": HI, "temperature": 0} | body
    return read_completion("chat", json.dumps(content).encode(), MODEL, RoutingLimits())


def key(whose: str | Whose, digest: str, completion: Completion) -> bytes:
    found = whose if isinstance(whose, Whose) else Whose(whose)
    return cache_key(found, digest, question_digest(completion))


def kept(size: int = 10, reason: str | None = "stop") -> Kept:
    return Kept(b"x" * size, b"application/json", 3, 4, reason)


class TestKey:
    def test_the_order_of_fields_and_the_user_do_not_matter(self) -> None:
        one = read_completion(
            "chat", b'{"model":"support-bot","temperature":0,"messages":[{"role":"user","content":"hi"}]}', MODEL,
            RoutingLimits(),
        )  # fmt: skip
        assert key("acme", "d", asked()) == key("acme", "d", one)

    @pytest.mark.parametrize(
        "change",
        [{"messages": [{"role": "user", "content": "hi "}]}, {"max_tokens": 5}, {"stream": True}, {"seed": 1},
         {"stream": True, "stream_options": {"include_usage": True}}, {"stop": ["a"]}],
    )  # fmt: skip
    def test_anything_else_does(self, change: dict[str, Any]) -> None:
        assert key("acme", "d", asked()) != key("acme", "d", asked(**change))

    def test_streams_with_and_without_counts_are_two_answers(self) -> None:
        bare, counted = asked(stream=True), asked(stream=True, stream_options={"include_usage": True})
        assert key("acme", "d", bare) != key("acme", "d", counted)

    def test_within_a_schema_order_counts(self) -> None:
        """Engines write an answer's properties in the schema's order."""
        orders: list[dict[str, Any]] = [{"a": {}, "b": {}}, {"b": {}, "a": {}}]
        wanted = [{"type": "json_schema", "json_schema": {"name": "s", "schema": {"properties": o}}} for o in orders]
        assert len({key("acme", "d", asked(response_format=w)) for w in wanted}) == 2

    def test_tenants_and_models_are_apart(self) -> None:
        keys = {key(tenant, digest, asked()) for tenant in ("a", "b", "ab", "") for digest in ("b", "bb", "c")}
        assert len(keys) == 12

    def test_so_are_users_contexts_and_what_came_before_somebody_was_forgotten(self) -> None:
        whose = [
            Whose("a"),
            Whose("a", "ctx_1.1"),
            Whose("a", "ctx_1.2"),
            Whose("a", "", "ctx_1.1"),
            Whose("a", "c", "g"),
        ]
        assert len({key(w, "d", asked()) for w in whose}) == len(whose)

    @pytest.mark.parametrize(("temperature", "kept"), [(0, True), (0.0, True), (0.1, False), (1, False), (None, False)])
    def test_only_greedy_answers_repeat(self, temperature: float | None, kept: bool) -> None:
        body = {"model": MODEL, "messages": HI} | ({} if temperature is None else {"temperature": temperature})
        completion = read_completion("chat", json.dumps(body).encode(), MODEL, RoutingLimits())
        assert completion.repeatable is kept

    @pytest.mark.parametrize(
        ("text", "read", "write"),
        [("", True, True), ("no-cache", False, True), ("No-Store", False, False), ("max-age=0, no-cache", False, True),
         ("public", True, True)],
    )  # fmt: skip
    def test_cache_control_is_obeyed(self, text: str, read: bool, write: bool) -> None:
        wish = read_wish(text)
        assert (wish.read, wish.write) == (read, write)


class TestKeeping:
    @given(
        st.lists(st.tuples(st.sampled_from("gp"), st.integers(0, 9), st.integers(0, 3000)), max_size=60),
        st.integers(1, 6),
    )
    def test_it_is_an_lru_that_never_exceeds_its_bounds(self, steps: list[tuple[str, int, int]], most: int) -> None:
        rules = CacheRoute(max_entries=most, max_bytes=32_768, ttl_seconds=60)
        cache, model = ResponseCache(lambda: 0.0), OrderedDict[bytes, int]()
        cache.follow(rules)
        for act, name, size in steps:
            key = bytes([name])
            if act == "g":
                found = cache.get(key)
                assert (found is not None) == (key in model)
                if key in model:
                    model.move_to_end(key)
            else:
                cache.put(key, kept(size))
                model.pop(key, None)
                model[key] = size + ENTRY_OVERHEAD
                while len(model) > most or sum(model.values()) > 32_768:
                    model.popitem(last=False)
            assert len(cache) == len(model) <= most
            assert cache.bytes == sum(model.values()) <= 32_768

    async def test_old_answers_are_not_given(self) -> None:
        now = [0.0]
        cache = ResponseCache(lambda: now[0])
        cache.follow(RULES)
        cache.put(b"k", kept())
        now[0] = 60
        assert await cache.find(b"k", "acme") == kept()
        now[0] = 60.1
        assert await cache.find(b"k", "acme") is None
        assert (cache.hits, cache.misses, len(cache), cache.bytes) == (1, 1, 0, 0)

    def test_a_tenants_answers_leave_the_memory_and_no_others(self) -> None:
        cache = ResponseCache()
        cache.follow(RULES)
        for tenant in ("acme", "other"):
            for n in range(3):
                cache.put(f"{tenant}{n}".encode(), kept(), tenant)
        cache.forget("acme")
        assert (len(cache), cache.bytes) == (3, 3 * kept().size)
        assert cache.get(b"other1") == kept()

    @pytest.mark.parametrize("answer", [kept(reason="abort"), kept(reason="content_filter"), kept(1 << 17)])
    def test_broken_and_huge_answers_are_not_kept(self, answer: Kept) -> None:
        cache = ResponseCache()
        cache.follow(RULES)
        cache.put(b"k", answer)
        assert cache.get(b"k") is None

    def test_narrower_bounds_and_switching_off_take_effect_at_once(self) -> None:
        cache = ResponseCache()
        cache.follow(RULES)
        for name in b"abc":
            cache.put(bytes([name]), kept())
        cache.follow(CacheRoute(max_entries=1, max_bytes=1 << 20, ttl_seconds=60))
        assert len(cache) == 1
        assert cache.get(b"c") is not None
        cache.follow(None)
        assert not cache.on
        assert (len(cache), cache.bytes) == (0, 0)


class TestThroughTheGateway:
    async def ask(self, gateway: Any, **more: Any) -> tuple[str, bytes]:
        async with gateway.chat(**({"temperature": 0} | more)) as got:
            assert got.status == 200
            return got.headers.get("x-sluice-cache", ""), await got.read()

    @pytest.mark.parametrize("stream", [False, True])
    async def test_the_second_time_the_engine_is_not_asked(
        self, gateway: Any, engines: Any, served: Any, stream: bool
    ) -> None:
        engine = await engines("one two three")
        await gateway.route(served(engine), cache=RULES)
        first = await self.ask(gateway, stream=stream)
        again = await self.ask(gateway, stream=stream)
        assert (first[0], again[0]) == ("miss", "hit")
        assert first[1] == again[1]
        assert len(engine.requests) == 1
        # What the analysis judges is the engine, and it was asked once.
        assert (await gateway.analysis())["versions"]["v1"]["requests"] == 1
        metrics = await gateway.metrics()
        assert 'sluice_cache_total{result="hit"} 1.0' in metrics
        assert 'sluice_cache_total{result="miss"} 1.0' in metrics

    async def test_a_client_may_ask_for_a_fresh_answer_or_to_leave_none(
        self, gateway: Any, engines: Any, served: Any
    ) -> None:
        engine = await engines("one")
        await gateway.route(served(engine), cache=RULES)
        words = ["no-store", "", "no-cache", ""]
        seen = [(await self.ask(gateway, headers={"cache-control": word}))[0] for word in words]
        assert seen == ["bypass", "miss", "bypass", "hit"]
        assert len(engine.requests) == 3

    async def test_warm_answers_and_those_of_another_model_are_not_kept(
        self, gateway: Any, engines: Any, served: Any
    ) -> None:
        old, new = await engines("old"), await engines("new")
        await gateway.route(served(old), cache=RULES)
        await self.ask(gateway)
        assert [(await self.ask(gateway, temperature=0.7))[0] for _ in range(2)] == ["", ""]
        await gateway.route(served(new, "v2"), cache=RULES)
        assert b"new" in (await self.ask(gateway))[1]
        assert len(old.requests) == 3

    async def test_an_answer_that_broke_off_is_not_kept(self, gateway: Any, engines: Any, served: Any) -> None:
        engine = await engines("one two three")
        await gateway.route(served(engine), cache=RULES)
        engine.break_after = 1
        async with gateway.chat(temperature=0, stream=True) as got:
            assert b"engine_error" in await got.read()
        engine.break_after = None
        assert (await self.ask(gateway, stream=True))[0] == "miss"

    async def test_a_client_that_leaves_in_the_middle_leaves_nothing(
        self, gateway: Any, engines: Any, served: Any
    ) -> None:
        engine = await engines("one two three")
        engine.word_delay = 0.2
        await gateway.route(served(engine), cache=RULES)
        async with gateway.chat(temperature=0, stream=True) as got:
            await got.content.readline()
        while not engine.aborted:
            await asyncio.sleep(0.01)
        engine.word_delay = 0
        assert (await self.ask(gateway, stream=True))[0] == "miss"

    async def test_without_rules_nothing_is_kept(self, gateway: Any, engines: Any, served: Any) -> None:
        engine = await engines("one")
        await gateway.route(served(engine))
        assert [(await self.ask(gateway))[0] for _ in range(2)] == ["", ""]
        assert len(engine.requests) == 2
