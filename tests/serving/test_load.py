"""The load generator: open-loop, honest about waiting, and clear about bad input."""

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from sluice_contracts.routing import RoutingLimits
from sluice_serving.load.prompts import PromptError, read_chats
from sluice_serving.load.schedule import Result, moments, quantile
from sluice_serving.load.sender import Load, send

HI: Any = [[{"role": "user", "content": "hi"}]]
KEY = "sk-test-5f1c2d"


def plan(url: str, **more: Any) -> Load:
    values: dict[str, Any] = {"key": KEY, "model": "support-bot", "chats": HI, "rate": 50, "duration": 1, "users": 20}
    return Load(url=f"{url}/v1", **values | more)


def test_arrivals_keep_their_rate_and_repeat_with_the_seed() -> None:
    for kind in ("poisson", "uniform"):
        first = list(itertools.islice(moments(10, kind, 3), 5000))  # type: ignore[arg-type]
        assert first[-1] == pytest.approx(500, rel=0.05)
        assert first == list(itertools.islice(moments(10, kind, 3), 5000))  # type: ignore[arg-type]


def test_quantiles() -> None:
    assert quantile([3, 1, 2], 0.5) == 2
    assert quantile(range(1, 101), 0.95) == 95
    assert quantile([], 0.5) is None


async def test_it_measures_each_version_apart(gateway: Any, engines: Any, served: Any) -> None:
    good, bad = await engines("one two three"), await engines()
    bad.break_after = 1
    await gateway.route(served(good, "v1", 50), served(bad, "v2", 50))
    results: list[Result] = []
    await send(plan(gateway.url), results.append, asyncio.Event())
    assert {(r.version, r.ok) for r in results} == {("v1", True), ("v2", False)}
    good_ones = [r for r in results if r.ok]
    assert all(r.output_tokens == 3 and r.ttft is not None and r.ttft <= r.latency for r in good_ones)
    assert len(results) == pytest.approx(50, abs=25)


async def test_waiting_counts_from_the_moment_a_request_was_due(gateway: Any, engines: Any, served: Any) -> None:
    slow = await engines("word")
    slow.first_delay = 0.1
    await gateway.route(served(slow), limits=RoutingLimits(in_flight_per_replica=1, queue=1000))
    results: list[Result] = []
    await send(plan(gateway.url, rate=20, arrivals="uniform"), results.append, asyncio.Event())
    assert max(r.latency for r in results) > 0.6  # 20 a second due, 10 a second served: the last waits longest


async def test_sigterm_ends_it_with_its_table_and_json_is_for_machines(
    gateway: Any, engines: Any, served: Any, tmp_path: Path
) -> None:
    engine = await engines("one two")
    await gateway.route(served(engine))
    chats = tmp_path / "chats.jsonl"
    chats.write_text(
        json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})
        + '\n{"prompt": "c"}\n'
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "from sluice_serving.load import main; main()",
        "--url", f"{gateway.url}/v1", "--model", "support-bot", "--rate", "40", "--prompts", str(chats), "-o", "json",
        env=os.environ | {"SLUICE_API_KEY": KEY}, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    deadline = time.monotonic() + 20
    while {r["messages"][-1]["content"] for r in engine.requests} != {"a", "c"}:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    out, _ = await process.communicate()
    assert process.returncode == 0
    report = json.loads(out)["versions"]["v1"]
    assert report["requests"] == len(engine.requests)
    assert report["errors"] == 0


@pytest.mark.parametrize(
    ("text", "names"), [("", "no chat"), ("{", ":1: not valid JSON"), ('{"prompt":"a"}\n[1]', ":2: expected messages")]
)
def test_a_bad_file_of_prompts_is_named_by_line(tmp_path: Path, text: str, names: str) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text(text)
    with pytest.raises(PromptError, match=names):
        read_chats(path)


def test_an_address_where_nobody_answers_is_named_with_the_reason() -> None:
    command = [sys.executable, "-c", "from sluice_serving.load import main; main()"]
    options = ["--url", "http://127.0.0.1:1/v1", "--model", "support-bot", "--rate", "20", "--duration", "1s"]
    environment = os.environ | {"SLUICE_API_KEY": KEY}
    ended = subprocess.run([*command, *options], env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "nothing was answered by http://127.0.0.1:1/v1: ClientConnectorError (" in ended.stderr
