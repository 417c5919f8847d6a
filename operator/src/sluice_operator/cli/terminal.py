"""What every command shares: its options, how results are printed, and how a failure becomes one line.

The only place that prints. Results go to stdout, failures and notes to stderr, so that a pipe carries results alone.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.text import Text
from sluice_contracts.base import seconds

from sluice_operator.cli.cluster import ApiCluster, Cluster
from sluice_operator.cli.errors import CliError

T = TypeVar("T")

connect: Callable[[], Cluster] = ApiCluster
"""Makes the cluster's reader."""

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


class Output(StrEnum):
    """How results are printed."""

    TEXT = "text"
    JSON = "json"


Namespace = Annotated[
    str | None, typer.Option("--namespace", "-n", help="Namespace [default: the kubeconfig's].", show_default=False)
]
OutputOption = Annotated[Output, typer.Option("--output", "-o", help="text or json.")]
PoolName = Annotated[str, typer.Argument(metavar="POOL", help="The InferencePool.")]


def show(output: Output, data: Callable[[], dict[str, Any]], lines: Callable[[], Iterable[Text]]) -> None:
    """Print one result in the form that was asked for."""
    if output is Output.JSON:
        sys.stdout.write(json.dumps(data(), indent=2, ensure_ascii=False) + "\n")
        return
    for line in lines():
        out.print(line)


def say(line: Text | str) -> None:
    """Print one line."""
    out.print(line if isinstance(line, Text) else Text(line))


def say_json(data: dict[str, Any]) -> None:
    """Print one line of JSON: a stream of results is one object a line. Flushed, for whoever reads along."""
    sys.stdout.write(json.dumps(data, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def note(text: str) -> None:
    """Tell the person something that is no part of the result."""
    err.print(Text(text, style="dim"))


def duration(option: str, text: str) -> float:
    """Seconds of a duration a person typed. Raises CliError, naming the option."""
    try:
        return seconds(text)
    except ValueError as error:
        raise CliError(f"{option}: {error}") from None


def looks(look: Callable[[], T], interval: float, limit: float) -> Iterator[T]:
    """What `look` finds, every `interval` seconds, for at most `limit` seconds."""
    end = time.monotonic() + limit
    while True:
        yield look()
        if time.monotonic() + interval > end:
            return
        time.sleep(interval)


@contextmanager
def explained() -> Iterator[None]:
    """Turn a failure into one line and exit code 1; an interrupt into 130; a reader who went away into silence."""
    try:
        yield
    except CliError as error:
        err.print(Text(f"error: {error}", style="red"))
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except BrokenPipeError:
        # `sluice … | head`: Python would complain again when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
