"""Taking a version back, publishing it again, and keeping what is in use from being deleted: the plans."""

from typing import Any

import pytest
from sluice_contracts.manifest import Manifest
from sluice_contracts.model_version import ModelVersionSpec, ModelVersionStatus, ReleaseStatus
from sluice_contracts.names import FINALIZER_IN_USE
from sluice_operator.artifacts import Problem
from sluice_operator.children.publish_job import channel_of
from sluice_operator.engine.cache import Cache
from sluice_operator.engine.difference import is_so
from sluice_operator.kube.resources import INFERENCE_POOL
from sluice_operator.model_version.observe import Observed, PublishJobState, users
from sluice_operator.model_version.plan import plan
from sluice_operator.plan import Plan
from sluice_operator.verification import Checking

LINEAGE = "a" * 64
STAGED = {"channel": "stable", "stages": [{"percent": 10, "soak": "1h"}, {"percent": 100}]}


class World:
    """One verified version, planned again and again."""

    def __init__(self, bucket: Any, make: Any) -> None:
        self.make = make
        self.reference = bucket.version(LINEAGE)
        self.manifest = Manifest.model_validate_json((bucket.root / f"runs/{LINEAGE}/manifest.json").read_bytes())
        self.status = ModelVersionStatus()

    def spec(self, publish: dict[str, Any] | None = None) -> ModelVersionSpec:
        body = {"model": "support-bot", "version": "v1", "manifest": self.reference.wire()}
        return ModelVersionSpec.model_validate(body | ({"publish": publish} if publish else {}))

    def plan(self, publish: dict[str, Any] | None = None, *, meta: dict[str, Any] | None = None, **seen: Any) -> Plan:
        observed = Observed(**({"status": self.status, "manifest": self.manifest, "gated": True} | seen))
        made = plan(
            self.make.meta("v1", **(meta or {})), self.spec(publish), observed, self.make.settings(), self.make.now
        )
        if made.status is not None:
            self.status = ModelVersionStatus.model_validate(made.status)
        return made

    def said(self, type_: str) -> tuple[str, str]:
        found = next(c for c in self.status.conditions if c.type == type_)
        return found.status, found.reason


@pytest.fixture
def world(bucket: Any, make: Any) -> World:
    return World(bucket, make)


@pytest.fixture
def published(world: World) -> World:
    """One stage of two is open."""
    world.plan(STAGED, job=PublishJobState(0, succeeded=True, message='{"tufVersion": 3}', channel="stable"))
    assert world.said("Published") == ("True", "StageOpen")
    return world


YANKED = STAGED | {"yanked": True}


class TestYank:
    def test_publishers_end_before_a_job_withdraws(self, published: World) -> None:
        first = published.plan(YANKED, publish_jobs=frozenset({"v1-publish"}), publishers=True)
        assert first.apply == []
        assert [d.name for d in first.delete] == ["v1-publish"]
        assert first.requeue_after is not None
        second = published.plan(YANKED, publishers=True)
        assert (second.apply, second.delete) == ([], []), "the Job is gone, its pod is not yet"
        (job,) = published.plan(YANKED).apply
        words = " ".join(job.object["spec"]["template"]["spec"]["containers"][0]["command"])
        assert job.object["metadata"]["name"] == "v1-yank"
        assert "publish yank --channel stable --model support-bot --version v1" in words
        assert "--keys" in words
        assert channel_of(job.object) == "stable"

    def test_it_is_withdrawn_from_where_it_was_published(self, published: World) -> None:
        (job,) = published.plan(YANKED | {"channel": "beta"}).apply
        assert channel_of(job.object) == "stable"

    def test_withdrawn_stays_so_and_no_stage_opens(self, published: World) -> None:
        done = PublishJobState(0, succeeded=True)
        published.plan(YANKED, yank=done)
        assert published.said("Published") == ("False", "Yanked")
        assert published.said("Ready") == ("True", "Verified")
        assert published.status.release is not None
        assert (published.status.release.percent, published.status.release.yanked_at) == (0, published.make.at(0))
        again = published.plan(YANKED, yank=done)
        assert (again.apply, again.delete, again.events) == ([], [], [])

    def test_a_version_that_was_never_published_is_withdrawn_too(self, world: World) -> None:
        """A publisher that was stopped in the middle may have signed all the same."""
        (job,) = world.plan(YANKED).apply
        assert job.object["metadata"]["name"] == "v1-yank"
        world.plan(YANKED, yank=PublishJobState(0, succeeded=True))
        assert world.said("Published") == ("False", "Yanked")

    def test_a_failed_withdrawal_says_what_to_do(self, published: World) -> None:
        published.plan(YANKED, yank=PublishJobState(0, failed=True, message="wrong key"))
        assert published.said("Stalled") == ("True", "YankFailed")
        assert "delete the Job to try again" in str(published.status)
        assert published.status.release is not None
        assert published.status.release.yanked_at is None

    def test_taken_back_the_stages_open_from_the_first_again(self, published: World) -> None:
        published.plan(YANKED, yank=PublishJobState(0, succeeded=True))
        made = published.plan(STAGED, yank=PublishJobState(0, succeeded=True))
        assert [d.name for d in made.delete] == ["v1-yank"]
        assert made.apply == []
        (job,) = published.plan(STAGED).apply
        assert job.object["metadata"]["name"] == "v1-publish"
        assert published.status.release is None

    def test_taken_back_in_the_middle_the_withdrawal_ends_first(self, published: World) -> None:
        made = published.plan(STAGED, yank=PublishJobState(0))
        assert (made.apply, made.delete) == ([], [])
        made = published.plan(STAGED, yank=PublishJobState(0, failed=True))
        assert [d.name for d in made.delete] == ["v1-yank"]
        (job,) = published.plan(STAGED).apply
        assert job.object["metadata"]["name"] == "v1-publish"


