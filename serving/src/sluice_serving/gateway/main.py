"""`sluice-gateway`: reads its settings, runs the two servers and the background tasks, and drains when told to stop."""

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import uvicorn
import uvloop
from sluice_contracts.routing import RoutingTable

from sluice_serving.gateway.accounting import Accounting
from sluice_serving.gateway.application import Api, internal_app
from sluice_serving.gateway.budgets import BudgetLedger
from sluice_serving.gateway.connections import BoundedHttp
from sluice_serving.gateway.contexts import ContextStore
from sluice_serving.gateway.database import open_database
from sluice_serving.gateway.drift.counting import DriftCounter
from sluice_serving.gateway.interactions import InteractionLog
from sluice_serving.gateway.jwt import TokenVerifier
from sluice_serving.gateway.keys import KeyStore
from sluice_serving.gateway.log_lines import JsonLines, log_loop_error
from sluice_serving.gateway.pseudonyms import pseudonym_key
from sluice_serving.gateway.routes import ConfigMapWatch, follow_file
from sluice_serving.gateway.service import Gateway
from sluice_serving.gateway.settings import Settings, SettingsError, read_settings
from sluice_serving.gateway.shared_cache import SharedCache, shared_cache
from sluice_serving.gateway.spool import Spool, SpoolInUse
from sluice_serving.gateway.tls import Certificate
from sluice_serving.gateway.trace_settings import make_tracer
from sluice_serving.gateway.upstream import Upstream

logger = logging.getLogger("sluice.gateway")

FLUSH_SECONDS = 10.0
AGAIN_SECONDS = 5.0
"""Until a background task that failed is begun again."""


