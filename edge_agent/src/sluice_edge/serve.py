"""`sluice-edge serve`: keeps a gateway and an engine running, and takes a new version into use when there is one.

This process holds the network socket and starts the puller, but never sees a prompt; the gateway and the engine see
prompts, but are fenced from the network.
"""

import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType

from sluice_contracts.device import InstalledVersion

from sluice_edge import durable, slots
from sluice_edge.audit import AuditLog
from sluice_edge.engine.child import Engine
from sluice_edge.errors import EdgeError, EngineError
from sluice_edge.gateway.child import GatewayProcess, listen
from sluice_edge.gateway.serving import Serving, write_serving
from sluice_edge.home import AgentConfig, Home
from sluice_edge.pull.pieces import digest_of
from sluice_edge.pull.update import engine_settings

TICK_SECONDS = 0.2
DRAIN_SECONDS = 120.0
"""How long an engine that was replaced may finish what it began."""
FAILED_STARTS = 3
"""So often a version may fail to start before the one before it is taken back."""


def back_off(failures: int) -> float:
    """Seconds to wait after so many failures in a row: 0.5, 1, 2, … at most 30."""
    return min(30.0, 0.5 * 2.0 ** max(0, failures - 1)) if failures else 0.0


@dataclass
class Retiring:
    """An engine that finishes its last requests."""

    engine: Engine
    deadline: float


@dataclass
class Supervisor:
    """The loop's state."""

    home: Home
    config: AgentConfig
    audit: AuditLog
    say: Callable[[str], None]
    sync_every: float | None = None
    """Seconds between syncs; None: somebody else runs `sluice-edge sync`."""
    engine: Engine | None = None
    running: InstalledVersion | None = None
    """What the engine runs."""
    waiting_for: str = ""
    """Why there is no engine to start; said once."""
    engine_failures: int = 0
    engine_not_before: float = 0.0
    gateway: GatewayProcess | None = None
    gateway_failures: int = 0
    gateway_not_before: float = 0.0
    puller: subprocess.Popen[bytes] | None = None
    puller_not_before: float = 0.0
    retiring: list[Retiring] = field(default_factory=list)


def serve(
    home: Home, config: AgentConfig, audit: AuditLog, say: Callable[[str], None], sync_every: float | None
) -> None:
    """Serve until SIGINT or SIGTERM. Raises NoModelError, ConfigurationError (port taken, already serving)."""
    with durable.exclusive(home.serve_lock, f"`sluice-edge serve` runs in {home.root} already"):
        if sync_every is None:
            slots.current(home)
        work = Supervisor(home, config, audit, say, sync_every)
        signal.signal(signal.SIGTERM, _interrupt)
        with listen(config.port) as sock:
            port = sock.getsockname()[1]
            home.serving.unlink(missing_ok=True)
            audit.append("serve", port=port)
            try:
                while True:
                    _keep_gateway(work, sock)
                    _keep_engine(work, port)
                    _keep_puller(work)
                    _retire(work)
                    time.sleep(TICK_SECONDS)
            except KeyboardInterrupt:
                say("stopping")
            finally:
                _stop(work)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _keep_gateway(work: Supervisor, sock: socket.socket) -> None:
    """Start the gateway if it does not run. The listening socket is ours: meanwhile callers wait, none is refused."""
    if work.gateway is not None and not work.gateway.running:
        work.say("the gateway died; starting it again")
        work.gateway.stop()
        work.gateway = None
        work.gateway_failures += 1
        work.gateway_not_before = time.monotonic() + back_off(work.gateway_failures)
    if work.gateway is None and time.monotonic() >= work.gateway_not_before:
        work.gateway = GatewayProcess(sock, home=work.home.root, model=work.config.model, serving=work.home.serving)


