"""The two endpoints that speak the OpenAI API: the cluster's gateway before a stand-in for vLLM, and a device's agent
with its real engine."""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import httpx
import openai
import pytest
from sluice_contracts.routing import Backend, RoutingLimits, RoutingTable
from sluice_devcluster.ports import free_ports

HERE = Path(__file__).parent


def load(name: str, path: Path) -> ModuleType:
    """A helper module beside the tests, importable by `name` from here on."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


behaviours = load("openai_behaviours", HERE / "behaviours.py")
upstreams = load("openai_upstream", HERE / "upstream.py")
world = load("edge_world", HERE.parent / "edge_agent" / "world.py")
KEY = "sk-contract-91c2"


@pytest.fixture(scope="session")
def upstream() -> Iterator[object]:
    """What answers behind the gateway."""
    with upstreams.Upstream().serving() as running:
        yield running


class GatewayCommand:
    """`sluice-gateway` before the stand-in: its settings, ports and files."""

    def __init__(self, folder: Path, upstream, drain_delay: float = 0.0) -> None:
        (folder / "keys").mkdir(parents=True)
        (folder / "keys" / "acme").write_text("sha256:" + hashlib.sha256(KEY.encode()).hexdigest())
        digest = "sha256:" + "0" * 64
        backend = Backend(model_version="v1", lineage="l", manifest_digest=digest, url=upstream.url, weight=100)
        limits = RoutingLimits(in_flight_per_replica=64)
        table = RoutingTable(pool="pool", namespace="ns", model=upstreams.MODEL, backends=[backend], limits=limits)
        (folder / "routes.json").write_bytes(table.canonical())
        port, internal = free_ports(2)
        self.url, self.internal = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{internal}"
        self.log = folder / "log"
        self.environment = {
            **os.environ,
            "SLUICE_KEYS_DIR": str(folder / "keys"),
            "SLUICE_ROUTES_FILE": str(folder / "routes.json"),
            "SLUICE_DATABASE_URL": f"sqlite:///{folder}/interactions.db",
            "SLUICE_SPOOL_DIR": str(folder / "spool"),
            "SLUICE_HOST": "127.0.0.1",
            "SLUICE_PORT": str(port),
            "SLUICE_INTERNAL_PORT": str(internal),
            "SLUICE_DRAIN_DELAY_SECONDS": str(drain_delay),
        }

    @contextmanager
    def running(self) -> Iterator["subprocess.Popen[bytes]"]:
        with process([str(Path(sys.executable).parent / "sluice-gateway")], self.environment, self.log) as running:
            yield running

    @contextmanager
    def ready(self) -> Iterator["subprocess.Popen[bytes]"]:
        with self.running() as running:
            wait_for(f"{self.internal}/readyz", running, self.log)
            yield running


@pytest.fixture(scope="session")
def gateway_api(upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """`sluice-gateway` before the stand-in."""
    command = GatewayCommand(tmp_path_factory.mktemp("gateway") / "one", upstream)
    with command.ready():
        yield api(f"{command.url}/v1", KEY, upstreams.MODEL)


@pytest.fixture
def gateway_command(upstream, tmp_path: Path):
    """Makes gateways that a test starts and stops itself."""
    return lambda name, **more: GatewayCommand(tmp_path / name, upstream, **more)


@pytest.fixture(scope="session")
def edge_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """`sluice-edge serve` with a small real model."""
    from sluice_edge.audit import AuditLog
    from sluice_edge.home import AgentConfig, Home, initialise
    from sluice_edge.pull.update import Sync, sync

    folder = tmp_path_factory.mktemp("edge")
    publisher = world.Publisher(folder / "publisher")
    publisher.release("v1", world.write_gguf(folder / "one.gguf"))
    home = Home(folder / "home")
    initialise(home, AgentConfig(repository=publisher.uri, model=world.MODEL, threads=1, port=0), publisher.anchor, 0)
    sync(Sync(home, home.config(), AuditLog(home.audit, home.device().audit_key), lambda line: None))
    command = [sys.executable, "-m", "sluice_edge", "serve", "--home", str(home.root)]
    with process(command, dict(os.environ), folder / "log") as running:
        deadline = time.monotonic() + 60
        while not home.serving.exists():
            assert running.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, "the agent did not start"
            time.sleep(0.05)
        url = f"http://127.0.0.1:{json.loads(home.serving.read_bytes())['port']}"
        wait_for(f"{url}/healthz", running, folder / "log")
        lacks = frozenset({"n", "tools", "json_schema", "completions", "embeddings", "responses"})
        yield api(f"{url}/v1", home.key(), world.MODEL, lacks)


def api(url: str, key: str, model: str, lacks: frozenset[str] = frozenset()):
    """The endpoint with a client for it."""
    client = openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=60)
    return behaviours.Api(url, key, model, client, most_bytes=1 << 20, lacks=lacks)


@contextmanager
def process(command: list[str], environment: dict[str, str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A program that is ended, and by force if it must be."""
    with log.open("wb") as output:
        running = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        yield running
    finally:
        if running.poll() is None:
            running.terminate()
        try:
            running.wait(30)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


def wait_for(url: str, running: "subprocess.Popen[bytes]", log: Path) -> None:
    """Until `url` answers 200."""
    deadline = time.monotonic() + 60
    while True:
        assert running.poll() is None, log.read_text()
        try:
            if httpx.get(url, timeout=2, trust_env=False, verify=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        assert time.monotonic() < deadline, f"{url} is not ready: {log.read_text()}"
        time.sleep(0.05)
