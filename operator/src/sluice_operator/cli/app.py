"""The commands of `sluice`: read, decide with the pure modules beside this one, print. The only file that prints."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from sluice_contracts.base import seconds
from sluice_contracts.inference_pool import RolloutOutcome
from sluice_contracts.names import ANNOTATION_ROLLOUT, RolloutRequest

from sluice_operator.cli import explain_text, rollout_request, rollout_text, status_text
from sluice_operator.cli.cluster import ApiCluster, Cluster
from sluice_operator.cli.errors import CliError
from sluice_operator.cli.find import find_named, find_pool
from sluice_operator.cli.lineage.chain import LinkOf, chain
from sluice_operator.cli.lineage.delivered import devices, release
from sluice_operator.cli.lineage.gather import gather
from sluice_operator.cli.lineage.judged import canary, evaluation, parity
from sluice_operator.cli.lineage.made import base, dataset, manifest, run, signal
from sluice_operator.cli.lineage.text import render as render_chain
from sluice_operator.cli.objects import Pool, pool_of, run_of, version_of
from sluice_operator.cli.text import now_utc
from sluice_operator.kube.resources import INFERENCE_POOL, MODEL_VERSION, TRAINING_RUN

LINKS: tuple[LinkOf, ...] = (signal, dataset, base, run, manifest, evaluation, parity, canary, release, devices)
"""A model's life, in order."""

