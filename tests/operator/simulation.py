"""A small imitation of the API server in memory, with the operator's real loop parts around it, for state machines.

It is a fake, and only as true as the state machines need: objects by name, resourceVersions and generations, an answer
to every write, deletion with all that is owned, and events that a test delivers, loses, repeats or shuffles. The cache,
the deciders (observe and plan) and the executor are the product's own. Schemas, field managers and admission are not
imitated: tests against the real API server are for those.
"""

import asyncio
import copy
import itertools
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sluice_contracts.analysis import AnalysisSnapshot, VersionCounts
from sluice_contracts.base import timestamp
from sluice_operator.artifacts import Problem
from sluice_operator.engine.cache import Cache, Key
from sluice_operator.engine.controller import Controller
from sluice_operator.engine.metrics import Metrics
from sluice_operator.kinds import World, deciders, references
from sluice_operator.kube.client import ApiUnreachable
from sluice_operator.kube.resources import CHILDREN, MODEL_VERSION, OWN, POD, Resource

from tests.operator.conftest import NOW, Make

Json = dict[str, Any]
Items = list[Json]
NAMESPACE = "support"
ADAPTERS = {"v5": "v1", "v6": "v1"}
"""Versions that can be served as adapters, and what they were trained from."""
WATCHED = {*OWN, *CHILDREN}


class KilledError(BaseException):
    """The operator's process ended here, without a chance to clean up."""


@dataclass
class Fault:
    """What befalls the operator at its next writes: nothing to the first `after`, then this one."""

    kind: str
    """lost: the request never arrived; unanswered: it was carried out and the answer got lost; killed: carried out, and
    the operator's process ended."""
    after: int


