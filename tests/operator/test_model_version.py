"""The plan of a ModelVersion, one situation after another."""

from datetime import timedelta
from typing import Any

import pytest
from sluice_contracts.manifest import Manifest
from sluice_contracts.model_version import ModelVersionSpec, ModelVersionStatus, PromotionStatus, ReleaseStatus
from sluice_operator.artifacts import Problem
from sluice_operator.children.publish_job import publish_job_name, tuf_version
from sluice_operator.engine.cache import Cache
from sluice_operator.kube.resources import INFERENCE_POOL
from sluice_operator.model_version.observe import Observed, PublishJobState, promotion, proven
from sluice_operator.model_version.plan import plan
from sluice_operator.plan import Plan

LINEAGE = "a" * 64
PROMOTED = PromotionStatus(pool="chat", at="2026-11-21T11:00:00Z", evidence="fine")
AFTER = {"channel": "stable", "after": {"promotedIn": "chat"}}
STAGED = {"channel": "stable", "stages": [{"percent": 10, "soak": "1h"}, {"percent": 100}]}


@pytest.fixture
def spec_and_manifest(bucket: Any) -> tuple[Any, Manifest]:
    reference = bucket.version(LINEAGE)
    manifest = Manifest.model_validate_json((bucket.root / f"runs/{LINEAGE}/manifest.json").read_bytes())

    def spec(publish: dict[str, Any] | None = None) -> ModelVersionSpec:
        body = {"model": "support-bot", "version": "v1", "manifest": reference.wire()}
        return ModelVersionSpec.model_validate(body | ({"publish": publish} if publish else {}))

    return spec, manifest


def decide(make: Any, spec: ModelVersionSpec, observed: Observed, seconds: float = 0) -> Plan:
    return plan(make.meta("v1"), spec, observed, make.settings(), make.now + timedelta(seconds=seconds))


def after(made: Plan) -> ModelVersionStatus:
    return ModelVersionStatus.model_validate(made.status)


def reason(made: Plan, type_: str) -> tuple[str, str]:
    found = next(c for c in after(made).conditions if c.type == type_)
    return found.status, found.reason


def observed(manifest: Any, **fields: Any) -> Observed:
    return Observed(**({"status": ModelVersionStatus(), "manifest": manifest, "gated": True} | fields))


def test_a_verified_version_is_ready_and_shows_its_files(make: Any, spec_and_manifest: Any) -> None:
    spec, manifest = spec_and_manifest
    made = decide(make, spec(), observed(manifest))
    assert reason(made, "Ready") == ("True", "Verified")
    assert after(made).lineage == LINEAGE
    assert {a.path for a in after(made).artifacts} == {a.path for a in manifest.artifacts}
    again = decide(make, spec(), Observed(status=after(made)), seconds=100)
    assert again.status == made.status
    assert again.events == []


@pytest.mark.parametrize(("lasting", "verified"), [(True, "False"), (False, "Unknown")])
def test_what_cannot_be_verified_is_named_and_looked_at_again(
    make: Any, spec_and_manifest: Any, lasting: bool, verified: str
) -> None:
    spec, _ = spec_and_manifest
    made = decide(make, spec(AFTER), observed(Problem("ArtifactMissing", "m.gguf is gone", lasting)))
    assert reason(made, "Verified") == (verified, "ArtifactMissing")
    assert "spec.manifest: m.gguf is gone" in str(made.status)
    assert made.apply == []
    assert made.requeue_after is not None


def test_a_verified_version_stays_so_when_storage_is_away(make: Any, spec_and_manifest: Any) -> None:
    spec, manifest = spec_and_manifest
    before = after(decide(make, spec(), observed(manifest)))
    away = Problem("StorageUnavailable", "timeout", lasting=False)
    made = decide(make, spec(AFTER), Observed(status=before, manifest=away, promotion=PROMOTED))
    assert reason(made, "Verified")[0] == "True"
    assert reason(made, "Published") == ("False", "StorageUnavailable")
    assert made.apply == []


