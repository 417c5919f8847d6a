"""The operator as its own ServiceAccount with exactly the chart's rights, by the API server's own audit log.

A whole life (a run trains a version, a pool promotes it by a canary, it is published, withdrawn, and deleted): nothing
is forbidden, in all namespaces and in one; and afterwards nothing is written but the Lease.
"""

import asyncio
import json
import subprocess
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from sluice_devcluster.programs import built_programs
from sluice_operator.engine import controller, leader
from sluice_operator.kube.resources import INFERENCE_POOL, JOB, MODEL_VERSION, TRAINING_RUN

from tests.operator.test_faults import POOL, Life, a_life

pytestmark = pytest.mark.apiserver
CHART = Path(__file__).parents[2] / "charts" / "sluice"
RIGHTS = {"ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"}
WRITES = {"create", "update", "patch", "delete", "deletecollection"}


class Account:
    """The ServiceAccount that the chart makes, its rights, and what it asked of the API server."""

    def __init__(self, kubectl: Any, namespace: str, *, alone: bool) -> None:
        self.kubectl, self.namespace = kubectl, namespace
        wanted = ["--set", "storage.uri=gs://bucket", "--set", "images.registry=registry.example.com"]
        if alone:
            wanted += ["--set", f"watchNamespaces={{{namespace}}}"]
        command = [built_programs() / "helm", "template", "sluice", CHART, "-n", namespace, *wanted]
        text = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=60, check=True).stdout
        self.rights = [d for d in yaml.safe_load_all(text) if d and d["kind"] in RIGHTS]
        (account,) = (d["metadata"]["name"] for d in self.rights if d["kind"] == "ServiceAccount")
        self.name, self.user = account, f"system:serviceaccount:{namespace}:{account}"

    def make(self, folder: Path) -> Path:
        """Install the rights; a kubeconfig with a token of the account (TokenRequest)."""
        made = self.kubectl("apply", "-f", "-", stdin={"apiVersion": "v1", "kind": "List", "items": self.rights})
        assert made.returncode == 0, made.stderr
        token = self.kubectl("create", "token", self.name, "-n", self.namespace)
        assert token.returncode == 0, token.stderr
        config = yaml.safe_load(self.kubectl.kubeconfig.read_text())
        config["users"][0]["user"] = {"token": token.stdout.strip()}
        path = folder / "operator.kubeconfig"
        path.write_text(yaml.safe_dump(config))
        return path

    def remove(self) -> None:
        for right in self.rights:
            if right["kind"].startswith("Cluster"):
                self.kubectl("delete", right["kind"], right["metadata"]["name"])

    def asked(self) -> list[dict[str, Any]]:
        """All its requests so far, in the order of their answers. The last line may be under way."""
        lines = self.kubectl.audit_log.read_bytes().split(b"\n")[:-1]
        return [event for event in map(json.loads, lines) if event["user"]["username"] == self.user]

    def written(self) -> Counter[str]:
        """How often it wrote each kind of object."""
        return Counter(e["objectRef"]["resource"] for e in self.asked() if e["verb"] in WRITES)


@pytest.fixture
async def life(ray_kinds: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Life]:
    async with a_life(ray_kinds, tmp_path, "127.0.0.35", monkeypatch) as found:
        yield found


@pytest.mark.parametrize("alone", [True, False], ids=["one namespace", "all namespaces"])
async def test_a_whole_life_with_the_charts_rights_meets_no_refusal_and_ends_at_rest(
    life: Life, ray_kinds: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: bool
) -> None:
    monkeypatch.setattr(leader, "RENEW_SECONDS", 1.0)
    monkeypatch.setattr(controller, "SETTLE_SECONDS", 1.0)  # so that all is listed and looked at once more meanwhile
    cluster = life.cluster
    account = Account(ray_kinds, cluster.namespace, alone=alone)
    watched = (cluster.namespace,) if alone else ()
    cluster.settings = replace(cluster.settings, watch_namespaces=watched)
    try:
        monkeypatch.setenv("KUBECONFIG", str(account.make(tmp_path)))
        await cluster.start()
        await life.live()
        await published_and_withdrawn(life)
        if alone:
            await at_rest(life, account)
        await all_deleted(life)
        await cluster.stop()
    finally:
        await cluster.stop()
        account.remove()
        asked = account.asked()
        refused = [e for e in asked if (e.get("responseStatus") or {}).get("code") in {401, 403}]
        assert not refused, {(e["verb"], e["requestURI"]) for e in refused}
    used = {(e["verb"], e["objectRef"]["resource"]) for e in asked if "objectRef" in e}
    assert {("patch", "rayservices"), ("delete", "jobs"), ("create", "events"), ("list", "pods")} <= used
    assert {("create", "leases"), ("watch", "trainingruns"), ("patch", "modelversions")} <= used
    scopes = {e["objectRef"].get("namespace") for e in asked if e["verb"] == "watch" and "objectRef" in e}
    assert (cluster.namespace in scopes) is alone, "it watches where it may, and not one by one where it need not"


async def published_and_withdrawn(life: Life) -> None:
    cluster = life.cluster
    for publish, job in (({"channel": "stable"}, "v2-publish"), ({"channel": "stable", "yanked": True}, "v2-yank")):
        await cluster.kube.merge(MODEL_VERSION, cluster.namespace, "v2", {"spec": {"publish": publish}})
        await cluster.exists(JOB, job)


async def at_rest(life: Life, account: Account) -> None:
    """Several renewals of the Lease long, nothing else is written."""
    before, quiet = account.written(), 0

    async def rested() -> bool:
        nonlocal before, quiet
        now = account.written()
        renewed = now["leases"] - before["leases"]
        if now - Counter(leases=now["leases"]) != before - Counter(leases=before["leases"]):
            before, quiet = now, 0  # the last work was still under way
        else:
            quiet = renewed
        return quiet >= 3

    await life.cluster.until("three renewals of the Lease and nothing else written", rested, seconds=30)
    assert sum(before.values()) - before["leases"] > 30, "there was much that could have been written again"


async def all_deleted(life: Life) -> None:
    cluster = life.cluster
    for resource, name in ((TRAINING_RUN, "v2"), (INFERENCE_POOL, POOL), (MODEL_VERSION, "v1"), (MODEL_VERSION, "v2")):
        await cluster.kube.delete(resource, cluster.namespace, name)

    async def gone() -> bool:
        found = await asyncio.gather(*(cluster.get(MODEL_VERSION, name) for name in ("v1", "v2")))
        return found == [None, None]

    await cluster.until("the finalizers taken off", gone)
