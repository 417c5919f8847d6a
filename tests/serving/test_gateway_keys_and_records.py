"""Keys that rotate, secrets that stay out of logs, and the record of each request."""

import asyncio
import getpass
import hashlib
import logging
import os
import shutil
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from sluice_serving.gateway.interactions import Interaction, InteractionLog, open_database, pseudonym
from sluice_serving.gateway.keys import KeyStore
from sluice_serving.gateway.settings import SettingsError, read_settings

MODEL = "support-bot"
HI: Any = [{"role": "user", "content": "hi"}]
KEY = "sk-test-5f1c2d"


def whose(keys: KeyStore, key: str) -> str | None:
    caller = keys.authenticate(key)
    return caller.tenant if caller else None


def test_a_key_may_be_kept_as_its_digest_and_rotates_when_the_folder_changes(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("sk-plain\n")
    (tmp_path / "hashed").write_text("sha256:" + hashlib.sha256(b"sk-hashed").hexdigest())
    (tmp_path / "..data").mkdir()
    keys = KeyStore(tmp_path)
    keys.load()
    assert [whose(keys, k) for k in ("sk-plain", "sk-hashed", "sk-other", "")] == ["plain", "hashed", None, None]
    digest_itself = "sha256:" + hashlib.sha256(b"sk-hashed").hexdigest()
    assert keys.authenticate(digest_itself) is None
    (tmp_path / "plain").unlink()
    (tmp_path / "fresh").write_text("sk-fresh")
    keys.load()
    assert [whose(keys, k) for k in ("sk-plain", "sk-fresh")] == [None, "fresh"]


def test_keys_stay_when_the_folder_cannot_be_read_and_an_empty_one_opens_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    folder.mkdir()
    (folder / "acme").write_text(KEY)
    (folder / "empty").write_text("\n")
    keys = KeyStore(folder)
    keys.load()
    shutil.move(folder, tmp_path / "away")
    keys.load()
    assert whose(keys, KEY) == "acme"
    assert keys.authenticate("") is None


async def test_a_new_key_works_without_a_restart(gateway: Any, engines: Any, served: Any) -> None:
    await gateway.route(served(await engines()))
    (gateway.settings.keys_dir / "newcomer").write_text("sk-new")
    deadline = time.monotonic() + 5
    while True:
        async with gateway.chat(key="sk-new") as got:
            if got.status == 200:
                break
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("env", "names"),
    [
        ({}, "SLUICE_ROUTES_CONFIGMAP"),
        ({"SLUICE_ROUTES_FILE": "/r", "SLUICE_ROUTES_CONFIGMAP": "a/b"}, "exactly one"),
        ({"SLUICE_ROUTES_FILE": "/r"}, "SLUICE_KEYS_DIR"),
        ({"SLUICE_ROUTES_CONFIGMAP": "nothing", "SLUICE_KEYS_DIR": "/k"}, "namespace/name"),
        ({"SLUICE_ROUTES_FILE": "/r", "SLUICE_KEYS_DIR": "/k", "SLUICE_PORT": "http"}, "SLUICE_PORT"),
        ({"SLUICE_ROUTES_FILE": "/r", "SLUICE_KEYS_DIR": "/k", "SLUICE_RETENTION": "long"}, "SLUICE_RETENTION"),
        ({"SLUICE_ROUTES_FILE": "/r", "SLUICE_KEYS_DIR": "/k", "SLUICE_DATABASE_URL_FILE": "/no"}, "cannot read /no"),
    ],
)
def test_wrong_settings_are_named(env: dict[str, str], names: str) -> None:
    with pytest.raises(SettingsError, match=names):
        read_settings(env)


def test_a_database_url_with_a_password_is_not_repeated_in_the_error() -> None:
    env = {"SLUICE_ROUTES_FILE": "/r", "SLUICE_KEYS_DIR": "/k", "SLUICE_DATABASE_URL": "mysql://u:hunter2@h/d"}
    with pytest.raises(SettingsError) as error:
        read_settings(env)
    assert "hunter2" not in str(error.value)


