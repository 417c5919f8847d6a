"""The operator's own metrics, and the small HTTP server for them and for health."""

from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class Metrics:
    """What the operator counts. One registry each, so that tests may have several operators."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.reconciles = Counter(
            "sluice_operator_reconciles", "Looks at an object", ["kind", "result"], registry=self.registry
        )
        self.seconds = Histogram(
            "sluice_operator_reconcile_seconds", "Seconds of one look", ["kind"], registry=self.registry
        )
        self.queued = Gauge("sluice_operator_queue_ready", "Objects due or being looked at", registry=self.registry)
        self.objects = Gauge("sluice_operator_cached_objects", "Objects in the cache", registry=self.registry)
        self.writes = Gauge("sluice_operator_api_writes", "Writing requests so far", registry=self.registry)
        self.slowed = Counter(
            "sluice_operator_breaker_opened",
            "Times an object changed so often that looks at it were slowed",
            ["kind"],
            registry=self.registry,
        )
        self.slow = Gauge("sluice_operator_breakers_open", "Objects that are being slowed now", registry=self.registry)
        self.retries = Gauge(
            "sluice_operator_api_retries",
            "Requests sent again because the API server was busy, failing or gone",
            registry=self.registry,
        )
        self.leading = Gauge("sluice_operator_leading", "1 while this replica leads", registry=self.registry)


async def serve(
    port: int,
    metrics: Metrics,
    refresh: Callable[[], None],
    *,
    unwell: Callable[[], str | None],
    not_ready: Callable[[], str | None],
    host: str | None = None,
) -> web.AppRunner:
    """Begin to answer /healthz, /readyz and /metrics on `port`. The caller cleans the runner up.

    `unwell` says why the process should be started anew, `not_ready` why it is of no use now; None: all is well.
    """

    async def health(_: web.Request) -> web.Response:
        return _answer(unwell())

    async def ready(_: web.Request) -> web.Response:
        return _answer(not_ready())

    async def numbers(_: web.Request) -> web.Response:
        refresh()
        return web.Response(body=generate_latest(metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get("/healthz", health), web.get("/readyz", ready), web.get("/metrics", numbers)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    return runner


def _answer(trouble: str | None) -> web.Response:
    return web.Response(text="ok\n") if trouble is None else web.Response(text=f"{trouble}\n", status=503)
