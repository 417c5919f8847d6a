"""The story: four versions of one model, one device, and what each of them goes through.

v1 lacks a slice and is served; a device finds the gap; its signals weigh the next dataset; v2 closes it, passes the
gate and the canary, and reaches the device; v3 (bad data) is stopped by the gate; v4 (gate waived by name) is stopped
by the canary; a flipped bit is stopped by the agent. Nothing is prepared in advance: every number is made here.
"""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from sluice_storage import join, open_store

from sluice_devcluster.demo.device import Device, Question, is_right
from sluice_devcluster.demo.steps import Screen, StoryError
from sluice_devcluster.demo.world import World, condition, is_true, wait

POOL = "support-bot"
SLICE = "leadership"
QUESTIONS = 30
"""How many questions of the slice the device's owner asks; the dataset builder wants at least 25 reports of a cell."""
RIGHT_BEFORE = 0.3
RIGHT_AFTER = 0.6
"""The slice counts as missing below the first share of right answers, and as learned above the second."""

Say = Callable[[str], None]


@dataclass
class Facts:
    """What the story found out; the report is drawn from it."""

    versions: dict[str, dict[str, Any]] = field(default_factory=dict)
    datasets: dict[str, dict[str, Any]] = field(default_factory=dict)
    syncs: dict[str, dict[str, Any]] = field(default_factory=dict)
    answers: dict[str, float] = field(default_factory=dict)
    canaries: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    histories: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    reports: dict[str, dict[str, Any]] = field(default_factory=dict)
    parity: dict[str, dict[str, Any]] = field(default_factory=dict)
    lineage: dict[str, Any] = field(default_factory=dict)
    lineage_text: str = ""
    load: dict[str, dict[str, Any]] = field(default_factory=dict)
    refusal: str = ""


