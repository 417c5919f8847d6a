"""The command line of `sluice-load`."""

import asyncio
import json
import os
import signal
import sys
import time
from collections import Counter, defaultdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table
from sluice_contracts.base import seconds

from sluice_serving.load.prompts import PromptError, built_in, read_chats
from sluice_serving.load.schedule import Result, Tally
from sluice_serving.load.sender import Load, send

LOG_EVERY_SECONDS = 10.0


class Output(StrEnum):
    """Shapes of the result."""

    TABLE = "table"
    JSON = "json"


class Arrival(StrEnum):
    """How requests are spread over time."""

    POISSON = "poisson"
    UNIFORM = "uniform"


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def main() -> None:
    """The command's entry point."""
    app()


@app.command()
def load(
    url: Annotated[str, typer.Option(help="Base URL of the API, with /v1.")],
    model: Annotated[str, typer.Option(help="Model to ask.")],
    rate: Annotated[float, typer.Option(min=0.01, max=10_000, help="Requests a second, on average.")] = 2.0,
    duration: Annotated[str | None, typer.Option(help="How long, such as 30s or 5m; until SIGTERM if absent.")] = None,
    users: Annotated[int, typer.Option(min=1, max=1_000_000, help="Pretended users.")] = 200,
    prompts: Annotated[Path | None, typer.Option(help="JSONL file of chats; a built-in list if absent.")] = None,
    arrivals: Annotated[Arrival, typer.Option(help="How requests are spread.")] = Arrival.POISSON,
    stream: Annotated[bool, typer.Option(help="Ask for streamed answers.")] = True,
    max_tokens: Annotated[int, typer.Option(min=1, max=131_072, help="Output tokens a request.")] = 64,
    temperature: Annotated[float | None, typer.Option(min=0, max=2, help="Sampling temperature.")] = None,
    timeout: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds until a request counts as lost.")] = 60.0,
    seed: Annotated[int, typer.Option(help="Same seed, same moments, users and prompts.")] = 0,
    output: Annotated[Output, typer.Option("-o", "--output", help="Shape of the result.")] = Output.TABLE,
) -> None:
    """Send requests at a fixed rate and tell, per version, how they were answered.

    The API key is read from SLUICE_API_KEY. Exit code 1 if nothing was answered.
    """
    key = os.environ.get("SLUICE_API_KEY", "")
    if not key:
        _fail("SLUICE_API_KEY is not set: it holds the API key", 2)
    if not url.startswith(("http://", "https://")):
        _fail(f"--url {url!r} must start with http:// or https://", 2)
    try:
        chats = read_chats(prompts) if prompts else built_in()
        length = seconds(duration) if duration else None
    except (PromptError, ValueError) as error:
        _fail(str(error), 2)
    plan = Load(
        url=url.rstrip("/"),
        key=key,
        model=model,
        chats=chats,
        rate=rate,
        duration=length,
        users=users,
        arrivals=arrivals.value,
        stream=stream,
        max_tokens=max_tokens,
        temperature=temperature,
        timeout=timeout,
        seed=seed,
    )
    tallies = asyncio.run(_run(plan))
    if output is Output.JSON:
        report = {"rate": rate, "versions": {name: tally.summary() for name, tally in sorted(tallies.items())}}
        print(json.dumps(report, indent=2))  # noqa: T201
    else:
        Console().print(_table(tallies, "Answers by version"))
    if not any(tally.latency for tally in tallies.values()):
        kinds: Counter[str] = sum((tally.errors for tally in tallies.values()), Counter())
        told = ", ".join(f"{kind} ({n})" for kind, n in kinds.most_common(3)) or "nothing was sent"
        _fail(f"nothing was answered by {url}: {told}", 1)


def _fail(message: str, code: int) -> Any:
    print(f"sluice-load: {message}", file=sys.stderr)  # noqa: T201
    raise typer.Exit(code)


async def _run(plan: Load) -> dict[str, Tally]:
    tallies: dict[str, Tally] = defaultdict(Tally)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)

    def note(result: Result) -> None:
        tallies[result.version].add(result)

    showing = asyncio.create_task(_show(tallies))
    try:
        await send(plan, note, stop)
    finally:
        showing.cancel()
        await asyncio.gather(showing, return_exceptions=True)
    return tallies


async def _show(tallies: dict[str, Tally]) -> None:
    """Progress on stderr: a live table on a terminal, a line now and then elsewhere."""
    console = Console(stderr=True)
    began = time.monotonic()
    if console.is_terminal:
        with Live(console=console, transient=True, auto_refresh=False) as live:
            while True:
                live.update(_table(tallies, f"{time.monotonic() - began:.0f} s"), refresh=True)
                await asyncio.sleep(1)
    while True:
        await asyncio.sleep(LOG_EVERY_SECONDS)
        parts = [f"{name}: {t.n} sent, {sum(t.errors.values())} failed" for name, t in sorted(tallies.items())]
        print(f"{time.monotonic() - began:.0f} s  {'; '.join(parts) or 'nothing yet'}", file=sys.stderr)  # noqa: T201


def _table(tallies: dict[str, Tally], title: str) -> Table:
    table = Table(title=title)
    for name in ("version", "n", "errors", "TTFT p50", "p95", "latency p50", "p95", "tokens"):
        table.add_column(name, justify="left" if name == "version" else "right")
    for name, tally in sorted(tallies.items()):
        summary = tally.summary()
        table.add_row(
            name,
            str(summary["requests"]),
            str(summary["errors"]),
            *(_milliseconds(summary[what][q]) for what in ("ttft", "latency") for q in ("p50", "p95")),
            str(summary["outputTokens"]),
        )
    return table


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{1000 * value:.0f} ms"
