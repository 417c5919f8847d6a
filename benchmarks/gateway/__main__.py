"""What the gateway costs, beside LiteLLM's proxy, a plain nginx and no proxy at all, in one run on one machine.

Each system stands alone on one core in front of the same stand-in engine; the engine and the load have the other core.
All systems are up at once and take turns, round by round; a figure is the median of its rounds. Latency counts from the
moment a request was due (see load.py). Latencies `added` are the difference of the quantiles to `direct`.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop
from sluice_contracts.routing import RoutingLimits
from sluice_serving.load import schedule

from benchmarks.gateway import systems
from benchmarks.gateway.load import Answer, arrivals, closed_loop, open_loop
from benchmarks.gateway.profile import PROFILER_VARIABLE, profiler, shares
from benchmarks.gateway.systems import OTHER_CORE, Running
from benchmarks.record import Report
from benchmarks.usage import usage

COLUMNS = ("direct", "nginx", "sluice", "litellm")
RATES = (50, 100, 300, 600)
STREAMS, EVENTS = 400, 100
"""One event each 20 ms in each of so many streams at once: 20,000 a second in all."""
SLOTS, SERVICE_MS = 20, 200
CAPACITY = SLOTS * 1000 / SERVICE_MS
SHORT_QUEUE = RoutingLimits(in_flight_per_replica=SLOTS, queue=4, queue_timeout_seconds=1)
"""A queue for patience of a fifth of a request's time: who would wait longer is told at once."""
OVERLOAD = 10
MIB = 1 << 20


def request(**more: Any) -> bytes:
    """A chat request of everyday size."""
    messages = [
        {"role": "system", "content": "You answer customers of a parcel service, kindly and briefly."},
        {"role": "user", "content": "Where is my parcel? " * 8},
    ]
    body = json.dumps({"model": systems.MODEL, "messages": messages, "temperature": 0, **more}).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {systems.KEY}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def quantile(values: Sequence[float], q: float) -> float | None:
    """In milliseconds; None of none."""
    found = schedule.quantile(values, q)
    return None if found is None else 1000 * found


@dataclass
class Table:
    """Figures in the making: by name, for each system the values of its rounds."""

    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    goals: dict[str, str] = field(default_factory=dict)

    def note(self, figure: str, system: str, value: float | None, goal: str = "") -> None:
        """One round's value."""
        self.goals.setdefault(figure, goal)
        rounds = self.values.setdefault(figure, {}).setdefault(system, [])
        if value is not None:
            rounds.append(value)

    def median(self, figure: str, system: str) -> float | None:
        """Of the rounds; None if there was none."""
        rounds = self.values.get(figure, {}).get(system)
        return statistics.median(rounds) if rounds else None

    def into(self, report: Report) -> None:
        """One row a figure."""
        for figure, by_system in self.values.items():
            cells = {name: self.median(figure, name) for name in COLUMNS}
            report.add(figure=figure, **cells, goal=self.goals[figure], rounds=by_system)


def good(answers: Sequence[Answer]) -> list[Answer]:
    """Those that were served."""
    return [a for a in answers if a.status == 200]


