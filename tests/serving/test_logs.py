"""The gateway's log: JSON, a line each, joined to requests; and never a word of what users or engines say."""

import asyncio
import gc
import json
import logging
import random
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sluice_serving.gateway import service
from sluice_serving.gateway.log_lines import JsonLines

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
MARK = "zq4711qz"
"""In all that is asked, answered and shown."""


class Lines(logging.Handler):
    """What the gateway's process would write."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(JsonLines())
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))

    def of(self, text: str) -> dict[str, Any]:
        (found,) = [json.loads(line) for line in self.lines if text in line]
        return dict(found)


@pytest.fixture
def lines() -> Iterator[Lines]:
    handler = Lines()
    root = logging.getLogger()
    before, level = root.level, logging.INFO
    root.addHandler(handler)
    root.setLevel(level)
    yield handler
    root.removeHandler(handler)
    root.setLevel(before)


def odd(chance: random.Random, depth: int = 0) -> Any:
    """A JSON value with the mark in it, of any shape."""
    shapes = [
        lambda: MARK,
        lambda: chance.choice([MARK + "\u0000", "\n" + MARK, MARK * 40, chance.randint(0, 9)]),
        lambda: [odd(chance, depth + 1), MARK],
        lambda: {chance.choice(["role", "content", "type", MARK]): odd(chance, depth + 1)},
        lambda: [{"role": "user", "content": MARK}],
    ]
    return chance.choice(shapes if depth < 3 else shapes[:2])()


async def test_whatever_is_asked_and_answered_the_log_says_nothing_of_it(
    gateway: Any, engines: Any, served: Any, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await engines(f"{MARK} , {MARK} !")
    await gateway.route(served(engine, "v1", 100))
    chance = random.Random(4711)
    names = ["messages", "model", "user", "stop", "tools", "response_format", "metadata", "max_tokens", "stream", MARK]
    statuses = set()
    for _ in range(40):
        body = {name: odd(chance) for name in chance.sample(names, 2)}
        headers = {"x-session-id": MARK, "user-agent": MARK, "traceparent": MARK, "cookie": MARK}
        async with gateway.chat(headers=headers, **body) as response:
            statuses.add(response.status)
    for engine.status, engine.break_after in ((200, 1), (500, None), (400, None), (200, None)):
        async with gateway.chat(messages=[{"role": "user", "content": MARK}], stream=True, user=MARK) as response:
            statuses.add(response.status)
            await response.read()
    async with gateway.chat(key=f"sk-{MARK}") as response:
        statuses.add(response.status)

    def choke(_: Any, body: bytes) -> Any:
        raise ValueError(f"cannot read {body!r}")

    monkeypatch.setattr(service, "read_counts", choke)
    async with gateway.chat(messages=[{"role": "user", "content": MARK}]) as response:
        statuses.add(response.status)
        request_id = response.headers["x-request-id"]
    assert statuses >= {200, 400, 401, 500, 502}
    failure = lines.of("an error in the gateway itself")
    assert failure["request_id"] == request_id
    assert re.match(r"ValueError\n  at .*test_logs.py:\d+ in choke\n", failure["error"])

    async def orphan() -> None:
        raise ValueError(MARK)

    task = asyncio.create_task(orphan())
    await asyncio.wait({task})
    del task
    gc.collect()
    assert lines.of("never retrieved")["error"].startswith("ValueError\n")
    assert not [line for line in lines.lines if MARK in line]
    assert all(set(json.loads(line)) >= {"time", "level", "message"} for line in lines.lines)


@settings(max_examples=25)
@given(st.text("abc 4711\u00e4\u4e2d", min_size=12))
def test_an_exception_in_the_log_never_quotes_what_it_choked_on(content: str) -> None:
    marked = f"<<{content}>>"
    try:
        try:
            {}[marked]
        except KeyError as inner:
            raise ValueError(f"cannot read {marked}") from inner
    except ValueError as error:
        record = logging.LogRecord("sluice", logging.ERROR, __file__, 1, "request %s failed", ("r1",),
                                   (ValueError, error, error.__traceback__))  # fmt: skip
    record.request_id, record.trace_id, record.args_of_others = "r1", TRACE, marked
    line = json.loads(JsonLines().format(record))
    assert set(line) == {"time", "level", "message", "error", "request_id", "trace_id"}
    assert re.findall(r"^(?:from )?(\w+)$", line["error"], re.MULTILINE) == ["ValueError", "KeyError"]
    assert marked not in json.dumps(line, ensure_ascii=False)
