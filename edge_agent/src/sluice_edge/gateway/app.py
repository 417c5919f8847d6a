"""The OpenAI-compatible API as an ASGI application.

It forwards whitelisted requests to the engine's UNIX socket and counts how each ended, without keeping any content.
Which engine that is stands in serving.json, read anew whenever it changes: a request that has begun stays with its
engine, the next one goes to the new.
"""

import asyncio
import hmac
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import anyio
import httpx
from pydantic import ValidationError
from sluice_contracts.signal import Outcome
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from sluice_edge.audit import AuditLog
from sluice_edge.engine.child import NO_TLS
from sluice_edge.errors import ConfigurationError, EdgeError
from sluice_edge.gateway.chat_request import MAX_BODY, MAX_TOKENS, ChatRequest, FeedbackRequest, problem
from sluice_edge.gateway.serving import Serving, read_serving
from sluice_edge.signals import Observation, Signals

T = TypeVar("T", ChatRequest, FeedbackRequest)
ELSEWHERE = ("/v1/completions", "/v1/embeddings", "/v1/responses")
"""Endpoints of the cluster's gateway that a device does not have."""
IN_FLIGHT = 8
"""Requests that may wait for the one that the engine works on; the next one is told to come back."""
ANSWER_SECONDS = 600.0
"""Longest wait for the engine's next bytes: one that waits in its queue hears nothing meanwhile."""


@dataclass
class Gateway:
    """What the handlers share."""

    model: str
    key: str
    serving_file: Path
    signals: Signals | None
    """None: count nothing (the offline proof asks questions that are nobody's)."""
    audit: AuditLog
    clients: dict[str, httpx.AsyncClient] = field(default_factory=dict)
    in_flight: dict[str, int] = field(default_factory=dict)

    def client(self, socket: str) -> httpx.AsyncClient:
        """The connection pool to one engine. At most the newest two are kept."""
        if socket not in self.clients:
            # A kept-alive connection would hold one of the engine's few threads for seconds after its answer.
            limits = httpx.Limits(max_keepalive_connections=0)
            transport = httpx.AsyncHTTPTransport(uds=socket, verify=NO_TLS, limits=limits)
            self.clients[socket] = httpx.AsyncClient(transport=transport, timeout=ANSWER_SECONDS, trust_env=False)
            for old in [s for s in self.clients if s != socket and not self.in_flight.get(s)]:
                self.clients.pop(old)
        return self.clients[socket]


@dataclass
class Answer:
    """What is remembered of one answer until it has been counted."""

    id: str = ""
    text: list[str] = field(default_factory=list)
    tokens: int = 0
    finish: str | None = None
    failed: bool = False

    def outcome(self) -> Outcome:
        """How it ended, before anybody has said what they think of it."""
        if self.failed:
            return Outcome.FAILURE
        return Outcome.SUCCESS if self.finish == "stop" else Outcome.PARTIAL


def build(gateway: Gateway) -> Starlette:
    """The application."""

    def handler(
        function: Callable[[Gateway, Request], Awaitable[Response]],
    ) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
            if not hmac.compare_digest(given, gateway.key.encode()):
                message = "missing or wrong key; send the one in the file `key` of the agent's home"
                return refuse(401, message, "invalid_api_key" if given else "missing_api_key")
            return await function(gateway, request)

        return handle

    async def healthz(request: Request) -> Response:
        serving = read_serving(gateway.serving_file)
        body: dict[str, Any] = {
            "ready": serving is not None,
            "inFlight": {k: v for k, v in gateway.in_flight.items() if v},
        }
        if serving is not None:
            body |= {"version": serving.version, "lineage": serving.lineage}
        return JSONResponse(body, 200 if serving is not None else 503)

    return Starlette(
        routes=[
            Route("/healthz", healthz),
            Route("/v1/models", handler(models)),
            Route("/v1/models/{name:path}", handler(model)),
            *(Route(path, handler(not_here), methods=["POST"]) for path in ELSEWHERE),
            Route("/v1/chat/completions", handler(chat), methods=["POST"]),
            Route("/v1/feedback", handler(feedback), methods=["POST"]),
        ],
        # A web page whose name was made to point at 127.0.0.1 comes with its own name in Host.
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"], www_redirect=False)],
        exception_handlers={HTTPException: _refused, Exception: _failed},
    )


async def _refused(request: Request, error: Exception) -> Response:
    """No such path, or not with this method; the router's own answer is plain text."""
    assert isinstance(error, HTTPException)
    what = f"{request.method} {request.url.path[:128]}"
    if error.status_code == 405:
        allowed = dict(error.headers or {})
        return refuse(405, f"{what} is not allowed; use {allowed.get('Allow')}", "method_not_allowed", headers=allowed)
    return refuse(error.status_code, f"there is no {what}", "unknown_url")


async def _failed(request: Request, error: Exception) -> Response:
    """An error of our own. What it says may hold what was asked, so that only its class goes to the log."""
    sys.stderr.write(f"the gateway failed: {type(error).__name__}\n")
    return refuse(500, "the gateway failed", "internal_error")