app = typer.Typer(
    help="Where a model comes from, how it does, and why something is not ready.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
rollout = typer.Typer(help="See and steer the rollout of a pool's next version.", no_args_is_help=True)
app.add_typer(rollout, name="rollout")

connect: Callable[[], Cluster] = ApiCluster
"""Makes the cluster's reader."""


class Output(StrEnum):
    """How results are printed."""

    TEXT = "text"
    JSON = "json"


Namespace = Annotated[
    str | None, typer.Option("--namespace", "-n", help="Namespace [default: the kubeconfig's].", show_default=False)
]
OutputOption = Annotated[Output, typer.Option("--output", "-o", help="text or json.")]
PoolName = Annotated[str, typer.Argument(metavar="POOL", help="The InferencePool.")]


@app.command()
def lineage(
    name: Annotated[str, typer.Argument(help="A ModelVersion, TrainingRun or InferencePool (its stable version).")],
    namespace: Namespace = None,
    output: OutputOption = Output.TEXT,
    device: Annotated[
        list[Path] | None, typer.Option(help="A device's receipt (sluice-edge status -o json). May be repeated.")
    ] = None,
    releases: Annotated[
        str | None,
        typer.Option(envvar="SLUICE_RELEASES_URI", help="Where releases lie [default: what the operator uses]."),
    ] = None,
) -> None:
    """Follow one lineage id from the device signals to the devices. Exit code 1 if a link does not hold."""
    with _explained():
        cluster = connect()
        environment = cluster.operator_environment()
        if not os.environ.get("STORAGE_EMULATOR_HOST") and environment.get("STORAGE_EMULATOR_HOST"):
            os.environ["STORAGE_EMULATOR_HOST"] = environment["STORAGE_EMULATOR_HOST"]
        uri = releases or environment.get("SLUICE_RELEASES_URI")
        found = chain(gather(cluster, namespace or cluster.namespace, name, uri, device or []), LINKS)
    _print(output, lambda: found.wire(), lambda: render_chain(found))
    if found.broken:
        raise typer.Exit(1)


@app.command()
def status(
    namespace: Namespace = None,
    everywhere: Annotated[bool, typer.Option("--all-namespaces", "-A", help="All namespaces.")] = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """The three kinds on one screen."""
    with _explained():
        cluster = connect()
        where = None if everywhere else namespace or cluster.namespace
        found = status_text.Inventory(
            where,
            [run_of(item) for item in cluster.everything(TRAINING_RUN, where)],
            [version_of(item) for item in cluster.everything(MODEL_VERSION, where)],
            [pool_of(item) for item in cluster.everything(INFERENCE_POOL, where)],
        )
    _print(output, lambda: status_text.wire(found), lambda: status_text.render(found, now_utc()))


@app.command()
def explain(
    target: Annotated[str, typer.Argument(metavar="KIND/NAME", help="Such as trun/support-bot-2 or ipool/support.")],
    namespace: Namespace = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Why is it not Ready, and what can be done."""
    with _explained():
        cluster = connect()
        where = namespace or cluster.namespace
        found = find_named(cluster, where, target)
        events = cluster.events(found.resource, where, found.name)
    _print(
        output,
        lambda: explain_text.wire(found, events),
        lambda: explain_text.render(found, events, now_utc()),
    )


@rollout.command("status")
def rollout_status(pool: PoolName, namespace: Namespace = None, output: OutputOption = Output.TEXT) -> None:
    """Weights, step and verdicts."""
    with _explained():
        cluster = connect()
        found = find_pool(cluster, namespace or cluster.namespace, pool)
    _print(output, lambda: rollout_text.wire(found), lambda: rollout_text.render(found, now_utc()))


@rollout.command()
def watch(
    pool: PoolName,
    namespace: Namespace = None,
    every: Annotated[str, typer.Option(help="How often to look, such as 2s.")] = "2s",
    timeout: Annotated[str, typer.Option(help="Give up after, such as 30m.")] = "4h",
) -> None:
    """A line whenever something changes, until the rollout ends. Exit code 0 if it was promoted, else 1."""
    with _explained():
        interval, limit = _duration("--every", every), _duration("--timeout", timeout)
        cluster = connect()
        where = namespace or cluster.namespace
        shown = ""
        for found in _looks(lambda: find_pool(cluster, where, pool), interval, limit):
            line = rollout_text.progress_line(found)
            if line != shown:
                _out.print(Text(f"{now_utc():%H:%M:%S}  {line}"))
                shown = line
            ended = _ended(found)
            if ended is not None:
                raise typer.Exit(0 if ended else 1)
        raise CliError(f"the rollout of {pool} has not ended within --timeout {timeout}; it goes on without this watch")


@rollout.command()
def approve(pool: PoolName, namespace: Namespace = None) -> None:
    """Let the candidate become stable, where the pool waits for a person's word."""
    _ask(pool, namespace, lambda found: rollout_request.ask(found, RolloutRequest.APPROVE))


@rollout.command()
def pause(pool: PoolName, namespace: Namespace = None) -> None:
    """Keep the weights as they are until `resume`."""
    _ask(pool, namespace, lambda found: rollout_request.ask(found, RolloutRequest.PAUSE))


@rollout.command()
def resume(pool: PoolName, namespace: Namespace = None) -> None:
    """Take a pause back."""
    _ask(pool, namespace, rollout_request.resume)


@rollout.command()
def abort(pool: PoolName, namespace: Namespace = None) -> None:
    """Give all traffic back to the stable version. The pool's spec stays as it is."""
    _ask(pool, namespace, lambda found: rollout_request.ask(found, RolloutRequest.ABORT))


@rollout.command()
def retry(pool: PoolName, namespace: Namespace = None) -> None:
    """Try the wanted version again after a roll-back or an abort."""
    _ask(pool, namespace, lambda found: rollout_request.ask(found, RolloutRequest.RETRY))


def run_app() -> None:
    """Parse the arguments and run the command."""
    app()


def _ask(name: str, namespace: str | None, decide: Callable[[Pool], rollout_request.Change]) -> None:
    with _explained():
        cluster = connect()
        found = find_pool(cluster, namespace or cluster.namespace, name)
        change = decide(found)
        cluster.annotate(INFERENCE_POOL, found.namespace, found.name, ANNOTATION_ROLLOUT, change.value)
    _out.print(Text(f"asked: {change.effect}"))
    _out.print(Text(f"follow it with: sluice rollout watch {found.name} -n {found.namespace}", style="dim"))


def _ended(pool: Pool) -> bool | None:
    """True if the wanted version is stable, False if it was turned down, None while that is open."""
    status = pool.status
    if status.candidate is not None or pool.observed_generation < pool.generation:
        return None
    if status.stable is not None and status.stable.model_version == pool.spec.model_version:
        return True
    last = status.history[-1] if status.history else None
    if last is None or last.model_version != pool.spec.model_version or pool.annotations.get(ANNOTATION_ROLLOUT):
        return None
    return None if last.outcome is RolloutOutcome.SUPERSEDED else last.outcome is RolloutOutcome.PROMOTED


def _looks(look: Callable[[], Pool], interval: float, limit: float) -> Iterator[Pool]:
    end = time.monotonic() + limit
    while True:
        yield look()
        if time.monotonic() + interval > end:
            return
        time.sleep(interval)


def _duration(option: str, text: str) -> float:
    try:
        return seconds(text)
    except ValueError as error:
        raise CliError(f"{option}: {error}") from None


def _print(output: Output, data: Callable[[], dict[str, Any]], lines: Callable[[], Iterable[Text]]) -> None:
    if output is Output.JSON:
        sys.stdout.write(json.dumps(data(), indent=2, ensure_ascii=False) + "\n")
        return
    for line in lines():
        _out.print(line)


_out = Console(highlight=False, soft_wrap=True)
_err = Console(stderr=True, highlight=False, soft_wrap=True)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except CliError as error:
        _err.print(Text(f"error: {error}", style="red"))
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
