"""Sending the requests when they are due, and measuring them."""

import asyncio
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import aiohttp

from sluice_serving.load.prompts import Chat
from sluice_serving.load.schedule import Arrivals, Result, moments

FALLBACK = "(template)"
NONE = "(none)"


@dataclass(frozen=True)
class Load:
    """What to send. `rate` in requests a second; `duration` in seconds, None until stopped."""

    url: str
    key: str
    model: str
    chats: list[Chat]
    rate: float
    duration: float | None
    users: int
    arrivals: Arrivals = "poisson"
    stream: bool = True
    max_tokens: int = 64
    temperature: float | None = None
    timeout: float = 60.0
    max_outstanding: int = 1000
    seed: int = 0


async def send(load: Load, note: Callable[[Result], None], stop: asyncio.Event) -> None:
    """Send until the duration is over or `stop` is set, then wait for what is under way.

    At most `max_outstanding` requests are under way; what would exceed them counts as an error, not as a pause.
    """
    chance = random.Random(load.seed)
    began = time.monotonic()
    running: set[asyncio.Task[None]] = set()
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=30)
    timeout = aiohttp.ClientTimeout(total=load.timeout, sock_connect=5)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        for at in moments(load.rate, load.arrivals, load.seed):
            if load.duration is not None and at > load.duration:
                break
            if await _stopped_before(stop, began + at):
                break
            chat, user = chance.choice(load.chats), f"user-{chance.randrange(load.users)}"
            if len(running) >= load.max_outstanding:
                note(Result(NONE, False, "too many outstanding", None, 0.0, 0))
                continue
            task = asyncio.create_task(_one(load, session, chat, user, began + at, note))
            running.add(task)
            task.add_done_callback(running.discard)
        if running:
            await asyncio.wait(running, timeout=load.timeout + 5)
        for task in running:
            task.cancel()


async def _stopped_before(stop: asyncio.Event, due: float) -> bool:
    pause = due - time.monotonic()
    if pause > 0:
        try:
            async with asyncio.timeout(pause):
                await stop.wait()
        except TimeoutError:
            return False
    else:
        await asyncio.sleep(0)
    return stop.is_set()


async def _one(
    load: Load, session: aiohttp.ClientSession, chat: Chat, user: str, due: float, note: Callable[[Result], None]
) -> None:
    body: dict[str, object] = {"model": load.model, "messages": chat, "max_tokens": load.max_tokens, "user": user}
    if load.temperature is not None:
        body["temperature"] = load.temperature
    if load.stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    version, error, ttft, tokens = NONE, None, None, 0
    try:
        headers = {"authorization": f"Bearer {load.key}"}
        async with session.post(f"{load.url}/chat/completions", json=body, headers=headers) as response:
            version = response.headers.get("x-sluice-version") or (
                FALLBACK if "x-sluice-fallback" in response.headers else NONE
            )
            if response.status != 200:
                error = f"status {response.status}"
            elif load.stream:
                ttft, tokens, error = await _read_stream(response, due)
            else:
                tokens = int(((await response.json()).get("usage") or {}).get("completion_tokens") or 0)
    except TimeoutError:
        error = "timeout"
    except (aiohttp.ClientError, ValueError, AttributeError, TypeError) as problem:
        error = type(problem).__name__
    note(Result(version, error is None, error, ttft, time.monotonic() - due, tokens))


async def _read_stream(response: aiohttp.ClientResponse, due: float) -> tuple[float | None, int, str | None]:
    """Time to the first token, tokens, and what went wrong."""
    ttft: float | None = None
    tokens = 0
    async for line in response.content:
        if not line.startswith(b"data:"):
            continue
        data = line.removeprefix(b"data:").strip()
        if ttft is None:
            ttft = time.monotonic() - due
        if data == b"[DONE]":
            return ttft, tokens, None
        if b'"usage"' in data or b'"error"' in data:
            chunk = json.loads(data)
            if chunk.get("error"):
                return ttft, tokens, "error event"
            tokens = int((chunk.get("usage") or {}).get("completion_tokens") or tokens)
    return ttft, tokens, "broken stream"
