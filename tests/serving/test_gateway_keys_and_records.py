"""Keys that rotate, secrets that stay out of logs, and the record of each request."""

import asyncio
import hashlib
import logging
import shutil
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
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


async def test_keys_are_taken_away_even_after_one_reading_broke_on_something_unforeseen(
    gateway: Any, engines: Any, served: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sluice_serving.gateway.main.AGAIN_SECONDS", 0.01)
    await gateway.route(served(await engines()))
    read, broken = KeyStore._index, [True]

    def breaks_once(self: KeyStore, tenants: Any) -> Any:
        if broken:
            broken.clear()
            raise RuntimeError("unforeseen")
        return read(self, tenants)

    monkeypatch.setattr(KeyStore, "_index", breaks_once)
    (gateway.settings.keys_dir / "acme").write_text("sk-another-key")
    async with asyncio.timeout(30):
        while (await gateway.chat().__aenter__()).status != 401:
            await asyncio.sleep(0.05)
    assert "the keys task failed" in caplog.text


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
    secret: Any = [{"role": "user", "content": "my pin is 47zz11"}]
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
    for private in (b"47zz11", b"jane", b"private", KEY.encode(), b"sk-stolen"):
        assert private not in everything


def _rows(path: Path) -> list[sqlite3.Row]:
    with sqlite3.connect(path) as connection:
        connection.row_factory = sqlite3.Row
        rows = connection.execute("SELECT * FROM ai_interactions ORDER BY time").fetchall()
    connection.close()
    return rows
