"""The agent is killed, without warning, at each step of an update; the next start finds everything in order."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from sluice_edge import slots
from sluice_edge.errors import UnhealthyError
from sluice_edge.pull.update import MAX_HEALTH_ATTEMPTS, State

KILLED_ENTERING = """
import os, signal, sys
from pathlib import Path
from sluice_edge.audit import AuditLog
from sluice_edge.home import Home
from sluice_edge.pull import update

home, state, written = Home(Path(sys.argv[1])), update.State(sys.argv[2]), sys.argv[3] == "written"
plain = update.enter

def enter(home, journal):
    if journal.state is state and not written:
        os.kill(os.getpid(), signal.SIGKILL)
    result = plain(home, journal)
    if journal.state is state:
        os.kill(os.getpid(), signal.SIGKILL)
    return result

update.enter = enter
update.sync(update.Sync(home, home.config(), AuditLog(home.audit, home.device().audit_key), print))
"""

KILLED_AT_CALL = """
import os, signal, sys
from pathlib import Path
from sluice_edge import durable
from sluice_edge.audit import AuditLog
from sluice_edge.home import Home
from sluice_edge.pull import update

home, calls = Home(Path(sys.argv[1])), int(sys.argv[2])

def counted(plain):
    def call(*args, **kwargs):
        global calls
        if calls == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        calls -= 1
        return plain(*args, **kwargs)
    return call

durable.write, durable.rename, durable.remove = map(counted, (durable.write, durable.rename, durable.remove))
update.sync(update.Sync(home, home.config(), AuditLog(home.audit, home.device().audit_key), print))
print("finished")
"""


def killed(script: str, device, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, str(device.home.root), *args], capture_output=True, text=True, timeout=60
    )


@pytest.fixture
def updating(device, publisher, models, server):
    """A device that runs v1 while the repository offers v2."""
    publisher.release("v1", models["one"])
    device.sync()
    publisher.release("v2", models["two"])
    return device


def check_consistent(device, models) -> str:
    """What is in use is whole, whatever it is."""
    current = slots.current(device.home)
    wanted = models["one"] if current.version.version == "v1" else models["two"]
    assert current.model.read_bytes() == wanted.read_bytes()
    return current.version.version


@pytest.mark.parametrize("moment", ["unwritten", "written"])
@pytest.mark.parametrize("state", [State.DOWNLOAD, State.INSTALL, State.HEALTH, State.COMMIT])
def test_killed_in_any_state(updating, models, server, state: State, moment: str) -> None:
    done = killed(KILLED_ENTERING, updating, state.value, moment)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert check_consistent(updating, models) == "v1"
    server.reset()
    receipt = updating.sync()
    assert check_consistent(updating, models) == "v2"
    assert receipt.version == "v2"
    if state is not State.DOWNLOAD:
        assert server.requests["pieces"] == 0, "what was fetched before the power cut is not fetched again"
    assert sorted(p.name for p in updating.home.slots.iterdir()) == ["a", "b"]
    assert not updating.home.journal.exists()


def test_killed_between_any_two_changes_of_the_disk(updating, models, server) -> None:
    """Every atomic change of a whole update is once the last one before the power cut."""
    finished = False
    for calls in range(40):
        done = killed(KILLED_AT_CALL, updating, str(calls))
        check_consistent(updating, models)
        if "finished" in done.stdout:
            finished = True
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
    assert finished
    assert updating.sync().outcome == "unchanged"
    assert check_consistent(updating, models) == "v2"


def test_killed_in_the_middle_of_the_download(updating, models, server) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "sluice_edge", "sync", "--home", str(updating.home.root)], stderr=subprocess.DEVNULL
    )

    def cut(served: int) -> None:
        if served > 6:
            process.kill()

    server.reset()
    server.after_pieces = cut
    assert process.wait(60) == -signal.SIGKILL
    server.after_pieces = None
    assert check_consistent(updating, models) == "v1"
    assert 6 <= server.requests["pieces"] < 24
    server.reset()
    receipt = updating.sync()
    assert receipt.version == "v2"
    assert receipt.bytes.pieces_fetched < 12, "verified pieces survive"
    check_consistent(updating, models)


def test_killed_while_rolling_back(device, publisher, models, server) -> None:
    publisher.release("v1", models["one"])
    device.sync()
    publisher.release("v2", models["broken"])
    assert killed(KILLED_ENTERING, device, "rollback", "written").returncode == -signal.SIGKILL
    assert device.sync().outcome == "waiting"
    assert check_consistent(device, models) == "v1"
    assert not (device.home.slots / "b").exists()


def test_a_health_check_that_takes_the_machine_down_is_not_repeated_for_ever(updating, models) -> None:
    class MachineDownError(BaseException):
        pass

    def down(settings) -> None:
        raise MachineDownError

    for _ in range(MAX_HEALTH_ATTEMPTS):
        with pytest.raises(MachineDownError):
            updating.sync(healthy=down)
    receipt = updating.sync(healthy=down)
    assert receipt.outcome == "waiting"
    assert "interrupted 3 times" in receipt.message
    assert check_consistent(updating, models) == "v1"


def test_a_file_torn_on_disk_after_install_is_not_taken_into_use(updating, models) -> None:
    assert killed(KILLED_ENTERING, updating, "health", "written").returncode == -signal.SIGKILL
    model = updating.home.slots / "b" / "model.gguf"
    model.write_bytes(model.read_bytes()[:-4096] + b"\0" * 4096)
    receipt = updating.sync()
    assert "damaged on this device's disk" in receipt.message
    assert check_consistent(updating, models) == "v1"
    with pytest.raises(UnhealthyError):
        updating.sync(retry=True, healthy=lambda settings: (_ for _ in ()).throw(UnhealthyError("no")))
    assert Path(updating.home.root, "sync.json").exists()
