"""`sluice`: the commands, each reading, deciding with the pure modules beside this one, and printing."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.live import Live
from rich.text import Text

from sluice_operator.cli import explain_text, status_text, terminal, top_text
from sluice_operator.cli.errors import CliError
from sluice_operator.cli.find import find_named
from sluice_operator.cli.lineage.chain import LinkOf, chain
from sluice_operator.cli.lineage.delivered import devices, release
from sluice_operator.cli.lineage.gather import gather
from sluice_operator.cli.lineage.judged import canary, evaluation, parity
from sluice_operator.cli.lineage.made import base, dataset, manifest, run, signal
from sluice_operator.cli.lineage.text import render as render_chain
from sluice_operator.cli.logs import pods_of, said
from sluice_operator.cli.objects import pool_of, run_of, version_of
from sluice_operator.cli.pods import Part, choose, list_pods, tags, wire_pods
from sluice_operator.cli.rollout_app import rollout
from sluice_operator.cli.terminal import Namespace, Output, OutputOption
from sluice_operator.cli.text import now_utc
from sluice_operator.cli.top import activities
from sluice_operator.kube.resources import INFERENCE_POOL, MODEL_VERSION, TRAINING_RUN

LINKS: tuple[LinkOf, ...] = (signal, dataset, base, run, manifest, evaluation, parity, canary, release, devices)
"""A model's life, in order."""
PLUGIN = "kubectl-sluice"
"""The name under which kubectl finds this program as `kubectl sluice`."""

app = typer.Typer(
    help="Where a model comes from, how it does, and why something is not ready. Also as `kubectl sluice`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(rollout, name="rollout")

Target = Annotated[str, typer.Argument(metavar="KIND/NAME", help="Such as trun/support-bot-2 or ipool/support.")]
Everywhere = Annotated[bool, typer.Option("--all-namespaces", "-A", help="All namespaces.")]


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
    with terminal.explained():
        cluster = terminal.connect()
        environment = cluster.operator_environment()
        if not os.environ.get("STORAGE_EMULATOR_HOST") and environment.get("STORAGE_EMULATOR_HOST"):
            os.environ["STORAGE_EMULATOR_HOST"] = environment["STORAGE_EMULATOR_HOST"]
        uri = releases or environment.get("SLUICE_RELEASES_URI")
        found = chain(gather(cluster, namespace or cluster.namespace, name, uri, device or []), LINKS)
        terminal.show(output, lambda: found.wire(), lambda: render_chain(found))
        if found.broken:
            raise typer.Exit(1)


@app.command()
def status(namespace: Namespace = None, everywhere: Everywhere = False, output: OutputOption = Output.TEXT) -> None:
    """The three kinds on one screen."""
    with terminal.explained():
        cluster = terminal.connect()
        where = None if everywhere else namespace or cluster.namespace
        found = status_text.Inventory(
            where,
            [run_of(item) for item in cluster.everything(TRAINING_RUN, where)],
            [version_of(item) for item in cluster.everything(MODEL_VERSION, where)],
            [pool_of(item) for item in cluster.everything(INFERENCE_POOL, where)],
        )
        terminal.show(output, lambda: status_text.wire(found), lambda: status_text.render(found, now_utc()))


@app.command()
def explain(target: Target, namespace: Namespace = None, output: OutputOption = Output.TEXT) -> None:
    """Why is it not Ready, and what can be done."""
    with terminal.explained():
        cluster = terminal.connect()
        where = namespace or cluster.namespace
        found = find_named(cluster, where, target)
        events = cluster.events(found.resource, where, found.name)
        try:
            pods = pods_of(cluster, found)
        except CliError as error:  # whoever may not list pods still wants to know the rest
            pods = []
            terminal.note(f"{error}")
        terminal.show(
            output,
            lambda: explain_text.wire(found, events, pods),
            lambda: explain_text.render(found, events, pods, now_utc()),
        )


@app.command()
def logs(
    target: Target,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes.")] = False,
    tail: Annotated[int, typer.Option(min=0, max=100_000, help="Last lines of each pod.")] = 50,
    part: Annotated[Part | None, typer.Option(help="Only pods of this part.")] = None,
    pod: Annotated[str | None, typer.Option(help="Only this pod.")] = None,
    raw: Annotated[bool, typer.Option("--containers", help="What containers print, nothing of Ray's.")] = False,
    which: Annotated[bool, typer.Option("--list", "-l", help="Only say which pods there are.")] = False,
    namespace: Namespace = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """What a run's job, a pool's engines and gateways, or a version's publisher say.

    Each line begins with its pod's name where there are several. Jobs and engines are processes of Ray, which is asked
    for their output; --containers shows Ray's own start instead.
    """
    with terminal.explained():
        cluster = terminal.connect()
        where = namespace or cluster.namespace
        found = find_named(cluster, where, target)
        there = pods_of(cluster, found)
        if which:
            there = choose(there, found, part, pod, most=len(there))
            terminal.show(output, lambda: {"pods": wire_pods(there)}, lambda: list_pods(there, now_utc()))
            return
        chosen = choose(there, found, part, pod)
        for waiting in (p for p in chosen if not p.started):
            terminal.note(f"{waiting.name} has not started: {waiting.state}{waiting.why and ': ' + waiting.why}")
        started = [p for p in chosen if p.started]
        lines = said(cluster, found, started, tail, follow, raw, terminal.note)
        tag = tags(started)
        for line in lines:
            if output is Output.JSON:
                terminal.say_json(line.wire())
            elif len(tag) > 1:
                terminal.say(Text.assemble((f"{tag[line.pod]}  ", "cyan"), line.text))
            else:
                terminal.say(line.text)


@app.command()
def top(
    namespace: Namespace = None,
    everywhere: Everywhere = False,
    every: Annotated[str, typer.Option(help="How often to look, such as 2s.")] = "2s",
    limit: Annotated[str, typer.Option("--for", help="End after, such as 10m.")] = "30m",
    once: Annotated[bool, typer.Option("--once", help="One table; always so where stdout is no terminal.")] = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Runs in training and pools that serve: step, loss, time left, traffic, request rates.

    Rates are what the gateways counted between two looks, so even one table takes --every.
    """
    with terminal.explained():
        interval, longest = terminal.duration("--every", every), terminal.duration("--for", limit)
        cluster = terminal.connect()
        where = None if everywhere else namespace or cluster.namespace
        found = activities(cluster, where, interval, longest)
        if once or output is Output.JSON or not terminal.out.is_terminal:
            first = next(found)
            activity = next(found, first) if first.pools else first
            terminal.show(output, lambda: top_text.wire(activity), lambda: top_text.render(activity, now_utc()))
            return
        with Live(console=terminal.out, auto_refresh=False) as live:
            for activity in found:
                live.update(Text("\n").join(top_text.render(activity, now_utc())), refresh=True)


def run_app() -> None:
    """Parse the arguments and run the command. Usage lines say `kubectl sluice` where kubectl started it."""
    app(prog_name="kubectl sluice" if Path(sys.argv[0]).name == PLUGIN else "sluice")
