"""Databases of both kinds: what keeps data is tested on an SQLite file and on a real PostgreSQL."""

import getpass
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from sluice_serving.gateway.database import Database, open_database

from tests.serving.data.redis_server import RedisServer

INITDB = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))


class PostgresServer:
    """A PostgreSQL of Debian's that listens on a UNIX socket only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._binaries = INITDB[-1].parent
        self._made = 0
        user = "postgres" if os.geteuid() == 0 else getpass.getuser()
        shutil.chown(folder, user)
        self._run: dict[str, Any] = {"check": True, "capture_output": True, "timeout": 120, "cwd": "/"}
        if os.geteuid() == 0:
            self._run |= {"user": user, "group": user, "extra_groups": []}  # PostgreSQL refuses to run as root

    def set_up(self) -> None:
        data = self.folder / "data"
        subprocess.run(
            [self._binaries / "initdb", "-D", data, "-A", "trust", "-U", "sluice", "--no-sync", "--no-locale"],
            **self._run,
        )

    def start(self) -> None:
        options = f"-c listen_addresses='' -c unix_socket_directories={self.folder} -c fsync=off"
        self._control("-w", "-l", str(self.folder / "log"), "-o", options, "start")

    def stop(self) -> None:
        self._control("-m", "immediate", "stop")

    def _control(self, *arguments: str) -> None:
        subprocess.run([self._binaries / "pg_ctl", "-D", self.folder / "data", *arguments], **self._run)

    def url(self, database: str) -> str:
        return f"postgresql://sluice@/{database}?host={self.folder}"

    async def new_database(self) -> str:
        """The URL of an empty database."""
        self._made += 1
        name = f"test{self._made}"
        connection = await asyncpg.connect(self.url("postgres"), timeout=30)
        await connection.execute(f"CREATE DATABASE {name}")
        await connection.close()
        return self.url(name)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One server for all tests of a worker."""
    if not INITDB:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    server = PostgresServer(Path(tempfile.mkdtemp(prefix="sluice-pg-")))
    server.set_up()
    server.start()
    yield server
    server.stop()
    shutil.rmtree(server.folder)


@pytest.fixture(params=["sqlite", "postgresql"])
async def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/data.db"
    server: PostgresServer = request.getfixturevalue("postgres")
    return await server.new_database()


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """The same, opened."""
    opened = open_database(database_url)
    yield opened
    await opened.close()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """One for all tests of a worker."""
    server = RedisServer()
    yield server
    server.kill()


@pytest.fixture
def redis(redis_server: RedisServer) -> RedisServer:
    """Running, and empty."""
    redis_server.start()
    with redis_server.client() as admin:
        admin.flushall()
    return redis_server
