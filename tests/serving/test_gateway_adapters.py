"""An adapter shares its base's engine under a name of its own; clients see one model."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from sluice_contracts.routing import Backend, RoutingLimits
from sluice_serving.gateway.naming import for_client, for_engine
from sluice_serving.gateway.split import slots

from tests.serving.conftest import backend, until

ADAPTER = "support-bot:0123456789abcdef"
Served = Callable[..., Backend]


async def test_it_is_asked_by_its_own_name_and_answers_under_the_pools(
    gateway: Any, engines: Any, served: Served
) -> None:
    engine = await engines()
    await gateway.route(served(engine, "v1", 0), served(engine, "v2", 100, engine_model=ADAPTER))
    client = gateway.openai()
    asked: Any = {"model": "support-bot", "messages": [{"role": "user", "content": 'say "model":"support-bot"'}]}
    whole = await client.chat.completions.with_raw_response.create(**asked)
    assert whole.headers["x-sluice-version"] == "v2"
    assert whole.parse().model == "support-bot"
    assert engine.requests[0]["model"] == ADAPTER
    assert engine.requests[0]["messages"] == asked["messages"]
    stream = await client.chat.completions.create(**asked, stream=True)
    assert {chunk.model async for chunk in stream} == {"support-bot"}
    assert engine.requests[1]["model"] == ADAPTER

    await gateway.route(served(engine, "v1", 100), served(engine, "v2", 0, engine_model=ADAPTER))
    await client.chat.completions.create(**asked)
    assert engine.requests[2]["model"] == "support-bot", "after a rollback its base answers at once"


async def test_versions_of_one_engine_do_not_send_it_more_than_its_places(
    gateway: Any, engines: Any, served: Served
) -> None:
    engine = await engines()
    engine.hold = asyncio.Event()
    table = served(engine, "v1", 50), served(engine, "v2", 50, engine_model=ADAPTER)
    await gateway.route(*table, limits=RoutingLimits(in_flight_per_replica=4))

    async def ask(user: int) -> int:
        async with gateway.chat(user=f"u{user}") as got:
            return int(got.status)

    asking = [asyncio.create_task(ask(user)) for user in range(24)]
    await until(lambda: engine.running == 4, "the engine is full")
    engine.hold.set()
    assert set(await asyncio.gather(*asking)) == {200}
    assert engine.most_running == 4
    assert {r["model"] for r in engine.requests} == {"support-bot", ADAPTER}


@pytest.mark.parametrize(
    ("weights", "places", "parts"),
    [((100,), 3, [3]), ((80, 20), 10, [8, 2]), ((95, 5), 3, [2, 1]), ((0, 100), 3, [1, 2]), ((50, 50), 1, [1, 1])],
)
def test_places_are_parted_like_the_traffic(weights: tuple[int, ...], places: int, parts: list[int]) -> None:
    shared = [backend(f"v{i}", "http://one", w) for i, w in enumerate(weights)]
    elsewhere = backend("other", "http://two", 0)
    assert [slots(b, [*shared, elsewhere], places) for b in shared] == parts
    assert slots(elsewhere, [*shared, elsewhere], places) == places


def test_only_the_models_name_is_changed() -> None:
    plain, adapter = backend("v1", "http://one", 0), backend("v2", "http://one", 100, engine_model=ADAPTER)
    body = b'{"model": "support-bot", "tools": [{"model": "support-bot"}], "prompt": "\xc3\xbc"}'
    assert for_engine(body, plain) is body
    assert for_engine(body, adapter) == body.replace(b"support-bot", ADAPTER.encode(), 1)
    said = f'data: {{"model":"{ADAPTER}","choices":[{{"text":"\\"model\\":\\"{ADAPTER}\\""}}]}}'.encode()
    assert for_client(said, "support-bot", plain) is said
    assert for_client(said, "support-bot", adapter) == said.replace(ADAPTER.encode(), b"support-bot", 1)
