"""Adapter-only versions: which can be served beside the base they were trained from, and what is known of them there.

Such a version shares the RayService of its base: no second one, no further accelerator. Its state is that of an
application of its own there, which KubeRay reports (see `sluice_contracts.adapters`).
"""

from collections.abc import Iterable, Mapping

from sluice_contracts.adapters import adapter_application
from sluice_contracts.inference_pool import InferencePoolSpec, ServedBase, ServedVersion

from sluice_operator.children.rayservice import Version
from sluice_operator.inference_pool.engine_state import EngineState


def base_to_share(spec: InferencePoolSpec, stable: ServedVersion, version: Version) -> ServedBase | None:
    """The version whose engines serve stable, if `version` is an adapter on exactly that one and there is room; None
    where it needs engines of its own. What was trained on another base, or on an adapter, is not an adapter here."""
    room = spec.engine.adapters
    made = version.builds_on
    if room is None or made is None or made.rank is None or made.rank > room.max_rank:
        return None
    base = stable.base or ServedBase(model_version=stable.model_version, manifest_digest=stable.manifest_digest)
    return base if base.manifest_digest == made.digest else None


def answers(engine: EngineState, served: ServedVersion) -> bool:
    """Whether engines that are ready answer for an adapter. One that has served goes on as long as it is configured:
    engines load what is configured before they are ready, whatever becomes of the application that told them of it."""
    state = engine.adapters.get(adapter_application(served.manifest_digest))
    if state is None or state.failure is not None:
        return False
    return state.running or served.since is not None


def failure(engine: EngineState | None, served: ServedVersion) -> str | None:
    """Why a version will not come up by itself; None while it may."""
    if engine is None or engine.failure is not None or served.base is None:
        return engine.failure if engine is not None else None
    state = engine.adapters.get(adapter_application(served.manifest_digest))
    return state.failure if state is not None else None


def by_service(served: Iterable[ServedVersion]) -> dict[str, list[ServedVersion]]:
    """The versions that each RayService serves."""
    found: dict[str, list[ServedVersion]] = {}
    for version in served:
        found.setdefault(version.ray_service, []).append(version)
    return found


def weights_and_adapters(
    group: list[ServedVersion], versions: Mapping[str, Version]
) -> tuple[Version, list[Version]] | None:
    """What a RayService is made of, for the versions it serves: whose weights its engines run, and the adapters on
    them. None where one of them is not known (any more): leaving an adapter out would take it from who is served."""
    first = group[0]
    name, digest = first.model_version, first.manifest_digest
    if first.base is not None:
        name, digest = first.base.model_version, first.base.manifest_digest
    weights = _exactly(versions.get(name), digest)
    adapters = [_exactly(versions.get(s.model_version), s.manifest_digest) for s in group if s.base is not None]
    known = [adapter for adapter in adapters if adapter is not None]
    return (weights, known) if weights is not None and len(known) == len(adapters) else None


def _exactly(version: Version | None, digest: str) -> Version | None:
    return version if version is not None and version.manifest.digest == digest else None
