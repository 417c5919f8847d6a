"""The parent's side of the gateway: its socket, its process, its health."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from sluice_edge.engine.child import NO_TLS
from sluice_edge.errors import ConfigurationError, EdgeError

READY_SECONDS = 20.0
STOP_SECONDS = 10.0


def listen(port: int) -> socket.socket:
    """A listening socket on 127.0.0.1. Raises ConfigurationError if the port is taken."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", port))
        sock.listen(64)
    except OSError as error:
        sock.close()
        raise ConfigurationError(
            f"cannot listen on 127.0.0.1:{port}: {error.strerror}; choose another with --port"
        ) from error
    return sock


class GatewayProcess:
    """A running gateway. Use as a context manager, or call `stop`."""

    def __init__(self, sock: socket.socket, *, home: Path, model: str, serving: Path, count: bool = True) -> None:
        self.port: int = sock.getsockname()[1]
        fd = sock.fileno()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "sluice_edge.gateway.process"],
            stdin=subprocess.PIPE,
            pass_fds=(fd,),
            process_group=0,  # Ctrl-C is for the parent, which ends its children in order
        )
        config = {"fd": fd, "home": str(home), "model": model, "serving": str(serving), "count": count}
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(config).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it died already; whoever waits for it will notice

    @property
    def pid(self) -> int:
        """Process id of the gateway."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process.poll() is None

    def health(self) -> dict[str, Any] | None:
        """What /healthz says; None if it does not answer."""
        try:
            answer = httpx.get(f"http://127.0.0.1:{self.port}/healthz", timeout=2.0, trust_env=False, verify=NO_TLS)
            body: dict[str, Any] = answer.json()
        except (httpx.HTTPError, ValueError):
            return None
        return body

    def await_answering(self, seconds: float = READY_SECONDS) -> None:
        """Wait until it answers at all. Raises EdgeError."""
        deadline = time.monotonic() + seconds
        while self.health() is None:
            if not self.running:
                raise EdgeError(f"the gateway ended with exit code {self._process.returncode}; see its messages above")
            if time.monotonic() > deadline:
                raise EdgeError(f"the gateway did not answer within {seconds:.0f} s")
            time.sleep(0.02)

    def stop(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()
