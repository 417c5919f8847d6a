"""The loop's parts: what is remembered, what is looked at when, what is written."""

import asyncio
import json
import tracemalloc
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sluice_contracts.training_run import TrainingRunStatus
from sluice_devcluster.ports import free_port
from sluice_operator.engine import breaker
from sluice_operator.engine.breaker import Breaker
from sluice_operator.engine.cache import Cache, Key, owner_of
from sluice_operator.engine.controller import Controller
from sluice_operator.engine.difference import APPLIED, is_so, stamped
from sluice_operator.engine.leader import Leader, LeadershipLostError
from sluice_operator.engine.metrics import Metrics, serve
from sluice_operator.engine.queue import WorkQueue
from sluice_operator.engine.watch import Forgetful, take
from sluice_operator.kinds import UnreadableError, _parse, references
from sluice_operator.kube.client import ApiError, ApiUnreachable, KubeClient
from sluice_operator.kube.resources import EVENT, INFERENCE_POOL, LEASE, MODEL_VERSION, RAY_JOB, TRAINING_RUN
from sluice_operator.plan import Delete, Plan


def thing(name: str, version: int, uid: str = "u", owner: str | None = None, **spec: Any) -> dict[str, Any]:
    meta: dict[str, Any] = {"name": name, "namespace": "n", "uid": uid, "resourceVersion": str(version)}
    if owner is not None:
        meta["ownerReferences"] = [
            {"apiVersion": "sluice.dev/v1alpha1", "kind": "TrainingRun", "name": owner, "uid": "o", "controller": True}
        ]
    return {"metadata": meta, "spec": spec}