async def test_each_request_is_recorded_without_content_or_names(
    gateway: Any, engines: Any, served: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    engine = await engines("a very private answer")
    await gateway.route(served(engine))
    secret: Any = [{"role": "user", "content": "my pin is 4711"}]
    client = gateway.openai()
    await client.chat.completions.create(model=MODEL, messages=secret, user="jane@example.org")
    stream = await client.chat.completions.create(model=MODEL, messages=secret, user="jane@example.org", stream=True)
    assert [chunk async for chunk in stream]
    engine.status = 500
    async with gateway.chat(user="john") as got:
        assert got.status == 502
    async with gateway.chat(key="sk-stolen") as got:
        assert got.status == 401
    await gateway.close()
    path = gateway.folder / "interactions.db"
    rows = _rows(path)
    assert [(r["outcome"], r["tenant"], r["version"], r["lineage"], r["output_tokens"]) for r in rows] == [
        ("ok", "acme", "v1", "lineage-of-v1", 4),
        ("ok", "acme", "v1", "lineage-of-v1", 4),
        ("engine_error", "acme", "v1", "lineage-of-v1", None),
    ]
    assert [r["ttft"] is not None for r in rows] == [False, True, False]
    assert rows[0]["pseudonym"] == rows[1]["pseudonym"] != rows[2]["pseudonym"]
    everything = path.read_bytes() + caplog.text.encode()
    for private in (b"4711", b"jane", b"private", KEY.encode(), b"sk-stolen"):
        assert private not in everything


def _rows(path: Path) -> list[sqlite3.Row]:
    with sqlite3.connect(path) as connection:
        connection.row_factory = sqlite3.Row
        rows = connection.execute("SELECT * FROM ai_interactions ORDER BY time").fetchall()
    connection.close()
    return rows


def interaction(i: int, age: timedelta = timedelta()) -> Interaction:
    return Interaction(
        id=f"id{i}", time=datetime.now(UTC) - age, tenant="acme", user=pseudonym(b"k", "acme", "jane"), model=MODEL,
        version="v1", lineage="l", context_reference=None, prompt_tokens=1, output_tokens=2, ttft=0.1, latency=0.2,
        finish_reason="stop", route="split", outcome="ok",
    )  # fmt: skip


def test_a_pseudonym_depends_on_key_tenant_and_user() -> None:
    first = pseudonym(b"k", "acme", "jane")
    assert first == pseudonym(b"k", "acme", "jane")
    others = {pseudonym(b"other", "acme", "jane"), pseudonym(b"k", "rival", "jane"), pseudonym(b"k", "acme", "john")}
    assert first not in others
    assert pseudonym(b"k", "acme", None) is None


async def test_old_interactions_are_deleted(tmp_path: Path) -> None:
    log = InteractionLog(open_database(f"sqlite:///{tmp_path}/i.db"), retention=3600)
    log.add(interaction(1, timedelta(hours=2)))
    log.add(interaction(2, timedelta(minutes=5)))
    log.close()
    await log.run()
    again = InteractionLog(open_database(f"sqlite:///{tmp_path}/i.db"), retention=3600)
    task = asyncio.create_task(again.run())
    deadline = time.monotonic() + 5
    while [r["id"] for r in _rows(tmp_path / "i.db")] != ["id2"]:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    again.close()
    await task


async def test_records_wait_for_a_database_that_is_away_within_bounds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "folder"
    blocked.write_text("a file where a folder should be")
    log = InteractionLog(open_database(f"sqlite:///{blocked}/i.db"), retention=3600, buffer=3)
    task = asyncio.create_task(log.run())
    for i in range(5):
        log.add(interaction(i))
    assert (log.waiting, log.dropped) == (3, 2)
    deadline = time.monotonic() + 5
    while "cannot write interactions" not in caplog.text:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    blocked.unlink()
    while log.waiting:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    log.close()
    await task
    assert len(_rows(blocked / "i.db")) == 3


POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL of Debian's, started for this module."""
    if not POSTGRES:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    binaries = POSTGRES[-1].parent
    folder = Path(tempfile.mkdtemp(prefix="sluice-pg-"))
    user = "postgres" if os.geteuid() == 0 else getpass.getuser()
    shutil.chown(folder, user)
    run: dict[str, Any] = {"check": True, "capture_output": True, "timeout": 60, "cwd": "/"}
    if os.geteuid() == 0:
        run |= {"user": user, "group": user, "extra_groups": []}  # PostgreSQL refuses to run as root
    data = folder / "data"
    subprocess.run([binaries / "initdb", "-D", data, "-A", "trust", "-U", "sluice", "--no-sync"], **run)
    options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
    log = folder / "log"
    subprocess.run([binaries / "pg_ctl", "-D", data, "-w", "-l", log, "-o", options, "start"], **run)
    try:
        yield f"postgresql://sluice@/postgres?host={folder}"
    finally:
        subprocess.run([binaries / "pg_ctl", "-D", data, "-m", "immediate", "stop"], **run)
        shutil.rmtree(folder)


async def test_interactions_go_to_postgresql_and_survive_its_restarting_connections(postgres: str) -> None:
    log = InteractionLog(open_database(postgres), retention=3600)
    task = asyncio.create_task(log.run())
    log.add(interaction(1, timedelta(hours=2)))
    log.add(interaction(2))
    connection = await asyncpg.connect(postgres)
    try:
        deadline = time.monotonic() + 10
        while log.waiting:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND usename = 'sluice'"
        )
        log.add(interaction(2))  # the same once more: a batch that was written, but whose answer was lost
        log.add(interaction(3))
        while log.waiting:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        log.close()
        await task
        rows = await connection.fetch("SELECT id, pseudonym, output_tokens FROM ai_interactions ORDER BY id")
        assert [r["id"] for r in rows] == ["id2", "id3"]
        assert rows[0]["output_tokens"] == 2
    finally:
        await connection.close()
