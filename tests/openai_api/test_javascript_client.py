"""Both endpoints keep one contract, with OpenAI's client for JavaScript. The client comes from the npm registry once,
by the hash in the lock file, and lies outside the repository from then on."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent / "javascript"
LOCKED = ("package.json", "package-lock.json")
CHECKS = 8


@pytest.fixture(scope="session")
def client_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the client installed."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("OpenAI's JavaScript client is not tested: node and npm are not on this machine")
    digest = hashlib.sha256(b"".join((PROJECT / name).read_bytes() for name in LOCKED)).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sluice" / "javascript" / digest
    if not (cache / "node_modules" / "openai").is_dir():
        fresh = tmp_path_factory.mktemp("javascript")
        for name in LOCKED:
            shutil.copy(PROJECT / name, fresh)
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        try:
            done = subprocess.run(command, cwd=fresh, capture_output=True, text=True, timeout=90)
        except subprocess.TimeoutExpired:
            pytest.skip("OpenAI's JavaScript client is not tested: npm did not get it within 90 s")
        if done.returncode != 0:
            pytest.skip(f"OpenAI's JavaScript client is not tested, npm cannot get it: {done.stderr.strip()[-300:]}")
        cache.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copytree(fresh, cache.with_name(f"{digest}.{os.getpid()}"))
            cache.with_name(f"{digest}.{os.getpid()}").rename(cache)
        except OSError:  # another worker was first
            shutil.rmtree(cache.with_name(f"{digest}.{os.getpid()}"), ignore_errors=True)
    return cache


@pytest.mark.parametrize("endpoint", ["gateway_api", "edge_api"])
def test_the_contract(endpoint: str, client_folder: Path, request: pytest.FixtureRequest) -> None:
    api = request.getfixturevalue(endpoint)
    # Node looks for packages beside the script, so that the script goes to them.
    script = client_folder / f"contract-{os.getpid()}.mjs"
    shutil.copy(PROJECT / "contract.mjs", script)
    environment = {**os.environ, "SLUICE_URL": api.url, "SLUICE_KEY": api.key, "SLUICE_MODEL": api.model}
    environment["SLUICE_LACKS"] = ",".join(api.lacks)
    try:
        done = subprocess.run(["node", script], env=environment, capture_output=True, text=True, timeout=120)
    finally:
        script.unlink()
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("kept: ") == CHECKS
