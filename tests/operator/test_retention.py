"""Letting a version's files go: who holds them, and that each step waits for the one before. The plans."""

from collections.abc import Mapping
from typing import Any

import pytest
from sluice_contracts.manifest import Manifest
from sluice_contracts.model_version import ModelVersionSpec, ModelVersionStatus, ReleaseStatus
from sluice_operator.engine.cache import Cache
from sluice_operator.engine.controller import DEADLINE_SECONDS
from sluice_operator.kube.resources import INFERENCE_POOL, MODEL_VERSION, TRAINING_RUN, Resource
from sluice_operator.model_version.observe import Observed, PublishJobState
from sluice_operator.model_version.plan import plan
from sluice_operator.model_version.retention import PAUSE_SECONDS
from sluice_operator.model_version.uses import Uses, uses
from sluice_operator.plan import Plan
from sluice_operator.training_run.limits import LIMIT_REASONS

LINEAGE = "a" * 64
FREE = Uses()
LAST_1 = {"keepLast": 1}
OLD = Uses(newer=1)
"""Unused, and a newer version is there."""
Json = dict[str, Any]


class World:
    """One verified version, planned again and again at given seconds."""

    def __init__(self, bucket: Any, make: Any) -> None:
        self.make = make
        self.reference = bucket.version(LINEAGE)
        self.manifest = Manifest.model_validate_json((bucket.root / f"runs/{LINEAGE}/manifest.json").read_bytes())
        self.status = ModelVersionStatus()

    def plan(self, retention: Json | None, at: float = 0, **seen: Any) -> Plan:
        body: Json = {"model": "support-bot", "version": "v1", "manifest": self.reference.wire()}
        spec = ModelVersionSpec.model_validate(body | ({"retention": retention} if retention else {}))
        retired = self.status.retention is not None and self.status.retention.retired_at is not None
        first = {} if retired else {"manifest": self.manifest, "gated": True}
        observed = Observed(**({"status": self.status, "uses": FREE} | first | seen))
        now = self.make.now.fromisoformat(self.make.at(at).replace("Z", "+00:00"))
        made = plan(self.make.meta("v1"), spec, observed, self.make.settings(), now)
        assert made.status is not None
        self.status = ModelVersionStatus.model_validate(made.status)
        return made

    def said(self, type_: str) -> tuple[str, str]:
        found = next(c for c in self.status.conditions if c.type == type_)
        return found.status, found.reason

    def deleting(self) -> None:
        """Up to where the Job is to be started."""
        self.plan(LAST_1, uses=OLD)
        self.plan(LAST_1, PAUSE_SECONDS + 1, uses=OLD)
        assert self.status.retention is not None
        assert self.status.retention.deleting


@pytest.fixture
def world(bucket: Any, make: Any) -> World:
    return World(bucket, make)


class TestKept:
    def test_without_a_policy_files_are_kept_and_nothing_is_said(self, world: World) -> None:
        world.plan(None, uses=None)
        assert "Retained" not in {c.type for c in world.status.conditions}
        assert world.status.retention is None

    @pytest.mark.parametrize("retention", [LAST_1, {"ttl": "0s"}, {"keepLast": 1, "ttl": "0s"}])
    def test_in_use_never_goes(self, world: World, retention: Json) -> None:
        made = world.plan(retention, 1e7, uses=Uses(by=("InferencePool chat",), newer=9))
        assert world.said("Retained") == ("True", "InUse")
        assert world.said("Ready") == ("True", "Verified")
        assert "InferencePool chat" in str(made.status)
        assert (made.apply, made.delete, made.events[2:]) == ([], [], [])

    def test_unknown_uses_keep(self, world: World) -> None:
        world.plan(LAST_1, uses=None)
        assert world.said("Retained") == ("True", "InUse")

    def test_the_newest_are_kept(self, world: World) -> None:
        for newer in (0, 1, 2):
            world.plan({"keepLast": 3}, uses=Uses(newer=newer))
            assert world.said("Retained") == ("True", "WithinPolicy")
        world.plan({"keepLast": 3}, uses=Uses(newer=3))
        assert world.said("Retained") == ("False", "Retiring")

    def test_ttl_counts_from_the_last_use(self, world: World) -> None:
        ttl = {"ttl": "1h"}
        made = world.plan(ttl, 0)
        assert world.said("Retained") == ("True", "WithinPolicy")
        assert made.requeue_after == pytest.approx(3600)
        world.plan(ttl, 3000, uses=Uses(by=("InferencePool chat",)))
        world.plan(ttl, 3500)
        assert world.plan(ttl, 3700).requeue_after == pytest.approx(3400)
        world.plan(ttl, 7101)
        assert world.said("Retained") == ("False", "Retiring")

    def test_whichever_keeps_it_longer_counts(self, world: World) -> None:
        both = {"keepLast": 1, "ttl": "1h"}
        world.plan(both, 0, uses=OLD)
        world.plan(both, 3601, uses=FREE)
        assert world.said("Retained") == ("True", "WithinPolicy"), "no newer one is there"
        world.plan(both, 3602, uses=OLD)
        assert world.said("Retained") == ("False", "Retiring")

    def test_a_dry_run_says_what_would_go_once(self, world: World) -> None:
        dry = LAST_1 | {"dryRun": True}
        made = world.plan(dry, uses=OLD)
        assert world.said("Retained") == ("True", "WouldDelete")
        (event,) = [e for e in made.events if e.reason == "WouldDelete"]
        assert "2 files of 96 bytes" in event.message
        assert f"runs/{LINEAGE}" in event.message
        again = world.plan(dry, 1e6, uses=OLD)
        assert (again.apply, again.events) == ([], [])
        assert world.said("Ready") == ("True", "Verified")


