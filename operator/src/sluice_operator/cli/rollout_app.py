"""`sluice rollout …`: see and steer the rollout of a pool's next version."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text
from sluice_contracts.base import timestamp
from sluice_contracts.inference_pool import RolloutOutcome
from sluice_contracts.names import ANNOTATION_ROLLOUT, RolloutRequest

from sluice_operator.cli import rollout_request, rollout_text, terminal
from sluice_operator.cli.errors import CliError
from sluice_operator.cli.find import find_pool
from sluice_operator.cli.objects import Pool
from sluice_operator.cli.plot.files import read_recording, write_picture
from sluice_operator.cli.plot.picture import picture
from sluice_operator.cli.plot.svg import draw
from sluice_operator.cli.terminal import Namespace, Output, OutputOption, PoolName
from sluice_operator.cli.text import now_utc
from sluice_operator.kube.resources import INFERENCE_POOL

rollout = typer.Typer(help="See and steer the rollout of a pool's next version.", no_args_is_help=True)


@rollout.command("status")
def rollout_status(pool: PoolName, namespace: Namespace = None, output: OutputOption = Output.TEXT) -> None:
    """Weights, step and verdicts."""
    with terminal.explained():
        cluster = terminal.connect()
        found = find_pool(cluster, namespace or cluster.namespace, pool)
        terminal.show(output, lambda: rollout_text.wire(found), lambda: rollout_text.render(found, now_utc()))


@rollout.command()
def watch(
    pool: PoolName,
    namespace: Namespace = None,
    every: Annotated[str, typer.Option(help="How often to look, such as 2s.")] = "2s",
    timeout: Annotated[str, typer.Option(help="Give up after, such as 30m.")] = "4h",
    output: OutputOption = Output.TEXT,
) -> None:
    """A line whenever something changes, until the rollout ends. Exit code 0 if it was promoted, else 1.

    With -o json each line is an object; `sluice rollout plot --from FILE` draws them.
    """
    with terminal.explained():
        interval, limit = terminal.duration("--every", every), terminal.duration("--timeout", timeout)
        cluster = terminal.connect()
        where = namespace or cluster.namespace
        shown = ""
        for found in terminal.looks(lambda: find_pool(cluster, where, pool), interval, limit):
            line, now = rollout_text.progress_line(found), now_utc()
            if line != shown and output is Output.JSON:
                terminal.say_json({"at": timestamp(now), **rollout_text.wire(found)})
            elif line != shown:
                terminal.say(f"{now:%H:%M:%S}  {line}")
            shown = line
            ended = _ended(found)
            if ended is not None:
                raise typer.Exit(0 if ended else 1)
        raise CliError(f"the rollout of {pool} has not ended within --timeout {timeout}; it goes on without this watch")


@rollout.command()
def approve(pool: PoolName, namespace: Namespace = None, output: OutputOption = Output.TEXT) -> None:
    """Let the candidate become stable, where the pool waits for a person's word."""
    _ask(pool, namespace, output, lambda found: rollout_request.ask(found, RolloutRequest.APPROVE))


@rollout.command()
def pause(pool: PoolName, namespace: Namespace = None, output: OutputOption = Output.TEXT) -> None:
    """Keep the weights as they are until `resume`."""
    _ask(pool, namespace, output, lambda found: rollout_request.ask(found, RolloutRequest.PAUSE))


@rollout.command()
def resume(pool: PoolName, namespace: Namespace = None, output: OutputOption = Output.TEXT) -> None:
    """Take a pause back."""
    _ask(pool, namespace, output, rollout_request.resume)


@rollout.command()
def abort(pool: PoolName, namespace: Namespace = None, output: OutputOption = Output.TEXT) -> None:
    """Give all traffic back to the stable version. The pool's spec stays as it is."""
    _ask(pool, namespace, output, lambda found: rollout_request.ask(found, RolloutRequest.ABORT))


@rollout.command()
def retry(pool: PoolName, namespace: Namespace = None, output: OutputOption = Output.TEXT) -> None:
    """Try the wanted version again after a roll-back or an abort."""
    _ask(pool, namespace, output, lambda found: rollout_request.ask(found, RolloutRequest.RETRY))


@rollout.command()
def plot(
    pool: PoolName,
    file: Annotated[Path, typer.Option(help="Where to write: .svg, or .png if rsvg-convert is installed.")],
    recording: Annotated[
        Path | None, typer.Option("--from", help="Draw what `sluice rollout watch -o json > FILE` recorded.")
    ] = None,
    namespace: Namespace = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Weights over the steps; each metric with its interval, its tolerance and its verdict.

    The pool's status has the present verdicts and how the last rollouts ended. For curves over a whole rollout, record
    it with `watch` and give the file to --from.
    """
    with terminal.explained():
        cluster = terminal.connect()
        found = find_pool(cluster, namespace or cluster.namespace, pool)
        recorded = read_recording(recording, found.name) if recording is not None else []
        drawn = picture(found, recorded, now_utc())
        write_picture(draw(drawn), file)
        facts = {"file": str(file), "pool": found.name, "namespace": found.namespace, "looks": len(recorded)}
        terminal.show(output, lambda: facts, lambda: [Text(f"wrote {file}: {drawn.title}")])


def _ask(name: str, namespace: str | None, output: Output, decide: Callable[[Pool], rollout_request.Change]) -> None:
    with terminal.explained():
        cluster = terminal.connect()
        found = find_pool(cluster, namespace or cluster.namespace, name)
        change = decide(found)
        cluster.annotate(INFERENCE_POOL, found.namespace, found.name, ANNOTATION_ROLLOUT, change.value)
        facts = {
            "pool": found.name,
            "namespace": found.namespace,
            "annotation": {ANNOTATION_ROLLOUT: change.value},
            "effect": change.effect,
        }
        watch_it = f"follow it with: sluice rollout watch {found.name} -n {found.namespace}"
        lines = [Text(f"asked: {change.effect}"), Text(watch_it, style="dim")]
        terminal.show(output, lambda: facts, lambda: lines)


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
