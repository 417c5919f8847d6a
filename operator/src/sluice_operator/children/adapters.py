"""The Ray Serve application that keeps one adapter on the engines of its base."""

from typing import Any

from sluice_contracts.adapters import AdapterArguments, adapter_application, adapter_name
from sluice_contracts.training_run import ManifestReference

IMPORT_PATH = "sluice_serving.adapter_app:build"


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