class TestGoing:
    def test_first_it_is_taken_out_of_use_and_its_files_stay(self, world: World) -> None:
        world.plan(None)
        made = world.plan(LAST_1, uses=OLD)
        assert made.apply == []
        assert world.said("Verified") == ("False", "Retired"), "no pool may begin to try it"
        assert [(e.reason, e.type.value) for e in made.events] == [("Retiring", "Warning")]
        assert made.requeue_after == PAUSE_SECONDS
        assert PAUSE_SECONDS > DEADLINE_SECONDS, "a look that saw it verified has ended before its files go"

    def test_nothing_goes_before_the_pause_is_over_and_the_step_is_written_down(self, world: World) -> None:
        world.plan(LAST_1, uses=OLD)
        for at in (1, PAUSE_SECONDS - 1, -5000):
            made = world.plan(LAST_1, at, uses=OLD)
            assert made.apply == []
            assert made.requeue_after
        made = world.plan(LAST_1, PAUSE_SECONDS + 1, uses=OLD)
        assert made.apply == [], "the Job comes with the next look, when the status says so"
        (job,) = world.plan(LAST_1, PAUSE_SECONDS + 2, uses=OLD).apply
        container = job.object["spec"]["template"]["spec"]["containers"][0]
        assert job.object["metadata"]["name"] == "v1-retire"
        assert container["command"][:3] == ["sluice-train", "publish", "retire"]
        assert container["command"][-1] == world.reference.digest
        assert "signing" not in str(job.object), "it holds no keys"

    def test_who_comes_back_in_time_finds_the_files(self, world: World) -> None:
        world.plan(LAST_1, uses=OLD)
        made = world.plan(LAST_1, PAUSE_SECONDS + 9, uses=Uses(by=("InferencePool chat",), newer=1))
        assert (made.apply, [e.reason for e in made.events]) == ([], ["FilesKept"])
        assert world.said("Verified") == ("Unknown", "Verifying")
        world.plan(LAST_1, PAUSE_SECONDS + 10, uses=Uses(by=("InferencePool chat",), newer=1))
        assert world.said("Verified") == ("True", "ArtifactsPresent")
        assert world.said("Retained") == ("True", "InUse")

    @pytest.mark.parametrize("changed", [None, LAST_1 | {"dryRun": True}])
    def test_a_policy_that_is_taken_back_keeps_the_files(self, world: World, changed: Json | None) -> None:
        world.plan(LAST_1, uses=OLD)
        world.plan(changed, PAUSE_SECONDS + 9, uses=OLD if changed else None)
        assert world.said("Verified") == ("Unknown", "Verifying")

    def test_files_that_another_version_has_too_wait_for_it(self, world: World) -> None:
        world.plan(LAST_1, uses=Uses(newer=1, shared_with=("twin",)))
        world.plan(LAST_1, PAUSE_SECONDS + 1, uses=Uses(newer=1, shared_with=("twin",)))
        assert world.said("Retained") == ("False", "Retiring")
        assert "ModelVersion twin" in str(world.status)
        world.deleting()

    def test_a_job_that_was_lost_is_started_again(self, world: World) -> None:
        world.deleting()
        for at in (400, 500):
            (job,) = world.plan(LAST_1, at, uses=OLD).apply
            assert job.object["metadata"]["name"] == "v1-retire"
        running = world.plan(LAST_1, 600, uses=OLD, retire=PublishJobState(0))
        assert running.apply == []
        assert world.said("Reconciling") == ("True", "Deleting")

    def test_once_files_may_be_gone_there_is_no_way_back(self, world: World) -> None:
        world.deleting()
        (job,) = world.plan(None, 400, uses=Uses(by=("InferencePool chat",))).apply
        assert job.object["metadata"]["name"] == "v1-retire"

    def test_deleted_is_told_once_and_rests(self, world: World) -> None:
        world.deleting()
        made = world.plan(LAST_1, 400, uses=OLD, retire=PublishJobState(0, succeeded=True))
        assert [e.reason for e in made.events] == ["FilesDeleted"]
        assert world.said("Retained") == world.said("Ready") == ("False", "FilesDeleted")
        assert world.said("Verified") == ("False", "Retired")
        before = world.status
        again = world.plan(LAST_1, 9e6, uses=OLD)
        assert (again.apply, again.events, again.requeue_after) == ([], [], None)
        assert world.status == before

    def test_a_failed_job_says_what_to_do(self, world: World) -> None:
        world.deleting()
        world.plan(LAST_1, 400, uses=OLD, retire=PublishJobState(0, failed=True, message="access denied"))
        assert world.said("Stalled") == ("True", "RetireFailed")
        assert "access denied; mend the cause, then delete the Job" in str(world.status)


