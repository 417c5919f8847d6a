"""Who scores a mirrored answer: the gateway itself, code in its image, or a service.

A judge sees the question and two answers to it: stable's, which the client got, and the copy's. It says how good the
second is where the first counts as 1, from 0 to 1.
"""

import asyncio
import json
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

import aiohttp
from sluice_contracts.routing import JudgeRoute

from sluice_serving.gateway.similarity import similarity

GROUP = "sluice.judges"
"""Entry points of `(request: dict, reference: str, answer: str) -> float`, called in a thread of their own."""
MAX_REPLY = 65_536
WORKERS = 2

Score = Callable[[dict[str, Any], str, str], float]


class JudgeFailed(Exception):
    """There is no score. The message holds nothing of what was judged."""


class Judge(Protocol):
    """Scores one answer."""

    async def score(self, request: dict[str, Any], reference: str, answer: str) -> float:
        """From 0 to 1. Raises JudgeFailed."""

    async def close(self) -> None:
        """Give back what it holds."""


class ThreadJudge:
    """Calls a function in a few threads of its own: one that hangs stops the judging, and nothing else. What waits for
    a thread is given up at the deadline; no more can wait than copies are under way."""

    def __init__(self, function: Score, timeout: float) -> None:
        self._function, self._timeout = function, timeout
        self._threads = ThreadPoolExecutor(WORKERS, thread_name_prefix="judge")

    async def score(self, request: dict[str, Any], reference: str, answer: str) -> float:
        """The function's value."""
        work = self._threads.submit(self._function, request, reference, answer)
        try:
            value = await asyncio.wait_for(asyncio.wrap_future(work), self._timeout)
        except TimeoutError:
            raise JudgeFailed(f"no score within {self._timeout:g} s") from None
        except Exception as error:
            raise JudgeFailed(f"the judge raised {type(error).__name__}") from None
        return checked(value)

    async def close(self) -> None:
        """Forget work that has not begun; what runs may end."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class HttpJudge:
    """Asks a service: POST {request, reference, answer}, answered with {"score": 0 to 1}."""

    def __init__(self, url: str, timeout: float, token_file: Path | None) -> None:
        self._url, self._token_file = url, token_file
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timeout))

    async def score(self, request: dict[str, Any], reference: str, answer: str) -> float:
        """The service's score. The token is read anew each time, so that it can be rotated."""
        headers = {}
        try:
            if self._token_file is not None:
                headers["authorization"] = f"Bearer {self._token_file.read_text().strip()}"
            content = {"request": request, "reference": reference, "answer": answer}
            async with self._session.post(self._url, json=content, headers=headers, allow_redirects=False) as got:
                if got.status != 200:
                    raise JudgeFailed(f"the judge answered {got.status}")
                found = json.loads(await _bounded(got))
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise JudgeFailed(f"the judge could not be asked: {type(error).__name__}") from None
        return checked(found.get("score") if isinstance(found, dict) else None)

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()


def checked(value: object) -> float:
    """A score as it must be. Raises JudgeFailed."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or not 0 <= value <= 1:
        raise JudgeFailed("the judge's score is no number from 0 to 1")
    return float(value)


def make_judge(route: JudgeRoute | None, token_file: Path | None) -> Judge:
    """The judge that the table names; without one, likeness to stable's answer. Raises JudgeFailed."""
    if route is None:
        return ThreadJudge(lambda _, reference, answer: similarity(reference, answer), 10)
    if route.url is not None:
        return HttpJudge(route.url, route.timeout_seconds, token_file)
    for found in entry_points(group=GROUP, name=route.entry_point or ""):
        try:
            return ThreadJudge(found.load(), route.timeout_seconds)
        except Exception as error:
            raise JudgeFailed(f"judge {route.entry_point} does not load: {type(error).__name__}: {error}") from None
    raise JudgeFailed(
        f"no package in the gateway's image has an entry point {route.entry_point!r} in the group {GROUP}: "
        "install it there, or use rollout.mirror.judge.url"
    )


async def _bounded(got: aiohttp.ClientResponse) -> bytes:
    found = b""
    async for chunk in got.content.iter_any():
        found += chunk
        if len(found) > MAX_REPLY:
            raise JudgeFailed(f"the judge's reply has more than {MAX_REPLY} bytes")
    return found
