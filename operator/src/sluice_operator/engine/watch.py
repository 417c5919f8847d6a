"""kopf, for what it does best: keeping watches alive. Only `on.event` is registered, so kopf writes nothing.

Its exceptions policy for events is to ignore them, and it never retries: the handler here only hands the object over,
which cannot fail. It has a thread and an event loop of its own, because it ends every task of the loop it runs in.
"""

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any

import kopf
from kopf._core.reactor.inventory import ResourceMemories, ResourceMemory
from sluice_contracts.names import LABEL_MANAGED_BY, MANAGED_BY

from sluice_operator.engine.cache import slim
from sluice_operator.kube.credentials import connection
from sluice_operator.kube.resources import CHILDREN, OWN, Resource
from sluice_operator.plan import Object

PAGE = 20
"""Objects of one request of a first list. kopf lists all kinds at once, and holds a page of each: whole, as text, and
with a task for each object."""
SELECTOR = f"{LABEL_MANAGED_BY}={MANAGED_BY}"
BACKOFFS = [0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0]
"""Seconds between kopf's attempts at one request. An API server that is away for longer ends this process; the next one
begins with a list of everything."""
IDLE_SECONDS = 0.02
"""How long kopf's worker of one object waits for its next event. Until then it is a task with a queue and a timer: with
a second, all that a first list brings in a second is in memory at once."""
GOODBYE_SECONDS = 5.0
CLOSING_SECONDS = 0.1
"""TLS connections close in a later turn of the loop than the one that asks them to."""
Changed = Callable[[Resource, Object, bool], None]
"""Told of each event: the resource, the object, and whether it was deleted."""


class Watcher:
    """kopf in its thread. `changed` is called in the loop that started it."""

    def __init__(self, changed: Changed, namespaces: tuple[str, ...]) -> None:
        self._changed = changed
        self._namespaces = namespaces
        self._stop = threading.Event()
        self._ended: asyncio.Future[None] | None = None

    async def run(self) -> None:
        """Watch until cancelled. Ends by itself only with an error, which is raised."""
        loop = asyncio.get_running_loop()
        self._ended = loop.create_future()
        threading.Thread(target=self._thread, args=(loop, self._ended), name="kopf", daemon=True).start()
        try:
            await asyncio.shield(self._ended)
            if not self._stop.is_set():
                raise RuntimeError("the watches ended by themselves")
        finally:
            self._stop.set()
            await asyncio.wait([self._ended], timeout=GOODBYE_SECONDS)

    def _thread(self, loop: asyncio.AbstractEventLoop, ended: "asyncio.Future[None]") -> None:
        def hand_over(resource: Resource, obj: Object, deleted: bool) -> None:
            loop.call_soon_threadsafe(self._changed, resource, obj, deleted)

        def finish(error: BaseException | None) -> None:
            if not ended.done():
                ended.set_exception(error) if error is not None else ended.set_result(None)

        error: BaseException | None = None
        try:
            asyncio.run(self._watch(hand_over))
        except BaseException as caught:
            error = caught
        if not loop.is_closed():
            loop.call_soon_threadsafe(finish, error)

    async def _watch(self, hand_over: Changed) -> None:
        await kopf.operator(
            registry=registry(hand_over),
            settings=settings(self._namespaces),
            memories=Forgetful(),
            standalone=True,
            clusterwide=not self._namespaces,
            namespaces=self._namespaces,
            stop_flag=self._stop,
        )
        await asyncio.sleep(CLOSING_SECONDS)


class Forgetful(ResourceMemories):
    """kopf keeps a record of each object it has seen, for handlers that we do not register: here it keeps none.

    The parameter is kopf's public one, the class is not: a test with the locked version watches that this holds."""

    async def recall(self, raw_body: Any, **options: Any) -> ResourceMemory:
        """A new one for each event."""
        return await super().recall(raw_body=raw_body, **{**options, "ephemeral": True})


def registry(changed: Changed) -> kopf.OperatorRegistry:
    """A registry that passes every event of our kinds and their children to `changed`."""
    found = kopf.OperatorRegistry()
    for resource in (*OWN, *CHILDREN):
        _register(found, resource, changed)

    @kopf.on.login(registry=found)
    def login(**_: Any) -> kopf.ConnectionInfo:
        return connection()

    return found


def _register(found: kopf.OperatorRegistry, resource: Resource, changed: Changed) -> None:
    async def handle(event: dict[str, Any], **_: Any) -> None:
        changed(resource, *take(event))

    name = f"{resource.plural}.{resource.group}"
    group = resource.group or ""
    kopf.on.event(group, resource.version, resource.plural, id=name, registry=found)(handle)  # type: ignore[arg-type]


def take(event: dict[str, Any]) -> tuple[Object, bool]:
    """The object of an event, and whether it was deleted. The event keeps only a stub: kopf's worker holds it while it
    waits for another one, and a first list brings thousands."""
    obj = event["object"]
    event["object"] = {"metadata": {name: obj["metadata"].get(name) for name in ("uid", "resourceVersion")}}
    return slim(obj), event.get("type") == "DELETED"


def settings(namespaces: tuple[str, ...]) -> kopf.OperatorSettings:
    """kopf's settings: short deadlines, paged lists, only our own children, nothing posted or persisted."""
    found = kopf.OperatorSettings()
    found.posting.enabled = False
    found.networking.request_timeout = 30
    found.networking.connect_timeout = 10
    found.networking.error_backoffs = BACKOFFS
    found.watching.connect_timeout = 10
    found.queueing.exit_timeout = 0.5
    found.queueing.idle_timeout = IDLE_SECONDS
    found.watching.chunk_size = PAGE
    found.scanning.disabled = bool(namespaces)
    for resource in CHILDREN:
        found.watching.label_selectors[resource.group, resource.version, resource.plural] = SELECTOR
    logging.getLogger("kopf").setLevel(logging.WARNING)
    logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)  # signals are the main thread's, as meant
    return found