class TestCache:
    def test_an_old_event_changes_nothing(self) -> None:
        cache = Cache()
        assert cache.upsert(RAY_JOB, thing("a", 5))
        assert not cache.upsert(RAY_JOB, thing("a", 5))
        assert not cache.upsert(RAY_JOB, thing("a", 4))
        found = cache.get(RAY_JOB, "n", "a")
        assert found is not None
        assert found["metadata"]["resourceVersion"] == "5"

    def test_a_late_event_brings_no_deleted_object_back(self) -> None:
        cache = Cache()
        cache.upsert(RAY_JOB, thing("a", 5))
        assert cache.remove(RAY_JOB, thing("a", 7))
        assert not cache.upsert(RAY_JOB, thing("a", 6))
        assert cache.get(RAY_JOB, "n", "a") is None
        assert cache.upsert(RAY_JOB, thing("a", 9, uid="new"))

    def test_a_late_deletion_of_the_former_object_leaves_the_new_one(self) -> None:
        cache = Cache()
        cache.upsert(RAY_JOB, thing("a", 9, uid="new"))
        assert not cache.remove(RAY_JOB, thing("a", 7, uid="old"))
        assert cache.get(RAY_JOB, "n", "a") is not None

    def test_children_are_found_by_owner(self) -> None:
        cache = Cache()
        cache.upsert(RAY_JOB, thing("a", 1, owner="run"))
        cache.upsert(RAY_JOB, thing("b", 2, owner="other"))
        assert [o["metadata"]["name"] for o in cache.children(TRAINING_RUN, "n", "run", RAY_JOB)] == ["a"]
        cache.remove(RAY_JOB, thing("a", 3, owner="run"))
        assert list(cache.children(TRAINING_RUN, "n", "run", RAY_JOB)) == []
        assert owner_of(thing("a", 1, owner="run")) == Key(TRAINING_RUN, "n", "run")

    def test_a_pool_refers_to_its_versions(self) -> None:
        cache = Cache(references)
        pool = thing("chat", 1, modelVersion="v2") | {"status": {"stable": {"modelVersion": "v1"}}}
        cache.upsert(INFERENCE_POOL, pool)
        assert cache.referrers(Key(MODEL_VERSION, "n", "v1")) == {Key(INFERENCE_POOL, "n", "chat")}
        cache.upsert(INFERENCE_POOL, thing("chat", 2, modelVersion="v2"))
        assert cache.referrers(Key(MODEL_VERSION, "n", "v1")) == frozenset()

    def test_a_list_reaps_what_was_deleted_unseen_but_nothing_newer(self) -> None:
        cache = Cache()
        for name, version in (("gone", 5), ("kept", 6), ("newer", 20)):
            cache.upsert(RAY_JOB, thing(name, version))
        gone = cache.reap(RAY_JOB, None, {Key(RAY_JOB, "n", "kept")}, version=10)
        assert [o["metadata"]["name"] for o in gone] == ["gone"]
        assert cache.get(RAY_JOB, "n", "newer") is not None

    def test_managed_fields_are_not_kept(self) -> None:
        cache = Cache()
        obj = thing("a", 1)
        obj["metadata"]["managedFields"] = ["much"]
        obj["metadata"]["annotations"] = {"kubectl.kubernetes.io/last-applied-configuration": "all", "mine": "é"}
        cache.upsert(RAY_JOB, obj)
        cache.upsert(TRAINING_RUN, obj)
        for resource in (RAY_JOB, TRAINING_RUN):
            meta = (cache.get(resource, "n", "a") or {})["metadata"]
            assert "managedFields" not in meta
            assert meta["annotations"] == {"mine": "é"}
        assert "managedFields" in obj["metadata"], "what was given is left alone"

    def test_what_it_gives_is_what_it_was_given(self) -> None:
        cache = Cache()
        spec = {"text": "é" * 100, "numbers": [1, 2.5, -3], "none": None, "truth": True, "deep": [{"a": {"b": []}}]}
        for resource in (RAY_JOB, INFERENCE_POOL):
            obj = thing("a", 1, **spec)
            cache.upsert(resource, obj)
            assert cache.get(resource, "n", "a") == obj
            assert list(cache.list(resource)) == [obj]

    def test_children_take_little_memory_and_equal_texts_are_held_once(self) -> None:
        cache, text = Cache(), json.dumps(thing("a", 1) | {"spec": {f"key{i}": {"name": "value"} for i in range(200)}})
        tracemalloc.start()
        try:
            for number in range(50):
                cache.upsert(RAY_JOB, json.loads(text.replace('"a"', f'"a{number}"')))
            assert tracemalloc.get_traced_memory()[0] / 50 < 1.5 * len(text)
        finally:
            tracemalloc.stop()
        for name in ("x", "y"):
            cache.upsert(INFERENCE_POOL, json.loads(json.dumps(thing(name, 1, someField="some text"))))
        one, two = ((cache.get(INFERENCE_POOL, "n", name) or {})["spec"] for name in ("x", "y"))
        assert one["someField"] is two["someField"]

    def test_an_event_that_was_taken_holds_its_object_no_more(self) -> None:
        obj = thing("a", 1, field="value")
        event = {"type": "DELETED", "object": obj}
        taken, deleted = take(event)
        assert (taken, deleted) == (thing("a", 1, field="value"), True)
        assert event == {"type": "DELETED", "object": {"metadata": {"uid": "u", "resourceVersion": "1"}}}

    async def test_kopf_remembers_no_object(self) -> None:
        memories = Forgetful()
        memory = await memories.recall({"metadata": {"uid": "u"}}, noticed_by_listing=True)
        assert memory.noticed_by_listing
        assert list(memories.iter_all_memories()) == []


