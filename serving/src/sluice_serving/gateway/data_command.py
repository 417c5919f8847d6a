"""`sluice-data`: keys for tenants' files, and what is kept of users, from the gateway's own settings.

Runs in a gateway's pod (`kubectl exec`) or wherever its database and pseudonym key are at hand.
"""

import asyncio
import json
import os
import secrets
import sys
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, NoReturn

import typer
from sluice_contracts.base import seconds
from sluice_contracts.drift import Drift

from sluice_serving.gateway.contexts import ContextStore
from sluice_serving.gateway.data_api import export_lines
from sluice_serving.gateway.database import Database, DatabaseDown, DataRefused, open_database
from sluice_serving.gateway.drift.cells import is_day
from sluice_serving.gateway.drift.reading import NoCounts, UnknownPool, drift_report
from sluice_serving.gateway.drift.report import as_json, as_text
from sluice_serving.gateway.pseudonyms import pseudonym_key
from sluice_serving.gateway.records import expire, forget, pseudonym
from sluice_serving.gateway.settings import Settings, SettingsError, read_data_settings
from sluice_serving.gateway.tenants import KeyEntry, key_digest

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)

Tenant = Annotated[str, typer.Option(help="Whose user.")]
User = Annotated[str, typer.Option(help="As the application names the user in requests.")]


def main() -> None:
    """The command's entry point."""
    app()


@app.command()
def key(
    identity: Annotated[str, typer.Option("--id", help="Names the key in logs and records.")],
    admin: Annotated[bool, typer.Option(help="May export and delete what is kept of the tenant's users.")] = False,
) -> None:
    """Make a key. It is shown once, on stderr; what belongs into the tenant's file goes to stdout."""
    secret = f"sk-{secrets.token_urlsafe(32)}"
    try:
        entry = KeyEntry(id=identity, digest=key_digest(secret), admin=admin)
    except ValueError:
        _fail(f"--id {identity!r}: expected lower-case letters, digits, '-', '_' and '.', at most 64")
    typer.echo(f"key, shown only now: {secret}", err=True)
    typer.echo(json.dumps(entry.model_dump(mode="json", by_alias=True, exclude_defaults=True)))


@app.command()
def export(tenant: Tenant, user: User) -> None:
    """Write all that is kept of a user to stdout, one JSON object a line. A whole export ends with `end`."""

    async def work(database: Database, name: str) -> None:
        context = await ContextStore(database, 1).read(tenant, name)
        async for line in export_lines(database, tenant, name, context):
            sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()

    _with_user(tenant, user, work)


@app.command()
def delete(tenant: Tenant, user: User) -> None:
    """Delete all that is kept of a user: records, contents and context. Also what gateways still have on disk."""

    async def work(database: Database, name: str) -> None:
        deleted = await forget(database, tenant, name, datetime.now(UTC))
        typer.echo(json.dumps({"deleted": deleted}))

    _with_user(tenant, user, work)


@app.command("expire")
def expire_command(
    older_than: Annotated[str, typer.Option(help="Such as 30d. The pool's retention unless given.")] = "",
) -> None:
    """Delete records that are older. Gateways do it by themselves every hour."""
    settings = _settings()
    try:
        age = seconds(older_than) if older_than else settings.retention_seconds
    except ValueError as error:
        _fail(f"--older-than: {error}")

    async def work(database: Database) -> None:
        typer.echo(json.dumps({"deleted": await expire(database, datetime.now(UTC) - timedelta(seconds=age))}))

    _run(settings, work)


@app.command("drift")
def drift_command(
    day: Annotated[
        str, typer.Option(help="The day to compare, such as 2026-11-20. The last with counts unless given.")
    ] = "",
    pool: Annotated[str, typer.Option(help="namespace/name, where the database has counts of several pools.")] = "",
    output: Annotated[str, typer.Option("-o", "--output", help="table or json.")] = "table",
) -> None:
    """Tell what of requests and answers has moved, by how much, and since when."""
    if output not in {"table", "json"}:
        _fail(f"-o {output!r}: expected table or json")
    if day and not is_day(day):
        _fail(f"--day {day!r}: expected a day such as 2026-11-20")
    settings = _settings()
    counted = settings.drift or Drift()

    async def work(database: Database) -> None:
        report = await drift_report(database, counted, pool, day or None)
        text = json.dumps(as_json(report, counted), indent=2) + "\n" if output == "json" else as_text(report, counted)
        typer.echo(text, nl=False)

    try:
        _run(settings, work)
    except (UnknownPool, NoCounts) as error:
        _fail(str(error))


def _with_user(tenant: str, user: str, work: Any) -> None:
    settings = _settings()
    try:
        made_with = pseudonym_key(settings)
    except SettingsError as error:
        _fail(str(error))
    if made_with is None:
        _fail("the gateway has no key for pseudonyms, so nobody can tell whose a record is: set "
              "SLUICE_PSEUDONYM_KEY_FILE, or the pool's gateway.interactions.pseudonymKeySecretRef")  # fmt: skip
    name = pseudonym(made_with, tenant, user)
    _run(settings, lambda database: work(database, name))


def _settings() -> Settings:
    try:
        return read_data_settings(os.environ)
    except SettingsError as error:
        _fail(str(error))


def _run(settings: Settings, work: Any) -> None:
    async def whole() -> None:
        database = open_database(settings.database_url)
        try:
            job: Coroutine[Any, Any, None] = work(database)
            await job
        finally:
            await database.close()

    try:
        asyncio.run(whole())
    except DatabaseDown as error:
        _fail(f"the database cannot be reached ({error})")
    except DataRefused as error:
        _fail(f"the database refuses the request ({error})")


def _fail(message: str) -> NoReturn:
    typer.echo(f"sluice-data: {message}", err=True)
    raise typer.Exit(2)