class QuietServer(uvicorn.Server):
    """uvicorn without its own signal handlers: draining needs an order that only the gateway knows."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def main() -> None:
    """The command's entry point. Exit code 2 for wrong settings."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    import os

    try:
        settings = read_settings(os.environ)
    except SettingsError as error:
        print(f"sluice-gateway: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    try:
        uvloop.run(serve(settings))
    except SettingsError as error:
        print(f"sluice-gateway: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    except OSError as error:
        print(f"sluice-gateway: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(1)


def build_gateway(settings: Settings) -> Gateway:
    """The gateway with its parts, nothing started yet. Raises SettingsError, OSError."""
    database = open_database(settings.database_url)
    key = pseudonym_key(settings)
    spool = Spool(settings.spool, settings.spool_bytes)
    accounting = Accounting(
        keys=KeyStore(settings.keys_dir, plain_keys=settings.plain_keys),
        interactions=InteractionLog(database, spool, settings.retention_seconds),
        budgets=BudgetLedger(database, replicas=settings.replicas),
        contexts=ContextStore(database, settings.contexts_per_tenant),
        pseudonym_key=key,
        sees_all=database.shared or settings.replicas == 1,
        tokens=TokenVerifier(settings.jwt) if settings.jwt else None,
    )
    return Gateway(
        accounting=accounting,
        upstream=Upstream(settings.request_timeout),
        request_timeout=settings.request_timeout,
        probe_seconds=settings.probe_seconds,
        judge_token_file=settings.judge_token_file,
        drift=DriftCounter(settings.drift, database) if settings.drift else None,
        shared_cache=_shared_cache(settings, key),
        tracer=make_tracer(settings.tracing) if settings.tracing else None,
    )


async def serve(settings: Settings, stop: asyncio.Event | None = None) -> None:
    """Run until SIGTERM, SIGINT or `stop`, then drain."""
    stop = stop or asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(log_loop_error)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    gateway = build_gateway(settings)
    certificate = _certificate(settings)
    taken = [
        _claim(settings.host, settings.port, "SLUICE_PORT"),
        _claim(settings.host, settings.internal_port, "SLUICE_INTERNAL_PORT"),
    ]
    gateway.keys.load()
    try:
        await asyncio.to_thread(_open_spool, gateway.interactions.spool)
    except OSError:
        for port in taken:
            port.close()
        raise
    await gateway.upstream.open()
    background = [
        asyncio.create_task(_forever("keys", gateway.keys.watch)),
        asyncio.create_task(_forever("budgets", gateway.accounting.budgets.run)),
        asyncio.create_task(_forever("routes", lambda: _follow_routes(settings, gateway))),
        asyncio.create_task(_forever("forgetting", lambda: gateway.forgetting.run(gateway.forget))),
    ]
    if gateway.cache.shared is not None:
        background.append(asyncio.create_task(_forever("shared cache", gateway.cache.shared.run)))
    if gateway.drift is not None:
        background.append(asyncio.create_task(_forever("drift", gateway.drift.run)))
    if certificate is not None:
        background.append(asyncio.create_task(_forever("certificate", certificate.watch)))
    if gateway.accounting.tokens is not None:
        background.append(asyncio.create_task(_forever("issuer", gateway.accounting.tokens.keys.run)))
    tracer = gateway.tracer
    exporting = asyncio.create_task(_forever("traces", tracer.exporter.run)) if tracer else None
    writing = asyncio.create_task(gateway.interactions.run())
    api = _server(Api(gateway), settings.host, settings.port, settings.drain_seconds, certificate)
    internal = _server(internal_app(gateway), settings.host, settings.internal_port, 1)
    servers = [asyncio.create_task(s.serve([port])) for s, port in zip((api, internal), taken, strict=True)]
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({*servers, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set():
            gateway.draining = True
            logger.info("draining: no longer ready, %g s until the port closes", settings.drain_delay)
            await asyncio.sleep(settings.drain_delay)
            gateway.holding.drain()
        api.should_exit = True
        await servers[0]
        if gateway.drift is not None:
            await gateway.drift.finish()
        if tracer is not None and exporting is not None:
            await tracer.exporter.close(exporting)
        gateway.interactions.close()
        await asyncio.wait({writing}, timeout=FLUSH_SECONDS)
        internal.should_exit = True
        await servers[1]
    finally:
        running = (*background, writing, stopping, *servers, *([exporting] if exporting else []))
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await gateway.interactions.database.close()  # a task that looked into it meanwhile has opened it again
        await gateway.mirror.close()
        gateway.holding.close()
        await gateway.upstream.close()
    logger.info("stopped")


def _shared_cache(settings: Settings, key: bytes | None) -> SharedCache | None:
    if settings.redis is None:
        return None
    if key is None:
        raise SettingsError("SLUICE_CACHE_REDIS_URL needs SLUICE_PSEUDONYM_KEY_FILE: what gateways share through Redis "
                            "is encrypted with a key that follows from it")  # fmt: skip
    return shared_cache(settings.redis, key, "/".join(settings.routes_config_map or ()))


def _open_spool(spool: Spool) -> None:
    try:
        spool.open()
    except SpoolInUse:
        raise
    except OSError as error:
        raise OSError(f"cannot open the spool {spool.folder}: {error.strerror}; set SLUICE_SPOOL_DIR to a folder that "
                      "can be written to") from None  # fmt: skip


async def _follow_routes(settings: Settings, gateway: Gateway) -> None:
    def accept(table: RoutingTable) -> None:
        gateway.follow(table)
        if gateway.drift is not None:
            gateway.drift.follow(table)

    if settings.routes_file is not None:
        await follow_file(settings.routes_file, accept)
        return
    assert settings.routes_config_map is not None
    namespace, name = settings.routes_config_map
    watch = ConfigMapWatch(
        settings.kubernetes_url, namespace, name, token_file=settings.token_file, ca_file=settings.ca_file
    )
    await watch.follow(accept)


async def _forever(name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """A background task that fails is begun again: whatever broke it once, keys must still be taken away tomorrow."""
    while True:
        try:
            await work()
            return
        except Exception:
            logger.exception("the %s task failed; its last state stays in force, next try in %g s", name, AGAIN_SECONDS)
        await asyncio.sleep(AGAIN_SECONDS)


def _claim(host: str, port: int, variable: str) -> socket.socket:
    """A listening socket on the port. Raises OSError that says what to do: uvicorn would end the process instead."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise OSError(
            f"cannot listen on {host} port {port}: {error.strerror}; stop what uses it, or set {variable} to another"
        ) from None


def _certificate(settings: Settings) -> Certificate | None:
    if settings.tls_dir is None:
        return None
    certificate = Certificate(settings.tls_dir)
    try:
        certificate.load()
    except (OSError, ValueError) as error:
        raise SettingsError(f"SLUICE_TLS_DIR: {error}") from None
    return certificate


def _server(app: Any, host: str, port: int, grace: float, certificate: Certificate | None = None) -> QuietServer:
    return QuietServer(
        uvicorn.Config(
            app,
            ssl_context_factory=(lambda *_: certificate.context) if certificate else None,
            host=host,
            port=port,
            loop="none",
            http=BoundedHttp,
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            log_level="warning",
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=int(grace),
            backlog=2048,
            limit_concurrency=None,
        )
    )