class TestQueue:
    async def test_many_changes_are_one_look(self) -> None:
        queue: WorkQueue[str] = WorkQueue()
        for _ in range(1000):
            queue.add("a")
        assert await queue.get() == "a"
        queue.done("a")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(queue.get(), 0.05)

    async def test_a_change_during_a_look_is_looked_at_afterwards_and_never_twice_at_once(self) -> None:
        queue: WorkQueue[str] = WorkQueue()
        queue.add("a")
        assert await queue.get() == "a"
        queue.add("a")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(queue.get(), 0.05)
        queue.done("a")
        assert await asyncio.wait_for(queue.get(), 1) == "a"

    async def test_sooner_beats_later_but_later_does_not_put_off(self) -> None:
        queue: WorkQueue[str] = WorkQueue()
        queue.add("a", 30)
        queue.add("a", 0.01)
        queue.add("a", 30)
        assert await asyncio.wait_for(queue.get(), 1) == "a"

    async def test_failures_wait_longer_each_time_and_success_forgets_them(self) -> None:
        queue: WorkQueue[str] = WorkQueue()
        assert [queue.failed("a") for _ in range(9)] == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]
        queue.done("a")
        assert queue.failed("a") == 0.5

    async def test_a_worker_that_is_stopped_just_when_work_comes_stops(self) -> None:
        queue: WorkQueue[str] = WorkQueue()
        worker = asyncio.create_task(queue.get())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        queue.add("a")
        worker.cancel()
        with pytest.raises(asyncio.CancelledError):
            await worker

    async def test_one_objects_trouble_holds_up_no_other(self) -> None:
        queue: WorkQueue[str] = WorkQueue()
        queue.failed("bad")
        queue.add("good")
        assert await asyncio.wait_for(queue.get(), 0.2) == "good"

    async def test_an_object_that_is_put_off_does_not_come_sooner_because_it_changes(self) -> None:
        queue: WorkQueue[str] = WorkQueue()
        queue.add("a")
        assert await queue.get() == "a"
        queue.add("a")
        queue.put_off("a", 0.2)
        queue.add("a")
        began = asyncio.get_running_loop().time()
        assert await asyncio.wait_for(queue.get(), 2) == "a"
        assert asyncio.get_running_loop().time() - began >= 0.15
        queue.done("a")
        queue.add("a")
        assert await asyncio.wait_for(queue.get(), 0.1) == "a", "afterwards it is an object like any other"


class TestBreaker:
    def test_a_steady_object_is_never_slowed(self) -> None:
        found: Breaker[str] = Breaker()
        assert all(found.ask("a", i * 60 / breaker.LOOKS_A_MINUTE).pause == 0 for i in range(5000))

    def test_a_hot_object_is_slowed_told_once_and_released_when_it_has_cooled_down(self) -> None:
        found: Breaker[str] = Breaker()
        looks, opened, now = 0, 0, 0.0
        while now < 600:
            verdict = found.ask("a", now)
            opened += verdict.opened
            looks += verdict.pause == 0
            now += max(verdict.pause, 0.01)
        assert looks < breaker.LOOKS_A_MINUTE + 10 * breaker.LOOKS_A_MINUTE / 2, "far below what it asked for"
        assert opened < 12
        assert found.ask("b", now).pause == 0, "others are not slowed"
        later = now + breaker.OPEN_SECONDS + 1
        assert all(found.ask("a", later + i).pause == 0 for i in range(50))

    def test_an_open_breaker_still_lets_a_look_through_now_and_then(self) -> None:
        found: Breaker[str] = Breaker()
        while not (verdict := found.ask("a", 0.0)).opened:
            pass
        assert found.ask("a", verdict.pause + 0.1).pause == 0
        assert found.ask("a", verdict.pause + 0.2).pause > 0

    def test_quiet_looks_cost_little_and_not_nothing(self) -> None:
        found: Breaker[str] = Breaker()
        many = int(breaker.LOOKS_A_MINUTE / breaker.QUIET_LOOK)
        for _ in range(many - 40):
            assert found.ask("version", 0.0).pause == 0
            found.was_quiet("version")
        opened = [found.ask("version", 0.0).opened for _ in range(100)]
        assert sum(opened) == 1, "then looks that write, or without end, open it"

    @pytest.mark.parametrize("writes", [True, False])
    async def test_the_loop_slows_a_hot_object_and_says_so(self, writes: bool) -> None:
        """A look that makes its object change again at once, as two controllers that fight would. One that a crowd of
        others wakes and that writes nothing has a far larger allowance."""

        class Api:
            def __init__(self) -> None:
                self.created: list[dict[str, Any]] = []

            async def create(self, resource: Any, body: dict[str, Any]) -> None:
                assert resource == EVENT
                self.created.append(body)

            async def delete(self, *_: Any) -> None: ...

        looks = {"hot": 0, "calm": 0}

        async def decide(obj: Any) -> Plan:
            name = obj["metadata"]["name"]
            looks[name] += 1
            if name == "hot":
                controller.changed(TRAINING_RUN, thing("hot", 100 + looks["hot"]), False)
            return Plan(delete=[Delete(RAY_JOB, "n", "theirs")] if writes else [])

        api, metrics = Api(), Metrics()
        controller = Controller(api, Cache(), {TRAINING_RUN: decide}, metrics)  # type: ignore[arg-type]
        running = asyncio.create_task(controller.run())
        controller.changed(TRAINING_RUN, thing("hot", 1), False)
        while not api.created:
            await asyncio.wait_for(asyncio.sleep(0), 5)
        controller.changed(TRAINING_RUN, thing("calm", 2), False)
        while not looks["calm"]:
            await asyncio.wait_for(asyncio.sleep(0), 5)
        running.cancel()
        allowed = breaker.LOOKS_A_MINUTE / (1 if writes else breaker.QUIET_LOOK)
        assert 0.9 * allowed < looks["hot"] < 1.2 * allowed + 2
        assert [e["reason"] for e in api.created] == ["HotObject"]
        assert metrics.registry.get_sample_value("sluice_operator_breaker_opened_total", {"kind": "TrainingRun"}) == 1
        assert controller.slowed == 1


