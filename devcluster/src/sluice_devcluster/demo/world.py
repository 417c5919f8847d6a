"""The demo's hands: commands, the cluster's objects, the bucket, and waiting with a deadline."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from sluice_contracts.names import API_VERSION, GROUP, VERSION
from sluice_contracts.telemetry import OFF_SWITCHES

from sluice_devcluster.demo.ground import Ground
from sluice_devcluster.demo.steps import StoryError

T = TypeVar("T")
PLURALS = {"TrainingRun": "trainingruns", "ModelVersion": "modelversions", "InferencePool": "inferencepools"}


@dataclass(frozen=True)
class World:
    """Where the demo plays: a checkout, a cluster, a folder for what it leaves behind."""

    repository: Path
    output: Path
    ground: Ground
    kubectl: Path
    helm: Path
    namespace: str

    @property
    def environment(self) -> dict[str, str]:
        """The environment of every command. The commands beside this one's Python come first."""
        return {
            **os.environ,
            **OFF_SWITCHES,
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}",
            "KUBECONFIG": str(self.ground.kubeconfig),
            **({"STORAGE_EMULATOR_HOST": self.ground.emulator} if self.ground.emulator else {}),
            "PYTHONUNBUFFERED": "1",
        }

    def run(
        self,
        command: Sequence[str | Path],
        *,
        deadline: float = 120,
        stdin: str | None = None,
        check: bool = True,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; its output is kept in the log.

        Raises StoryError if it fails (and `check`), or is not done after `deadline` seconds.
        """
        words = [str(w) for w in command]
        environment = {**self.environment, **(environment or {})}
        try:
            result = subprocess.run(
                [found_program(words[0], environment), *words[1:]],
                input=stdin,
                capture_output=True,
                text=True,
                timeout=deadline,
                env=environment,
                cwd=self.repository,
            )
        except subprocess.TimeoutExpired:
            raise StoryError(f"`{' '.join(words)}` was not done after {deadline:.0f} s") from None
        with (self.output / "commands.log").open("a") as log:
            log.write(f"$ {' '.join(words)}\n{result.stdout}{result.stderr}\n[exit {result.returncode}]\n\n")
        if check and result.returncode != 0:
            last = (result.stderr.strip() or result.stdout.strip()).splitlines()[-8:]
            raise StoryError(f"`{' '.join(words)}` failed:\n" + "\n".join(last))
        return result

    def json(self, command: Sequence[str | Path], **options: Any) -> dict[str, Any]:
        """Run a command that prints one JSON object, and read it."""
        out = self.run(command, **options).stdout
        try:
            value = json.loads(out)
        except ValueError:
            raise StoryError(f"`{' '.join(map(str, command))}` did not print JSON: {out[:200]!r}") from None
        if not isinstance(value, dict):
            raise StoryError(f"`{' '.join(map(str, command))}` did not print a JSON object")
        return value

    @contextmanager
    def background(
        self,
        command: Sequence[str | Path],
        log: str,
        environment: Mapping[str, str] | None = None,
        output: str | None = None,
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Run a command beside the block; it is asked to stop at the block's end, and killed if it does not.

        What it says goes to the file `log`; its standard output to `output`, where one is named.
        """
        environment = {**self.environment, **(environment or {})}
        program, *words = [str(w) for w in command]
        with (self.output / log).open("ab") as errors, (self.output / (output or log)).open("ab") as out:
            process = subprocess.Popen(
                [found_program(program, environment), *words],
                stdout=out,
                stderr=errors,
                env=environment,
                cwd=self.repository,
                start_new_session=True,
            )
            try:
                yield process
            finally:
                stop(process)

    def apply(self, *objects: Mapping[str, Any]) -> None:
        """`kubectl apply` what a user would apply; kept in the output folder for the curious."""
        text = yaml.safe_dump_all([dict(o) for o in objects], sort_keys=False)
        with (self.output / "applied.yaml").open("a") as log:
            log.write(f"---\n{text}")
        self.run([self.kubectl, "apply", "--server-side", "-n", self.namespace, "-f", "-"], stdin=text)

    def patch(self, kind: str, name: str, change: Mapping[str, Any]) -> None:
        """`kubectl patch` one of our kinds."""
        resource = f"{PLURALS[kind]}.{GROUP}"
        self.run(
            [self.kubectl, "patch", resource, name, "-n", self.namespace, "--type=merge", "-p", json.dumps(change)]
        )

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        """One of our objects, or None."""
        api = client.CustomObjectsApi(config.new_client_from_config(str(self.ground.kubeconfig)))
        try:
            value: dict[str, Any] = api.get_namespaced_custom_object(
                GROUP, VERSION, self.namespace, PLURALS[kind], name, _request_timeout=10
            )
        except ApiException as error:
            if error.status == 404:
                return None
            raise
        return value

    def sluice_object(self, kind: str, name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
        """An object of one of our kinds, ready to apply."""
        return {
            "apiVersion": API_VERSION,
            "kind": kind,
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": dict(spec),
        }


def found_program(name: str, environment: Mapping[str, str]) -> str:
    """Where `name` lies by the environment's own PATH. Raises StoryError."""
    found = shutil.which(name, path=environment["PATH"])
    if found is None:
        raise StoryError(f"`{name}` is not installed; run `make setup`")
    return found


def stop(process: subprocess.Popen[bytes], grace: float = 15) -> None:
    """Ask a process group to end; kill it after `grace` seconds."""
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(grace)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(grace)


def wait(
    probe: Callable[[], T | None],
    *,
    what: str,
    deadline: float,
    every: float = 1.0,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> T:
    """Ask `probe` until it answers something true. Raises StoryError naming `what` after `deadline` seconds."""
    end = clock() + deadline
    while True:
        value = probe()
        if value:
            return value
        if clock() >= end:
            raise StoryError(f"waited {deadline:.0f} s in vain for {what}")
        pause(every)


def condition(obj: Mapping[str, Any] | None, type_: str) -> dict[str, Any]:
    """A condition of an object, at its newest generation; empty if it says nothing yet."""
    if not obj:
        return {}
    generation = obj["metadata"].get("generation", 0)
    for c in obj.get("status", {}).get("conditions", []):
        if c["type"] == type_ and c.get("observedGeneration", 0) >= generation:
            return dict(c)
    return {}


def is_true(obj: Mapping[str, Any] | None, type_: str) -> bool:
    """Whether a condition holds at the object's newest generation."""
    return condition(obj, type_).get("status") == "True"