async def models(gateway: Gateway, request: Request) -> Response:
    """GET /v1/models."""
    return JSONResponse({"object": "list", "data": [_model(gateway)]})


async def model(gateway: Gateway, request: Request) -> Response:
    """GET /v1/models/<name>."""
    name = str(request.path_params["name"])
    return JSONResponse(_model(gateway)) if name == gateway.model else _no_model(gateway, name)


def _model(gateway: Gateway) -> dict[str, Any]:
    return {"id": gateway.model, "object": "model", "created": 0, "owned_by": "sluice"}


def _no_model(gateway: Gateway, name: str) -> Response:
    return refuse(
        404,
        f"the model {name[:64]!r} is not here; this device serves {gateway.model!r}",
        "model_not_found",
        field="model",
    )


async def not_here(gateway: Gateway, request: Request) -> Response:
    """What the cluster's endpoint has and the device's does not."""
    path = request.url.path
    return refuse(
        404, f"a device does not answer {path}; use /v1/chat/completions", "unsupported_endpoint", field="model"
    )


async def feedback(gateway: Gateway, request: Request) -> Response:
    """POST /v1/feedback {id, feedback, outcome}."""
    parsed = await _parse(request, FeedbackRequest)
    if isinstance(parsed, Response):
        return parsed
    if gateway.signals is None:
        return refuse(404, "nothing is counted here", "not_found")
    outcome = Outcome(parsed.outcome) if parsed.outcome is not None else None
    try:
        await asyncio.to_thread(gateway.signals.feedback, parsed.id, parsed.feedback, outcome)
    except ConfigurationError as error:
        return refuse(404, str(error), "not_found", field="id")
    except EdgeError as error:
        return refuse(500, str(error), "server_error")
    return JSONResponse({"ok": True})


async def chat(gateway: Gateway, request: Request) -> Response:
    """POST /v1/chat/completions."""
    body = await _parse(request, ChatRequest)
    if isinstance(body, Response):
        return body
    if body.model != gateway.model:
        return _no_model(gateway, body.model)
    if (conflict := body.conflict()) is not None:
        return refuse(400, conflict[1], "invalid_value", field=conflict[0])
    serving = read_serving(gateway.serving_file)
    if serving is None:
        return refuse(
            503, "the engine is starting, or no model is installed; see `sluice-edge status`", "not_ready", wait=2
        )
    if sum(gateway.in_flight.values()) >= IN_FLIGHT:
        return refuse(429, f"{IN_FLIGHT} requests are waiting already; try again", "rate_limit_exceeded", wait=2)

    gateway.in_flight[serving.socket] = gateway.in_flight.get(serving.socket, 0) + 1
    turn = Turn(gateway, serving, body)
    handed_over = False
    try:
        upstream = await turn.send()
        if isinstance(upstream, Response):
            return upstream
        if body.stream:
            handed_over = True
            return StreamingResponse(turn.relay(upstream), media_type="text/event-stream", headers=turn.headers())
        return await turn.whole(upstream)
    finally:
        if not handed_over:
            turn.leave()