class TestHealth:
    async def test_health_and_readiness_name_the_trouble(self) -> None:
        trouble: dict[str, str | None] = {"healthz": None, "readyz": "the API server has not answered yet"}
        port = free_port()
        runner = await serve(
            port,
            Metrics(),
            lambda: None,
            unwell=lambda: trouble["healthz"],
            not_ready=lambda: trouble["readyz"],
            host="127.0.0.1",
        )
        try:
            async with aiohttp.ClientSession() as http:

                async def ask(what: str) -> tuple[int, str]:
                    async with http.get(f"http://127.0.0.1:{port}/{what}") as response:
                        return response.status, (await response.text()).strip()

                assert await ask("healthz") == (200, "ok")
                assert await ask("readyz") == (503, "the API server has not answered yet")
                trouble["readyz"], trouble["healthz"] = None, "the look at x has not ended for 300 s"
                assert await ask("readyz") == (200, "ok")
                assert await ask("healthz") == (503, "the look at x has not ended for 300 s")
        finally:
            await runner.cleanup()

    async def test_a_look_that_ends_in_no_time_at_all_is_found(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sluice_operator.engine.controller.STUCK_SECONDS", 0.05)
        hangs = asyncio.Event()

        async def decide(obj: Any) -> Plan:
            hangs.set()
            await asyncio.sleep(60)
            raise AssertionError

        controller = Controller(None, Cache(), {TRAINING_RUN: decide}, Metrics())  # type: ignore[arg-type]
        assert controller.stuck() is None
        running = asyncio.create_task(controller.run())
        controller.changed(TRAINING_RUN, thing("a", 1), False)
        await asyncio.wait_for(hangs.wait(), 5)
        while controller.stuck() is None:
            await asyncio.wait_for(asyncio.sleep(0.01), 5)
        assert "TrainingRun n/a" in str(controller.stuck())
        running.cancel()


class TestDifference:
    @pytest.mark.parametrize(
        ("wanted", "found", "same"),
        [
            ({"a": 1}, {"a": 1, "added": 2}, True),
            ({"a": {"b": 1}}, {"a": {"b": 2}}, False),
            ({"a": []}, {}, True),
            ({"a": False}, {}, True),
            ({"a": True}, {}, False),
            ({"cpu": "1000m"}, {"cpu": "1"}, True),
            ({"memory": "2Gi"}, {"memory": "2048Mi"}, True),
            ({"image": "a:1"}, {"image": "a:2"}, False),
            ({"l": [{"name": "x", "v": 1}]}, {"l": [{"name": "y"}, {"name": "x", "v": 1, "d": 0}]}, True),
            ({"l": [{"name": "x"}, {"name": "y"}]}, {"l": [{"name": "x"}]}, False),
            ({"l": [1, 2]}, {"l": [1, 2, 3]}, False),
        ],
    )
    def test_what_counts_as_different(self, wanted: Any, found: Any, same: bool) -> None:
        assert is_so(wanted, found) is same

    def test_a_removed_field_changes_the_stamp(self) -> None:
        full = {"metadata": {"name": "a"}, "data": {"x": "1", "y": "2"}}
        fewer = {"metadata": {"name": "a"}, "data": {"x": "1"}}
        assert is_so(fewer, stamped(full))
        assert not is_so(stamped(fewer), stamped(full))
        assert APPLIED in stamped(full)["metadata"]["annotations"]

    json_values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=12,
    )

    @given(json_values)
    def test_everything_is_itself(self, value: Any) -> None:
        assert is_so(value, value)


