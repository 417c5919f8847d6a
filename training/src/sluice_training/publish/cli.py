"""`sluice-train publish …`: the repository that devices read."""

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from sluice_contracts.base import DIGEST_PATTERN, NAME_PATTERN
from sluice_storage import StorageError, open_store, write_bytes

from sluice_training.dataset.signals import read_batches
from sluice_training.errors import InvalidInputError
from sluice_training.publish import health as health_
from sluice_training.publish import release as releases
from sluice_training.publish import repository
from sluice_training.publish import retire as retirement
from sluice_training.publish.errors import PublishError

app = typer.Typer(no_args_is_help=True, help="Sign versions and lay them out for devices.")
_out = Console(highlight=False)
_err = Console(stderr=True, highlight=False)
TERMINATION_LOG = Path("/dev/termination-log")
"""Where Kubernetes reads a container's last words."""


class Output(StrEnum):
    """How results are printed."""

    TEXT = "text"
    JSON = "json"


Repository = Annotated[str, typer.Option("--repository", help="gs://bucket/prefix or file:///folder.")]
Keys = Annotated[Path, typer.Option(help="Folder of the signing keys.")]
OutputOption = Annotated[Output, typer.Option("--output", "-o", help="text or json.")]


@app.command()
def init(
    repository_uri: Repository,
    keys: Keys,
    root_keys: Annotated[int, typer.Option(help="How many root keys to make.")] = 1,
    threshold: Annotated[int, typer.Option(help="How many of them must sign a new root.")] = 1,
) -> None:
    """Make an empty repository and its keys. Run once, by a person, away from the cluster."""
    with _explained():
        root = repository.create(
            open_store(repository_uri), keys, root_keys=root_keys, threshold=threshold, now=datetime.now(UTC)
        )
        (keys / "root.json").write_bytes(root)
    _out.print(f"repository  {repository_uri}")
    _out.print(f"keys        {keys} (keep root*.pem offline; the cluster needs targets, snapshot, timestamp)")
    _out.print(f"devices     sluice-edge init --root {keys / 'root.json'} …")


@app.command()
def release(
    manifest: Annotated[str, typer.Option(help="URI of the version's manifest.json.")],
    digest: Annotated[str, typer.Option(help="Its digest, sha256:….")],
    repository_uri: Repository,
    keys: Keys,
    version: Annotated[str, typer.Option(help="The version's name.")],
    channel: Annotated[str, typer.Option(help="Devices follow one channel.")] = "stable",
    percent: Annotated[int, typer.Option(min=0, max=100, help="Share of devices it is for.")] = 100,
    piece_size: Annotated[int | None, typer.Option(min=1024, max=67_108_864, help="Bytes of a piece.")] = None,
    termination_file: Annotated[
        Path | None, typer.Option(help=f"Where the result goes for Kubernetes [default: {TERMINATION_LOG} if there]")
    ] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Publish a version's device files, or change the share of devices it is for."""
    if not re.match(DIGEST_PATTERN, digest):
        _fail(f"--digest {digest!r} is no digest; expected sha256: and 64 hexadecimal digits", code=2)
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,31}", channel):
        _fail(f"--channel {channel!r}: use lower-case letters, digits and dashes, such as stable", code=2)
    wish = releases.Wish(manifest, digest, channel, version, percent, piece_size)
    with _explained(termination_file):
        result = releases.publish_release(
            open_store(repository_uri),
            keys,
            _anchor(keys),
            wish,
            datetime.now(UTC),
            lambda line: _err.print(line, style="dim"),
        )
    _last_words(termination_file, {"tufVersion": result.tuf_version})
    if output is Output.JSON:
        typer.echo(json.dumps(result.wire()))
    elif result.changed:
        _out.print(
            f"published {version} to {percent} % of {channel} as targets version {result.tuf_version} "
            f"({result.pieces_uploaded} of {result.pieces_total} pieces, {result.bytes_uploaded:,} bytes uploaded)"
        )
    else:
        _out.print(f"{version} is already published to {percent} % of {channel} (targets version {result.tuf_version})")


