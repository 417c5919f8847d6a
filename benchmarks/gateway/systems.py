"""What is measured: each is a process (or none) in front of the engine, alone on one core."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from sluice_contracts.routing import Backend, RoutingLimits, RoutingTable
from sluice_devcluster.ports import free_port, free_ports

MODEL = "bench"
KEY = "sk-bench-0123456789abcdef"
START_SECONDS = 120.0
SYSTEM_CORE, OTHER_CORE = 0, 1
"""The load and the engine share the other core, so that the measured one has its core alone."""
ROOMY = RoutingLimits(in_flight_per_replica=4096, queue=4096)
LITELLM_VARIABLE = "SLUICE_BENCH_LITELLM"
"""Path of a `litellm` command, where it is not on PATH."""


@dataclass
class Running:
    """A system that answers."""

    name: str
    port: int
    pid: int | None
    """None: there is no process, the engine is asked directly."""
    metrics_port: int | None = None


@contextlib.contextmanager
def process(
    command: Sequence[str], core: int, log: Path, look: str, env: Mapping[str, str] | None = None
) -> Iterator[int]:
    """A process pinned to a core that answers at the URL `look`, ended at the end. Raises RuntimeError."""
    with log.open("wb") as output:
        started = subprocess.Popen(
            ["taskset", "-c", str(core), *command],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
        )
        try:
            _wait_until_it_answers(started, look, log)
            yield started.pid
        finally:
            started.terminate()
            try:
                started.wait(20)
            except subprocess.TimeoutExpired:
                started.kill()
                started.wait(5)


def _wait_until_it_answers(started: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and started.poll() is None:
        try:
            with urlopen(url, timeout=2) as response:
                if response.status == 200:
                    return
        except (URLError, OSError):
            time.sleep(0.05)
    raise RuntimeError(f"no answer from {url}:\n{log.read_text()[-2000:]}")


@contextlib.contextmanager
def engine(folder: Path, *options: str) -> Iterator[Running]:
    """The stand-in that every system asks; by itself it is the system `direct`."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.gateway.engine", str(port), *options]
    with process(command, OTHER_CORE, folder / "engine.log", f"http://127.0.0.1:{port}/v1/models"):
        yield Running("direct", port, None)


@contextlib.contextmanager
def sluice(folder: Path, engine_port: int, limits: RoutingLimits = ROOMY) -> Iterator[Running]:
    """The gateway as it is deployed: records of every request, metrics, budgets, in front of one version."""
    port, internal = free_ports(2)
    keys = folder / "keys"
    keys.mkdir(exist_ok=True)
    (keys / "bench").write_text(KEY + "\n")
    version = Backend(
        model_version="bench-v1",
        lineage="bench",
        manifest_digest="sha256:" + "0" * 64,
        url=f"http://127.0.0.1:{engine_port}",
        weight=100,
    )
    table = RoutingTable(pool="bench", namespace="bench", model=MODEL, window="w", backends=[version], limits=limits)
    (folder / "routes.json").write_bytes(table.canonical())
    env = {
        "SLUICE_KEYS_DIR": str(keys),
        "SLUICE_ROUTES_FILE": str(folder / "routes.json"),
        "SLUICE_DATABASE_URL": f"sqlite:///{folder}/interactions.db",
        "SLUICE_HOST": "127.0.0.1",
        "SLUICE_PORT": str(port),
        "SLUICE_INTERNAL_PORT": str(internal),
        "SLUICE_DRAIN_DELAY_SECONDS": "0.1",
        "SLUICE_DRAIN_SECONDS": "5",
    }
    command, look = [str(Path(sys.executable).with_name("sluice-gateway"))], f"http://127.0.0.1:{internal}/readyz"
    with process(command, SYSTEM_CORE, folder / "sluice.log", look, env) as pid:
        yield Running("sluice", port, pid, internal)


NGINX = """\
worker_processes 1;
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/nginx.error.log warn;
events {{ worker_connections 16384; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
    uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    keepalive_requests 1000000;
    upstream engine {{ server 127.0.0.1:{engine_port}; keepalive 4096; keepalive_requests 1000000; }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://engine;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
        }}
    }}
}}
"""


@contextlib.contextmanager
def nginx(folder: Path, engine_port: int) -> Iterator[Running]:
    """A plain reverse proxy in C: no keys, no checks, no records."""
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, engine_port=engine_port, port=port))
    program = nginx_program()
    assert program is not None
    command = [program, "-e", str(folder / "nginx.error.log"), "-c", str(config)]
    with process(command, SYSTEM_CORE, folder / "nginx.log", f"http://127.0.0.1:{port}/v1/models") as pid:
        yield Running("nginx", port, pid)


@contextlib.contextmanager
def litellm(folder: Path, engine_port: int) -> Iterator[Running]:
    """LiteLLM's proxy with one worker and a master key; no database, so it keeps no records."""
    port = free_port()
    config = folder / "litellm.json"
    model = {"model": f"openai/{MODEL}", "api_base": f"http://127.0.0.1:{engine_port}/v1", "api_key": "none"}
    config.write_text(
        json.dumps(
            {
                "model_list": [{"model_name": MODEL, "litellm_params": model}],
                "litellm_settings": {"telemetry": False, "num_retries": 0},
                "general_settings": {"master_key": KEY},
            }
        )
    )
    program = litellm_program()
    assert program is not None
    env = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "LITELLM_MODE": "PRODUCTION"}
    command = [program, "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    look = f"http://127.0.0.1:{port}/health/liveliness"
    with process(command, SYSTEM_CORE, folder / "litellm.log", look, env) as pid:
        yield Running("litellm", port, pid)


def litellm_program() -> str | None:
    """Where LiteLLM's command is, None if it is not installed."""
    return os.environ.get(LITELLM_VARIABLE) or shutil.which("litellm")


def nginx_program() -> str | None:
    """Where nginx is, None if it is not installed. Debian puts it where only root's PATH looks."""
    return shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")


def nginx_version() -> str:
    """What `nginx -v` says, `absent` without it."""
    program = nginx_program()
    if program is None:
        return "absent"
    said = subprocess.run([program, "-v"], capture_output=True, text=True, timeout=10).stderr
    return said.strip().rpartition("/")[2]


def litellm_version() -> str:
    """Of the package in the command's own environment, `absent` without it."""
    program = litellm_program()
    if program is None:
        return "absent"
    code = "from importlib.metadata import version; print(version('litellm'))"
    python = Path(program).resolve().with_name("python")
    said = subprocess.run([str(python), "-c", code], capture_output=True, text=True, timeout=60)
    return said.stdout.strip() or "unknown"
