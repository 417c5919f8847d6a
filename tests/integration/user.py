"""Someone at a shell: runs our commands in processes of their own and looks at what they say."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
REPOSITORY = Path(__file__).parents[2]
NOBODY = "65534"
ZEROS = "sha256:" + "0" * 64
LIMIT_S = 60


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    said: str
    """What it wrote to standard error, on one line."""


@dataclass
class User:
    """Someone with a shell in a folder of their own."""

    folder: Path
    become: tuple[str, ...] = ()
    """A command that makes the process theirs; none: who runs the tests."""

    def run(self, *command: str, **environment: str) -> Ended:
        """Run one of our commands."""
        done = subprocess.run(
            [*self.become, str(BIN / command[0]), *command[1:]],
            cwd=self.folder,
            env=self.environment(environment),
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Ended(done.returncode, " ".join(done.stderr.split()))

    def environment(self, more: dict[str, str]) -> dict[str, str]:
        """A plain environment and `more`."""
        base = {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(self.folder), "COLUMNS": "250"}
        return {**base, **more}

    def file(self, name: str, content: str | bytes) -> str:
        """Write a file; returns its name."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return name

    def uri(self, name: str = "") -> str:
        """A file:// URI of something in the folder."""
        return (self.folder / name).as_uri()


def needs_root() -> None:
    """Skip what only root can try: becoming somebody else, mounting a disk."""
    if os.geteuid() != 0:
        pytest.skip("only root can try this")


def helps(ended: Ended, code: int, *words: str) -> None:
    """The exit code is right, and the message holds each of `words`: the thing, and what to do."""
    assert ended.code == code, ended.said
    missing = [word for word in words if word not in ended.said]
    assert not missing, f"{missing} is not in: {ended.said}"


class taken_port:
    """A port of loopback that somebody else listens on."""

    def __enter__(self) -> int:
        self._socket = socket.create_server(("127.0.0.1", 0))
        port: int = self._socket.getsockname()[1]
        return port

    def __exit__(self, *_: object) -> None:
        self._socket.close()


class running:
    """A program in the background, up once `up` says so, ended with the block."""

    def __init__(
        self, command: list[str], log: Path, up: Callable[[], object], environment: dict[str, str] | None = None
    ) -> None:
        self._command, self._log, self._up, self._environment = command, log, up, environment

    def __enter__(self) -> None:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, env=self._environment)
        try:
            until(self._up, f"{Path(self._command[0]).name} is up")
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)


def answers(url: str) -> int:
    """The HTTP status of a GET; 0 if nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            status: int = response.status
            return status
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return 0


def until(condition: Callable[[], object], what: str, seconds: float = 20.0) -> None:
    """Wait for a condition, with a deadline."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.05)
