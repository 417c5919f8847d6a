"""The routing table arrives from a ConfigMap, through whatever happens to the watch; bad tables change nothing."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web
from sluice_contracts.routing import Backend, RoutingTable
from sluice_serving.gateway.routes import ConfigMapWatch, parse_table

TOKEN = "token-one"


def table(weight: int) -> str:
    backends = [
        Backend(model_version=n, lineage="l", manifest_digest="sha256:" + d * 64, url="http://e", weight=w)
        for n, d, w in (("v1", "1", 100 - weight), ("v2", "2", weight))
    ]
    return RoutingTable(pool="p", namespace="ns", model="m", backends=backends).canonical().decode()


class FakeApiServer:
    """Lists and watches one ConfigMap as Kubernetes' API server does, and breaks off on demand."""

    def __init__(self) -> None:
        self.version = 10
        self.data = {"routes.json": table(0)}
        self.tokens: list[str | None] = []
        self.selectors: list[str | None] = []
        self.lists = 0
        self.gone = False
        self.watchers: list[asyncio.Queue[dict[str, Any] | None]] = []
        self.url = ""

    def item(self) -> dict[str, Any]:
        return {"metadata": {"name": "p-routes", "resourceVersion": str(self.version)}, "data": self.data}

    def change(self, text: str) -> None:
        self.version += 1
        self.data = {"routes.json": text}
        for queue in self.watchers:
            queue.put_nowait({"type": "MODIFIED", "object": self.item()})

    def cut(self) -> None:
        for queue in self.watchers:
            queue.put_nowait(None)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.tokens.append(request.headers.get("authorization"))
        self.selectors.append(request.query.get("fieldSelector"))
        if not request.query.get("watch"):
            self.lists += 1
            return web.json_response({"metadata": {"resourceVersion": str(self.version)}, "items": [self.item()]})
        response = web.StreamResponse()
        await response.prepare(request)
        if self.gone:
            self.gone = False
            status = {"kind": "Status", "code": 410, "message": "too old resource version"}
            await response.write(json.dumps({"type": "ERROR", "object": status}).encode() + b"\n")
            return response
        queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        if str(self.version) != request.query["resourceVersion"]:
            queue.put_nowait({"type": "MODIFIED", "object": self.item()})
        self.watchers.append(queue)
        try:
            while (event := await queue.get()) is not None:
                await response.write(json.dumps(event).encode() + b"\n")
        finally:
            self.watchers.remove(queue)
        return response


@pytest.fixture
async def api_server() -> AsyncIterator[FakeApiServer]:
    server = FakeApiServer()
    app = web.Application()
    app.router.add_get("/api/v1/namespaces/ns/configmaps", server.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    server.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"  # type: ignore[attr-defined]
    yield server
    await runner.cleanup()


async def until(condition: Any, what: str) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.005)


@pytest.fixture
async def seen(api_server: FakeApiServer, tmp_path: Path) -> AsyncIterator[list[int]]:
    """Weights of v2 in the tables that were accepted, by a watch that runs."""
    (tmp_path / "token").write_text(TOKEN)
    weights: list[int] = []
    watch = ConfigMapWatch(api_server.url, "ns", "p-routes", token_file=tmp_path / "token", ca_file=tmp_path / "no-ca")
    task = asyncio.create_task(watch.follow(lambda t: weights.append(t.backends[1].weight)))
    yield weights
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_changes_arrive_at_once_and_only_this_config_map_is_asked_for(
    api_server: FakeApiServer, seen: list[int]
) -> None:
    await until(lambda: seen == [0] and api_server.watchers, "the first table")
    began = time.monotonic()
    api_server.change(table(25))
    await until(lambda: seen == [0, 25], "the change")
    assert time.monotonic() - began < 0.5
    assert set(api_server.selectors) == {"metadata.name=p-routes"}


async def test_a_watch_that_breaks_or_grows_old_is_set_up_again(
    api_server: FakeApiServer, seen: list[int], tmp_path: Path
) -> None:
    await until(lambda: api_server.watchers, "watching")
    api_server.cut()
    api_server.change(table(5))
    await until(lambda: 5 in seen, "the change after the cut")
    await until(lambda: api_server.watchers, "watching")
    (tmp_path / "token").write_text("token-two")
    api_server.gone = True
    lists = api_server.lists
    api_server.cut()
    await until(lambda: api_server.lists > lists, "listed anew")
    api_server.change(table(50))
    await until(lambda: 50 in seen, "the change after the new list")
    assert api_server.tokens[-1] == "Bearer token-two"


async def test_a_bad_table_changes_nothing(api_server: FakeApiServer, seen: list[int]) -> None:
    await until(lambda: api_server.watchers, "watching")
    api_server.change('{"pool": "p"}')
    api_server.change("nonsense")
    api_server.data = {}
    api_server.cut()
    api_server.change(table(75))
    await until(lambda: 75 in seen, "the next good table")
    assert set(seen) == {0, 75}


def test_a_bad_table_is_explained_by_field() -> None:
    with pytest.raises(ValueError, match="namespace: Field required"):
        parse_table('{"pool": "p", "model": "m"}')
    broken = table(30).replace('"weight":30', '"weight":31')
    with pytest.raises(ValueError, match="must sum to 100"):
        parse_table(broken)


@pytest.mark.apiserver
async def test_a_real_api_server_lets_the_gateway_watch_this_one_config_map_and_no_other(
    kubectl: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reader = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "reader", "namespace": "support"}}
    rule = {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list", "watch"]}
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": reader["metadata"],
        "rules": [rule | {"resourceNames": ["p-routes"]}],
    }  # fmt: skip
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": reader["metadata"],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"},
        "subjects": [{"kind": "ServiceAccount", "name": "reader", "namespace": "support"}],
    }  # fmt: skip

    def config_map(weight: int) -> dict[str, Any]:
        metadata = {"name": "p-routes", "namespace": "support"}
        return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"routes.json": table(weight)}}

    for manifest in (reader, role, binding, config_map(0)):
        kubectl.applied(manifest)
    token = kubectl("create", "token", "reader", "-n", "support")
    assert token.returncode == 0, token.stderr
    (tmp_path / "token").write_text(token.stdout)
    access = yaml.safe_load(kubectl.kubeconfig.read_text())["clusters"][0]["cluster"]
    (tmp_path / "ca.crt").write_bytes(base64.b64decode(access["certificate-authority-data"]))
    files = {"token_file": tmp_path / "token", "ca_file": tmp_path / "ca.crt"}
    seen: list[int] = []
    watch = ConfigMapWatch(access["server"], "support", "p-routes", **files)
    task = asyncio.create_task(watch.follow(lambda t: seen.append(t.backends[1].weight)))
    await until(lambda: seen == [0], "the first table")
    await asyncio.to_thread(kubectl.applied, config_map(25))
    await until(lambda: seen == [0, 25], "the change")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    other = ConfigMapWatch(access["server"], "support", "other", **files)
    refused = asyncio.create_task(other.follow(lambda t: seen.append(-1)))
    await until(lambda: "answered 403" in caplog.text, "the refusal")
    refused.cancel()
    await asyncio.gather(refused, return_exceptions=True)
    assert seen == [0, 25]
