"""The loop: something changed -> queue -> observe -> plan -> execute -> look again when the plan says so."""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping

from sluice_contracts.names import FINALIZER_IN_USE

from sluice_operator.engine.breaker import OPEN_SECONDS, Breaker
from sluice_operator.engine.cache import Cache, Key, key_of, owner_of
from sluice_operator.engine.execute import Executor, RejectedError
from sluice_operator.engine.metrics import Metrics
from sluice_operator.engine.queue import WorkQueue
from sluice_operator.engine.watch import SELECTOR
from sluice_operator.kube.client import ApiError, ApiUnreachable, KubeClient
from sluice_operator.kube.resources import CHILDREN, OPTIONAL, OWN, Resource
from sluice_operator.plan import Event, EventType, Meta, Object, Plan

DEADLINE_SECONDS = 180.0
"""One look at one object; beyond it something hangs, and the object is looked at anew."""
SETTLE_SECONDS = 15.0
"""After the start, when the watches surely run, everything is listed once more: deletions in between were seen by
nobody."""
STUCK_SECONDS = DEADLINE_SECONDS + 60.0
"""A look that has lasted this long did not even obey its deadline: only a new process helps."""
Decide = Callable[[Object], Awaitable[Plan]]
log = logging.getLogger(__name__)


class Controller:
    """Looks at objects of our kinds, each when it or something it depends on has changed."""

    def __init__(
        self,
        kube: KubeClient,
        cache: Cache,
        deciders: Mapping[Resource, Decide],
        metrics: Metrics,
        *,
        namespaces: tuple[str, ...] = (),
        concurrency: int = 8,
        resync_seconds: float = 600,
    ) -> None:
        self._kube = kube
        self.cache = cache
        self.queue: WorkQueue[Key] = WorkQueue()
        self._breaker: Breaker[Key] = Breaker()
        self._looking: dict[Key, float] = {}
        self._wrote: set[Key] = set()
        """Of those being looked at: for which the API server was asked to change something."""
        self._deciders = deciders
        self._executor = Executor(kube, cache, self.wrote)
        self._metrics = metrics
        self._namespaces: tuple[str | None, ...] = namespaces or (None,)
        self._concurrency = concurrency
        self._resync_seconds = resync_seconds

    def changed(self, resource: Resource, obj: Object, deleted: bool) -> None:
        """An event: take it in, and queue whoever it concerns."""
        key = key_of(resource, obj)
        concerned = self._concerned(key, obj)
        if deleted:
            self.cache.remove(resource, obj)
        elif not self.cache.upsert(resource, obj):
            return
        for one in concerned | self._concerned(key, obj):
            self.queue.add(one)

    def wrote(self, writer: Key, resource: Resource, obj: Object) -> None:
        """The answer to a write of our own, made while looking at `writer`. The watch will bring the same state again,
        as nothing new, so whoever it concerns hears of it here: also of what others changed just before the write."""
        key = key_of(resource, obj)
        before = self.cache.get(*key)
        concerned = self._concerned(key, obj)  # whom it named before must hear of it too
        if not self.cache.upsert(resource, obj):
            return
        concerned |= self._concerned(key, obj)
        if key == writer and before is not None and _same_wishes(before, obj):
            concerned.discard(writer)
        for one in concerned:
            self.queue.add(one)

    def _concerned(self, key: Key, obj: Object) -> set[Key]:
        """The object itself if it is ours, its owner, who names it, and whom it names."""
        found = set(self.cache.referrers(key))
        if key.resource in OWN:
            found |= {key} | set(self.cache.refers_to(key))
        owner = owner_of(obj)
        if owner is not None:
            found.add(owner)
        return {k for k in found if k.resource in OWN}

    async def relist(self) -> None:
        """Bring the cache up to date with lists of everything: at the start, and now and then."""
        for resource in (*OWN, *CHILDREN):
            for namespace in self._namespaces:
                versions: list[int] = []
                listed: set[Key] = set()
                selector = None if resource in OWN else SELECTOR
                try:
                    async for item in self._kube.list(resource, namespace, selector, versions):
                        self.changed(resource, item, deleted=False)
                        listed.add(key_of(resource, item))  # never all objects whole: they would be most of the memory
                except ApiError as error:
                    if error.status != 404:
                        raise
                    level = logging.DEBUG if resource in OPTIONAL else logging.WARNING
                    log.log(level, "the API server does not know %s; waiting for its CRD", resource)
                    continue
                for gone in self.cache.reap(resource, namespace, listed, versions[0]):
                    for one in self._concerned(key_of(resource, gone), gone):
                        self.queue.add(one)

    async def run(self) -> None:
        """Look at objects for ever. `relist` must have been called before: plans must never see half a world."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._concurrency):
                tasks.create_task(self._work())
            tasks.create_task(self._resync())

    async def _work(self) -> None:
        while True:
            key = await self.queue.get()
            began = time.monotonic()
            verdict = self._breaker.ask(key, began)
            if verdict.pause > 0:
                self.queue.put_off(key, verdict.pause)
                if verdict.opened:
                    await self._tell_hot(key)
                continue
            self._looking[key] = began
            result = "ok"
            try:
                async with asyncio.timeout(DEADLINE_SECONDS):
                    again = await self.reconcile(key)
                if key not in self._wrote:
                    self._breaker.was_quiet(key)
                self.queue.done(key, again)
            except asyncio.CancelledError:
                raise
            except Exception as error:  # whatever it is, this object waits and the others go on
                result = "error"
                pause = self.queue.failed(key)
                expected = isinstance(error, RejectedError | ApiError | ApiUnreachable | TimeoutError)
                log.warning("%s: %s; again in %.1f s", key, error or type(error).__name__, pause, exc_info=not expected)
            finally:
                del self._looking[key]
                self._wrote.discard(key)
            self._metrics.reconciles.labels(key.resource.kind, result).inc()
            self._metrics.seconds.labels(key.resource.kind).observe(time.monotonic() - began)

    async def reconcile(self, key: Key) -> float | None:
        """One look at one object; seconds until the next if it asks for one."""
        obj = self.cache.get(*key)
        if obj is None:
            self._breaker.forget(key)
            return None
        if "deletionTimestamp" in obj["metadata"] and FINALIZER_IN_USE not in Meta.of(obj).finalizers:
            return None
        plan = await self._deciders[key.resource](obj)
        if await self._executor.execute(key.resource, obj, plan):
            self._wrote.add(key)
        return plan.requeue_after

    async def _tell_hot(self, key: Key) -> None:
        """Say that `key` is slowed: to the log, to whoever looks at its events, and to the alerts."""
        text = (
            f"it or its children change without end; for {OPEN_SECONDS:.0f} s it is looked at now and then only. "
            "Two controllers may be overwriting each other: kubectl get --show-managed-fields tells who writes what"
        )
        log.warning("%s: %s", key, text)
        self._metrics.slowed.labels(key.resource.kind).inc()
        obj = self.cache.get(*key)
        if obj is not None:
            await self._executor.tell(key.resource, obj, [Event("HotObject", text, EventType.WARNING)])

    @property
    def slowed(self) -> int:
        """Objects that are being slowed now."""
        return self._breaker.is_open(time.monotonic())

    def stuck(self) -> str | None:
        """Which look does not end, if one does not."""
        now = time.monotonic()
        for key, began in self._looking.items():
            if now - began > STUCK_SECONDS:
                return f"the look at {key} has not ended for {now - began:.0f} s"
        return None

    async def _resync(self) -> None:
        await asyncio.sleep(SETTLE_SECONDS)
        while True:
            try:
                await self.relist()
            except (ApiError, ApiUnreachable) as error:
                log.warning("listing failed, it is tried again at the next resync: %s", error)
            for key in list(self.cache.own()):
                self.queue.add(key, delay=random.uniform(0, min(30.0, self._resync_seconds / 2)))
            await asyncio.sleep(self._resync_seconds)


def _same_wishes(before: Object, after: Object) -> bool:
    """Whether only the status has moved."""
    wishes = ("generation", "annotations", "deletionTimestamp")
    return all(before["metadata"].get(name) == after["metadata"].get(name) for name in wishes)
