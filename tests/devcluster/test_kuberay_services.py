"""A RayService goes through the states that the real operator went through, in the same order."""

from itertools import count
from typing import Any

from sluice_devcluster.kuberay import rayservice
from sluice_devcluster.kuberay.names import NODE_TYPE, SERVE
from sluice_devcluster.kuberay.rayservice import Action, application_statuses

JSON = dict[str, Any]


def ray_serve_says(status: str, message: str = "", **deployments: str) -> JSON:
    """Ray Serve's description of one application, as its REST API gives it."""
    inner = {name: {"status": value, "message": ""} for name, value in deployments.items()}
    return {"applications": {"hello": {"status": status, "message": message, "deployments": inner}}}


def head(*, ready: bool, serves: bool) -> JSON:
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
    labels = {NODE_TYPE: "head", SERVE: "true" if serves else "false"}
    return {
        "metadata": {"name": "svc-head", "labels": labels},
        "status": {"phase": "Running", "conditions": conditions},
    }


class World:
    """A RayService and its cluster, moved by the stand-in's steps and by what Ray Serve answers."""

    def __init__(self) -> None:
        metadata = {"name": "svc", "namespace": "default", "uid": "1", "generation": 2}
        self.service: JSON = {"kind": "RayService", "metadata": metadata, "spec": {}}
        self.cluster: JSON | None = None
        self.states: list[JSON] = []
        self.services = False
        self._time = (f"2026-11-21T07:00:{n:02d}Z" for n in count())
        self.step()

    def step(self, details: JSON | None = None, pods: list[JSON] | None = None) -> None:
        """Steps until nothing changes; then `details` have been seen."""
        applications = None if details is None else application_statuses(details)
        for _ in range(5):
            before = self.service.get("status")
            step = rayservice.step(self.service, self.cluster, pods or [], applications, next(self._time), "abcde")
            for action in step.actions:
                if action is Action.CREATE_CLUSTER:
                    self.cluster = {"metadata": {"name": "svc-abcde"}, "status": {}}
                self.services = self.services or action is Action.SERVICES
            self.service["status"] = step.status
            self._note(step.status)
            if step.status == before and self.cluster:
                return
        raise AssertionError("the steps do not come to rest")

    def _note(self, status: JSON) -> None:
        if not self.states or self.states[-1] != status:
            self.states.append(status)


def shape(states: list[JSON]) -> list[JSON]:
    """What of the states matters to a reader: no times, generated names only as being there, messages cut."""
    found: list[JSON] = []
    for state in states:
        new: JSON = {k: state[k] for k in ("numServeEndpoints", "serviceStatus") if k in state}
        new["conditions"] = [(c["type"], c["status"], c["reason"], c["message"]) for c in state["conditions"]]
        for part in ("activeServiceStatus", "pendingServiceStatus"):
            applications = state[part].get("applicationStatuses", {})
            cut = {n: a | ({"message": a["message"][:40]} if "message" in a else {}) for n, a in applications.items()}
            new[part] = (bool(state[part].get("rayClusterName")), cut)
        if not found or found[-1] != new:
            found.append(new)
    return found


def test_readiness_loss_of_the_head_and_healing_follow_the_recording(recorded: Any) -> None:
    ((_, there),) = recorded("rayservice_ready_none_strategy_headkill").items()
    world = World()
    serving, lost = [head(ready=True, serves=True)], [head(ready=False, serves=True)]
    starting = [head(ready=True, serves=False)]

    world.step(ray_serve_says("DEPLOYING"), starting)
    world.step(ray_serve_says("DEPLOYING", Hello="UPDATING"), serving)
    assert not world.services
    world.step(ray_serve_says("RUNNING", Hello="HEALTHY"), serving)
    assert world.services
    world.step(None, lost)
    world.step({"applications": {}}, starting)
    world.step(ray_serve_says("DEPLOYING"), starting)
    world.step(ray_serve_says("DEPLOYING", Hello="UPDATING"), serving)
    world.step(ray_serve_says("RUNNING", Hello="HEALTHY"), serving)

    assert shape(world.states) == shape(there["states"])


def test_a_bad_import_path_never_becomes_a_failure(recorded: Any) -> None:
    ((_, there),) = recorded("rayservice_bad_import").items()
    message = "Deploying app 'hello' failed with exception:\nTraceback (most recent call last):"
    world = World()

    world.step(ray_serve_says("DEPLOYING"), [head(ready=True, serves=False)])
    world.step(ray_serve_says("DEPLOY_FAILED", message), [head(ready=True, serves=True)])

    assert shape(world.states) == shape(there["states"])
    assert not world.services


def test_the_heads_serve_label_follows_its_proxy() -> None:
    assert rayservice.head_serves([head(ready=True, serves=False)], proxy_healthy=True) == ("svc-head", "true")
    assert rayservice.head_serves([head(ready=True, serves=True)], proxy_healthy=False) == ("svc-head", "false")
    assert rayservice.head_serves([head(ready=True, serves=True)], proxy_healthy=True) is None


def test_a_cluster_that_was_deleted_is_replaced() -> None:
    world = World()
    world.step(ray_serve_says("RUNNING", Hello="HEALTHY"), [head(ready=True, serves=True)])
    assert world.service["status"]["activeServiceStatus"]["rayClusterName"]

    world.cluster = None
    world.step()

    assert world.cluster is not None
    assert world.service["status"]["pendingServiceStatus"]["rayClusterName"]
    assert world.service["status"]["conditions"][0]["status"] == "False"
