"""Who needs a version's files: read from the cache, and asked before any file may go.

When in doubt somebody does. What this operator cannot see (another cluster, or, in one-namespace mode, another
namespace) cannot hold a version: buckets are not to be shared beyond what one operator watches.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sluice_contracts.model_version import ModelVersionSpec, ModelVersionStatus
from sluice_contracts.names import ConditionType

from sluice_operator.engine.cache import Cache
from sluice_operator.kube.resources import INFERENCE_POOL, MODEL_VERSION, TRAINING_RUN
from sluice_operator.plan import Meta, Object
from sluice_operator.training_run.limits import LIMIT_REASONS

SERVED = ("stable", "candidate", "previous")


@dataclass(frozen=True)
class Uses:
    """What speaks for keeping a version's files."""

    by: tuple[str, ...] = ()
    """Who uses it, in words."""
    newer: int = 0
    """Verified versions of the same model and namespace that were made after it."""
    shared_with: tuple[str, ...] = ()
    """Versions whose files lie in the same folder, and that are not retired."""


def uses(meta: Meta, spec: ModelVersionSpec, status: ModelVersionStatus, cache: Cache) -> Uses:
    """What the cache knows now."""
    folder = spec.manifest.uri.rpartition("/")[0]
    mine = cache.get(MODEL_VERSION, meta.namespace, meta.name)
    others = [v for v in cache.list(MODEL_VERSION) if v is not mine and not _is(v, meta) and not _retired(v)]
    siblings = [
        v for v in others if v["metadata"]["namespace"] == meta.namespace and v["spec"].get("model") == spec.model
    ]
    by = [
        *_pools(meta, cache),
        *_runs(meta, folder, cache),
        *_adapters(spec, others),
        *_release(spec, status, siblings),
    ]
    age = _age(mine) if mine is not None else ("", "")
    return Uses(
        by=tuple(sorted(by)),
        newer=sum(1 for v in siblings if _age(v) > age and _verified(v)),
        shared_with=tuple(sorted(_name(v) for v in others if _folder(v) == folder)),
    )


def named_in(pool: Mapping[str, Any]) -> set[str]:
    """The versions that a pool's status names: those it serves, tries, or may go back to, and the bases on whose
    engines these are adapters."""
    served = [pool.get(part) or {} for part in SERVED]
    named = [v.get("modelVersion") for version in served for v in (version, version.get("base") or {})]
    return {str(name) for name in named if name}


def _pools(meta: Meta, cache: Cache) -> Iterator[str]:
    """Pools that want it, serve it, try it, or may go back to it."""
    for pool in cache.list(INFERENCE_POOL, meta.namespace):
        if meta.name in {pool["spec"].get("modelVersion"), *named_in(pool.get("status") or {})}:
            yield f"InferencePool {pool['metadata']['name']}"


def _runs(meta: Meta, folder: str, cache: Cache) -> Iterator[str]:
    """Runs that fine-tune it, and runs that write into its folder. A run that a limit stopped may go on."""
    for run in cache.list(TRAINING_RUN):
        base = (run["spec"].get("base") or {}).get("modelVersion")
        tunes = base == meta.name and run["metadata"]["namespace"] == meta.namespace
        writes = (run.get("status") or {}).get("runUri") == folder
        if (tunes or writes) and _goes_on(run):
            yield f"TrainingRun {run['metadata']['name']}"


def _goes_on(run: Object) -> bool:
    status = run.get("status") or {}
    if not status.get("finishedAt"):
        return True
    return _condition(run, ConditionType.READY).get("reason") in LIMIT_REASONS


def _adapters(spec: ModelVersionSpec, others: list[Object]) -> Iterator[str]:
    """Adapters made for it; and versions of which that is not known yet."""
    for other in others:
        builds_on = (other.get("status") or {}).get("buildsOn")
        if builds_on is None:
            if _condition(other, ConditionType.VERIFIED).get("status") != "False":
                yield f"ModelVersion {_name(other)}, of which it is not known yet what it builds on"
        elif builds_on.get("adapter") and builds_on["digest"] == spec.manifest.digest:
            yield f"ModelVersion {_name(other)}, an adapter to it"


def _release(spec: ModelVersionSpec, status: ModelVersionStatus, siblings: list[Object]) -> Iterator[str]:
    """A release that is offered to devices, or wanted to be: until a newer one is open to all of them."""
    release = status.release
    if release is None:
        if spec.publish is not None and not spec.publish.yanked:
            yield f"channel {spec.publish.channel}, where it is to be published"
        return
    if release.yanked_at is not None:
        return
    channel = release.channel or (spec.publish.channel if spec.publish is not None else "stable")
    for other in siblings:
        newer = (other.get("status") or {}).get("release") or {}
        if (
            newer.get("channel") == channel
            and newer.get("tufVersion", 0) > release.tuf_version
            and newer.get("percent") == 100
            and not newer.get("yankedAt")
        ):
            return
    yield f"channel {channel}, where devices are offered it"


def _is(obj: Object, meta: Meta) -> bool:
    return (obj["metadata"]["namespace"], obj["metadata"]["name"]) == (meta.namespace, meta.name)


def _retired(obj: Object) -> bool:
    return bool(((obj.get("status") or {}).get("retention") or {}).get("retiredAt"))


def _verified(obj: Object) -> bool:
    return _condition(obj, ConditionType.VERIFIED).get("status") == "True"


def _condition(obj: Object, type_: ConditionType) -> Mapping[str, Any]:
    conditions = (obj.get("status") or {}).get("conditions") or []
    return next((c for c in conditions if c.get("type") == type_), {})


def _age(obj: Object) -> tuple[str, str]:
    return str(obj["metadata"].get("creationTimestamp", "")), str(obj["metadata"]["name"])


def _folder(obj: Object) -> str:
    return str(((obj["spec"].get("manifest") or {}).get("uri") or "").rpartition("/")[0])


def _name(obj: Object) -> str:
    return str(obj["metadata"]["name"])
