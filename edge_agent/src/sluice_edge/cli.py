"""The command line: `sluice-edge …`."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from sluice_contracts.base import canonical_json
from sluice_contracts.names import Domain, Quantization, Task
from sluice_contracts.signal import Outcome

from sluice_edge import durable, slots
from sluice_edge.audit import AuditLog
from sluice_edge.errors import EdgeError
from sluice_edge.home import DEFAULT_PORT, AgentConfig, Home, first_problem, initialise

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Pulls a verified model onto this device and answers locally. Nothing you ask leaves it.",
)
signals_app = typer.Typer(no_args_is_help=True, help="What this device counts, and whether it may be shared.")
app.add_typer(signals_app, name="signals")
_out = Console(highlight=False, soft_wrap=True)
_err = Console(stderr=True, highlight=False, soft_wrap=True)


class Output(StrEnum):
    """How results are printed."""

    TEXT = "text"
    JSON = "json"


HomeOption = Annotated[
    Path, typer.Option("--home", envvar="SLUICE_HOME", help="The agent's folder.", show_default="~/.local/share/sluice")
]
OutputOption = Annotated[Output, typer.Option("--output", "-o", help="text or json.")]
DEFAULT_HOME = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share", "sluice")


@app.command()
def init(
    repository: Annotated[str, typer.Option(help="Where releases come from: https://…, http://… or file:///….")],
    root: Annotated[Path, typer.Option(help="The publisher's root.json: whom this device trusts.")],
    model: Annotated[str, typer.Option(help="The model to follow.")],
    home: HomeOption = DEFAULT_HOME,
    channel: Annotated[str, typer.Option(help="The channel to follow.")] = "stable",
    variant: Annotated[Quantization | None, typer.Option(help="Preferred quantisation.")] = None,
    cohort: Annotated[int | None, typer.Option(min=0, max=99, help="Fix the cohort number [default: random]")] = None,
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port of the local API.")] = DEFAULT_PORT,
    threads: Annotated[int, typer.Option(min=0, max=256, help="Threads of the engine; 0: it chooses.")] = 0,
    proxy: Annotated[str | None, typer.Option(help="Proxy for the puller.")] = None,
    upload_endpoint: Annotated[str | None, typer.Option(help="Where gs:// uploads of signals go.")] = None,
) -> None:
    """Make the agent's home on this device."""
    settings: dict[str, Any] = {
        "repository": repository.rstrip("/"),
        "model": model,
        "channel": channel,
        "port": port,
        "threads": threads,
        "proxy": proxy,
    }
    if variant is not None:
        default = AgentConfig.model_fields["prefer"].default
        settings["prefer"] = [variant, *(q for q in default if q is not variant)]
    if upload_endpoint is not None:
        settings["upload_endpoint"] = upload_endpoint
    with _explained():
        try:
            config = AgentConfig.model_validate(settings)
        except ValidationError as error:
            _fail(f"--{first_problem(error).replace('_', '-')}", code=2)
        try:
            trusted = root.read_bytes()
        except OSError as error:
            _fail(f"cannot read --root {root}: {error.strerror}; take root.json from the publisher", code=2)
        initialise(Home(home), config, trusted, cohort)
        _audit(Home(home)).append("init", repository=config.repository, model=model, channel=channel)
    _out.print(f"ready: {home} follows {model} in {channel}; next: sluice-edge sync")