def _keep_engine(work: Supervisor, port: int) -> None:
    """Start the engine on the version in use if it does not run, or runs another one."""
    now = time.monotonic()
    if work.engine is not None and not work.engine.running:
        work.say("the engine died; starting it again")
        _lost_engine(work)
    if now < work.engine_not_before:
        return
    try:
        installed = slots.current(work.home)
    except EdgeError as error:
        if work.engine is None and work.waiting_for != str(error):
            work.waiting_for = str(error)
            work.say(work.waiting_for)
        return
    if work.engine is not None and installed.version == work.running:
        return
    if digest_of(installed.model) != installed.version.sha256:
        _damaged(work, installed)
        return
    try:
        engine = Engine(engine_settings(work.home, work.config, installed, work.home.engine_log))
    except EngineError as error:
        work.say(str(error))
        _failed_start(work, installed, str(error))
        return
    write_serving(
        work.home.serving,
        Serving(
            socket=str(engine.socket),
            version=installed.version.version,
            lineage=installed.version.lineage,
            sha256=installed.version.sha256,
            port=port,
        ),
    )
    if work.engine is not None:
        work.retiring.append(Retiring(work.engine, time.monotonic() + DRAIN_SECONDS))
    work.engine, work.running, work.engine_failures = engine, installed.version, 0
    fences = " and ".join(
        n for n, held in (("seccomp", engine.fence.seccomp), ("namespace", engine.fence.namespace)) if held
    )
    work.say(
        f"{work.config.model} {installed.version.version} ({installed.version.quantization}) answers at "
        f"http://127.0.0.1:{port}/v1, engine fenced by {fences}"
    )


def _lost_engine(work: Supervisor) -> None:
    assert work.engine is not None
    work.home.serving.unlink(missing_ok=True)
    work.engine.stop()
    work.engine = None
    work.engine_failures += 1
    work.engine_not_before = time.monotonic() + back_off(work.engine_failures)


def _damaged(work: Supervisor, installed: slots.Installed) -> None:
    """The disk has damaged the file in use: go back at once, and let the next sync fetch what is damaged."""
    work.say(
        f"the model file {installed.model} was damaged on this device's disk; mend it with `sluice-edge sync --repair`"
    )
    if slots.previous(work.home) is not None:
        _go_back(work, installed, None)
    else:
        work.engine_failures += 1
        work.engine_not_before = time.monotonic() + back_off(work.engine_failures)


def _failed_start(work: Supervisor, installed: slots.Installed, reason: str) -> None:
    """Wait before the next try; after FAILED_STARTS of them go back to the previous version, if there is one."""
    work.engine_failures += 1
    work.engine_not_before = time.monotonic() + back_off(work.engine_failures)
    if work.engine_failures >= FAILED_STARTS and slots.previous(work.home) is not None:
        _go_back(work, installed, reason)


def _go_back(work: Supervisor, installed: slots.Installed, reason: str | None) -> None:
    before = slots.go_back(work.home, reason)
    work.audit.append("rollback", version=installed.version.version, sha256=installed.version.sha256, to=before.version)
    work.say(f"version {installed.version.version} does not start; back to {before.version}")
    work.engine_failures, work.engine_not_before = 0, 0.0


def _keep_puller(work: Supervisor) -> None:
    """Run `sluice-edge sync` in a process of its own, every `sync_every` seconds."""
    if work.sync_every is None:
        return
    if work.puller is not None:
        if work.puller.poll() is None:
            return
        work.puller = None
        work.puller_not_before = time.monotonic() + work.sync_every
    if time.monotonic() >= work.puller_not_before:
        command = [sys.executable, "-P", "-m", "sluice_edge", "sync", "--home", str(work.home.root)]
        work.puller = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def _retire(work: Supervisor) -> None:
    """Stop replaced engines that have nothing left to do, or have had their time."""
    if not work.retiring or work.gateway is None:
        return
    health = work.gateway.health() or {}
    for item in list(work.retiring):
        busy = str(item.engine.socket) in health.get("inFlight", {})
        if not busy or time.monotonic() > item.deadline:
            item.engine.stop()
            work.retiring.remove(item)


def _stop(work: Supervisor) -> None:
    """End all children; called once, on the way out."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    work.home.serving.unlink(missing_ok=True)
    if work.puller is not None and work.puller.poll() is None:
        work.puller.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            work.puller.wait(10)
    if work.gateway is not None:
        work.gateway.stop()
    for engine in [work.engine, *(item.engine for item in work.retiring)]:
        if engine is not None:
            engine.stop()
