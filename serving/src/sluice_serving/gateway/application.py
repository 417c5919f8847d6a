"""The gateway's two ASGI applications: the API for clients, and the internal one for Kubernetes and the operator."""

import json
from collections.abc import Awaitable, Callable

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from sluice_serving.gateway.asgi import closing, send_body, send_start
from sluice_serving.gateway.completion import PATHS, Kind
from sluice_serving.gateway.data_api import DataApi, serves
from sluice_serving.gateway.data_metrics import DataMetrics
from sluice_serving.gateway.errors import ApiError
from sluice_serving.gateway.feedback import PATH as FEEDBACK
from sluice_serving.gateway.feedback import FeedbackApi
from sluice_serving.gateway.metrics import MetricsCollector
from sluice_serving.gateway.service import Gateway

Handler = Callable[[Scope, Receive, Send], Awaitable[None]]
ENDPOINTS: dict[str, Kind] = {path: kind for kind, path in PATHS.items()}
"""What an engine answers."""


class Api:
    """The OpenAI-compatible API. Routes by hand: there are six paths, and each microsecond is everyone's."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.data = DataApi(gateway.accounting, gateway.interactions.database, gateway.forgetting)
        self.feedback = FeedbackApi(gateway.accounting, gateway.interactions.database, gateway.drift)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            return
        path: str = scope["path"]
        if self.gateway.draining:
            send = closing(send)
        try:
            kind = ENDPOINTS.get(path)
            if kind is not None:
                _only(scope, "POST")
                await self.gateway.complete(kind, scope, receive, send)
            elif path == "/v1/models" or path.startswith("/v1/models/"):
                _only(scope, "GET")
                await _send_json(send, 200, await self._models(scope, path.removeprefix("/v1/models").strip("/")))
            elif path == FEEDBACK:
                _only(scope, "POST")
                await self.feedback(scope, receive, send)
            elif serves(path):
                await self.data(scope, receive, send)
            elif path.startswith("/v1/responses/"):
                raise ApiError(404, "Responses are not stored here, so that none can be found, cancelled or deleted.",
                               code="response_not_found")  # fmt: skip
            else:
                raise ApiError(404, f"Unknown request URL: {scope['method']} {path[:128]}.", code="unknown_url")
        except ApiError as error:
            await _send_json(send, error.status, error.body(), error.headers())

    async def _models(self, scope: Scope, wanted: str) -> object:
        await self.gateway.authenticate(scope)
        table = self.gateway.table
        models = [] if table is None else [{"id": table.model, "object": "model", "created": 0, "owned_by": "sluice"}]
        if not wanted:
            return {"object": "list", "data": models}
        for model in models:
            if model["id"] == wanted:
                return model
        raise ApiError(404, f"The model '{wanted[:64]}' does not exist.", param="model", code="model_not_found")


def _only(scope: Scope, method: str) -> None:
    if scope["method"] != method:
        raise ApiError(405, f"Not allowed to {scope['method']} on {scope['path']}; use {method}.",
                       code="method_not_allowed", allow=method)  # fmt: skip


async def _send_json(
    send: Send, status: int, content: object, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    body = json.dumps(content).encode()
    await send_start(send, status, b"application/json", headers or [], len(body))
    await send_body(send, body, more=False)


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return


def internal_app(gateway: Gateway) -> ASGIApp:
    """/healthz, /readyz, /metrics, /analysis: for the cluster's own eyes, on a port of their own."""
    registry = CollectorRegistry()
    collector = MetricsCollector(gateway.observations)
    registry.register(collector)
    registry.register(DataMetrics(gateway.accounting))
    registry.register(gateway.holding)
    if gateway.drift is not None:
        registry.register(gateway.drift)
    if gateway.tracer is not None:
        registry.register(gateway.tracer.exporter)

    async def healthz(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(_: Request) -> Response:
        if gateway.ready:
            return PlainTextResponse("ok\n")
        why = "draining" if gateway.draining else "no routing table" if gateway.table is None else "no API keys"
        return PlainTextResponse(f"{why}\n", status_code=503)

    async def metrics(_: Request) -> Response:
        collector.gauges = gateway.gauges()
        return Response(generate_latest(registry), headers={"content-type": CONTENT_TYPE_LATEST})

    async def analysis(_: Request) -> Response:
        return JSONResponse(gateway.observations.snapshot().wire())

    return Starlette(
        routes=[
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/metrics", metrics),
            Route("/analysis", analysis),
        ]
    )