def test_a_status_that_does_not_read_is_never_taken_for_an_empty_one() -> None:
    obj = {
        "metadata": {"name": "r", "namespace": "n", "uid": "u"},
        "spec": {
            "model": "m",
            "dataset": {"uri": "gs://bucket/d", "digest": "sha256:" + "0" * 64},
            "recipe": {"method": "scratch", "steps": 1},
        },
        "status": {"fromTheFuture": 1},
    }
    with pytest.raises(UnreadableError, match=r"status\.fromTheFuture"):
        _parse(TrainingRunStatus, obj, "status")


class _LeaseApi:
    """A Lease in memory, whose writes can fail before or after they count."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self.away = False
        self.loses_answers = 0

    async def get(self, *_: object) -> dict[str, Any] | None:
        if self.away:
            raise ApiUnreachable("away")
        return self.lease

    async def create(self, _: object, lease: dict[str, Any]) -> dict[str, Any]:
        return self._store(lease, 1)

    async def replace(self, _: object, lease: dict[str, Any]) -> dict[str, Any]:
        assert self.lease is not None
        version = int(self.lease["metadata"]["resourceVersion"])
        if self.loses_answers:  # the client's own repetition then meets what the first attempt has written
            self.loses_answers -= 1
            self._store(lease, version + 1)
            raise ApiError("replace", "the Lease", 409, "Conflict", "it was changed")
        return self._store(lease, version + 1)

    def _store(self, lease: dict[str, Any], version: int) -> dict[str, Any]:
        self.lease = {**lease, "metadata": {**lease["metadata"], "resourceVersion": str(version)}}
        return self.lease


class TestKeepingTheLease:
    @pytest.fixture(autouse=True)
    def _hurried(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sluice_operator.engine.leader.RENEW_SECONDS", 0.01)
        monkeypatch.setattr("sluice_operator.engine.leader.GIVE_UP_SECONDS", 0.1)

    async def test_a_holder_that_cannot_renew_gives_up(self) -> None:
        api = _LeaseApi()
        leader = Leader(api, "n", "me")  # type: ignore[arg-type]
        await leader.acquire()
        api.away = True
        with pytest.raises(LeadershipLostError, match="could not be renewed"):
            await asyncio.wait_for(leader.keep(), 10)

    async def test_a_renewal_whose_answer_got_lost_is_no_loss(self) -> None:
        api = _LeaseApi()
        leader = Leader(api, "n", "me")  # type: ignore[arg-type]
        await leader.acquire()
        api.loses_answers = 1
        keeping = asyncio.create_task(leader.keep())
        while int((api.lease or {})["metadata"]["resourceVersion"]) < 5 and not keeping.done():
            await asyncio.sleep(0.01)
        assert not keeping.done()
        keeping.cancel()


@pytest.mark.apiserver
class TestLeader:
    @pytest.fixture(autouse=True)
    def _server(self, kubectl: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("KUBECONFIG", str(kubectl.kubeconfig))
        kubectl("delete", "lease", "sluice-operator", "-n", "support", "--ignore-not-found")

    async def test_one_leads_and_the_next_takes_over_at_once_after_a_clean_end(self) -> None:
        async with KubeClient() as kube:
            first, second = Leader(kube, "support", "first"), Leader(kube, "support", "second")
            await asyncio.wait_for(first.acquire(), 5)
            assert not await second._try()
            await first.release()
            await asyncio.wait_for(second.acquire(), 5)
            lease = await kube.get(LEASE, "support", "sluice-operator")
        assert lease is not None
        assert lease["spec"]["holderIdentity"] == "second"

    async def test_a_holder_that_no_longer_renews_is_followed_after_its_time(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sluice_operator.engine.leader.DURATION_SECONDS", 1)
        monkeypatch.setattr("sluice_operator.engine.leader.RETRY_SECONDS", 0.1)
        async with KubeClient() as kube:
            first, second = Leader(kube, "support", "first"), Leader(kube, "support", "second")
            await first.acquire()
            began = asyncio.get_running_loop().time()
            await asyncio.wait_for(second.acquire(), 5)
            assert asyncio.get_running_loop().time() - began >= 1
            assert not await first._try(), "the first must see that it has lost"