def test_another_channel_is_not_taken_for_the_one_it_was_published_in(world: World) -> None:
    world.status.release = ReleaseStatus(tuf_version=3, published_stage=1, percent=100, channel="beta")
    made = world.plan({"channel": "stable"})
    assert made.apply == []
    assert world.said("Published") == ("False", "OtherChannel")


def test_while_files_are_hashed_nothing_else_is_decided(world: World) -> None:
    made = world.plan(STAGED, manifest=Checking(1, 3, 10, 40))
    assert world.said("Verified") == ("Unknown", "Verifying")
    assert world.said("Reconciling") == ("True", "Verifying")
    assert "1 of 3 files, 10 of 40 bytes read" in str(made.status)
    assert (made.apply, made.events) == ([], [])
    assert made.requeue_after is not None


HELD = {"finalizers": frozenset({FINALIZER_IN_USE, "else/where"})}
CHAT = frozenset({"chat"})


class TestInUse:
    def test_the_finalizer_comes_with_the_first_pool_and_goes_with_the_last(self, world: World) -> None:
        (on,) = world.plan(pools=CHAT).apply
        assert on.object["metadata"]["finalizers"] == [FINALIZER_IN_USE]
        assert on.object["metadata"]["uid"] == "uid-v1"
        assert world.plan(pools=CHAT, meta=HELD).apply == []
        (off,) = world.plan(meta=HELD).apply
        assert off.object["metadata"]["finalizers"] == []
        assert not is_so(off.object, {"metadata": on.object["metadata"]}), "the executor sees that it must write"
        assert world.plan().apply == []

    def test_also_a_version_that_cannot_be_verified_any_more_is_held(self, world: World) -> None:
        for found in (Problem("ArtifactMissing", "m.gguf is gone"), Checking(0, 1, 0, 9)):
            (on,) = world.plan(pools=CHAT, manifest=found).apply
            assert on.object["metadata"]["finalizers"] == [FINALIZER_IN_USE]

    def test_deletion_waits_for_the_pools_and_says_so_once(self, world: World) -> None:
        world.plan()
        deleted = {"deleting": True, **HELD}
        made = world.plan(pools=CHAT, meta=deleted)
        assert made.apply == []
        assert [e.reason for e in made.events] == ["InUse"]
        assert world.said("Reconciling") == ("True", "InUse")
        assert world.said("Verified") == ("True", "ArtifactsPresent"), "its pools must still find it verified"
        assert world.plan(pools=CHAT, meta=deleted).events == []
        gone = world.plan(meta=deleted)
        assert gone.status is None
        (off,) = gone.apply
        assert off.object["metadata"]["finalizers"] == []

    def test_nothing_is_published_while_it_is_being_deleted(self, world: World) -> None:
        made = world.plan({"channel": "stable"}, pools=CHAT, meta={"deleting": True, **HELD})
        assert made.apply == []

    @pytest.mark.parametrize("part", ["stable", "candidate", "previous"])
    def test_in_use_is_what_a_pools_status_names(self, make: Any, part: str) -> None:
        cache = Cache()
        pool = {
            "metadata": {"name": "chat", "namespace": "support", "resourceVersion": "1"},
            "status": {part: {"modelVersion": "v1"}},
        }
        cache.upsert(INFERENCE_POOL, pool)
        assert users(make.meta("v1"), cache) == {"chat"}
        assert users(make.meta("v2"), cache) == frozenset()
        assert users(make.meta("v1", namespace="other"), cache) == frozenset()
