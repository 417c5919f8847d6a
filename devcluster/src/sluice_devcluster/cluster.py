"""The life of the local cluster: up, down, status.

There is no record of what was started that could be wrong after a crash: what is there is looked for (processes by
their command line, the link and the control groups by name), and everything that is there can be taken away. So `up`
repairs whatever a broken `up` left, and `down` may be run at any time.
"""

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sluice_devcluster import cgroups, network, node_plan, preflight, processes
from sluice_devcluster.errors import DevClusterError
from sluice_devcluster.node_files import write_node_files
from sluice_devcluster.places import State
from sluice_devcluster.programs import built_programs
from sluice_devcluster.readiness import Checks

UP_DEADLINE_S = 120.0
NAMESPACES_DEADLINE_S = 20.0
ABSENT_S = 2.0
"""A node whose processes are not seen for so long has ended."""

Report = Callable[[str], None]


@dataclass(frozen=True)
class Status:
    """What there is of the cluster now."""

    running: bool
    ready: bool
    pid: int | None
    kubeconfig: Path
    leftovers: tuple[str, ...] = field(default=())
    checks: dict[str, bool] = field(default_factory=dict)


def up(state: State, report: Report) -> float:
    """Bring the cluster up and return the seconds it took; one that runs and is ready is left alone.

    `report` is called with each step as it is reached. Raises DevClusterError.
    """
    began = time.monotonic()
    preflight.check_system()
    preflight.check_tools()
    with _only_one(state):
        _check_no_other(state)
        programs = built_programs()
        if _node(state) and Checks(state).pending() == []:
            report("already running")
            return time.monotonic() - began
        if _leftovers(state):
            report("clearing what an earlier cluster left")
            _take_away(state)
        preflight.check_state_folder(state.root)
        network.check_ranges_free()
        report("keys, settings and images")
        write_node_files(state, programs)
        cgroups.create()
        report("node")
        try:
            _launch(state)
            _wait(state, report)
        except BaseException:
            failure = _failure(state)
            _take_away(state, keep_files=True)
            if failure:
                raise DevClusterError(f"the cluster did not start: {failure}") from None
            raise
    return time.monotonic() - began


def down(state: State, report: Report) -> None:
    """Take everything away; nothing there is fine. Raises DevClusterError if something stays."""
    preflight.check_system()
    with _only_one(state):
        _check_no_other(state)
        if _leftovers(state) or state.run.exists():
            report("ending the node")
            _take_away(state)
        for folder in (state.etc, state.pki, state.logs):
            shutil.rmtree(folder, ignore_errors=True)
        state.kubeconfig.unlink(missing_ok=True)
        state.lock.unlink()
    with contextlib.suppress(OSError):
        state.root.rmdir()


def status(state: State) -> Status:
    """Look at what is there."""
    nodes = _node(state)
    checks = Checks(state).results() if nodes and state.kubeconfig.exists() else {}
    return Status(
        running=bool(nodes),
        ready=bool(checks) and all(checks.values()),
        pid=nodes[0] if nodes else None,
        kubeconfig=state.kubeconfig,
        # The link and the control groups of a cluster that runs from another state folder are not left over.
        leftovers=() if processes.running(node_plan.NODE_MODULE) else tuple(_leftovers(state)),
        checks=checks,
    )


def require_running(state: State) -> None:
    """Raise DevClusterError unless the cluster runs."""
    if not _node(state):
        raise DevClusterError("the local cluster is not running: start it with `sluice-dev up`")


@contextmanager
def _only_one(state: State) -> Iterator[None]:
    """Two commands must not build up and tear down at once."""
    state.root.mkdir(parents=True, exist_ok=True)
    with state.lock.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DevClusterError(
                f"another sluice-dev command is working on {state.root}: wait until it is done"
            ) from None
        yield


def _node(state: State) -> list[int]:
    """The node's first process and the `unshare` that holds it, if they run."""
    return [pid for pid, plan in processes.running(node_plan.NODE_MODULE).items() if plan == str(state.plan)]


def _check_no_other(state: State) -> None:
    """Raise DevClusterError if a cluster of another state folder runs: addresses and names are the same for all."""
    for plan in processes.running(node_plan.NODE_MODULE).values():
        if plan != str(state.plan):
            other = Path(plan).parents[1]
            raise DevClusterError(
                f"another local cluster runs, from {other}: end it with `SLUICE_STATE={other} sluice-dev down`"
            )


def _leftovers(state: State) -> list[str]:
    """What is there on this machine of a cluster, in words; files in the state folder do not count."""
    found = [f"process {pid}" for pid in _node(state)]
    if network.link_exists():
        found.append(f"network link {network.LINK}")
    return found + [f"control group {path}" for path in cgroups.existing()]


def _take_away(state: State, *, keep_files: bool = False) -> None:
    # Killing the first process ends its whole namespace; a moment's grace lets programs close their files.
    processes.end(_node(state), grace_s=0.0)
    network.remove_link()
    if stuck := cgroups.remove():
        raise DevClusterError(
            f"control groups stay: {', '.join(map(str, stuck))} (a process of another cluster in them?); "
            "end what runs in them and try again"
        )
    if not keep_files or not state.failure.exists():
        shutil.rmtree(state.run, ignore_errors=True)


def _launch(state: State) -> None:
    """Start the node's first process, apart from this one, and join its network namespace with this machine."""
    with (state.logs / "node.log").open("wb") as log:
        done = subprocess.run(
            node_plan.unshare_command(state),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env={"PATH": preflight.SYSTEM_PATH, "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"},
            timeout=NAMESPACES_DEADLINE_S,
            check=False,
        )
    end = time.monotonic() + NAMESPACES_DEADLINE_S
    ours = processes.namespace(os.getpid(), "net")
    seen = time.monotonic()
    while True:
        nodes = _node(state)
        first = [p for p in nodes if processes.namespace(p, "net") not in (ours, None)]
        if first:
            break
        # A process that is just becoming another program shows no command line for a moment: only a lasting absence
        # is an end.
        seen = time.monotonic() if nodes else seen
        if done.returncode or time.monotonic() > min(end, seen + ABSENT_S):
            text = (state.logs / "node.log").read_text().strip()
            raise DevClusterError(f"the node's namespaces could not be made: {text or 'no answer from unshare'}")
        time.sleep(0.02)
    network.connect(first[0])


def _failure(state: State) -> str | None:
    try:
        return str(json.loads(state.failure.read_text())["message"])
    except (OSError, ValueError, KeyError):
        return None


def _wait(state: State, report: Report) -> None:
    """Wait until every check holds, telling which one is waited for."""
    end = time.monotonic() + UP_DEADLINE_S
    checks = Checks(state)
    told = ""
    while pending := checks.pending():
        if pending[0] != told:
            told = pending[0]
            report(told)
        if not _node(state):
            raise DevClusterError(f"the node ended while waiting for: {told}; see {state.logs}")
        if time.monotonic() > end:
            raise DevClusterError(f"no {told} within {UP_DEADLINE_S:.0f} s; see {state.logs}")
        time.sleep(0.1)