@app.command()
def refresh(
    repository_uri: Repository,
    keys: Keys,
) -> None:
    """Sign anew what would expire. Run at least every few days: a timestamp holds for seven."""
    with _explained():
        store = open_store(repository_uri)
        state = repository.load(store, _anchor(keys))
        signers = repository.load_signers(keys, state.root.signed)
        renewed = repository.refresh(store, state, signers, now=datetime.now(UTC))
    _out.print(
        f"signed anew: {', '.join(renewed)}; timestamp holds until {state.timestamp.signed.expires:%Y-%m-%d %H:%M} UTC"
    )


@app.command()
def yank(
    repository_uri: Repository,
    keys: Keys,
    model: Annotated[str, typer.Option(help="The model.")],
    channel: Annotated[str, typer.Option(help="The channel.")] = "stable",
    version: Annotated[str | None, typer.Option(help="Only if this is the version offered.")] = None,
) -> None:
    """Withdraw a release: no further device updates to it; those that have it keep running it."""
    with _explained():
        result = releases.withdraw(
            open_store(repository_uri),
            keys,
            _anchor(keys),
            channel=channel,
            model=model,
            version=version,
            now=datetime.now(UTC),
        )
    if result.changed:
        _out.print(f"withdrew {model} from {channel} (targets version {result.tuf_version})")
    else:
        what = f"{model} {version}" if version else model
        _out.print(f"{channel} does not offer {what}; nothing to withdraw")


@app.command()
def health(
    signals: Annotated[str, typer.Option(help="Folder of the batches that devices sent: gs://… or file:///….")],
    model: Annotated[str, typer.Option(help="The model.")],
    out: Annotated[str, typer.Option(help="Where the report goes, such as gs://bucket/health/MODEL.json.")],
    output: OutputOption = Output.TEXT,
) -> None:
    """Add device signals up to the health report that `publish.health.report` of a ModelVersion names."""
    if not re.fullmatch(NAME_PATTERN, model):
        _fail(f"--model {model!r}: use a model's name, such as support-bot", code=2)
    with _explained():
        report = health_.summarise(read_batches(signals), model, datetime.now(UTC))
        write_bytes(out, report.canonical())
    if output is Output.JSON:
        typer.echo(json.dumps(report.wire()))
        return
    _out.print(f"{report.batches} batches of {model}, the newest of {report.last_day or 'no day'}; written to {out}")
    for v in report.versions:
        share = f"{v.failures / v.requests:.1%}"
        _out.print(f"{v.lineage[:16]}  {v.failures} of {v.requests} requests failed ({share}), {v.batches} batches")


@app.command()
def retire(
    manifest: Annotated[str, typer.Option(help="URI of the version's manifest.json.")],
    digest: Annotated[str, typer.Option(help="Its digest, sha256:….")],
) -> None:
    """Delete a version's weights, device files and checkpoints; manifest and reports stay. The operator runs this when
    nothing uses the version any more: nothing here asks whether that is so."""
    if not re.match(DIGEST_PATTERN, digest):
        _fail(f"--digest {digest!r} is no digest; expected sha256: and 64 hexadecimal digits", code=2)
    with _explained():
        found = retirement.retire(manifest, digest)
    _last_words(None, {"files": found.files, "bytes": found.bytes})
    _out.print(retirement.described(found, manifest))


def _anchor(keys: Path) -> bytes | None:
    path = keys / "root.json"
    return path.read_bytes() if path.exists() else None


@contextmanager
def _explained(termination_file: Path | None = None) -> Iterator[None]:
    logging.getLogger("tuf").setLevel(logging.CRITICAL)  # its failed signatures come as our own errors
    try:
        yield
    except (PublishError, InvalidInputError, StorageError) as error:
        _last_words(termination_file, {"error": str(error)[:2000]})
        _fail(str(error))
    except OSError as error:
        _last_words(termination_file, {"error": str(error)[:2000]})
        _fail(f"{error.filename or 'input/output'}: {error.strerror or error}")


def _last_words(file: Path | None, words: dict[str, object]) -> None:
    file = file or (TERMINATION_LOG if TERMINATION_LOG.exists() else None)
    if file is not None:
        file.write_text(json.dumps(words))


def _fail(message: str, code: int = 1) -> NoReturn:
    _err.print(f"error: {message}", style="red", soft_wrap=True)
    raise typer.Exit(code)
