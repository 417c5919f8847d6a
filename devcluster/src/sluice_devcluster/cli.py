"""`sluice-dev`: the local cluster from the command line."""

import json
import os
import subprocess
import sys
import time
from enum import StrEnum
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from sluice_contracts.telemetry import switch_off

from sluice_devcluster import cluster
from sluice_devcluster.build import build as build_all
from sluice_devcluster.demo.cli import demo
from sluice_devcluster.errors import DevClusterError
from sluice_devcluster.places import State
from sluice_devcluster.programs import built_programs

app = typer.Typer(
    help="A real single-node Kubernetes on this machine, for development, the demo and the tests.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out = Console(highlight=False, soft_wrap=True)


class Output(StrEnum):
    """How a command prints its result."""

    TEXT = "text"
    JSON = "json"


class Steps:
    """Tells each step as it is reached, with the time since the start."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def __call__(self, step: str) -> None:
        out.print(f"[dim]{time.monotonic() - self._began:5.1f} s[/dim]  {step}")


@app.command()
def build() -> None:
    """Build or install what the cluster needs: programs from Go modules, runc and nftables, byte-code."""
    folder = build_all(Steps())
    out.print(f"Everything is built.  {folder}")


@app.command()
def up() -> None:
    """Start the cluster, or repair it; one that runs is left alone."""
    state = State.default()
    seconds = cluster.up(state, Steps())
    out.print(f"The cluster is up ({seconds:.0f} s).  export KUBECONFIG={state.kubeconfig}")


@app.command()
def down() -> None:
    """Stop the cluster and remove everything of it: pods, data, links, control groups, files."""
    cluster.down(State.default(), Steps())
    out.print("The cluster is down.")


@app.command()
def status(output: Annotated[Output, typer.Option("-o", "--output")] = Output.TEXT) -> None:
    """Say what runs. The exit status is 0 when the cluster is ready, 1 when it is not."""
    found = cluster.status(State.default())
    if output is Output.JSON:
        value = {
            "running": found.running,
            "ready": found.ready,
            "pid": found.pid,
            "kubeconfig": str(found.kubeconfig),
            "leftovers": list(found.leftovers),
            "checks": found.checks,
        }
        sys.stdout.write(json.dumps(value, indent=1) + "\n")
    else:
        word = "ready" if found.ready else "starting or broken" if found.running else "not running"
        table = Table("part", "ready", title=f"local cluster: {word}", title_justify="left")
        for name, good in found.checks.items():
            table.add_row(name, "yes" if good else "no")
        if found.checks:
            out.print(table)
            out.print(f"KUBECONFIG={found.kubeconfig}")
        else:
            out.print(f"The local cluster is {word}.")
        if found.leftovers:
            out.print(f"Left by an earlier one: {', '.join(found.leftovers)}; `sluice-dev down` removes them.")
    raise typer.Exit(0 if found.ready else 1)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def kubectl() -> None:
    """kubectl, on this cluster."""
    # Taken from the command line as it is: the parser would swallow the `--` of `kubectl exec`.
    arguments = sys.argv[sys.argv.index("kubectl") + 1 :]
    state = State.default()
    cluster.require_running(state)
    program = built_programs() / "kubectl"
    os.execve(program, ["kubectl", *arguments], os.environ | {"KUBECONFIG": str(state.kubeconfig)})


@app.command()
def logs(
    part: Annotated[str | None, typer.Argument(help="kubelet, etcd, …; without it, the parts are listed")] = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on as it grows.")] = False,
    lines: Annotated[int, typer.Option("-n", "--lines", min=1, max=100_000)] = 50,
) -> None:
    """Show the output of a part of the node. Pods' output: `sluice-dev kubectl logs`."""
    folder = State.default().logs
    parts = sorted(p.stem for p in folder.glob("*.log"))
    if not parts:
        raise DevClusterError(f"there are no logs in {folder}: the cluster has not been started")
    if part is None:
        out.print("\n".join(parts))
        return
    if part not in parts:
        raise DevClusterError(f"no part {part!r}; there are: {', '.join(parts)}")
    subprocess.run(["tail", f"--lines={lines}", *(["--follow"] if follow else []), f"{folder / part}.log"], check=False)


app.command()(demo)


def fail(message: str) -> NoReturn:
    """One clear line on the standard error, and status 1."""
    Console(stderr=True, highlight=False, soft_wrap=True, markup=False).print(f"sluice-dev: {message}")
    sys.exit(1)


def main() -> None:
    """The entry point of the console script."""
    switch_off()
    try:
        app()
    except DevClusterError as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail("interrupted; `sluice-dev up` or `down` repairs what was left half-way")


if __name__ == "__main__":
    main()
