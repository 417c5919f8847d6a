"""Replicas of an engine are replaced one after the other, under load."""

import asyncio
import random
from collections import Counter
from contextlib import suppress
from typing import Any

import aiohttp
import pytest
from sluice_contracts.routing import Backend, RoutingLimits
from sluice_serving.gateway.reconnecting import LATE_SECONDS, PAUSES, Reconnecting

CLIENTS = 12
STALE_SECONDS = 0.4
LONGEST_STALE_SECONDS = 2.0
"""Well below LATE_SECONDS: until then somebody is sure to have been sent where nobody is."""


async def stop(engine: Any) -> None:
    """As a server should: it takes nothing new, and ends what it has begun."""
    for site in list(engine._runner.sites):
        await site.stop()
    engine._runner.server.pre_shutdown()  # each connection closes after the answer that is under way
    async with asyncio.timeout(20):
        while engine.running:
            await asyncio.sleep(0.01)
    await engine.stop()


class Load:
    """Clients that ask without pause, every second one with a stream."""

    def __init__(self, gateway: Any) -> None:
        self.gateway = gateway
        self.answered = 0
        self.failed: list[str] = []
        self.stopping = False

    async def client(self, *, stream: bool) -> None:
        while not self.stopping:
            async with self.gateway.chat(stream=stream) as got:
                text = await got.text()
            whole = text.endswith("data: [DONE]\n\n") if stream else '"choices"' in text
            if got.status == 200 and whole and '"error"' not in text:
                self.answered += 1
            else:
                self.failed.append(f"{got.status} {text[-200:]}")

    async def answers(self, more: int) -> None:
        """Wait for so many more, or the first failure."""
        wanted = self.answered + more
        async with asyncio.timeout(30):
            while self.answered < wanted and not self.failed:
                await asyncio.sleep(0.01)


class Addresses:
    """As kube-proxy does it: each new connection goes to one of the endpoints, which are those of a while ago."""

    def __init__(self, ports: list[int]) -> None:
        self.ports = ports
        self.given: Counter[int] = Counter()

    def connector(self) -> type[aiohttp.TCPConnector]:
        addresses = self

        class OneOfThem(aiohttp.TCPConnector):
            async def _resolve_host(self, host: str, port: int, traces: Any = None) -> Any:
                (found,) = await super()._resolve_host("127.0.0.1", random.choice(addresses.ports), traces)
                addresses.given[found["port"]] += 1
                return [found]

        return OneOfThem


async def test_a_rolling_restart_of_the_engine_fails_no_request(
    start_gateway: Any, engines: Any, served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    replicas = [await engines("All is well ."), await engines("All is well .")]
    addresses = Addresses([r.port for r in replicas])
    with monkeypatch.context() as patch:
        patch.setattr("sluice_serving.gateway.upstream.aiohttp.TCPConnector", addresses.connector())
        gateway = await start_gateway()
    backend = served(replicas[0], replicas=2)
    await gateway.route(backend, limits=RoutingLimits(in_flight_per_replica=CLIENTS))
    load = Load(gateway)
    clients = [asyncio.create_task(load.client(stream=n % 2 == 0)) for n in range(CLIENTS)]
    refused = 0
    for replica in replicas:
        replica.word_delay = 0.02
        await load.answers(2 * CLIENTS)
        stopped = asyncio.create_task(stop(replica))
        before = addresses.given[replica.port]
        await asyncio.sleep(STALE_SECONDS)  # not a wait for something: that is how late they are
        with suppress(TimeoutError):
            async with asyncio.timeout(LONGEST_STALE_SECONDS - STALE_SECONDS):
                while addresses.given[replica.port] == before:
                    await asyncio.sleep(0.01)
        refused += addresses.given[replica.port] - before
        addresses.ports = [r.port for r in replicas if r is not replica]
        await stopped
        await load.answers(CLIENTS)
        await replica.start()
        addresses.ports = [r.port for r in replicas]
    load.stopping = True
    await asyncio.gather(*clients)
    assert load.failed == []
    assert refused, "nobody was sent to a replica that was gone: this shows nothing"


def test_an_engine_that_is_gone_for_longer_is_waited_for_no_more() -> None:
    now = [100.0]
    reconnecting = Reconnecting(clock=lambda: now[0])
    several = Backend(model_version="v", lineage="", manifest_digest="sha256:" + "1" * 64, url="http://e", weight=1)
    reconnecting.follow([several.model_copy(update={"replicas": 2})])
    assert list(reconnecting.pauses("http://e/v1/completions")) == list(PAUSES)
    assert list(reconnecting.pauses("http://another/v1/completions")) == []
    for _ in range(5):
        now[0] += 0.9
        tries = len(list(reconnecting.pauses("http://e/v1/completions")))
        assert tries == (len(PAUSES) if now[0] <= 100 + LATE_SECONDS else 0)
    now[0] += 1.1  # it was there again in between, or nobody asked
    assert list(reconnecting.pauses("http://e/v1/completions"))
    reconnecting.follow([several])  # one replica: nobody else could answer
    assert list(reconnecting.pauses("http://e/v1/completions")) == []