@app.command()
def sync(
    home: HomeOption = DEFAULT_HOME,
    retry: Annotated[bool, typer.Option("--retry", help="Try versions again that failed on this device.")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Check the file in use and fetch what is damaged.")] = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Look for a new version; fetch what is missing of it, verify it, check it, take it into use."""
    from sluice_edge.pull.update import Sync
    from sluice_edge.pull.update import sync as run

    place = Home(home)
    with _explained():
        work = Sync(place, place.config(), _audit(place), lambda line: _err.print(line, style="dim"))
        receipt = run(work, retry=retry, repair=repair)
    if output is Output.JSON:
        typer.echo(json.dumps(receipt.wire()))
        return
    moved = receipt.bytes
    _out.print(f"{receipt.outcome}: {receipt.message}")
    _out.print(
        f"moved {moved.metadata:,} bytes of metadata and {moved.pieces:,} of pieces in {receipt.seconds:.1f} s "
        f"({moved.pieces_fetched} pieces fetched, {moved.reused} of {moved.pieces_total} were here)",
        style="dim",
    )


@app.command()
def status(home: HomeOption = DEFAULT_HOME, output: OutputOption = Output.TEXT) -> None:
    """Which version runs here, and where it came from."""
    from sluice_edge.receipt import device_receipt

    with _explained():
        receipt = device_receipt(Home(home))
    if output is Output.JSON:
        typer.echo(json.dumps(receipt.wire()))
        return
    table = _table()
    table.add_row("model", f"{receipt.model} ({receipt.channel}, cohort {receipt.cohort})")
    if receipt.installed is None:
        table.add_row("installed", "nothing yet; run sluice-edge sync")
    else:
        v = receipt.installed
        table.add_row(
            "installed", f"{v.version} {v.quantization}, {v.size:,} bytes, slot {v.slot}, since {v.installed_at}"
        )
        table.add_row("lineage", v.lineage)
        table.add_row("data, code", f"{v.dataset_run_id}, {v.git_sha}")
        table.add_row("file", v.sha256)
    if receipt.previous is not None:
        table.add_row("before", f"{receipt.previous.version} {receipt.previous.quantization}")
    if receipt.last_sync is not None:
        table.add_row("last sync", f"{receipt.last_sync.at} {receipt.last_sync.outcome}: {receipt.last_sync.message}")
    table.add_row("sharing", "counts, when you export them" if receipt.consent else "nothing")
    table.add_row("audit", f"{receipt.audit_entries} entries, head {receipt.audit_head}")
    _out.print(table)


@app.command()
def serve(
    home: HomeOption = DEFAULT_HOME,
    port: Annotated[int | None, typer.Option(min=0, max=65_535, help="Port on 127.0.0.1.")] = None,
    sync_every: Annotated[
        float | None, typer.Option(min=10, help="Also sync every so many seconds, in a process of its own.")
    ] = None,
) -> None:
    """Answer on 127.0.0.1 with an OpenAI-compatible API; take new versions into use as they are installed."""
    from sluice_edge.serve import serve as run

    place = Home(home)
    with _explained():
        config = place.config()
        if port is not None:
            config = config.model_copy(update={"port": port})
        run(place, config, _audit(place), lambda line: _err.print(line), sync_every)


@app.command()
def chat(
    question: Annotated[str, typer.Argument(help="What to ask; - reads it from standard input.")],
    home: HomeOption = DEFAULT_HOME,
    domain: Annotated[Domain, typer.Option(help="What it is about, for the counts.")] = Domain.GENERAL,
    task: Annotated[Task, typer.Option(help="Its form, for the counts.")] = Task.QUESTION,
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, max=1024, help="Longest answer.")] = 256,
    output: OutputOption = Output.TEXT,
) -> None:
    """Ask one question, through `serve` if it runs, else with an engine of its own."""
    from sluice_edge.ask import Question, ask

    place = Home(home)
    if question == "-":
        question = sys.stdin.read()
    with _explained():
        reply = ask(place, place.config(), Question(question, domain, task, max_tokens, system))
    if output is Output.JSON:
        typer.echo(json.dumps(reply.wire()))
    else:
        typer.echo(reply.answer)
        _err.print(f"{reply.version}, {reply.tokens} tokens in {reply.seconds:.2f} s; id {reply.id}", style="dim")


@app.command()
def feedback(
    answer_id: Annotated[str, typer.Argument(help="The id that `chat` printed.")],
    home: HomeOption = DEFAULT_HOME,
    outcome: Annotated[Outcome | None, typer.Option(help="How it ended for you.")] = None,
    feedback: Annotated[int, typer.Option(min=-1, max=1, help="-1, 0 or 1.")] = 0,
) -> None:
    """Say how good an answer was. Counted on this device only."""
    from sluice_edge.signals import Signals

    place = Home(home)
    with _explained():
        place.config()
        Signals(place).feedback(answer_id, feedback, outcome)
    _out.print("counted")


@app.command()
def rollback(home: HomeOption = DEFAULT_HOME) -> None:
    """Go back to the version before; the one in use is not taken again until `sync --retry` or a newer one comes."""
    place = Home(home)
    with _explained(), durable.exclusive(place.sync_lock, "a sync is running in this home; wait for it"):
        place.config()
        given_up = slots.current(place).version
        before = slots.go_back(place, "rolled back by hand")
        _audit(place).append("rollback", version=given_up.version, sha256=given_up.sha256, to=before.version)
    _out.print(f"back to {before.version}")