class FakeApi:
    """Stands where KubeClient stands."""

    def __init__(self) -> None:
        self.objects: dict[Key, Json] = {}
        self.events: list[tuple[Resource, Json, bool]] = []
        """Not yet delivered: resource, object, whether it was deleted."""
        self.past: list[tuple[Resource, Json, bool]] = []
        """Every event there ever was."""
        self.created: list[Key] = []
        """Every object that came into being, in order."""
        self.told: list[Json] = []
        self.writes = 0
        self.fault: Fault | None = None
        self._versions = itertools.count(1)

    # -- what the operator calls --------------------------------------------------------------------------------------

    async def apply(self, resource: Resource, obj: Mapping[str, Any], manager: str) -> Json:
        return self._write(lambda: self.put(resource, obj))

    async def apply_status(
        self, resource: Resource, namespace: str, name: str, status: Mapping[str, Any], manager: str
    ) -> Json:
        return self._write(lambda: self.set_status(resource, name, status))

    async def merge(self, resource: Resource, namespace: str, name: str, patch: Mapping[str, Any]) -> Json:
        gone = [a for a, value in patch["metadata"]["annotations"].items() if value is None]
        return self._write(lambda: self.annotate(resource, name, {a: None for a in gone}))

    async def create(self, resource: Resource, obj: Mapping[str, Any]) -> Json | None:
        def add() -> Json:
            name = obj["metadata"]["name"]
            if all(e["metadata"]["name"] != name for e in self.told):
                self.told.append(copy.deepcopy(dict(obj)))
            return dict(obj)

        return self._write(add)

    async def delete(self, resource: Resource, namespace: str, name: str) -> None:
        self._write(lambda: self.remove(resource, name))

    async def get(self, resource: Resource, namespace: str, name: str) -> Json | None:
        return copy.deepcopy(self.objects.get(Key(resource, namespace, name)))

    async def list(
        self,
        resource: Resource,
        namespace: str | None = None,
        labels: str | None = None,
        versions: Any = None,
    ) -> AsyncIterator[Json]:
        if versions is not None:
            versions.append(next(self._versions))
        wanted = dict(pair.split("=", 1) for pair in labels.split(",")) if labels else {}
        for key, obj in list(self.objects.items()):
            have = obj["metadata"].get("labels") or {}
            if key.resource == resource and all(have.get(name) == value for name, value in wanted.items()):
                yield copy.deepcopy(obj)

    def _write(self, change: Any) -> Any:
        self.writes += 1
        fault = self.fault
        if fault is None:
            return change()
        if fault.after > 0:
            fault.after -= 1
            return change()
        self.fault = None
        if fault.kind == "lost":
            raise ApiUnreachable("the request did not arrive")
        change()
        if fault.kind == "killed":
            raise KilledError
        raise ApiUnreachable("the answer did not arrive")

    # -- what everybody does ------------------------------------------------------------------------------------------

    def put(self, resource: Resource, obj: Mapping[str, Any]) -> Json:
        """Create or change: a whole child (it names its owner) is replaced, anything else is merged into."""
        key = Key(resource, NAMESPACE, obj["metadata"]["name"])
        before = self.objects.get(key)
        wanted = copy.deepcopy(dict(obj))
        if before is None:
            wanted["metadata"] |= {"uid": f"uid-{next(self._versions)}", "generation": 1}
            self.created.append(key)
            return self._store(key, wanted)
        after = _merged(before, wanted)
        if "ownerReferences" in wanted["metadata"]:
            after |= {k: v for k, v in wanted.items() if k not in {"metadata", "spec"}}
            suspend = (before.get("spec") or {}).get("suspend")
            if "spec" in wanted:
                after["spec"] = wanted["spec"] | ({} if suspend is None else {"suspend": suspend})
        if after == before:
            return copy.deepcopy(before)
        if after.get("spec") != before.get("spec"):
            after["metadata"]["generation"] = before["metadata"].get("generation", 0) + 1
        return self._store(key, after)

    def set_status(self, resource: Resource, name: str, status: Mapping[str, Any]) -> Json:
        key = Key(resource, NAMESPACE, name)
        before = self.objects[key]
        after = {**before, "status": copy.deepcopy(dict(status))}
        return copy.deepcopy(before) if after == before else self._store(key, after)

    def annotate(self, resource: Resource, name: str, annotations: Mapping[str, str | None]) -> Json:
        key = Key(resource, NAMESPACE, name)
        obj = copy.deepcopy(self.objects[key])
        found = {**(obj["metadata"].get("annotations") or {}), **annotations}
        obj["metadata"]["annotations"] = {k: v for k, v in found.items() if v is not None}
        return self._store(key, obj)

    def remove(self, resource: Resource, name: str) -> None:
        key = Key(resource, NAMESPACE, name)
        gone = self.objects.pop(key, None)
        if gone is None:
            return
        gone["metadata"]["resourceVersion"] = str(next(self._versions))
        self._tell(resource, gone, True)

    def all(self, resource: Resource) -> Items:
        """Objects of a kind, by name."""
        found = [(key.name, obj) for key, obj in self.objects.items() if key.resource == resource]
        return [obj for _, obj in sorted(found, key=lambda entry: entry[0])]

    def _store(self, key: Key, obj: Json) -> Json:
        obj = copy.deepcopy(obj)
        obj["metadata"]["resourceVersion"] = str(next(self._versions))
        obj["metadata"].setdefault("namespace", NAMESPACE)
        self.objects[key] = obj
        self._tell(key.resource, obj, False)
        return copy.deepcopy(obj)

    def _tell(self, resource: Resource, obj: Json, deleted: bool) -> None:
        if resource in WATCHED:
            self.events.append((resource, copy.deepcopy(obj), deleted))
            self.past.append(self.events[-1])


def _merged(before: Mapping[str, Any], wanted: Mapping[str, Any]) -> Json:
    after = copy.deepcopy(dict(before))
    for name, value in wanted.items():
        known = after.get(name)
        after[name] = _merged(known, value) if isinstance(known, Mapping) and isinstance(value, Mapping) else value
    return after


class FakeArtifacts:
    """Files by URI, as parsed documents: stands where Artifacts stands."""

    def __init__(self) -> None:
        self.files: dict[str, Any] = {}
        self.away = False

    async def parsed(self, model: Any, uri: str, digest: str | None = None) -> Any:
        if self.away:
            return Problem("StorageUnavailable", "storage does not answer", lasting=False)
        found = self.files.get(uri)
        return found if isinstance(found, model) else Problem("NotFound", f"there is no {uri}")

    async def read(self, uri: str, digest: str | None = None) -> Any:
        return Problem("NotFound", f"there is no {uri}")


@dataclass
class FakeGateways:
    """The gateway pods' analysis pages: stands where the HTTP session stands."""

    counts: dict[str, VersionCounts] = field(default_factory=dict)
    window: str = ""
    answers: bool = True

    @asynccontextmanager
    async def get(self, url: str, **_: Any) -> AsyncIterator[Any]:
        snapshot = AnalysisSnapshot(instance="i", window=self.window, since=timestamp(NOW), versions=self.counts)
        yield _Answer(200 if self.answers else 503, snapshot.model_dump_json(by_alias=True).encode())


