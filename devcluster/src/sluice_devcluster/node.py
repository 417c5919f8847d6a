"""The node's first process: it prepares the namespaces it was born in, starts the programs, and keeps them running.

It carries out the plan of `node_plan`. As process 1 of its PID namespace it also collects orphans, and its end is the
end of everything in the namespace, containers included.
"""

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

from sluice_devcluster.files import write_json

MS_BIND, MS_REC, MS_SHARED = 0x1000, 0x4000, 0x100000
LINK_DEADLINE_S = 30.0
RESTARTS = 5
"""How often a program may end in `RESTART_WINDOW_S` seconds before the node gives up."""
RESTART_WINDOW_S = 120.0
TERMINATE_S = 3.0

_libc = ctypes.CDLL(None, use_errno=True)


class NodeError(Exception):
    """The node cannot start or go on; the message says which part failed and where its output is."""


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """mount(2). Raises NodeError."""

    def text(value: str | None) -> bytes | None:
        return None if value is None else value.encode()

    if _libc.mount(text(source), text(target), text(kind), ctypes.c_ulong(flags), text(data)):
        raise NodeError(f"cannot mount {source} at {target}: {os.strerror(ctypes.get_errno())}")


def prepare_mounts(plan: dict[str, Any]) -> None:
    """Give this mount namespace its own /var, /run and /dev/shm, and the kernel settings the kubelet wants to see."""
    private: dict[str, str | None] = plan["private"]
    hidden = [Path(k) for k in plan["keep"] if any(Path(k).is_relative_to(p) for p in private)]
    handles = {path: os.open(path, os.O_PATH) for path in hidden}
    for target, source in private.items():  # None: a file system in memory
        if source is None:
            mount("tmpfs", target, "tmpfs", 0, "mode=0755" if target != "/dev/shm" else "mode=1777")
        else:
            for name in ("lib", "log", "tmp", "cache"):
                Path(source, name).mkdir(parents=True, exist_ok=True)
            mount(source, target, None, MS_BIND)
    for path, handle in handles.items():
        here = Path(f"/proc/self/fd/{handle}")
        if here.is_dir():
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        mount(str(here), str(path), None, MS_BIND | MS_REC)
        os.close(handle)
    folder = Path(plan["kernel_settings"]["folder"])
    for name, value in plan["kernel_settings"]["values"].items():
        wanted = folder / name.replace("/", ".")
        wanted.parent.mkdir(parents=True, exist_ok=True)
        wanted.write_text(value + "\n")
        if Path("/proc/sys", name).exists():
            mount(str(wanted), f"/proc/sys/{name}", None, MS_BIND)
    # Volumes that the kubelet mounts must appear in containers.
    mount("none", "/", None, MS_REC | MS_SHARED)