class Objects:
    """A cache with `v1`, the version in question, and what a test puts beside it."""

    def __init__(self, make: Any, reference: Any) -> None:
        self.make, self.cache, self.count = make, Cache(), 0
        self.spec = ModelVersionSpec(model="support-bot", version="v1", manifest=reference)
        self.version("v1", reference.wire())

    def put(self, resource: Resource, name: str, spec: Json, status: Json, **metadata: Any) -> None:
        self.count += 1
        meta = {"namespace": "support", "name": name, "resourceVersion": str(self.count), "uid": name}
        meta["creationTimestamp"] = self.make.at(self.count)
        self.cache.upsert(resource, {"metadata": meta | metadata, "spec": spec, "status": status})

    def version(self, name: str, manifest: Json | None = None, metadata: Json | None = None, **status: Any) -> None:
        manifest = manifest or {"uri": f"gs://b/runs/{name}/manifest.json", "digest": "sha256:" + "9" * 64}
        builds_on = {"buildsOn": {"digest": "sha256:" + "8" * 64, "adapter": False}}
        verified = {"conditions": [{"type": "Verified", "status": "True"}]}
        spec = {"model": "support-bot", "version": name, "manifest": manifest}
        self.put(MODEL_VERSION, name, spec, verified | builds_on | status, **(metadata or {}))

    def uses(self, publish: Json | None = None, **status: Any) -> Uses:
        spec = ModelVersionSpec.model_validate(self.spec.wire() | ({"publish": publish} if publish else {}))
        return uses(self.make.meta("v1"), spec, ModelVersionStatus(**status), self.cache)


@pytest.fixture
def objects(make: Any, bucket: Any) -> Objects:
    return Objects(make, bucket.version(LINEAGE))


