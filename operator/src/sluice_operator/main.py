"""The operator's process: settings, health, the Lease, the first list, the watches, the loop. In that order."""

import asyncio
import gc
import logging
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import aiohttp

from sluice_operator.artifacts import Artifacts
from sluice_operator.engine import metrics as metrics_
from sluice_operator.engine.cache import Cache
from sluice_operator.engine.controller import Controller
from sluice_operator.engine.leader import Leader, LeadershipLostError
from sluice_operator.engine.watch import Watcher
from sluice_operator.kinds import World, deciders, references
from sluice_operator.kube.client import ApiError, ApiUnreachable, KubeClient
from sluice_operator.kube.credentials import CredentialsError
from sluice_operator.settings import Settings, SettingsError, from_environment

PATIENCE_SECONDS = 30.0
"""How long the API server may be away before this replica says that it is not ready."""
log = logging.getLogger("sluice_operator")


def main() -> None:
    """`sluice-operator`: run until told to stop. Exit code 0 after SIGTERM, 1 after a lost Lease or an error."""
    try:
        settings = from_environment()
    except SettingsError as error:
        print(f"sluice-operator: {error}", file=sys.stderr)  # noqa: T201 - before there is a log
        sys.exit(1)
    logging.basicConfig(
        level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    try:
        asyncio.run(run(settings, listed_all=_settle))
    except (CredentialsError, LeadershipLostError, ApiError, ApiUnreachable) as error:
        log.error("%s", error)
        sys.exit(1)


def _settle() -> None:
    """What is known now stays: the garbage collector need not walk through it again. It then comes by more often, and
    what kopf's tasks leave behind does not pile up. For a process of its own only: it is for all that is in memory."""
    gc.collect()
    gc.freeze()


async def run(
    settings: Settings, stop: asyncio.Event | None = None, listed_all: Callable[[], None] = lambda: None
) -> None:
    """Run one replica until `stop` is set or a signal comes. `listed_all` is called when the first list is complete.

    Raises LeadershipLostError when another replica must go on, CredentialsError without an API server.
    """
    stop = stop or asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    metrics = metrics_.Metrics()
    async with KubeClient() as kube, aiohttp.ClientSession() as http:
        cache = Cache(references)

        def refresh() -> None:
            metrics.queued.set(controller.queue.ready)
            metrics.objects.set(len(cache))
            metrics.writes.set(kube.writes)
            metrics.retries.set(kube.retries)
            metrics.slow.set(controller.slowed)

        world = World(cache, kube, Artifacts(), http, settings)
        controller = Controller(
            kube,
            cache,
            deciders(world),
            metrics,
            namespaces=settings.watch_namespaces,
            concurrency=settings.concurrency,
            resync_seconds=settings.resync_seconds,
        )
        health = await metrics_.serve(
            settings.http_port,
            metrics,
            refresh,
            unwell=controller.stuck,
            not_ready=lambda: kube.unreachable(PATIENCE_SECONDS),
        )
        leader = Leader(kube, settings.namespace, settings.identity)
        try:
            if settings.leader_election and not await _until(stop, leader.acquire()):
                return
            metrics.leading.set(1)
            await _lead(settings, kube, controller, leader, stop, listed_all)
        finally:
            try:
                await leader.release()
            finally:
                await health.cleanup()


async def _lead(
    settings: Settings,
    kube: KubeClient,
    controller: Controller,
    leader: Leader,
    stop: asyncio.Event,
    listed_all: Callable[[], None],
) -> None:
    """Everything only the leader does."""
    watcher = Watcher(controller.changed, settings.watch_namespaces)
    tasks: list[asyncio.Task[Any]] = [asyncio.create_task(stop.wait(), name="stop")]
    listed = asyncio.create_task(controller.relist(), name="first list")
    if settings.leader_election:
        tasks.append(asyncio.create_task(leader.keep(), name="lease"))
    try:
        await asyncio.wait([listed, *tasks], return_when=asyncio.FIRST_COMPLETED)
        if not listed.done():
            return
        listed.result()
        log.info("%d objects known; watching", len(controller.cache))
        listed_all()
        tasks.append(asyncio.create_task(controller.run(), name="loop"))
        tasks.append(asyncio.create_task(watcher.run(), name="watch"))
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in (listed, *tasks):
            task.cancel()
        await asyncio.gather(listed, *tasks, return_exceptions=True)


async def _until(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Wait for `work`; False if `stop` came first."""
    task = asyncio.create_task(work)
    waiting = asyncio.create_task(stop.wait())
    await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if task.done():
        task.result()
        return True
    task.cancel()
    return False


if __name__ == "__main__":
    main()
