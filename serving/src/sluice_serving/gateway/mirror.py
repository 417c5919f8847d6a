"""Copies of live requests, for comparing answers without showing them.

Of the requests that stable has answered, a share is asked again, half of them of the candidate and half of stable
itself: two answers of one model differ as well, and the candidate's scores are judged against how much. A copy goes out
once the client has its answer, in a task of its own; nobody waits for it. It takes none of the queue and only a place
that no live request holds or waits for; with no place free there is no copy. What it says is scored and forgotten.
"""

import asyncio
import json
import logging
import random
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sluice_contracts.routing import Backend, JudgeRoute, RoutingTable

from sluice_serving.gateway.admission import Lane
from sluice_serving.gateway.errors import ApiError, EngineFailed
from sluice_serving.gateway.judges import Judge, JudgeFailed, make_judge
from sluice_serving.gateway.observations import Mirrored, Observations
from sluice_serving.gateway.similarity import length_ratio, similarity
from sluice_serving.gateway.tracing import UNTRACED, Trace
from sluice_serving.gateway.transcript import Said, Transcript
from sluice_serving.gateway.upstream import Upstream, read_answer
from sluice_serving.gateway.validity import Expectation, expectation, holds

logger = logging.getLogger("sluice.gateway")

PATHS = frozenset({"/v1/chat/completions", "/v1/completions"})
"""Endpoints whose answers are texts that can be compared."""


RETIRED = 2
"""Judges that may end their work after the table has named others."""


@dataclass(frozen=True)
class Asked:
    """A request that was answered, and may be asked again."""

    path: str
    body: bytes
    answered_by: Backend
    answer: Transcript
    window: str
    trace: Trace | None = None
    """What the request was a part of: its copy is too."""


class Mirror:
    """The copies of one gateway."""

    def __init__(
        self,
        upstream: Upstream,
        observations: Observations,
        token_file: Path | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._upstream, self._observations, self._token_file, self._chance = upstream, observations, token_file, chance
        self._tasks: set[asyncio.Task[None]] = set()
        self._judge: Judge | None = None
        self._judge_route: JudgeRoute | None = None
        self._retired: list[Judge] = []
        self._closing: set[asyncio.Task[None]] = set()

    def wants(self, table: RoutingTable, backend: Backend, path: str) -> bool:
        """Whether this request, which `backend` answers, is to be asked again: its answer must then be kept."""
        mirror = table.mirror
        if mirror is None or path not in PATHS or backend.model_version == mirror.candidate:
            return False
        return self._chance() * 100 < mirror.percent

    def send(self, asked: Asked, table: RoutingTable | None, lanes: Mapping[str, Lane]) -> None:
        """Ask again, later and unseen. Returns at once: the request that was answered first gives its place back."""
        asyncio.get_running_loop().call_soon(self._begin, asked, table, lanes)

    def _begin(self, asked: Asked, table: RoutingTable | None, lanes: Mapping[str, Lane]) -> None:
        mirror = table.mirror if table is not None else None
        if table is None or mirror is None or table.window != asked.window:
            return
        name = mirror.candidate if self._chance() < 0.5 else asked.answered_by.model_version
        to = next((b for b in table.backends if b.model_version == name and b.ready), None)
        lane = lanes.get(name)
        if to is None or lane is None:
            return
        free = lane.waiting == 0 and lane.in_flight + len(self._tasks) < lane.capacity
        if not free or len(self._tasks) >= mirror.max_in_flight:
            self._observations.mirrored(name, asked.window, Mirrored("no_room"))
            return
        task = asyncio.create_task(self._ask_again(asked, table, to))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Drop what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, *self._closing, return_exceptions=True)
        for judge in [*self._retired, *([self._judge] if self._judge is not None else [])]:
            await judge.close()

    async def _ask_again(self, asked: Asked, table: RoutingTable, to: Backend) -> None:
        assert table.mirror is not None, "only what is mirrored is asked again"
        try:
            request = json.loads(asked.body)
            expected = expectation(asked.body)
            try:
                async with asyncio.timeout(table.mirror.timeout_seconds):
                    said = await self._answer(asked, request, table, to)
            except (EngineFailed, ApiError, TimeoutError):
                seen = Mirrored("failed", score=0.0)
            else:
                seen = await self._scored(request, expected, asked.answer, said, table.mirror.judge)
            self._observations.mirrored(to.model_version, asked.window, seen)
        except Exception:  # a copy must never be anyone's trouble, and its content never in a log
            logger.warning("a mirrored request could not be scored")

    async def _answer(self, asked: Asked, request: dict[str, Any], table: RoutingTable, to: Backend) -> Transcript:
        """The copy's answer, in one piece."""
        copy = {k: v for k, v in request.items() if k not in {"stream", "stream_options"}}
        copy |= {"model": to.engine_model or table.model, "n": 1}
        body = json.dumps(copy, ensure_ascii=False).encode()
        identity = f"mirror-{secrets.token_hex(8)}"
        url, trace = to.url.rstrip("/") + asked.path, asked.trace
        with UNTRACED if trace is None else trace.attempt(None, to, table.model, "mirror") as more:
            async with self._upstream.ask(url, body, identity, more) as response:
                try:
                    return Transcript.of(json.loads(await read_answer(response)))
                except ValueError:
                    raise EngineFailed("the answer is no JSON", retriable=False) from None

    async def _scored(
        self,
        request: dict[str, Any],
        expected: Expectation | None,
        before: Transcript,
        after: Transcript,
        route: JudgeRoute | None,
    ) -> Mirrored:
        """An answer that breaks a shape which stable's had is useless; any other is the judge's."""
        reference, answer = before.first, after.first
        if reference is None or answer is None:
            return Mirrored("not_comparable")
        valid = None if expected is None else holds(expected, after)
        if expected is not None and valid is False and holds(expected, _only(reference)) is True:
            return Mirrored("scored", score=0.0, schema_valid=False)
        first, second = reference.as_text(), answer.as_text()
        try:
            score = await self._judge_of(route).score(request, first, second)
        except JudgeFailed as error:
            logger.warning("mirror: %s", error)
            return Mirrored("judge_failed", schema_valid=valid)
        alike = score if route is None else await asyncio.to_thread(similarity, first, second)
        return Mirrored("scored", score, similarity=alike, length=length_ratio(first, second), schema_valid=valid)

    def _judge_of(self, route: JudgeRoute | None) -> Judge:
        """The judge that the table names. One that it no longer names may still be at work: it is closed later."""
        if self._judge is None or self._judge_route != route:
            judge = make_judge(route, self._token_file)
            if self._judge is not None:
                self._retired.append(self._judge)
            if len(self._retired) > RETIRED:
                closing = asyncio.create_task(self._retired.pop(0).close())
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)
            self._judge, self._judge_route = judge, route
        return self._judge


def _only(said: Said) -> Transcript:
    """A transcript of this choice alone: a copy has one."""
    found = Transcript()
    found.choices[0] = said
    return found
