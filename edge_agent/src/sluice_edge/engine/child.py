"""The parent's side of the engine: start it, ask it, stop it, and put each way it can fail into words."""

import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from sluice_edge.engine.fence import Fence
from sluice_edge.errors import EngineError

NO_TLS = False
"""For plain HTTP on this machine: spares each client 25 ms of loading certificates it does not use."""
START_SECONDS = 180.0
"""A 5 GB file on a slow disk is read at 50 MB/s in 100 s."""
MAX_OUTPUT_TOKENS = 1024
CONNECTIONS = 12
"""Requests that the engine holds at a time, one worked on, the others waiting: more than the gateway lets through."""
STOP_SECONDS = 10.0
BYTES_PER_THREAD = 32 * 2**20
"""Weights that a thread should have to read for a token: with less, threads do little but wait for each other."""
_KEPT_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV")


@dataclass(frozen=True)
class EngineSettings:
    """What an engine is started with."""

    model: Path
    alias: str
    context: int
    threads: int
    """0 = one for each core this process may use, fewer for a model too small to be worth them."""
    log: Path
    """Standard error of the engine; overwritten by each start. The engine is told to log nothing of requests."""
    fenced: bool = True
    """False only for the negative control of the fence's own proof."""


class Engine:
    """A running engine. Use as a context manager, or call `stop`."""

    def __init__(self, settings: EngineSettings, *, seconds: float = START_SECONDS) -> None:
        """Start and wait until the model is loaded. Raises EngineError."""
        self.settings = settings
        # A UNIX socket's path holds 107 bytes, and a home folder may lie deep: so a short folder of its own.
        self.folder = Path(tempfile.mkdtemp(prefix="sluice-"))
        self.socket = self.folder / "engine.sock"
        try:
            self._process = self._spawn()
            self.fence = self._await_ready(seconds)
        except BaseException:
            self.stop()
            raise

    @property
    def pid(self) -> int:
        """Process id of the engine."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process.poll() is None

    def chat(self, messages: Sequence[Mapping[str, str]], *, max_tokens: int, seconds: float) -> dict[str, Any]:
        """One whole answer, as the engine's OpenAI-style JSON. Greedy. Raises EngineError."""
        body = {"messages": list(messages), "max_tokens": max_tokens, "temperature": 0}
        try:
            transport = httpx.HTTPTransport(uds=str(self.socket), verify=NO_TLS)
            with httpx.Client(transport=transport, timeout=seconds, trust_env=False) as client:
                response = client.post("http://engine/v1/chat/completions", json=body)
        except httpx.TimeoutException:
            raise EngineError(f"the engine gave no answer within {seconds:.0f} s") from None
        except httpx.HTTPError:
            raise EngineError(f"the engine broke off: {self._last_words()}") from None
        return read_answer(response.status_code, response.content)

    def stop(self) -> None:
        """End the process and remove its socket."""
        process = getattr(self, "_process", None)
        if process is not None:
            if process.stdin is not None:
                process.stdin.close()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def _worthwhile_threads(self) -> int:
        return max(1, min(len(os.sched_getaffinity(0)), self.settings.model.stat().st_size // BYTES_PER_THREAD))

    def _spawn(self) -> subprocess.Popen[bytes]:
        if not self.settings.model.is_file():
            raise EngineError(f"the model file {self.settings.model} is missing; fetch it with `sluice-edge sync`")
        config = {
            "model": str(self.settings.model),
            "alias": self.settings.alias,
            "socket": str(self.socket),
            "context": self.settings.context,
            "threads": self.settings.threads or self._worthwhile_threads(),
            "maxTokens": MAX_OUTPUT_TOKENS,
            "connections": CONNECTIONS,
            "fenced": self.settings.fenced,
        }
        log = os.open(self.settings.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "sluice_edge.engine.process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={k: v for k, v in os.environ.items() if k in _KEPT_ENVIRONMENT},
                process_group=0,  # Ctrl-C is for the parent, which ends its children in order
            )
        except OSError as error:
            raise EngineError(f"cannot start the engine's process: {error.strerror}") from error
        finally:
            os.close(log)
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(config).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            pass  # it died already; waiting for its answer will say how
        return process

    def _await_ready(self, seconds: float) -> Fence:
        line = self._first_line(time.monotonic() + seconds)
        if line is None:
            raise EngineError(f"the engine did not load {self.settings.model.name} within {seconds:.0f} s")
        if not line:
            raise EngineError(f"the engine died while loading {self.settings.model.name}: {self._last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            if answer["kind"] == "FenceError":
                raise EngineError(answer["error"])
            raise EngineError(
                f"the engine refused {self.settings.model.name}: {answer['error'] or answer['kind']} "
                "(damaged, or made for another engine)"
            )
        return Fence(**answer["fence"])

    def _first_line(self, deadline: float) -> bytes | None:
        """The child's first line; empty if it ended without one, None if time is up."""
        stdout = self._process.stdout
        assert stdout is not None
        data = b""
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            while b"\n" not in data:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return None
                chunk = os.read(stdout.fileno(), 65_536)
                if not chunk:
                    return b""
                data += chunk
        return data.partition(b"\n")[0]

    def _last_words(self) -> str:
        try:
            code = self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            return "it hangs"
        cause = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        lines = self.settings.log.read_text(errors="replace").strip().splitlines() if self.settings.log.exists() else []
        return f"{cause}; {lines[-1][:200]}" if lines else cause


def read_answer(status: int, body: bytes) -> dict[str, Any]:
    """The engine's answer as a dict. Raises EngineError for each of its ways to say no: a status, an `error` object, or
    something that is no JSON."""
    try:
        answer = json.loads(body)
    except ValueError:
        raise EngineError(f"the engine answered with status {status} and no JSON") from None
    if not isinstance(answer, dict):
        raise EngineError("the engine answered with JSON that is no object")
    problem = answer.get("error")
    if problem is not None or status != 200:
        message = problem.get("message") if isinstance(problem, dict) else problem
        raise EngineError(f"the engine refused the request: {message or f'status {status}'}")
    return answer
