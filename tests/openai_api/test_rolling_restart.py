"""Two gateways behind a Service are replaced one after the other, under load."""

import asyncio
import json
import random
import signal
import subprocess
import time
from contextlib import ExitStack

import aiohttp
from openai_upstream import MODEL, WORDS

KEY = "sk-contract-91c2"
CLIENTS = 8


class Service:
    """As Kubernetes does it: sends requests to the gateways that say they are ready, and learns of changes late."""

    def __init__(self, gateways) -> None:
        self.gateways = gateways
        self.ready: list[str] = []

    async def follow(self, session: aiohttp.ClientSession) -> None:
        while True:
            self.ready = [g.url for g in self.gateways if await self._says_ready(session, g.internal)]
            await asyncio.sleep(0.1)

    @staticmethod
    async def _says_ready(session: aiohttp.ClientSession, url: str) -> bool:
        try:
            async with session.get(f"{url}/readyz", timeout=aiohttp.ClientTimeout(total=1)) as got:
                return got.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False


class Load:
    """Clients that ask without pause, every second one with a stream, and keep their connections."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.answered: dict[str, int] = {g.url: 0 for g in service.gateways}
        self.failed: list[str] = []
        self.stopping = False

    async def client(self, session: aiohttp.ClientSession, number: int) -> None:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "stream": number % 2 == 0}
        while not self.stopping:
            url = random.choice(self.service.ready)
            try:
                async with session.post(
                    f"{url}/v1/chat/completions", json=body, headers={"authorization": f"Bearer {KEY}"}
                ) as got:
                    text = await got.text()
                self._check(got.status, text, stream=bool(body["stream"]))
                self.answered[url] += 1
            except (aiohttp.ClientError, AssertionError, ValueError, LookupError) as error:
                self.failed.append(f"{url}: {error!r}")
            await asyncio.sleep(0.01)

    @staticmethod
    def _check(status: int, text: str, *, stream: bool) -> None:
        assert status == 200, text
        if not stream:
            assert json.loads(text)["choices"][0]["message"]["content"] == "".join(WORDS)
            return
        *events, done, _ = text.split("\n\n")
        assert done == "data: [DONE]"
        words = [json.loads(event.removeprefix("data: "))["choices"][0]["delta"]["content"] for event in events]
        assert words == WORDS


async def until(condition, what: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.02)


async def test_a_rolling_restart_fails_no_accepted_request(gateway_command, upstream, monkeypatch) -> None:
    monkeypatch.setattr(upstream, "word_delay", 0.2)  # a stream lasts longer than ports stay open
    gateways = [gateway_command(name, drain_delay=1.0) for name in ("a", "b")]
    service = Service(gateways)
    load = Load(service)
    with ExitStack() as stack:
        processes: list[subprocess.Popen[bytes]] = [stack.enter_context(g.running()) for g in gateways]
        async with aiohttp.ClientSession() as session:
            following = asyncio.create_task(service.follow(session))
            await until(lambda: len(service.ready) == 2, "both gateways are ready")
            clients = [asyncio.create_task(load.client(session, n)) for n in range(CLIENTS)]
            try:
                for i, gateway in enumerate(gateways):
                    await until(lambda g=gateway: load.answered[g.url] >= 3, "the gateway works")
                    before = load.answered[gateway.url]
                    processes[i].send_signal(signal.SIGTERM)
                    await until(lambda p=processes[i]: p.poll() is not None, "the old gateway has ended")
                    assert processes[i].returncode == 0, gateway.log.read_text()
                    assert load.answered[gateway.url] > before  # what had begun was brought to its end
                    processes[i] = stack.enter_context(gateway.running())
                    await until(lambda g=gateway: g.url in service.ready, "the new gateway is ready")
                load.stopping = True
                await asyncio.wait_for(asyncio.gather(*clients), 60)
            finally:
                for task in (following, *clients):
                    task.cancel()
                await asyncio.gather(following, *clients, return_exceptions=True)
    assert load.failed == []
