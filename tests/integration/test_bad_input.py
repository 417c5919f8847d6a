"""Bad input, tried as a user would: each ends with the right exit code and names the thing and the remedy.

Every case runs a real command in a process of its own, or asks the real API server.
"""

import copy
import hashlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from sluice_devcluster.ports import free_port, free_ports

BIN = Path(sys.executable).parent
REPOSITORY = Path(__file__).parents[2]
NOBODY = "65534"
ZEROS = "sha256:" + "0" * 64
LIMIT_S = 60


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    said: str
    """What it wrote to standard error, on one line."""


@dataclass
class User:
    """Someone with a shell in a folder of their own."""

    folder: Path
    become: tuple[str, ...] = ()
    """A command that makes the process theirs; none: who runs the tests."""

    def run(self, *command: str, **environment: str) -> Ended:
        """Run one of our commands."""
        done = subprocess.run(
            [*self.become, str(BIN / command[0]), *command[1:]],
            cwd=self.folder,
            env=self.environment(environment),
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Ended(done.returncode, " ".join(done.stderr.split()))

    def environment(self, more: dict[str, str]) -> dict[str, str]:
        """A plain environment and `more`."""
        base = {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(self.folder), "COLUMNS": "250"}
        return {**base, **more}

    def file(self, name: str, content: str | bytes) -> str:
        """Write a file; returns its name."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return name

    def uri(self, name: str = "") -> str:
        """A file:// URI of something in the folder."""
        return (self.folder / name).as_uri()


@pytest.fixture
def user(tmp_path: Path) -> User:
    return User(tmp_path)


def needs_root() -> None:
    """Skip what only root can try: becoming somebody else, mounting a disk."""
    if os.geteuid() != 0:
        pytest.skip("only root can try this")


@pytest.fixture
def nobody() -> Iterator[User]:
    """Somebody without rights, in a folder that all may read. They may read everything, since this machine's Python
    may lie in root's home; they may write nothing and are not root."""
    needs_root()
    read_all = "+dac_read_search"
    become = ["setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]
    with tempfile.TemporaryDirectory(prefix="sluice-nobody-") as folder:
        Path(folder).chmod(0o755)
        yield User(Path(folder), (*become, "--inh-caps", read_all, "--ambient-caps", read_all))


@pytest.fixture
def stranger(nobody: User) -> User:
    """Somebody who may not even read everything."""
    made = User(nobody.folder, nobody.become[:6])
    if subprocess.run([*made.become, sys.executable, "-c", ""], capture_output=True, cwd="/").returncode:
        pytest.skip("this machine's Python lies where only root may look")
    return made


def helps(ended: Ended, code: int, *words: str) -> None:
    """The exit code is right, and the message holds each of `words`: the thing, and what to do."""
    assert ended.code == code, ended.said
    missing = [word for word in words if word not in ended.said]
    assert not missing, f"{missing} is not in: {ended.said}"


# -- a dataset's configuration -------------------------------------------------------------------------------------

GOOD = "name: bad-input\nseed: 1\nsize: 200\n"
CONFIGURATIONS = {
    "unknown field": ("name: x\nseed: 1\nsizes: 300\n", ["sizes: unknown field", "size: Field required"]),
    "too small": ("name: x\nseed: 1\nsize: 5\n", ["size: Input should be greater than or equal to 100"]),
    "mix": (GOOD + "mix: {intent: 0.5}\n", ["mix: the shares must sum to 1, not 0.5"]),
    "unknown domain": (GOOD + "domains: {exclude: [leadrship]}\n", ["domains.exclude.0", "'leadership'"]),
    "half a pair": (GOOD + "replay: 0.5\n", ["focus and replay belong together: give both or neither"]),
    "not YAML": ("name: [x\n", ["is not YAML", "line 1"]),
    "not a mapping": ("- name\n", ["must hold a mapping with name, seed and size"]),
}


@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_dataset_configuration(user: User, case: str) -> None:
    content, words = CONFIGURATIONS[case]
    config = user.file("dataset.yaml", content)
    helps(user.run("sluice-train", "dataset", "build", "--config", config, "--out", user.uri()), 1, config, *words)


def build(user: User, *more: str, out: str | None = None, **how: Any) -> Ended:
    config = user.file("dataset.yaml", GOOD)
    return user.run("sluice-train", "dataset", "build", "--config", config, "--out", out or user.uri(), *more, **how)


def test_a_configuration_that_is_not_there(user: User) -> None:
    ended = user.run("sluice-train", "dataset", "build", "--config", "gone.yaml", "--out", user.uri())
    helps(ended, 1, "gone.yaml", "No such file")


def test_storage_of_an_unknown_kind(user: User) -> None:
    helps(build(user, out="s3://bucket/x"), 1, "s3://bucket/x", "use gs://bucket/path or file:///path")


def test_storage_that_may_not_be_written(nobody: User) -> None:
    closed = nobody.folder / "closed"
    closed.mkdir(mode=0o700)
    helps(build(nobody, out=closed.as_uri()), 1, str(closed), "Permission denied")


def test_a_corrupt_batch_of_signals(user: User) -> None:
    user.file("signals/batch.json", '{"a":')
    helps(build(user, "--signals", user.uri("signals")), 1, "signals/batch.json, line", "not JSON")


@pytest.mark.apiserver
def test_a_missing_bucket(user: User) -> None:
    from sluice_devcluster.programs import built_programs

    port = free_port()
    url = f"http://127.0.0.1:{port}"
    program = str(built_programs() / "fake-gcs-server")
    command = [program, "-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory"]
    with running(command, user.folder / "emulator.log", lambda: answers(f"{url}/storage/v1/b?project=local")):
        ended = build(user, out="gs://no-such-bucket/data", STORAGE_EMULATOR_HOST=url)
    helps(ended, 1, "gs://no-such-bucket/data", "the bucket does not exist")


# -- a training job ------------------------------------------------------------------------------------------------


def job(user: User, dataset: Path, digest: str, **changes: Any) -> Ended:
    """`sluice-train job` on a dataset's folder; its outcome is added to what it said."""
    lineage = "a" * 64
    config: dict[str, Any] = {
        "name": "bad-input",
        "namespace": "here",
        "lineage": lineage,
        "gitSha": "0",
        "runUri": user.uri(f"runs/{lineage}"),
        "spec": {
            "model": "bot",
            "dataset": {"uri": dataset.as_uri(), "digest": digest},
            "recipe": {"method": "scratch", "steps": 1},
        },
    }
    config.update(changes)
    name = user.file("run.json", json.dumps(config))
    ended = user.run("sluice-train", "job", "--config", name, "--local")
    outcome = user.folder / "runs" / lineage / "outcome.json"
    said = json.loads(outcome.read_text()) if outcome.exists() else {}
    return Ended(ended.code, f"{ended.said} {said.get('result', '')}: {said.get('message', '')}")


def dataset_of(user: User, lines: list[str]) -> tuple[Path, str]:
    """A dataset whose train.jsonl holds `lines`, all digests right: its folder, and its manifest's digest."""
    assert build(user).code == 0
    (folder,) = (user.folder / "distillation_dataset").iterdir()
    manifest = json.loads((folder / "manifest.json").read_text())
    entry = next(f for f in manifest["files"] if f["path"] == "train.jsonl")
    if lines:
        data = "".join(f"{line}\n" for line in lines).encode()
        (folder / "train.jsonl").write_bytes(data)
        entry.update(size=len(data), sha256=f"sha256:{hashlib.sha256(data).hexdigest()}", rows=len(lines))
    data = json.dumps(manifest).encode()
    (folder / "manifest.json").write_bytes(data)
    return folder, f"sha256:{hashlib.sha256(data).hexdigest()}"


def test_a_run_with_the_wrong_digest_of_its_dataset(user: User) -> None:
    folder, _ = dataset_of(user, [])
    helps(job(user, folder, ZEROS), 0, "InvalidInput: dataset.digest", "manifest.json has digest", f"expected {ZEROS}")


def test_a_run_without_its_dataset(user: User) -> None:
    ended = job(user, user.folder / "nowhere", ZEROS)
    helps(ended, 0, "InvalidInput: dataset.uri", "does not exist", "build it with `sluice-train dataset build`")


GOOD_ROW = {
    "id": "1",
    "domain": "general",
    "task": "recall",
    "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}],
}


def test_a_corrupt_line_of_a_dataset(user: User) -> None:
    folder, digest = dataset_of(user, [json.dumps(GOOD_ROW), json.dumps({**GOOD_ROW, "domain": "sports"})])
    helps(job(user, folder, digest), 0, "InvalidInput", "train.jsonl, line 2: domain", "'general'")


def test_a_dataset_that_was_changed_after_it_was_built(user: User) -> None:
    folder, digest = dataset_of(user, [json.dumps(GOOD_ROW)])
    with (folder / "train.jsonl").open("a") as file:
        file.write(json.dumps(GOOD_ROW) + "\n")
    helps(job(user, folder, digest), 0, "InvalidInput", "train.jsonl", "digest")


def test_a_job_configuration_with_a_wrong_field(user: User) -> None:
    ended = job(user, user.folder, ZEROS, spec={"model": "Bot!"})
    helps(ended, 1, "run.json", "spec.model", "spec.recipe: Field required")


# -- publishing ----------------------------------------------------------------------------------------------------


def publish(user: User, **how: Any) -> Ended:
    options = {"manifest": user.uri("manifest.json"), "digest": ZEROS, "keys": "keys", "version": "v1"}
    options.update({k: how.pop(k) for k in list(how) if k in options})
    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    return user.run("sluice-train", "publish", "release", "--repository", user.uri("releases"), *flags, **how)


@pytest.fixture
def publisher(user: User) -> User:
    """A user with an empty repository and its keys."""
    made = user.run("sluice-train", "publish", "init", "--repository", user.uri("releases"), "--keys", "keys")
    assert made.code == 0, made.said
    return user


def test_publishing_into_no_repository(user: User) -> None:
    helps(publish(user), 1, user.uri("releases"), "make one with `sluice-train publish init`")


def test_publishing_with_a_digest_that_is_none(publisher: User) -> None:
    helps(publish(publisher, digest="sha256:12"), 2, "--digest 'sha256:12'", "64 hexadecimal digits")


def test_publishing_without_keys(publisher: User) -> None:
    helps(publish(publisher, keys="lost"), 1, "lost/targets.pem does not exist", "mount their Secret there")


def test_publishing_with_a_damaged_key(publisher: User) -> None:
    publisher.file("keys/targets.pem", "-----BEGIN")
    helps(publish(publisher), 1, "keys/targets.pem", "was it cut short when it was copied?")


def test_publishing_with_a_key_one_may_not_read(stranger: User) -> None:
    owner = replace(stranger, become=())
    made = owner.run("sluice-train", "publish", "init", "--repository", owner.uri("releases"), "--keys", "keys")
    assert made.code == 0, made.said
    (owner.folder / "keys").chmod(0o755)
    helps(publish(stranger), 1, "cannot read the signing key keys/targets.pem: Permission denied")


def test_publishing_with_a_folder_in_place_of_a_key(publisher: User) -> None:
    key = publisher.folder / "keys" / "targets.pem"
    key.unlink()
    key.mkdir()
    helps(publish(publisher), 1, "cannot read the signing key keys/targets.pem: Is a directory")


def test_publishing_a_manifest_that_was_changed(publisher: User) -> None:
    publisher.file("manifest.json", "{}")
    helps(publish(publisher), 1, "manifest.json has digest", "it was changed after it was recorded")


def test_a_second_repository_in_the_place_of_the_first(publisher: User) -> None:
    ended = publisher.run(
        "sluice-train", "publish", "init", "--repository", publisher.uri("releases"), "--keys", "other"
    )
    helps(ended, 1, "already holds a repository")


# -- a device ------------------------------------------------------------------------------------------------------


def edge(user: User, *arguments: str, home: str = "home") -> Ended:
    return user.run("sluice-edge", *arguments, "--home", home)


def edge_init(user: User, repository: str, home: str = "home", root: str = "keys/root.json") -> Ended:
    return edge(user, "init", "--repository", repository, "--root", root, "--model", "support-bot", home=home)


def test_a_device_without_a_home(user: User) -> None:
    helps(edge(user, "sync"), 1, "home", "make one with `sluice-edge init`")


def test_a_device_with_a_repository_of_an_unknown_kind(publisher: User) -> None:
    helps(edge_init(publisher, "ftp://somewhere"), 2, "--repository", "http")


def test_a_device_without_a_root_of_trust(user: User) -> None:
    helps(edge_init(user, user.uri("releases")), 2, "--root keys/root.json", "take root.json from the publisher")


@pytest.mark.parametrize("command", [["chat", "hello"], ["serve"], ["verify-offline"]], ids=lambda c: c[0])
def test_a_device_without_a_model(publisher: User, command: list[str]) -> None:
    assert edge_init(publisher, publisher.uri("releases")).code == 0
    helps(edge(publisher, *command), 1, "no model is installed on this device yet", "`sluice-edge sync`")


def test_a_device_whose_repository_does_not_answer(publisher: User) -> None:
    port = free_port()
    assert edge_init(publisher, f"http://127.0.0.1:{port}/releases").code == 0
    helps(edge(publisher, "sync"), 1, f"http://127.0.0.1:{port}/releases", "is the repository reachable?")


def _edge_world() -> Any:
    name = "bad_input_edge_world"
    path = REPOSITORY / "tests" / "edge_agent" / "world.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A repository with one real version of 1.5 MB, and its keys."""
    world, folder = _edge_world(), tmp_path_factory.mktemp("released")
    publisher = world.Publisher(folder)
    publisher.release("v1", world.write_gguf(folder / "model.gguf"))
    return publisher


def test_a_device_with_a_full_disk(user: User, released: Any) -> None:
    needs_root()
    disk = user.folder / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "sluice-test", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine does not let tests mount a tmpfs")
    try:
        home = str(disk / "home")
        assert edge_init(user, released.uri, home=home, root=str(released.root_file)).code == 0
        ended = edge(user, "sync", home=home)
        left = list((disk / "home" / "slots").rglob("*.gguf"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    helps(ended, 1, "cannot write the model file", "the disk is full; free some space there", "--home")
    assert not left


def test_a_device_whose_port_is_taken(user: User, released: Any) -> None:
    assert edge_init(user, released.uri, root=str(released.root_file)).code == 0
    synced = edge(user, "sync")
    assert synced.code == 0, synced.said
    with taken_port() as port:
        helps(edge(user, "serve", "--port", str(port)), 1, str(port), "--port")


# -- the gateway ---------------------------------------------------------------------------------------------------


def gateway_environment(user: User, port: int, internal: int) -> dict[str, str]:
    (user.folder / "api-keys").mkdir(exist_ok=True)
    return {
        "SLUICE_ROUTES_FILE": str(user.folder / "routes.json"),
        "SLUICE_KEYS_DIR": str(user.folder / "api-keys"),
        "SLUICE_DATABASE_URL": f"sqlite:///{user.folder}/interactions.db",
        "SLUICE_HOST": "127.0.0.1",
        "SLUICE_PORT": str(port),
        "SLUICE_INTERNAL_PORT": str(internal),
    }


SETTINGS = {
    "no routes": ({"SLUICE_ROUTES_FILE": ""}, ["SLUICE_ROUTES_CONFIGMAP (namespace/name)", "SLUICE_ROUTES_FILE"]),
    "no keys": ({"SLUICE_KEYS_DIR": ""}, ["SLUICE_KEYS_DIR is not set", "one API key per file"]),
    "a wrong port": ({"SLUICE_PORT": "http"}, ["SLUICE_PORT is 'http'; expected a port number"]),
    "a wrong database": (
        {"SLUICE_DATABASE_URL": "mysql://me:secret@db/x"},
        ["SLUICE_DATABASE_URL must start with postgresql:// or sqlite:///"],
    ),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_a_gateway_with_wrong_settings(user: User, case: str) -> None:
    changes, words = SETTINGS[case]
    ended = user.run("sluice-gateway", **{**gateway_environment(user, 8080, 8081), **changes})
    helps(ended, 2, *words)
    assert "secret" not in ended.said


@pytest.mark.parametrize("variable", ["SLUICE_PORT", "SLUICE_INTERNAL_PORT"])
def test_a_gateway_whose_port_is_taken(user: User, variable: str) -> None:
    port, internal = free_ports(2)
    with taken_port() as taken:
        environment = {**gateway_environment(user, port, internal), variable: str(taken)}
        ended = user.run("sluice-gateway", **environment)
    helps(ended, 1, f"cannot listen on 127.0.0.1 port {taken}", f"set {variable} to another")


def test_a_gateway_with_a_bad_routing_table_says_so_and_takes_the_mended_one(user: User) -> None:
    port, internal = free_ports(2)
    backend = {"modelVersion": "v1", "lineage": "a" * 64, "manifestDigest": ZEROS, "url": "http://x", "weight": 40}
    table = {"pool": "p", "namespace": "here", "model": "bot", "backends": [backend]}
    user.file("routes.json", json.dumps(table))
    user.file("api-keys/me", "a-key")
    environment = user.environment(gateway_environment(user, port, internal))
    log = user.folder / "gateway.log"
    ready = f"http://127.0.0.1:{internal}/readyz"
    with running([str(BIN / "sluice-gateway")], log, lambda: answers(ready) == 503, environment):
        until(lambda: "weights must sum to 100" in log.read_text(), "the log names what is wrong with the table")
        assert "routes.json" in log.read_text()
        user.file("routes.json", json.dumps({**table, "backends": [{**backend, "weight": 100}]}))
        until(lambda: answers(ready) == 200, "the mended table is in force")


# -- the operator, its command line, the local cluster -------------------------------------------------------------


def test_an_operator_without_its_settings(user: User) -> None:
    ended = user.run("sluice-operator")
    helps(ended, ended.code or 1, "SLUICE_STORAGE_URI is not set", "the Helm chart sets it")


def test_no_cluster_to_speak_of(user: User) -> None:
    helps(user.run("sluice", "status", KUBECONFIG="absent"), 1, "cannot use absent", "set KUBECONFIG")


def test_a_cluster_that_does_not_answer(user: User) -> None:
    port = free_port()
    context = {"name": "x", "context": {"cluster": "c", "user": "u"}}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": f"https://127.0.0.1:{port}"}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [context],
        "current-context": "x",
    }
    user.file("config", json.dumps(config))
    ended = user.run("sluice", "lineage", "bot-1", KUBECONFIG="config")
    helps(ended, 1, f"cannot reach the API server https://127.0.0.1:{port}", "is the cluster up")


@pytest.mark.apiserver
def test_a_lineage_of_an_unknown_name(user: User, kubectl: Any) -> None:
    run = yaml.safe_load((REPOSITORY / "manifests/examples/trainingrun-v1.yaml").read_text())
    run["metadata"]["name"] = "known-name"
    kubectl.applied(run)
    ended = user.run("sluice", "lineage", "unknown-name", "-n", "support", KUBECONFIG=str(kubectl.kubeconfig))
    helps(ended, 1, "'unknown-name' in namespace support", "did you mean 'known-name'?", "There are: ")
    elsewhere = user.run("sluice", "lineage", "known-name", "-n", "default", KUBECONFIG=str(kubectl.kubeconfig))
    helps(elsewhere, 1, "in namespace default", "`sluice status -A` shows all")


def test_a_local_cluster_without_root(nobody: User) -> None:
    ended = nobody.run("sluice-dev", "up")
    helps(ended, 1, "needs root", "sudo", "SLUICE_CLUSTER=existing")


@pytest.mark.parametrize("command", [["kubectl", "get", "pods"], ["logs", "kubelet"]], ids=lambda c: c[0])
def test_a_local_cluster_that_was_not_started(user: User, command: list[str]) -> None:
    ended = user.run("sluice-dev", *command, SLUICE_STATE=str(user.folder / "state"))
    assert ended.code == 1
    assert "sluice-dev up" in ended.said or "has not been started" in ended.said, ended.said


def test_a_load_without_a_key_or_with_a_wrong_duration(user: User) -> None:
    options = ("--url", "http://127.0.0.1:1/v1", "--model", "bot", "--duration")
    helps(user.run("sluice-load", *options, "1s"), 2, "SLUICE_API_KEY is not set")
    helps(user.run("sluice-load", *options, "soon", SLUICE_API_KEY="k"), 2, "'soon' is no duration", "30s")


def test_a_benchmark_that_does_not_exist(user: User) -> None:
    ended = user.run("python", "-m", "benchmarks", "speed", PYTHONPATH=str(REPOSITORY))
    helps(ended, 2, "no benchmark is named speed", "edge_update")


# -- objects -------------------------------------------------------------------------------------------------------

RUN: dict[str, Any] = yaml.safe_load((REPOSITORY / "manifests/examples/trainingrun-v1.yaml").read_text())
OBJECTS: dict[str, tuple[str, object, list[str]]] = {
    "unknown accelerator": (
        "hardware",
        {"accelerator": "nvidia-h900"},
        ["spec.hardware.accelerator", 'Unsupported value: "nvidia-h900"', '"nvidia-l4"'],
    ),
    "TPU without topology": ("hardware", {"accelerator": "tpu-v6e-slice"}, ["needs hardware.topology, such as 2x4"]),
    "GPUs of a CPU": ("hardware", {"count": 2}, ["leave it out with accelerator cpu", "hardware.resources.cpu"]),
    "dataset digest": ("dataset", {"uri": "gs://b/d", "digest": "abc"}, ["spec.dataset.digest", "sha256:"]),
    "dataset URI": ("dataset", {"uri": "s3://b/d", "digest": ZEROS}, ["spec.dataset.uri", "gs://"]),
    "lora without its block": ("recipe", {"method": "lora", "steps": 10}, ["`lora: {}`"]),
    "no steps": ("recipe", {"method": "scratch", "steps": 0}, ["spec.recipe.steps", "greater than or equal to 1"]),
    "gate without a bound": (
        "evaluation",
        {"suites": ["intent"], "gates": [{"metric": "intent.accuracy"}]},
        ["a gate needs a bound: min, max or nonInferiorTo"],
    ),
    "unknown field": ("speed", "fast", ["spec.speed"]),
}  # fmt: skip


@pytest.mark.apiserver
@pytest.mark.parametrize("case", OBJECTS)
def test_an_object_with_a_wrong_field(kubectl: Any, case: str) -> None:
    field_, value, words = OBJECTS[case]
    run = copy.deepcopy(RUN)
    run["metadata"]["name"] = "bad-input"
    run["spec"][field_] = value
    said = kubectl.refusal(run)
    missing = [word for word in words if word not in said]
    assert not missing, f"{missing} is not in: {said}"


# -- small things --------------------------------------------------------------------------------------------------


class taken_port:
    """A port of loopback that somebody else listens on."""

    def __enter__(self) -> int:
        self._socket = socket.create_server(("127.0.0.1", 0))
        port: int = self._socket.getsockname()[1]
        return port

    def __exit__(self, *_: object) -> None:
        self._socket.close()


class running:
    """A program in the background, up once `up` says so, ended with the block."""

    def __init__(
        self, command: list[str], log: Path, up: Callable[[], object], environment: dict[str, str] | None = None
    ) -> None:
        self._command, self._log, self._up, self._environment = command, log, up, environment

    def __enter__(self) -> None:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, env=self._environment)
        try:
            until(self._up, f"{Path(self._command[0]).name} is up")
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)


def answers(url: str) -> int:
    """The HTTP status of a GET; 0 if nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            status: int = response.status
            return status
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return 0


def until(condition: Callable[[], object], what: str, seconds: float = 20.0) -> None:
    """Wait for a condition, with a deadline."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.05)