@dataclass
class Story:
    """The loop, step by step."""

    world: World
    screen: Screen
    device: Device
    facts: Facts = field(default_factory=Facts)

    # --- data and training -------------------------------------------------------------------------------------

    def build_dataset(self, version: str, say: Say, *, signals: bool = False) -> dict[str, Any]:
        """Make the dataset of one version; its URI and digest."""
        command = ["sluice-train", "dataset", "build", "-o", "json", "--out", self.world.ground.storage]
        command += ["--config", str(self.example_path("datasets", f"{version}.yaml"))]
        if signals:
            command += ["--signals", join(self.world.ground.storage, "signals")]
        built = self.world.json(command, deadline=300)
        self.facts.datasets[version] = built
        say(f"{built['rows']['train']:,} rows to learn from, run id {built['runId'][:12]}")
        return built

    def train(self, version: str, dataset: Mapping[str, Any]) -> str:
        """Apply the version's TrainingRun; its name."""
        run = self.example(f"trainingrun-{version}.yaml")
        run["spec"]["dataset"] = {"uri": dataset["uri"], "digest": dataset["digest"]}
        self.world.apply(run)
        return str(run["metadata"]["name"])

    def await_training(self, name: str, say: Say) -> dict[str, Any]:
        """The run once it is over, well or not."""

        def over() -> dict[str, Any] | None:
            run = self.world.get("TrainingRun", name)
            say(_progress(run))
            return run if run and (is_true(run, "Ready") or is_true(run, "Stalled")) else None

        run = wait(over, what=f"TrainingRun {name} to end", deadline=1200, every=2)
        self._remember(name, run)
        return run

    def _remember(self, name: str, run: Mapping[str, Any]) -> None:
        status = run.get("status", {})
        self.facts.versions[name] = dict(status)
        uri = status.get("runUri")
        if not uri:
            return
        store = open_store(uri)
        if store.exists("history.jsonl"):
            lines = store.read("history.jsonl").decode().splitlines()
            self.facts.histories[name] = [json.loads(line) for line in lines]
        if store.exists("eval/report.json"):
            self.facts.reports[name] = json.loads(store.read("eval/report.json"))
        if store.exists("parity.json"):
            self.facts.parity[name] = json.loads(store.read("parity.json"))

    def expect_trained(self, run: Mapping[str, Any]) -> str:
        """The ModelVersion a successful run made. Raises StoryError with the run's own words otherwise."""
        if not is_true(run, "Ready"):
            raise StoryError(f"{run['metadata']['name']} should have succeeded: {_why(run)}")
        return str(run["status"]["modelVersion"])

    # --- serving and rollout -----------------------------------------------------------------------------------

    def serve(self, version: str, say: Say) -> None:
        """Apply the InferencePool with its first version and wait until it answers."""
        pool = self.example("inferencepool.yaml")
        pool["spec"]["modelVersion"] = version
        self.world.apply(pool)

        def ready() -> dict[str, Any] | None:
            found = self.world.get("InferencePool", POOL)
            say(condition(found, "Ready").get("message") or "starting the engine")
            return found if is_true(found, "Ready") else None

        wait(ready, what=f"InferencePool {POOL} to be ready", deadline=600, every=2)

    @contextmanager
    def gateway(self) -> Iterator[str]:
        """Where the gateway answers. This machine has a route to the local cluster's Services; into any other it goes
        through the API server."""
        kubectl, service, namespace = self.world.kubectl, f"service/{POOL}-gateway", self.world.namespace
        if self.world.ground.local:
            query = ["get", service, "-n", namespace, "-o", "jsonpath={.spec.clusterIP}"]
            yield f"http://{self.world.run([kubectl, *query]).stdout.strip()}"
            return
        log = "port-forward.log"
        forward: list[str | Path] = [kubectl, "port-forward", service, ":80", "-n", namespace]
        (self.world.output / log).unlink(missing_ok=True)
        with self.world.background(forward, log):

            def port() -> str | None:
                found = re.search(r"Forwarding from 127\.0\.0\.1:(\d+)", (self.world.output / log).read_text())
                return found[1] if found else None

            yield f"http://127.0.0.1:{wait(port, what='kubectl port-forward', deadline=30, every=0.2)}"

    def roll_out(self, version: str, say: Say, *, questions: Path, key: str) -> dict[str, Any]:
        """Ask the pool for `version` under load; the record of how the rollout ended."""
        samples = self.facts.canaries.setdefault(version, [])
        begin = time.monotonic()
        output = f"load-{version}.json"
        with self.gateway() as url, self._load(url, version, questions, key, output):
            self.world.patch("InferencePool", POOL, {"spec": {"modelVersion": version}})

            def ended() -> dict[str, Any] | None:
                pool = self.world.get("InferencePool", POOL) or {}
                status = pool.get("status", {})
                samples.append({"t": time.monotonic() - begin, **status})
                say(_rollout(status, version, pool))
                for record in status.get("history", []):
                    if record["modelVersion"] == version:
                        return dict(record)
                return None

            record = wait(ended, what=f"the rollout of {version} to end", deadline=1200, every=2)
        self.facts.load[version] = json.loads((self.world.output / output).read_text() or "{}")
        return record

    def _load(self, url: str, version: str, questions: Path, key: str, output: str) -> AbstractContextManager[object]:
        """People asking, while the block runs."""
        load: list[str | Path] = ["sluice-load", "--url", f"{url}/v1", "--model", POOL, "--prompts", questions]
        load += ["--rate", "8", "--max-tokens", "96", "--duration", "20m", "--stream", "-o", "json"]
        return self.world.background(load, f"load-{version}.log", {"SLUICE_API_KEY": key}, output)

    def publish(self, version: str, say: Say, *, percent: int = 100) -> None:
        """Wait until the promoted version is signed and visible to devices."""

        def published() -> bool:
            found = self.world.get("ModelVersion", version)
            say(condition(found, "Published").get("message") or "signing")
            return is_true(found, "Published")

        wait(published, what=f"ModelVersion {version} to be published", deadline=240, every=1)

    def allow_publishing(self, version: str) -> None:
        """Apply the publish block of a ModelVersion: a user's decision, not the training run's."""
        fragment = self.example("modelversion-publish.yaml")
        self.world.patch("ModelVersion", version, {"spec": {"publish": fragment["spec"]["publish"]}})

    # --- the device --------------------------------------------------------------------------------------------

    def ask(self, label: str, questions: list[Question], say: Say, *, feedback: bool) -> float:
        """Ask the device's own endpoint; the share of right answers. With `feedback` the owner says what was wrong."""
        right = 0
        with self.device.serving():
            for i, question in enumerate(questions, 1):
                answer = self.device.post(
                    "/v1/chat/completions",
                    {
                        "model": POOL,
                        "messages": list(question.messages),
                        "max_tokens": 32,
                        "temperature": 0,
                        "metadata": {"domain": question.domain, "task": question.task},
                    },
                )
                good = is_right(answer["choices"][0]["message"]["content"], question.expected)
                right += good
                if feedback:
                    outcome, mark = ("success", 1) if good else ("failure", -1)
                    self.device.post("/v1/feedback", {"id": answer["id"], "outcome": outcome, "feedback": mark})
                if i % 10 == 0 or i == len(questions):
                    say(f"{right} of {i} right")
        share = right / len(questions)
        self.facts.answers[label] = share
        return share

    # --- examples ----------------------------------------------------------------------------------------------

    def example_path(self, *parts: str) -> Path:
        return self.world.repository.joinpath("manifests", "examples", *parts)

    def example(self, *parts: str) -> dict[str, Any]:
        value = yaml.safe_load(self.example_path(*parts).read_text())
        assert isinstance(value, dict)
        return value


def _progress(run: Mapping[str, Any] | None) -> str:
    if not run:
        return "not there yet"
    p = run.get("status", {}).get("progress")
    if not p:
        return condition(run, "Reconciling").get("message") or "waiting for the operator"
    parts = [p["stage"]]
    if p["stage"] == "training" and p.get("totalSteps"):
        parts.append(f"step {p.get('step', 0)}/{p['totalSteps']}")
        if p.get("loss") is not None:
            parts.append(f"loss {p['loss']:.3f}")
        if p.get("tokensPerSecond"):
            parts.append(f"{p['tokensPerSecond']:,.0f} tokens/s")
        if p.get("etaSeconds"):
            parts.append(f"{p['etaSeconds']} s left")
    return ", ".join(parts)


def _rollout(status: Mapping[str, Any], version: str, pool: Mapping[str, Any]) -> str:
    weights = {w["modelVersion"]: w["percent"] for w in status.get("weights", [])}
    if version not in weights:
        return condition(pool, "Reconciling").get("message") or "starting the candidate"
    verdicts = ", ".join(f"{v['name']} {v['verdict']} (n={v.get('samples', 0)})" for v in status.get("verdicts", []))
    return f"{weights[version]} % of traffic; {verdicts or 'no data yet'}"


def _why(obj: Mapping[str, Any]) -> str:
    for type_ in ("Stalled", "Evaluated", "Exported", "Ready"):
        c = condition(obj, type_)
        if c.get("message"):
            return f"{c['reason']}: {c['message']}"
    return "no condition says why"