class TestPublishing:
    def test_waits_for_the_pool_it_names(self, make: Any, spec_and_manifest: Any) -> None:
        spec, manifest = spec_and_manifest
        assert decide(make, spec(AFTER), observed(manifest)).apply == []
        other = PROMOTED.model_copy(update={"pool": "elsewhere"})
        held = decide(make, spec(AFTER), observed(manifest, promotion=other))
        assert reason(held, "Published") == ("False", "WaitingForPromotion")
        made = decide(make, spec(AFTER), observed(manifest, promotion=PROMOTED))
        assert [a.object["metadata"]["name"] for a in made.apply] == ["v1-publish"]

    def test_without_a_gate_only_a_promotion_lets_it_out(self, make: Any, spec_and_manifest: Any) -> None:
        spec, manifest = spec_and_manifest
        plain = {"channel": "stable"}
        held = decide(make, spec(plain), observed(manifest, gated=False))
        assert reason(held, "Published") == ("False", "PromotionRequired")
        assert held.apply == []
        first = decide(make, spec(AFTER), observed(manifest, gated=False, promotion=PROMOTED))
        assert reason(first, "Published") == ("False", "PromotionRequired"), "first in an empty pool: no canary"
        assert decide(make, spec(plain), observed(manifest, gated=False, promotion=PROMOTED, proven=True)).apply
        assert decide(make, spec(plain), observed(manifest, gated=True)).apply

    def test_paused_publishes_nothing(self, make: Any, spec_and_manifest: Any) -> None:
        spec, manifest = spec_and_manifest
        made = decide(make, spec(AFTER | {"paused": True}), observed(manifest, promotion=PROMOTED))
        assert reason(made, "Published") == ("False", "Paused")
        assert made.apply == []

    def test_stages_open_after_their_soak(self, make: Any, spec_and_manifest: Any) -> None:
        spec, manifest = spec_and_manifest
        done = PublishJobState(0, succeeded=True, message='{"tufVersion": 3}')
        made = decide(make, spec(STAGED), observed(manifest, job=done))
        release = after(made).release
        assert release is not None
        assert (release.tuf_version, release.published_stage, release.percent) == (3, 1, 10)
        assert reason(made, "Published") == ("True", "StageOpen")
        assert made.requeue_after == pytest.approx(3600)
        later = decide(make, spec(STAGED), observed(manifest, status=after(made)), seconds=3600)
        (job,) = later.apply
        command = job.object["spec"]["template"]["spec"]["containers"][0]["command"]
        assert job.object["metadata"]["name"] == "v1-publish-2"
        assert command[command.index("--percent") + 1] == "100"
        ended = PublishJobState(1, succeeded=True, message='{"tufVersion": 4}')
        last = decide(make, spec(STAGED), observed(manifest, status=after(later), job=ended), seconds=3700)
        assert reason(last, "Published") == ("True", "AllStagesOpen")

    def test_a_running_publisher_is_not_started_twice(self, make: Any, spec_and_manifest: Any) -> None:
        spec, manifest = spec_and_manifest
        made = decide(make, spec(STAGED), observed(manifest, job=PublishJobState(0)))
        assert made.apply == []
        assert reason(made, "Reconciling") == ("True", "Publishing")

    @pytest.mark.parametrize(
        "job",
        [PublishJobState(0, failed=True, message="wrong key"), PublishJobState(0, succeeded=True, message="no number")],
    )
    def test_a_failed_publisher_says_what_to_do(self, make: Any, spec_and_manifest: Any, job: PublishJobState) -> None:
        spec, manifest = spec_and_manifest
        made = decide(make, spec(STAGED), observed(manifest, job=job))
        assert reason(made, "Stalled") == ("True", "PublishFailed")
        assert "delete the Job to try again" in str(made.status)
        assert after(made).release is None

    def test_a_published_version_rests(self, make: Any, spec_and_manifest: Any) -> None:
        spec, manifest = spec_and_manifest
        release = ReleaseStatus(tuf_version=3, published_stage=1, percent=100, published_at=make.at(0))
        first = decide(
            make, spec(AFTER), observed(manifest, status=ModelVersionStatus(release=release), promotion=PROMOTED)
        )
        again = decide(make, spec(AFTER), observed(manifest, status=after(first), promotion=PROMOTED), seconds=9000)
        assert again.status == first.status
        assert (again.apply, again.events) == ([], [])


def test_a_promotion_is_read_from_the_pools_history(make: Any, spec_and_manifest: Any) -> None:
    spec, _ = spec_and_manifest
    found = spec(AFTER)

    def pool(name: str, at: str, outcome: str, version: int, digest: str) -> dict[str, Any]:
        return {
            "metadata": {"name": name, "namespace": "support", "resourceVersion": str(version)},
            "status": {
                "stable": {"modelVersion": "v1", "manifestDigest": digest},
                "history": [{"modelVersion": "v1", "outcome": outcome, "endedAt": at, "message": "numbers"}],
            },
        }

    cache, mine = Cache(), found.manifest.digest
    assert promotion(make.meta("v1"), found, cache) is None
    cache.upsert(INFERENCE_POOL, pool("refused", "2026-01-01T00:00:00Z", "RolledBack", 1, mine))
    cache.upsert(INFERENCE_POOL, pool("other-bytes", "2026-01-01T00:00:00Z", "Promoted", 2, "sha256:" + "0" * 64))
    assert promotion(make.meta("v1"), found, cache) is None
    assert not proven(make.meta("v1"), found, cache)
    cache.upsert(INFERENCE_POOL, pool("early", "2026-01-01T00:00:00Z", "Promoted", 3, mine))
    cache.upsert(INFERENCE_POOL, pool("chat", "2026-02-01T00:00:00Z", "Promoted", 4, mine))
    status = promotion(make.meta("v1"), found, cache)
    assert status is not None
    assert not proven(make.meta("v1"), found, cache), "no record has verdicts"
    judged = pool("chat", "2026-02-01T00:00:00Z", "Promoted", 5, mine)
    judged["status"]["history"][0]["verdicts"] = [{"name": "errorRate", "verdict": "equivalent"}]
    cache.upsert(INFERENCE_POOL, judged)
    assert proven(make.meta("v1"), found, cache)
    assert (status.pool, status.evidence) == ("chat", "numbers"), "the pool that publish.after names comes first"


@pytest.mark.parametrize(
    ("message", "wanted"),
    [
        ('{"tufVersion": 7}', 7),
        ('{"tufVersion": 0}', None),
        ("", None),
        ("oops", None),
        ("[1]", None),
        ('{"a": 1}', None),
    ],
)
def test_the_publishers_last_word(message: str, wanted: int | None) -> None:
    assert tuf_version(message) == wanted


def test_names_of_publishers_fit_a_label() -> None:
    assert publish_job_name("v1", 0) == "v1-publish"
    assert publish_job_name("v1", 1) == "v1-publish-2"
    assert len(publish_job_name("x" * 60, 3)) <= 63