@app.command("verify-offline")
def verify_offline(
    home: HomeOption = DEFAULT_HOME,
    question: Annotated[str | None, typer.Option(help="What to ask inside.")] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Prove that answers need no network: run everything where there is none, and check that the check works."""
    from sluice_edge.offline import verify

    place = Home(home)
    with _explained():
        proof = verify.verify_offline(place, question or verify.QUESTION)
        _audit(place).append("verify-offline", proven=not proof.problems, attempts=len(proof.inside))
    if output is Output.JSON:
        typer.echo(json.dumps(proof.wire()))
    else:
        table = _table()
        table.add_row("outside (control)", f"{proof.control.what}: {proof.control.result}")
        table.add_row("inside: interfaces", ", ".join(proof.inside_interfaces))
        for attempt in proof.inside:
            table.add_row(f"inside: {attempt.what}", f"{attempt.target}: {attempt.result}")
        table.add_row("inside: answered", f"{proof.tokens} tokens in {proof.seconds:.1f} s by {proof.version}")
        _out.print(table)
    if proof.problems:
        _fail("not proven: " + "; ".join(proof.problems))
    if output is Output.TEXT:
        _out.print("proven: this device answers without any network")


@app.command()
def audit(home: HomeOption = DEFAULT_HOME, output: OutputOption = Output.TEXT) -> None:
    """Show the log of what happened on this device, and check that nobody changed it."""
    place = Home(home)
    with _explained():
        log = _audit(place)
        verdict = log.verify()
    if output is Output.JSON:
        body = {"entries": verdict.entries, "head": verdict.head, "problem": verdict.problem}
        typer.echo(json.dumps(body))
    else:
        table = Table(box=None, pad_edge=False)
        for heading in ("", "when", "what", "facts"):
            table.add_column(heading)
        for number, entry in enumerate(log.entries(), 1):
            if number > verdict.entries:
                break
            facts = " ".join(f"{k}={_short(v)}" for k, v in entry["facts"].items())
            table.add_row(str(entry["seq"]), entry["at"], entry["event"], facts)
        _out.print(table)
    if verdict.problem:
        _fail(f"{place.audit}: {verdict.problem}")
    if output is Output.TEXT:
        _out.print(f"{verdict.entries} entries hold together; head {verdict.head}")


@signals_app.command("consent")
def signals_consent(
    choice: Annotated[str, typer.Argument(help="on or off.")],
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Whether counts may leave this device when you export them."""
    from sluice_edge.signals import Signals

    if choice not in {"on", "off"}:
        _fail(f"{choice!r}: say on or off", code=2)
    place = Home(home)
    with _explained():
        place.config()
        Signals(place).consent = choice == "on"
        _audit(place).append("consent", on=choice == "on")
    _out.print(f"sharing is {choice}")


@signals_app.command("show")
def signals_show(home: HomeOption = DEFAULT_HOME, output: OutputOption = Output.TEXT) -> None:
    """Everything that an export would hold."""
    from sluice_edge.signals import Signals

    place = Home(home)
    with _explained():
        place.config()
        signals = Signals(place)
        cells, consent = signals.cells(), signals.consent
    if output is Output.JSON:
        typer.echo(json.dumps({"consent": consent, "cells": [c.wire() for c in cells]}))
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("domain", "task", "outcome", "feedback", "latency", "tokens", "count", "lineage"):
        table.add_column(heading)
    for c in cells:
        table.add_row(c.domain, c.task, c.outcome, str(c.feedback), c.latency, c.tokens, str(c.count), c.lineage[:12])
    _out.print(table)
    _out.print(f"sharing is {'on' if consent else 'off'}")


@signals_app.command("export")
def signals_export(
    home: HomeOption = DEFAULT_HOME,
    upload: Annotated[str | None, typer.Option(help="gs://bucket/prefix, https://host/path or file:///folder.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the batch to a file instead.")] = None,
    token_file: Annotated[Path | None, typer.Option(help="File with a bearer token for the upload.")] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Hand out the counts as one batch with a random id. Needs consent."""
    from sluice_edge.pull.upload import upload as send
    from sluice_edge.signals import Signals

    if (upload is None) == (out is None):
        _fail("say either --upload URI or --out FILE", code=2)
    place = Home(home)
    with _explained():
        config = place.config()
        sent: list[dict[str, str | int]] = []
        for batch in Signals(place).pack(config.model):
            if out is not None:
                target = out if not sent else out.with_name(f"{out.stem}-{len(sent) + 1}{out.suffix}")
                durable.write(target, batch.read_bytes(), 0o644)
                where = str(target)
            else:
                assert upload is not None
                token = token_file.read_text().strip() if token_file is not None else None
                where = send(batch, upload, endpoint=config.upload_endpoint, proxy=config.proxy, token=token)
            size = batch.stat().st_size
            batch.unlink()
            sent.append({"batchId": batch.stem, "uri": where, "bytes": size})
            _audit(place).append("export", batch=batch.stem, bytes=size)
    if output is Output.JSON:
        typer.echo(canonical_json({"batches": sent}).decode())
    elif sent:
        for item in sent:
            _out.print(f"{item['bytes']:,} bytes of counts -> {item['uri']}")
    else:
        _out.print("nothing was counted since the last export")


def _audit(home: Home) -> AuditLog:
    return AuditLog(home.audit, home.device().audit_key)


def _table() -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    return table


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 28 else text[:25] + "…"


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except EdgeError as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename or 'input/output'}: {error.strerror or error}")


def _fail(message: str, code: int = 1) -> NoReturn:
    _err.print(f"error: {message}", style="red", markup=False)
    raise typer.Exit(code)


def main() -> None:
    """Entry point."""
    app()