@contextlib.contextmanager
def all_systems(
    folder: Path, engine: Running, limits: RoutingLimits, without: Sequence[str]
) -> Iterator[list[Running]]:
    """Every system that is installed, up at once."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(front(folder, engine)) for front in fronts(limits, without).values()]


Front = Callable[[Path, Running], AbstractContextManager[Running]]
"""Starts a system before an engine."""


def fronts(limits: RoutingLimits, without: Sequence[str]) -> dict[str, Front]:
    """Every system that is installed, by name."""
    found: dict[str, Front] = {"direct": lambda _, engine: contextlib.nullcontext(engine)}
    if "nginx" not in without and systems.nginx_program() is not None:
        found["nginx"] = lambda folder, engine: systems.nginx(folder, engine.port)
    found["sluice"] = lambda folder, engine: systems.sluice(folder, engine.port, limits)
    if "litellm" not in without and systems.litellm_program() is not None:
        found["litellm"] = lambda folder, engine: systems.litellm(folder, engine.port)
    return found


def run(system: Running, load: Coroutine[Any, Any, list[Answer]]) -> tuple[list[Answer], float | None]:
    """What came of the load, and the processor seconds that the system took for it."""
    before = usage(system.pid).cpu if system.pid else None
    answers = uvloop.run(load)
    return answers, usage(system.pid).cpu - before if system.pid and before is not None else None


def latency(table: Table, up: Sequence[Running], rounds: int, seconds: float) -> None:
    """Fixed rates, open-loop."""
    for rate in RATES:
        for turn in range(rounds):
            for system in up:
                progress(f"{rate} requests/s: {system.name}, round {turn + 1}")
                moments = arrivals(rate, seconds, seed=turn)
                answers, cpu = run(system, open_loop(system.port, request(), moments))
                served = [a.latency for a in good(answers)]
                name = f"{rate}/s: "
                table.note(name + "p50 ms", system.name, quantile(served, 0.5))
                table.note(name + "p99 ms", system.name, quantile(served, 0.99))
                table.note(name + "answered %", system.name, 100 * len(served) / len(moments))
                if cpu is not None:
                    table.note(name + "cpu us/request", system.name, 1e6 * cpu / max(1, len(served)))
        for quantity, goal in (("p50 ms", "<= 1"), ("p99 ms", "<= 5")):
            direct = table.values[f"{rate}/s: {quantity}"]["direct"]
            for system in up[1:]:
                own = table.values[f"{rate}/s: {quantity}"][system.name]
                for mine, bare in zip(own, direct, strict=False):
                    table.note(f"{rate}/s: added {quantity}", system.name, mine - bare, goal if rate == 300 else "")


def throughput(table: Table, up: Sequence[Running], rounds: int, seconds: float) -> None:
    """As many as it can: 32 requests under way at any time."""
    for turn in range(rounds):
        for system in up:
            progress(f"throughput: {system.name}, round {turn + 1}")
            answers, cpu = run(system, closed_loop(system.port, request(), 32, seconds))
            served = len(good(answers))
            table.note("requests/s, 32 at a time", system.name, served / seconds)
            if cpu:
                table.note("requests per cpu second", system.name, served / cpu, "10 x litellm")


def streams(table: Table, up: Sequence[Running], rounds: int, seconds: float) -> None:
    """Server-sent events, each written by the engine by itself."""
    question = request(stream=True, max_tokens=EVENTS)
    for turn in range(rounds):
        for system in up:
            progress(f"streams: {system.name}, round {turn + 1}")
            count = STREAMS if system.name != "litellm" else STREAMS // 10
            answers, cpu = run(system, closed_loop(system.port, question, count, seconds))
            served = good(answers)
            events = sum(a.events for a in served)
            if not served:
                continue
            took = max(a.done for a in served) - min(a.sent for a in served)
            table.note("SSE events/s", system.name, events / took)
            table.note("SSE first byte p50 ms", system.name, quantile([a.first - a.sent for a in served], 0.5))
            if cpu:
                table.note("SSE events per cpu second", system.name, events / cpu, ">= 20,000")


def profile(table: Table, folder: Path, seconds: float) -> None:
    """Where the time of whole and of streamed answers goes."""
    if profiler() is None:
        progress(f"no py-spy on PATH or in {PROFILER_VARIABLE}: no profile")
        return
    with systems.engine(folder) as engine, systems.sluice(folder, engine.port) as system:
        for name, question, count in (
            ("whole", request(), 32),
            ("streamed", request(stream=True, max_tokens=EVENTS), STREAMS),
        ):
            progress(f"profile: {name}")
            assert system.pid is not None
            found = shares(
                system.pid,
                seconds,
                lambda question=question, count=count: uvloop.run(
                    closed_loop(system.port, question, count, seconds + 1)
                ),
            )
            for purpose, share in found.items():
                table.note(f"time, {name}: {purpose} %", "sluice", share)


def memory(table: Table, up: Sequence[Running]) -> None:
    """After all the work above."""
    for system in up:
        if system.pid is not None:
            table.note("memory MiB", system.name, usage(system.pid).memory / MIB)


def overload(table: Table, folder: Path, rounds: int, seconds: float, without: Sequence[str]) -> None:
    """An engine with few places, asked for ten times what it can do."""
    for turn in range(rounds):
        for name, front in fronts(SHORT_QUEUE, [*without, "litellm"]).items():
            # Each has an engine of its own: what one system leaves in its line would delay the next.
            with (
                systems.engine(folder, "--slots", str(SLOTS), "--delay-ms", str(SERVICE_MS)) as engine,
                front(folder, engine) as system,
            ):
                progress(f"overload: {name}, round {turn + 1}")
                _overload_one(table, system, seconds, turn)
    for system in COLUMNS:
        calm = table.median("0.8 x capacity: served p99 ms", system)
        busy = table.median(f"{OVERLOAD} x capacity: served p99 ms", system)
        if calm and busy:
            table.note("overloaded p99 / calm p99", system, busy / calm, "<= 1.5")


def _overload_one(table: Table, system: Running, seconds: float, seed: int) -> None:
    for name, share in (("0.8 x capacity", 0.8), (f"{OVERLOAD} x capacity", OVERLOAD)):
        moments = arrivals(share * CAPACITY, seconds, seed)
        answers = uvloop.run(open_loop(system.port, request(), moments))
        refused = [a.latency for a in answers if a.status == 429]
        served = [a.latency for a in good(answers)]
        table.note(f"{name}: served p99 ms", system.name, quantile(served, 0.99))
        if share > 1:
            in_time = sum(latency <= 1 for latency in served)
            table.note(f"{name}: served within 1 s, /s", system.name, in_time / seconds)
            table.note(f"{name}: refused p50 ms", system.name, quantile(refused, 0.5), "< 10")
            table.note(f"{name}: refused p99 ms", system.name, quantile(refused, 0.99), "< 10")
            table.note(f"{name}: unanswered after 30 s", system.name, len(answers) - len(refused) - len(served))


def soak(table: Table, folder: Path, seconds: float) -> None:
    """Memory over time under a mix of whole and streamed answers."""
    with systems.engine(folder, "--interval-ms", "5") as engine, systems.sluice(folder, engine.port) as system:
        assert system.pid is not None
        parts = 10
        seen = []
        for part in range(parts):
            progress(f"soak: part {part + 1} of {parts}")
            half = seconds / parts / 2
            uvloop.run(open_loop(system.port, request(), arrivals(300, half, seed=part)))
            uvloop.run(open_loop(system.port, request(stream=True, max_tokens=20), arrivals(100, half, seed=part)))
            seen.append(usage(system.pid).memory / MIB)
        table.note(f"memory MiB after {seconds / parts:.0f} s", "sluice", seen[0])
        table.note(f"memory MiB after {seconds:.0f} s", "sluice", seen[-1], "no growth")
        table.note("memory MiB, most", "sluice", max(seen))


def progress(text: str) -> None:
    """What goes on now."""
    print(f"\r\033[K{text}" if sys.stderr.isatty() else text, end="" if sys.stderr.isatty() else "\n", file=sys.stderr,
          flush=True)  # fmt: skip


PARTS = ("latency", "throughput", "streams", "overload", "profile", "soak")


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS[:4]))
    parser.add_argument("--without", nargs="+", choices=("nginx", "litellm"), default=[])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--soak-seconds", type=float, default=600.0)
    given = parser.parse_args()
    if len(os.sched_getaffinity(0)) < 2:
        print("error: two cores are needed, one for what is measured and one for the load", file=sys.stderr)
        return 2
    os.sched_setaffinity(0, {OTHER_CORE})
    table, parts = Table(), set(given.only)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if parts & {"latency", "throughput", "streams"}:
            with (
                systems.engine(folder) as engine,
                all_systems(folder, engine, systems.ROOMY, given.without) as up,
            ):
                for system in up:
                    uvloop.run(closed_loop(system.port, request(), 8, 1))
                if "latency" in parts:
                    latency(table, up, given.rounds, given.seconds)
                if "throughput" in parts:
                    throughput(table, up, given.rounds, given.seconds)
                if "streams" in parts:
                    streams(table, up, given.rounds, given.seconds)
                memory(table, up)
        if "overload" in parts:
            overload(table, folder, given.rounds, given.seconds, given.without)
        if "profile" in parts:
            profile(table, folder, max(10.0, given.seconds))
        if "soak" in parts:
            soak(table, folder, given.soak_seconds)
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    report = Report(
        "gateway",
        "The gateway and others, each alone on one core",
        ["figure", *COLUMNS, "goal"],
        packages=["aiohttp", "uvicorn", "uvloop", "httptools", "pydantic", "aiosqlite"],
        tools={"nginx": systems.nginx_version(), "litellm": systems.litellm_version()},
        notes=[
            "sluice checks keys and requests, counts per version and keeps a record of every request in SQLite; nginx "
            "does none of that; litellm checks a key and keeps no records",
            f"the engine is a stand-in on the load's core: what `direct` reaches is the most that can be seen; streams "
            f"are {STREAMS} at a time with an event each 20 ms, a tenth of that for litellm",
            "per cpu second: by the processor time that the system took, so that the load's core does not limit it",
        ],
    )
    table.into(report)
    print()
    report.finish()
    return 0


if __name__ == "__main__":
    sys.exit(main())