class _Answer:
    def __init__(self, status: int, body: bytes) -> None:
        self.status, self.content, self._body = status, self, body

    async def read(self, _limit: int = -1) -> bytes:
        return self._body

    async def iter_any(self) -> AsyncIterator[bytes]:
        yield self._body

    async def text(self) -> str:
        return self._body.decode()


class Simulation:
    """The operator's real parts over the fake API server; time stands still until it is moved."""

    def __init__(self) -> None:
        self.api, self.artifacts, self.gateways = FakeApi(), FakeArtifacts(), FakeGateways()
        self.settings = Make.settings()
        self.seconds = 0.0
        self._runner = asyncio.Runner()
        self.restart()

    def close(self) -> None:
        self._runner.close()

    @property
    def now(self) -> datetime:
        return NOW + timedelta(seconds=self.seconds)

    def restart(self) -> None:
        """A new process: it knows nothing but what it lists."""
        self.cache = Cache(references)
        world: Any = World(
            self.cache,
            self.api,
            self.artifacts,
            self.gateways,
            self.settings,
            lambda: self.now,  # type: ignore[arg-type]
        )
        self.controller = Controller(self.api, self.cache, deciders(world), Metrics())  # type: ignore[arg-type]
        self.relist()

    def relist(self) -> None:
        """What the operator does at its start and at each resync."""
        self.api.events.clear()
        self._runner.run(self.controller.relist())

    def deliver(self, picked: list[int], *, keep: bool = False) -> None:
        """Deliver some of the waiting events, in this order; the others are lost, unless they are kept for later."""
        waiting = self.api.events
        self.api.events = list(waiting) if keep else []

        async def deliver() -> None:
            for index in picked:
                if waiting:
                    self.controller.changed(*copy.deepcopy(waiting[index % len(waiting)]))

        self._runner.run(deliver())

    def deliver_again(self, picked: list[int]) -> None:
        """Events of long ago arrive once more, counted from the newest."""
        past = self.api.past

        async def deliver() -> None:
            for index in picked:
                if past:
                    self.controller.changed(*copy.deepcopy(past[-1 - index % len(past)]))

        self._runner.run(deliver())

    def look(self, resource: Resource, name: str) -> float | None:
        """One look at an object, faults and all. Seconds until the next that it asks for."""
        key = Key(resource, NAMESPACE, name)

        async def look() -> float | None:
            try:
                return await self.controller.reconcile(key)
            except ApiUnreachable:
                return 1.0

        try:
            return self._runner.run(look())
        except KilledError:
            self.restart()
            return 1.0
        finally:
            self.api.fault = None

    def version(self, name: str, verified: bool = True) -> None:
        """A ModelVersion as its own reconciliation would leave it."""
        digit = name[-1]
        reference = {"uri": f"gs://sluice/runs/{name}/manifest.json", "digest": "sha256:" + digit * 64}
        self.api.put(
            MODEL_VERSION,
            {
                "apiVersion": MODEL_VERSION.api_version,
                "kind": MODEL_VERSION.kind,
                "metadata": {"name": name, "namespace": NAMESPACE},
                "spec": {"model": "support-bot", "version": name, "manifest": reference},
            },
        )
        condition = {
            "type": "Verified",
            "status": "True" if verified else "False",
            "reason": "ArtifactsPresent" if verified else "ArtifactMissing",
            "message": "" if verified else "a file is missing",
            "observedGeneration": 1,
            "lastTransitionTime": timestamp(NOW),
        }
        status: Json = {"lineage": digit * 64, "conditions": [condition]}
        if name in ADAPTERS:
            status["buildsOn"] = {"digest": "sha256:" + ADAPTERS[name][-1] * 64, "rank": 8}
        self.api.set_status(MODEL_VERSION, name, status)

    def gateway_pod(self, labels: Mapping[str, str]) -> None:
        """One ready gateway pod."""
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "gateway-pod", "labels": dict(labels)}}
        self.api.put(POD, body)
        ready = {"podIP": "10.0.0.9", "conditions": [{"type": "Ready", "status": "True"}]}
        self.api.set_status(POD, "gateway-pod", ready)
