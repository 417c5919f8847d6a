"""`sluice-dev demo`: plays the story and leaves a report. The exit code tells the truth."""

import os
import shutil
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from sluice_storage import StorageError

from sluice_devcluster.demo.device import Device
from sluice_devcluster.demo.ground import GroundError, ground
from sluice_devcluster.demo.play import play
from sluice_devcluster.demo.report import print_table, write_html
from sluice_devcluster.demo.steps import Screen, StoryError
from sluice_devcluster.demo.story import POOL, Story
from sluice_devcluster.demo.world import World
from sluice_devcluster.programs import built_programs

LOG_WIDTH = 120
"""Columns where the output goes to a file: there is no terminal to ask."""
DEVICE_PORT = 18093
"""Not the agent's own default, which may be in use by the agent of the machine's owner."""


def demo(
    output: Annotated[Path, typer.Option(help="Folder for logs, keys and the device's home.")] = Path("demo-output"),
    report: Annotated[Path, typer.Option(help="The page to write.")] = Path("demo-report.html"),
    keep: Annotated[bool, typer.Option(help="Leave the cluster running.")] = False,
) -> None:
    """Play the whole loop once, on real parts, and write a report."""
    # Imported here: matplotlib and the Kubernetes client would make every other command of `sluice-dev` slow to start.

    console = Console()
    if not console.is_terminal:
        console = Console(width=LOG_WIDTH)
    repository = _repository()
    try:
        where = ground(os.environ, repository)
    except GroundError as error:
        raise typer.BadParameter(str(error)) from None
    screen = Screen(console)
    programs = built_programs()
    world = World(
        repository=repository,
        output=_emptied(output.absolute()),
        ground=where,
        kubectl=programs / "kubectl",
        helm=programs / "helm",
        namespace="support",
    )
    if where.emulator:
        os.environ["STORAGE_EMULATOR_HOST"] = where.emulator
    story = Story(world, screen, Device(world, world.output / "device", DEVICE_PORT))
    begin = time.monotonic()
    failure: Exception | None = None
    try:
        with screen.showing():
            play(story)
    except (StoryError, StorageError) as error:
        failure = error
    finally:
        total = time.monotonic() - begin
        if where.local and not keep:
            world.run(["sluice-dev", "down"], deadline=120, check=False)
    print_table(console, story.facts, screen.steps, total)
    tolerances = {m["name"]: m["tolerance"] for m in story.example("inferencepool.yaml")["spec"]["rollout"]["metrics"]}
    write_html(report.absolute(), story.facts, screen.steps, total, tolerances)
    console.print(f"Report: {report}    Logs: {output}    Pool: {POOL}", highlight=False)
    if failure is not None:
        console.print(f"[red]The story went wrong:[/red] {failure}", highlight=False)
        raise typer.Exit(1)
    console.print("[green]Every turn went as promised.[/green]")


def _repository() -> Path:
    """The checkout this package is installed from: its charts and manifests are what the demo applies."""
    repository = Path(__file__).resolve().parents[4]
    if not (repository / "charts" / "sluice").is_dir():
        raise typer.BadParameter(f"{repository} is no checkout of Sluice: the demo applies its charts and manifests")
    return repository


def _emptied(folder: Path) -> Path:
    if folder.exists():
        if not (folder / "commands.log").exists() and any(folder.iterdir()):
            raise typer.BadParameter(f"{folder} holds other things; choose an empty folder with --output")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return folder
