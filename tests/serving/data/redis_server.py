"""A Redis of Debian's, with a password and without a file, that a test can pause and kill."""

import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import RedisError
from sluice_devcluster.ports import free_port

PASSWORD = "hunter2-hunter2"
SERVER = shutil.which("redis-server")


class RedisServer:
    """One process. `start` does nothing while it runs; after `kill` the port stays, and what was stored is gone."""

    def __init__(self, certificates: Path | None = None) -> None:
        if SERVER is None:
            pytest.skip("Redis is not installed (Debian: apt-get install redis-server)")
        self.port = free_port()
        self._certificates = certificates
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        scheme = "redis" if self._certificates is None else "rediss"
        return f"{scheme}://:{PASSWORD}@127.0.0.1:{self.port}/0"

    def client(self) -> "Redis[bytes]":
        """The official client, as an administrator would use it."""
        more: dict[str, Any] = {}
        if self._certificates is not None:
            more = {"ssl": True, "ssl_ca_certs": str(self._certificates / "ca.crt")}
        return Redis(host="127.0.0.1", port=self.port, password=PASSWORD, socket_timeout=20, **more)

    def start(self) -> None:
        assert SERVER is not None
        if self._process is not None:
            return
        listens = ["--port", str(self.port)]
        if (folder := self._certificates) is not None:
            listens = ["--port", "0", "--tls-port", str(self.port), "--tls-auth-clients", "no"]
            listens += ["--tls-cert-file", str(folder / "server.crt"), "--tls-key-file", str(folder / "server.key")]
            listens += ["--tls-ca-cert-file", str(folder / "ca.crt")]
        self._process = subprocess.Popen(
            [SERVER, *listens, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--requirepass", PASSWORD],
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 30
        while True:
            try:
                with self.client() as client:
                    client.ping()
                return
            except RedisError:
                assert self._process.poll() is None, "redis-server did not start"
                assert time.monotonic() < deadline, "redis-server does not answer"
                time.sleep(0.01)

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait(timeout=20)
            self._process = None