def prepare_network(plan: dict[str, Any]) -> None:
    """Wait for this end of the link, which the process outside puts here, and give it its address."""
    link = plan["link"]
    end = time.monotonic() + LINK_DEADLINE_S
    while link not in (name for _, name in socket.if_nameindex()):
        if time.monotonic() > end:
            raise NodeError(f"the link {link} did not appear within {LINK_DEADLINE_S:.0f} s: `up` was interrupted")
        time.sleep(0.02)
    for command in (
        ["ip", "link", "set", "lo", "up"],
        ["ip", "addr", "add", plan["address"], "dev", link],
        ["ip", "link", "set", link, "up"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        if done.returncode:
            raise NodeError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1\n")


class Supervisor:
    """Starts programs, and starts them again when they end."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self._logs = Path(plan["logs"])
        self._environment = {
            "PATH": f"{plan['path']}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": plan["scratch"],
            "TMPDIR": plan["scratch"],
            "LANG": "C.UTF-8",
        }
        self._running: dict[int, dict[str, Any]] = {}
        self._ends: dict[str, list[float]] = {}
        # Held while a process is started and noted, and while one is collected: a program that ends at once must
        # not be collected before it is known.
        self._lock = threading.Lock()
        self._awaited: int | None = None
        self._result: int | None = None
        self._changed = threading.Condition(self._lock)
        self.stopping = False

    def _spawn(self, name: str, command: list[str], environment: dict[str, str]) -> int:
        with (self._logs / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment | environment,
                cwd="/",
                start_new_session=True,
            )
        process.returncode = 0  # collected by `collect`, never by the object itself
        return process.pid

    def start(self, step: dict[str, Any]) -> None:
        with self._lock:
            pid = self._spawn(step["name"], step["command"], step["environment"])
            self._running[pid] = step

    def run(self, step: dict[str, Any]) -> None:
        """Run a command until it succeeds. Raises NodeError after its deadline."""
        end = time.monotonic() + step["deadline_s"]
        while True:
            with self._changed:
                self._result = None
                self._awaited = self._spawn("steps", step["command"], {})
                self._changed.wait_for(lambda: self._result is not None, max(1.0, end - time.monotonic()))
                status = self._result
            if status == 0:
                return
            if time.monotonic() > end:
                raise NodeError(self._explain(step["name"], f"did not succeed in {step['deadline_s']} s", "steps"))
            time.sleep(0.1)

    def collect(self) -> None:
        """Wait for any process to end, for ever; start programs again. Raises NodeError when one ends too often."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                pid, status = 0, 0
            if self.stopping:
                return
            if pid == 0:
                time.sleep(0.05)
                continue
            with self._changed:
                step = self._running.pop(pid, None)
                if step is None and pid == self._awaited:
                    self._awaited, self._result = None, os.waitstatus_to_exitcode(status)
                    self._changed.notify_all()
            if step is not None:
                self._ended(step, os.waitstatus_to_exitcode(status))

    def _ended(self, step: dict[str, Any], status: int) -> None:
        name = step["name"]
        now = time.monotonic()
        ends = [t for t in self._ends.get(name, []) if now - t < RESTART_WINDOW_S] + [now]
        self._ends[name] = ends
        if len(ends) > RESTARTS:
            raise NodeError(self._explain(name, f"ended {len(ends)} times, at last with status {status}", name))
        threading.Timer(0.2 * 2 ** len(ends), lambda: None if self.stopping else self.start(step)).start()

    def _explain(self, name: str, what: str, log: str) -> str:
        return f"{name}: {what}; see {self._logs / f'{log}.log'}"

    def stop(self) -> None:
        """Ask every program to end, and wait a moment."""
        self.stopping = True
        with self._lock:
            left = set(self._running)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        end = time.monotonic() + TERMINATE_S
        while left and time.monotonic() < end:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            left.discard(pid)
            if pid == 0:
                time.sleep(0.02)


def main(plan_file: str) -> int:
    """Carry out the plan until told to end. The status is 0 after SIGTERM, 1 after a failure."""
    plan = json.loads(Path(plan_file).read_text())
    failures: list[NodeError] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        supervisor.stopping = True

    try:
        prepare_mounts(plan)
        prepare_network(plan)
        supervisor = Supervisor(plan)
    except NodeError as error:
        write_json(Path(plan["failure"]), {"message": str(error)})
        return 1
    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)

    def steps() -> None:
        begin = time.monotonic()
        try:
            for step in plan["steps"]:
                if supervisor.stopping:
                    return
                supervisor.start(step) if step["do"] == "start" else supervisor.run(step)
            write_json(Path(plan["started"]), {"seconds": round(time.monotonic() - begin, 1)})
        except (NodeError, OSError) as error:
            failures.append(NodeError(str(error)))
            supervisor.stopping = True

    threading.Thread(target=steps, name="steps", daemon=True).start()
    try:
        supervisor.collect()
    except NodeError as error:
        failures.append(error)
    supervisor.stop()
    if failures:
        write_json(Path(plan["failure"]), {"message": str(failures[0])})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
