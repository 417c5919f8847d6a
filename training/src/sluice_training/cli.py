"""`sluice-train`: build a dataset, run a training job, evaluate a model, publish a version."""

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from sluice_contracts.names import Suite
from sluice_contracts.telemetry import switch_off
from sluice_storage import StorageError

from sluice_training.errors import InvalidInputError
from sluice_training.publish.cli import app as publish_app

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Datasets, training, evaluation, publishing.")
dataset_app = typer.Typer(no_args_is_help=True, help="Build distillation datasets.")
app.add_typer(dataset_app, name="dataset")
app.add_typer(publish_app, name="publish")
_out = Console(highlight=False)
_err = Console(stderr=True, highlight=False, soft_wrap=True)


class Output(StrEnum):
    """How results are printed."""

    TEXT = "text"
    JSON = "json"


OutputOption = Annotated[Output, typer.Option("--output", "-o", help="text or json.")]


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except (InvalidInputError, StorageError) as error:
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    _err.print(f"error: {message}", style="red", markup=False)
    raise typer.Exit(1)


@dataset_app.command("build")
def dataset_build(
    config: Annotated[Path, typer.Option(help="YAML file that says what to make.")],
    out: Annotated[str, typer.Option(help="Storage URI, such as gs://bucket: the dataset goes below it.")],
    signals: Annotated[str | None, typer.Option(help="URI of a folder of signal batches from devices.")] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Make train, val and test files, a quality report and a manifest. The same inputs make the same bytes."""
    from sluice_training.dataset.build import build, write
    from sluice_training.dataset.config import load_config
    from sluice_training.dataset.signals import Evidence, read_batches, weigh

    with _explained():
        wanted = load_config(config)
        evidence = weigh(read_batches(signals), wanted.signals) if signals else Evidence()
        dataset = build(wanted, evidence)
        written = write(dataset, out)
    manifest = dataset.manifest
    if output is Output.JSON:
        _print_json(
            {
                "runId": written.run_id,
                "uri": written.uri,
                "digest": written.digest,
                "rows": written.rows,
                "duplicatesRemoved": manifest.duplicates_removed,
                "signalBatches": manifest.signal_batches,
                "weights": [w.wire() for w in manifest.weights],
            }
        )
        return
    _out.print(f"run id   {written.run_id}")
    _out.print(f"uri      {written.uri}")
    _out.print(f"digest   {written.digest}")
    rows = ", ".join(f"{name} {n}" for name, n in written.rows.items())
    _out.print(f"rows     {rows} ({manifest.duplicates_removed} duplicates removed)")
    for weight in manifest.weights:
        _out.print(f"weight   {weight.domain} x {weight.factor:g} ({weight.reason})")


@app.command()
def job(
    config: Annotated[Path, typer.Option(help="run.json, as the operator writes it.")],
    local: Annotated[bool, typer.Option(help="Train in this process, without Ray.")] = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Train, evaluate, gate, export, prove parity, write the manifest. Started again, it goes on where it was."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch loads: threads that spin starve a shared CPU
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr)
    from sluice_training.job.inputs import load_config
    from sluice_training.job.run import run_job

    with _explained():
        outcome = run_job(load_config(config), on_ray=not local)
    if output is Output.JSON:
        _print_json(outcome.wire())
    else:
        _out.print(f"{outcome.result}: {outcome.message}", markup=False)


@app.command()
def evaluate(
    model: Annotated[Path, typer.Option(help="Model folder in Hugging Face's layout.")],
    suites: Annotated[list[Suite] | None, typer.Option("--suite", help="Suite to run; repeat for more.")] = None,
    examples: Annotated[int, typer.Option(min=20, max=100_000, help="Held-out examples a suite.")] = 400,
    answers: Annotated[Path | None, typer.Option(help="Write each question, answer and expectation here.")] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Ask a model the held-out questions and print its metrics."""
    from sluice_training.evaluate.run import evaluate as run
    from sluice_training.evaluate.suites import cases
    from sluice_training.model import files

    wanted = suites or list(Suite)
    with _explained():
        loaded, tokenizer = files.load(model)
    found = run(loaded, tokenizer, wanted, examples)
    if answers is not None:
        with answers.open("w", encoding="utf-8") as file:
            for case in (case for suite in wanted for case in cases(suite, examples)):
                line = {
                    "id": case.id,
                    "domain": case.row.domain,
                    "question": case.row.messages[-2].content,
                    "expected": case.expected,
                    "answer": found.answers[case.id],
                }
                file.write(json.dumps(line) + "\n")
    if output is Output.JSON:
        _print_json([suite.wire() for suite in found.suites])
        return
    table = Table("metric", "slice", "value", "95 % interval", "n")
    for suite in found.suites:
        for m in suite.metrics:
            table.add_row(m.metric, m.slice or "all", f"{m.value:.3f}", f"{m.low:.3f} – {m.high:.3f}", str(m.n))
    _out.print(table)


def _print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=1) + "\n")


def main() -> None:
    """Entry point."""
    switch_off()
    app()