class TestUses:
    def test_alone_it_is_free(self, objects: Objects) -> None:
        assert objects.uses() == FREE

    @pytest.mark.parametrize("part", ["stable", "candidate", "previous"])
    def test_pools_that_name_it_hold_it(self, objects: Objects, part: str) -> None:
        objects.put(INFERENCE_POOL, "chat", {"modelVersion": "v7"}, {part: {"modelVersion": "v1"}})
        assert objects.uses().by == ("InferencePool chat",)

    def test_a_pool_that_only_wants_it_holds_it(self, objects: Objects) -> None:
        objects.put(INFERENCE_POOL, "chat", {"modelVersion": "v1"}, {})
        objects.put(INFERENCE_POOL, "far", {"modelVersion": "v1"}, {}, namespace="elsewhere")
        assert objects.uses().by == ("InferencePool chat",)

    @pytest.mark.parametrize(
        ("status", "held"),
        [
            ({}, True),
            ({"finishedAt": "x", "conditions": [{"type": "Ready", "reason": "Succeeded"}]}, False),
            ({"finishedAt": "x", "conditions": [{"type": "Ready", "reason": "GateFailed"}]}, False),
            *(({"finishedAt": "x", "conditions": [{"type": "Ready", "reason": r}]}, True) for r in LIMIT_REASONS),
        ],
    )
    def test_runs_that_tune_it_and_may_go_on_hold_it(self, objects: Objects, status: Json, held: bool) -> None:
        objects.put(TRAINING_RUN, "tune", {"base": {"modelVersion": "v1"}}, status)
        assert objects.uses().by == (("TrainingRun tune",) if held else ())

    def test_a_run_that_writes_into_its_folder_holds_it(self, objects: Objects) -> None:
        folder = objects.spec.manifest.uri.rpartition("/")[0]
        objects.put(TRAINING_RUN, "again", {}, {"runUri": folder}, namespace="elsewhere")
        assert objects.uses().by == ("TrainingRun again",)

    def test_adapters_hold_their_base_and_full_models_do_not(self, objects: Objects) -> None:
        digest = objects.spec.manifest.digest
        objects.version("tuned", buildsOn={"digest": digest, "adapter": False})
        assert objects.uses().by == ()
        objects.version("adapter", buildsOn={"digest": digest, "adapter": True})
        assert objects.uses().by == ("ModelVersion adapter, an adapter to it",)

    def test_a_retired_adapter_holds_nothing(self, objects: Objects) -> None:
        told = {"digest": objects.spec.manifest.digest, "adapter": True}
        objects.version("adapter", buildsOn=told, retention={"retiredAt": "2026-01-01T00:00:00Z"})
        assert objects.uses() == FREE

    def test_what_is_not_known_yet_holds_it(self, objects: Objects) -> None:
        objects.version("new", conditions=[], buildsOn=None)
        assert "not known yet" in objects.uses().by[0]
        objects.version("new", conditions=[{"type": "Verified", "status": "False"}], buildsOn=None)
        assert objects.uses().by == (), "a version that cannot be verified needs no base"

    def test_newer_verified_versions_are_counted(self, objects: Objects) -> None:
        objects.version("v2")
        objects.version("v3", conditions=[])
        objects.version("v4", metadata={"namespace": "elsewhere"})
        objects.version("v0", metadata={"creationTimestamp": "2020-01-01T00:00:00Z"})
        assert objects.uses().newer == 1

    def test_versions_in_the_same_folder_are_named(self, objects: Objects) -> None:
        objects.version("twin", objects.spec.manifest.wire() | {"digest": "sha256:" + "7" * 64})
        assert objects.uses().shared_with == ("twin",)

    def test_what_is_offered_to_devices_is_held_until_a_newer_one_is_open_to_all(self, objects: Objects) -> None:
        offered = ReleaseStatus(tuf_version=3, published_stage=1, percent=100, channel="stable")
        publish = {"channel": "stable"}
        assert objects.uses(publish).by == ("channel stable, where it is to be published",)
        assert objects.uses(publish | {"yanked": True}).by == ()
        held = ("channel stable, where devices are offered it",)
        assert objects.uses(publish, release=offered).by == held
        assert objects.uses(release=offered).by == held, "publish was removed; the release is still there"
        newer = {"tufVersion": 4, "percent": 20, "channel": "stable"}
        others: list[Mapping[str, Any]] = [{}, {"channel": "beta", "percent": 100}, {"tufVersion": 2, "percent": 100}]
        for change in [*others, {"percent": 100, "yankedAt": "2026-01-01T00:00:00Z"}]:
            objects.version("v2", release=newer | change)
            assert objects.uses(publish, release=offered).by == held
        objects.version("v2", release=newer | {"percent": 100})
        assert objects.uses(publish, release=offered).by == ()
        withdrawn = offered.model_copy(update={"yanked_at": "2026-01-01T00:00:00Z"})
        assert Objects(objects.make, objects.spec.manifest).uses(release=withdrawn).by == ()
