"""A gateway without its database is killed: what it had on its disk is there afterwards."""

import sqlite3
import time
from collections.abc import Callable

import httpx
from openai_upstream import MODEL

KEY = "sk-contract-91c2"
ASKED = 6


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"not within 60 s: {what}"
        time.sleep(0.02)


def test_records_outlive_an_outage_of_the_database_and_a_killed_gateway(gateway_command, tmp_path) -> None:
    command = gateway_command("killed")
    spool, database = tmp_path / "killed" / "spool", tmp_path / "killed" / "interactions.db"
    here = command.environment["SLUICE_DATABASE_URL"]
    command.environment["SLUICE_DATABASE_URL"] = "postgresql://nobody@127.0.0.1:1/away"
    ids = set()
    with command.ready() as process:
        for n in range(ASKED):
            body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "stream": n % 2 == 0}
            headers = {"authorization": f"Bearer {KEY}"}
            got = httpx.post(
                f"{command.url}/v1/chat/completions", json=body, headers=headers, timeout=30, trust_env=False
            )
            assert got.status_code == 200
            ids.add(got.headers["x-request-id"])
        until(lambda: sum(p.read_bytes().count(b"\n") for p in spool.glob("*.spool")) == ASKED, "all are on the disk")
        process.kill()
        process.wait(30)
    command.environment["SLUICE_DATABASE_URL"] = here

    def written() -> set[str]:
        with sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30) as connection:
            return {id for (id,) in connection.execute("SELECT id FROM ai_interactions")}

    with command.ready():
        until(lambda: database.exists() and _has_table(database) and len(written()) == ASKED, "all are in the database")
        assert written() == ids


def _has_table(database) -> bool:
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30) as connection:
        return bool(connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'ai_interactions'").fetchall())