class Turn:
    """One request on its way through one engine."""

    def __init__(self, gateway: Gateway, serving: Serving, body: ChatRequest) -> None:
        self.gateway, self.serving, self.body = gateway, serving, body
        self.engine_body = body.for_engine()
        self.started = time.monotonic()
        self.answer = Answer()
        self.begun = False
        """Whether the client has been told who speaks."""

    def headers(self) -> dict[str, str]:
        """Which version answers."""
        headers = {
            "x-sluice-version": self.serving.version,
            "x-sluice-lineage": self.serving.lineage,
            "cache-control": "no-store",
        }
        if self.body.clamped:
            headers["x-sluice-max-output-tokens"] = str(MAX_TOKENS)
        return headers

    def leave(self) -> None:
        """The engine has one request fewer."""
        self.gateway.in_flight[self.serving.socket] -= 1

    async def send(self) -> httpx.Response | Response:
        """Begin the request at the engine; its refusal comes back as ours."""
        client = self.gateway.client(self.serving.socket)
        request = client.build_request("POST", "http://engine/v1/chat/completions", json=self.engine_body)
        try:
            upstream = await client.send(request, stream=True)
            if upstream.status_code == 200:
                return upstream
            error = _error_of(await upstream.aread())
            await upstream.aclose()
        except httpx.HTTPError:
            return await self._failed(
                503, "the engine broke off; it is being started again", "engine_unavailable", wait=2
            )
        if error.get("type") == "exceed_context_size_error":
            return refuse(
                400,
                f"the messages have {error.get('n_prompt_tokens')} tokens, this model on this device takes "
                f"{error.get('n_ctx')}",
                "context_length_exceeded",
                field="messages",
            )
        if upstream.status_code < 500:
            return refuse(400, str(error.get("message") or "the engine refused the request"), "invalid_request")
        return await self._failed(
            502, f"the engine failed: {error.get('message') or 'no reason given'}", "engine_error"
        )

    async def whole(self, upstream: httpx.Response) -> Response:
        """The answer in one piece."""
        try:
            data = json.loads(await upstream.aread())
            choice = data["choices"][0]
            self.answer.id = str(data["id"])
            self.answer.text = [choice["message"].get("content") or ""]
            self.answer.finish = choice.get("finish_reason")
            self.answer.tokens = int(data["usage"]["completion_tokens"])
        except (httpx.HTTPError, ValueError, LookupError, TypeError):
            return await self._failed(502, "the engine broke off in the middle of its answer", "engine_error")
        finally:
            await upstream.aclose()
        data["model"] = self.gateway.model
        await self._count()
        return JSONResponse(data, headers=self.headers())

    async def relay(self, upstream: httpx.Response) -> AsyncIterator[bytes]:
        """The answer as server-sent events, as they come."""
        wants_usage = self.body.stream_options is not None and self.body.stream_options.include_usage
        try:
            buffer = b""
            async for chunk in upstream.aiter_raw():
                buffer += chunk
                *events, buffer = buffer.split(b"\n\n")
                for event in events:
                    out = self._event(event, wants_usage)
                    if out:
                        yield out
        except httpx.HTTPError:
            self.answer.failed = True
            yield _event({"error": {"message": "the engine broke off", "type": "server_error", "code": "engine_error"}})
        finally:
            self.leave()
            with anyio.CancelScope(shield=True):
                await upstream.aclose()
                await self._count()

    def _event(self, event: bytes, wants_usage: bool) -> bytes:
        data = event.removeprefix(b"data: ").strip()
        if not event.startswith(b"data: ") or data == b"[DONE]":
            return event + b"\n\n"
        chunk = json.loads(data)
        if "error" in chunk:
            self.answer.failed = True
            return event + b"\n\n"
        self.answer.id = str(chunk.get("id", ""))
        for choice in chunk.get("choices", []):
            if not self.begun:
                # llama.cpp leaves it out where its first token is only a part of a character; clients need it.
                choice["delta"] = {"role": "assistant"} | choice.get("delta", {})
                self.begun = True
            text = choice.get("delta", {}).get("content")
            if text:
                self.answer.text.append(text)
            self.answer.finish = choice.get("finish_reason") or self.answer.finish
        if "usage" in chunk:
            self.answer.tokens = int(chunk["usage"].get("completion_tokens", 0))
            if not wants_usage:
                return b""
        chunk["model"] = self.gateway.model
        return _event(chunk)

    async def _failed(self, status: int, message: str, code: str, wait: int | None = None) -> Response:
        self.answer.failed = True
        await self._count()
        return refuse(status, message, code, wait=wait)

    async def _count(self) -> None:
        """Count how it ended. That the disk is full must not cost anybody their answer."""
        try:
            await asyncio.to_thread(self._record)
        except EdgeError as error:
            sys.stderr.write(f"an answer was not counted: {error}\n")

    def _record(self) -> None:
        gateway, slice_ = self.gateway, self.body.metadata
        if gateway.signals is not None:
            gateway.signals.record(
                self.answer.id or f"failed-{time.time_ns()}",
                Observation(
                    lineage=self.serving.lineage,
                    domain=slice_.domain,
                    task=slice_.task,
                    outcome=self.answer.outcome(),
                    seconds=time.monotonic() - self.started,
                    tokens=self.answer.tokens,
                ),
            )
        gateway.audit.append(
            "request",
            request=gateway.audit.hash_of(json.dumps(self.engine_body["messages"]).encode()),
            answer=gateway.audit.hash_of("".join(self.answer.text).encode()),
            outcome=self.answer.outcome().value,
            tokens=self.answer.tokens,
            lineage=self.serving.lineage,
            route="local",
        )


def refuse(
    status: int,
    message: str,
    code: str,
    *,
    field: str | None = None,
    wait: int | None = None,
    headers: dict[str, str] | None = None,
) -> Response:
    """An error as OpenAI's clients understand it."""
    kinds = {401: "authentication_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
    body = {"error": {"message": message, "type": kind, "param": field, "code": code}}
    return JSONResponse(body, status, headers=(headers or {}) | ({"Retry-After": str(wait)} if wait else {}))


async def _parse(request: Request, kind: type[T]) -> T | Response:
    """The body as `kind`, or the refusal. Reads no more than MAX_BODY bytes."""
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_BODY:
            return refuse(413, f"the request is longer than {MAX_BODY:,} bytes", "request_too_large")
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        name, message, code = problem(error)
        return refuse(400, f"{name or 'the body'}: {message}", code, field=name)


def _error_of(body: bytes) -> dict[str, Any]:
    try:
        error = json.loads(body).get("error", {})
    except (ValueError, AttributeError):
        return {}
    return error if isinstance(error, dict) else {"message": str(error)}


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
