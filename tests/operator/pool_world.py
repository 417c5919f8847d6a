"""A pool and everything around it, moved by hand, for tests of its plan."""

from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import yaml
from sluice_contracts.analysis import VersionCounts
from sluice_contracts.inference_pool import InferencePoolSpec, InferencePoolStatus
from sluice_contracts.names import ANNOTATION_ROLLOUT, RolloutRequest
from sluice_contracts.routing import RoutingTable
from sluice_contracts.training_run import ManifestReference
from sluice_operator.children.rayservice import Version, service_name
from sluice_operator.inference_pool.engine_state import EngineState
from sluice_operator.inference_pool.evidence import Evidence
from sluice_operator.inference_pool.observe import GatewayState, Observed, VersionState, analysis_due, window_of
from sluice_operator.inference_pool.plan import plan
from sluice_operator.plan import Plan


def digest(version: str) -> str:
    return "sha256:" + (version[-1] * 64)


def version_state(name: str) -> VersionState:
    manifest = ManifestReference(uri=f"gs://sluice/runs/{name}/manifest.json", digest=digest(name))
    return VersionState(Version(name, "support-bot", name[-1] * 64, manifest))


@dataclass
class World:
    """A pool and everything around it, moved by hand. What the operator writes is carried out as it asks."""

    make: Any
    spec: InferencePoolSpec
    status: InferencePoolStatus = field(default_factory=InferencePoolStatus)
    engines: dict[str, EngineState] = field(default_factory=dict)
    counts: dict[str, VersionCounts] = field(default_factory=dict)
    seconds: float = 0
    gateway: int = 1
    routes: RoutingTable | None = None
    request: RolloutRequest | None = None
    unverified: set[str] = field(default_factory=set)
    events: list[str] = field(default_factory=list)

    @property
    def now(self) -> Any:
        return self.make.now + timedelta(seconds=self.seconds)

    def want(self, version: str) -> None:
        self.spec = self.spec.model_copy(update={"model_version": version})

    def engine(self, version: str, **state: Any) -> None:
        name = service_name("chat", digest(version))
        self.engines[name] = replace(self.engines[name], **state)

    def traffic(self, version: str, requests: int, errors: int = 0) -> None:
        self.counts[version] = self.counts.get(version, VersionCounts()).plus(
            VersionCounts(requests=requests, errors=errors)
        )

    def observe(self) -> Observed:
        status = self.status
        names = {
            self.spec.model_version,
            *(s.model_version for s in (status.stable, status.candidate, status.previous) if s),
        }
        evidence = None
        if status.candidate is not None and analysis_due(self.spec, status, self.request, self.now):
            same = self.routes is not None and self.routes.window == window_of(
                status.candidate, status.rollout_started_at
            )
            evidence = Evidence(
                dict(self.counts) if same else {}, asked=self.gateway, answered=self.gateway if same else 0
            )
        bad = VersionState(stalled=True, why_not="ModelVersion is not verified: file missing")
        return Observed(
            status=status,
            versions={n: bad if n in self.unverified else version_state(n) for n in names},
            engines=dict(self.engines),
            gateway=GatewayState(self.gateway, f"{self.gateway} of 1 gateway pods are ready"),
            evidence=evidence,
            window=self.routes.window if self.routes is not None else "",
            request=self.request,
        )

    def decide(self) -> Plan:
        annotations = {ANNOTATION_ROLLOUT: self.request.value} if self.request else {}
        meta = self.make.meta("chat", annotations=annotations)
        return plan(meta, self.spec, self.observe(), self.make.settings(), self.now)

    def step(self, children: bool = True) -> Plan:
        """One look. Without `children` the operator dies after its first write, the status."""
        made = self.decide()
        self.status = InferencePoolStatus.model_validate(made.status)
        self.events += [e.reason for e in made.events]
        if not children:
            return made
        for apply in made.apply:
            name = apply.object["metadata"]["name"]
            if apply.resource.kind == "RayService":
                self.engines.setdefault(name, EngineState(name))
                proven = {s.ray_service for s in (self.status.stable, self.status.previous) if s and s.since}
                assert name in proven or keeps(apply.object) >= 1, f"{name} may sleep and has not served yet"
            if name == "chat-routes":
                before = self.routes
                self.routes = RoutingTable.model_validate_json(apply.object["data"]["routes.json"])
                if before is None or before.window != self.routes.window:
                    self.counts = {}
        for delete in made.delete:
            self.engines.pop(delete.name, None)
        if made.consume is not None:
            self.request = None
        return made

    def reason(self, type_: str = "Ready") -> tuple[str, str]:
        found = next(c for c in self.status.conditions if c.type == type_)
        return found.status, found.reason

    def weights(self) -> dict[str, int]:
        assert self.routes is not None
        return {b.model_version: b.weight for b in self.routes.backends}


def keeps(service: Any) -> int:
    """Engines that a RayService keeps at least."""
    # Reading it in Python would take a third of a life that hypothesis makes up.
    (application,) = yaml.load(service["spec"]["serveConfigV2"], yaml.CSafeLoader)["applications"]
    (deployment,) = application["deployments"]
    scaling = deployment.get("autoscaling_config")
    return int(scaling["min_replicas"] if scaling else deployment["num_replicas"])


def serving(make: Any) -> World:
    """v1 serves."""
    found = World(make, make.pool_spec())
    found.step()
    found.engine("v1", ready=True)
    found.step()
    assert found.reason() == ("True", "Serving")
    return found


def rolling(world: World) -> World:
    """v2 is on its first step."""
    world.want("v2")
    world.step()
    world.engine("v2", ready=True)
    world.step()
    assert world.weights() == {"v1": 80, "v2": 20}
    return world


def look(world: World, seconds: float = 30, stable: int = 400, candidate: int = 100, errors: int = 0) -> None:
    """Traffic without complaints, time, and a look."""
    world.traffic("v1", stable)
    world.traffic("v2", candidate, errors)
    world.seconds += seconds
    world.step()


def least(world: World) -> dict[str, int]:
    """Engines that each version keeps at least, by the RayServices the operator wants now."""
    services = [a.object for a in world.decide().apply if a.resource.kind == "RayService"]
    return {s["metadata"]["labels"]["sluice.dev/model-version"]: keeps(s) for s in services}
