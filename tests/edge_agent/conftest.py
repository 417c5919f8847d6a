"""Fixtures of the agent's tests."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from sluice_edge.audit import AuditLog
from sluice_edge.home import AgentConfig, Home, initialise
from sluice_edge.pull.update import Sync


def _load(name: str) -> ModuleType:
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("world.py"))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


world = _load("edge_world")
sys.modules["edge_fixtures_here"] = sys.modules[__name__]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small models: `one` and `two` share most bytes, no engine loads `broken`, `mute` answers with nothing."""
    folder = tmp_path_factory.mktemp("models")
    one = world.write_gguf(folder / "one.gguf")
    two = world.write_gguf(folder / "two.gguf", tuned=2)
    broken = world.write_gguf(folder / "broken.gguf", arch="unheard-of")
    mute = world.write_gguf(folder / "mute.gguf", mute=True)
    return {"mute": mute, "one": one, "two": two, "broken": broken}


@pytest.fixture
def publisher(tmp_path: Path):
    """An empty repository."""
    return world.Publisher(tmp_path / "publisher")


@pytest.fixture
def server(publisher) -> Iterator[object]:
    """The repository over HTTP."""
    with world.FileServer(publisher.folder).running() as running:
        yield running


class Device:
    """A device: its home, and ways to use it in this process or as a command."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.lines: list[str] = []

    def work(self, **parts) -> Sync:
        audit = AuditLog(self.home.audit, self.home.device().audit_key)
        return Sync(self.home, self.home.config(), audit, self.lines.append, **parts)

    def sync(self, *, retry: bool = False, repair: bool = False, **parts):
        from sluice_edge.pull.update import sync

        return sync(self.work(**parts), retry=retry, repair=repair)

    def command(self, *args: str, stdin: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "sluice_edge", *args],
            env={**os.environ, "SLUICE_HOME": str(self.home.root), "COLUMNS": "200"},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
        )
        if check:
            assert done.returncode == 0, done.stderr
        return done

    def json(self, *args: str) -> dict:
        return json.loads(self.command(*args, "-o", "json").stdout)


@pytest.fixture
def make_device(tmp_path: Path, publisher):
    """Make a device that follows `url`."""

    def make(url: str, name: str = "device", cohort: int | None = 0, **settings) -> Device:
        home = Home(tmp_path / name)
        config = AgentConfig(repository=url, model=world.MODEL, threads=1, port=0, **settings)
        initialise(home, config, publisher.anchor, cohort)
        return Device(home)

    return make


@pytest.fixture
def device(make_device, server) -> Device:
    """A device that follows the HTTP server."""
    return make_device(server.url)


@pytest.fixture
def fast_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting between tries."""
    monkeypatch.setattr("sluice_edge.pull.fetch.BACK_OFF_SECONDS", (0.0, 0.0, 0.0))
