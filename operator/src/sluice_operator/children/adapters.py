"""Adapters on a RayService's engines: the room for them, and the Ray Serve application that keeps one there."""

from collections.abc import Sequence
from typing import Any, get_args

from sluice_contracts.adapters import AdapterArguments, AdapterRank, adapter_application, adapter_name
from sluice_contracts.inference_pool import Adapters
from sluice_contracts.training_run import ManifestReference

IMPORT_PATH = "sluice_serving.adapter_app:build"


def room(wanted: Adapters | None, ranks: Sequence[int]) -> Adapters | None:
    """The room that engines make: what the spec asks for, and never less than the adapters they serve need. Taking it
    away beneath one that serves would end it."""
    found = wanted or (Adapters() if ranks else None)
    if found is None or found.max_rank >= max(ranks, default=0):
        return found
    enough = next(rank for rank in get_args(AdapterRank) if rank >= max(ranks))
    return found.model_copy(update={"max_rank": enough})


def adapter_serve_application(
    model: str, model_version: str, lineage: str, manifest: ManifestReference, base_digest: str
) -> dict[str, Any]:
    """An entry of serveConfigV2's `applications`. It takes no requests of its own, so it has no route."""
    arguments = AdapterArguments(
        name=adapter_name(model, manifest.digest),
        model=model,
        model_version=model_version,
        lineage=lineage,
        manifest_uri=manifest.uri,
        manifest_digest=manifest.digest,
        base_digest=base_digest,
    )
    return {
        "name": adapter_application(manifest.digest),
        "import_path": IMPORT_PATH,
        "route_prefix": None,
        "args": arguments.wire(),
    }
