"""The engine and the gateway cannot reach the network, and the tests that say so can fail."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from sluice_edge.engine import health
from sluice_edge.engine.child import Engine, EngineSettings, read_answer
from sluice_edge.errors import EngineError, UnhealthyError

TRY_EVERYTHING = """
import ctypes, errno, json, os, socket, sys
from sluice_edge.engine.fence import Reach, fence

before = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
if sys.argv[1] != "none":
    fence(Reach(sys.argv[1]), namespace=False)

def outcome(action):
    try:
        action()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "ok"

def io_uring():
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(425, 1, ctypes.create_string_buffer(120)) < 0:
        raise OSError(ctypes.get_errno(), "io_uring_setup")

def datagram():
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.sendto(b"secret", sys.argv[2] + ".dgram")

def pair():
    a, b = socket.socketpair()
    a.send(b"x")
    assert b.recv(1) == b"x"

print(json.dumps({
    "inet": outcome(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM)),
    "udp": outcome(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)),
    "inet6": outcome(lambda: socket.socket(socket.AF_INET6, socket.SOCK_STREAM)),
    "netlink": outcome(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)),
    "packet": outcome(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)),
    "vsock": outcome(lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)),
    "io_uring": outcome(io_uring),
    "unix": outcome(lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)),
    "unix connect": outcome(lambda: before.connect(sys.argv[2])),
    "unix datagram": outcome(datagram),
    "pair": outcome(pair),
}))
"""


@pytest.fixture
def neighbour(tmp_path_factory):
    """Another process's UNIX sockets, such as a resolver's: a way out if they can be reached."""
    path = f"/tmp/sluice-test-{os.getpid()}.sock"
    with socket.socket(socket.AF_UNIX) as stream, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram:
        stream.bind(path)
        stream.listen()
        datagram.bind(path + ".dgram")
        yield path
    Path(path).unlink()
    Path(path + ".dgram").unlink()


def attempts(reach: str, neighbour: str) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", TRY_EVERYTHING, reach, neighbour], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_without_the_fence_everything_works(neighbour) -> None:
    """The negative control: each attempt below succeeds unless the fence stops it."""
    free = attempts("none", neighbour)
    for name in ("inet", "udp", "inet6", "netlink", "unix", "unix connect", "unix datagram", "pair"):
        assert free[name] == "ok", name


def test_the_engines_fence_leaves_nothing_to_connect_to(neighbour) -> None:
    fenced = attempts("accept-only", neighbour)
    for name in ("inet", "udp", "inet6", "netlink", "packet", "vsock", "io_uring", "unix connect", "unix datagram"):
        assert fenced[name] == "EPERM", name
    assert fenced["unix"] == fenced["pair"] == "ok"


def test_the_gateways_fence_leaves_unix_sockets_only(neighbour) -> None:
    fenced = attempts("unix-only", neighbour)
    for name in ("inet", "udp", "inet6", "netlink", "packet", "vsock", "io_uring"):
        assert fenced[name] == "EPERM", name
    assert fenced["unix connect"] == "ok"


def settings(model: Path, tmp_path: Path, **changes) -> EngineSettings:
    return EngineSettings(
        **({"model": model, "alias": "m", "context": 256, "threads": 1, "log": tmp_path / "log"} | changes)
    )


def seccomp_mode(pid: int) -> str:
    return next(
        line.split()[1] for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("Seccomp:")
    )


def sockets_of(pid: int) -> set[str]:
    return {os.readlink(f) for f in Path(f"/proc/{pid}/fd").iterdir() if "socket:" in os.readlink(f)}


def test_the_engine_answers_behind_the_fence(models, tmp_path: Path) -> None:
    with Engine(settings(models["one"], tmp_path)) as engine:
        assert engine.fence.seccomp
        assert seccomp_mode(engine.pid) == "2"
        tcp = Path(f"/proc/{engine.pid}/net/tcp").read_text().splitlines()[1:]
        if engine.fence.namespace:
            assert tcp == []
            assert os.readlink(f"/proc/{engine.pid}/ns/net") != os.readlink("/proc/self/ns/net")
        reply = engine.chat([{"role": "user", "content": "hello"}], max_tokens=3, seconds=20)
        assert reply["usage"]["completion_tokens"] == 3
        folder = engine.folder
    assert not folder.exists()


def test_an_engine_without_the_fence_is_seen_to_have_none(models, tmp_path: Path) -> None:
    """The negative control of the test above."""
    with Engine(settings(models["one"], tmp_path, fenced=False)) as engine:
        assert seccomp_mode(engine.pid) == "0"
        assert not engine.fence.seccomp
        assert os.readlink(f"/proc/{engine.pid}/ns/net") == os.readlink("/proc/self/ns/net")


def test_the_engine_does_not_outlive_its_parent(models, tmp_path: Path) -> None:
    script = (
        "import sys, os, signal; from pathlib import Path; from sluice_edge.engine.child import *\n"
        "e = Engine(EngineSettings(Path(sys.argv[1]), 'm', 256, 1, Path(sys.argv[2])))\n"
        "print(e.pid, e.folder, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(models["one"]), str(tmp_path / "log")], capture_output=True, text=True
    )
    pid, folder = done.stdout.split()
    deadline = 200
    while deadline and Path(f"/proc/{pid}").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text():
        subprocess.run(["sleep", "0.05"], check=True)
        deadline -= 1
    assert deadline
    Path(folder, "engine.sock").unlink(missing_ok=True)
    Path(folder).rmdir()


@pytest.mark.parametrize("content", [b"", b"GGUF", b"garbage" * 1000, "half", "arch"])
def test_a_bad_model_file_is_refused_in_words(models, tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / "bad.gguf"
    data = models["one"].read_bytes()
    path.write_bytes({"half": data[: len(data) // 2], "arch": models["broken"].read_bytes()}.get(content, content))
    with pytest.raises(UnhealthyError, match=r"the engine (refused|died while loading) bad\.gguf"):
        health.check(settings(path, tmp_path))


def test_a_missing_model_names_the_command_that_helps(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="fetch it with `sluice-edge sync`"):
        Engine(settings(tmp_path / "none.gguf", tmp_path))


def test_an_engine_that_dies_is_an_error_not_a_hang(models, tmp_path: Path) -> None:
    with Engine(settings(models["one"], tmp_path)) as engine:
        os.kill(engine.pid, signal.SIGSTOP)  # the kernel still accepts the connection
        threading.Timer(0.2, os.kill, (engine.pid, signal.SIGKILL)).start()
        with pytest.raises(EngineError, match=r"broke off: signal SIGKILL"):
            engine.chat([{"role": "user", "content": "hello"}], max_tokens=3, seconds=20)
        assert not engine.running


def test_too_long_a_question_is_refused_in_words(models, tmp_path: Path) -> None:
    with Engine(settings(models["one"], tmp_path)) as engine, pytest.raises(EngineError, match="context size"):
        engine.chat([{"role": "user", "content": "x" * 4000}], max_tokens=3, seconds=20)


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (200, b"not json", "no JSON"),
        (200, b"[1]", "no object"),
        (200, b'{"error": "bare text"}', "bare text"),
        (200, b'{"error": {"message": "in an object"}}', "in an object"),
        (500, b"{}", "status 500"),
    ],
)
def test_each_way_the_engine_says_no_becomes_one_error(status: int, body: bytes, words: str) -> None:
    with pytest.raises(EngineError, match=words):
        read_answer(status, body)
