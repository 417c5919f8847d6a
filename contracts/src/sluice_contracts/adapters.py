"""LoRA adapters on a running engine: their names, and what the engine's cluster is told of each.

An adapter runs on the engines of the version it was trained from, beside that version and under its own name. It is
a Ray Serve application of its own (`adapter-<digest8>`), so that adding or removing one leaves the engine's application
untouched, and so that KubeRay reports of each by itself whether it is there and, if not, why.
"""

from typing import Annotated, Literal

from pydantic import StringConstraints

from sluice_contracts.base import Contract, Digest, Name, ShortText, Uri
from sluice_contracts.kubernetes import ObjectName

ENGINE_APPLICATION = "llm"
"""The Ray Serve application that is the engine."""
ADAPTER_PREFIX = "adapter-"
"""How the names of the adapters' applications begin."""

AdapterRank = Literal[1, 8, 16, 32, 64, 128, 256, 320, 512]
"""The ranks that vLLM makes room for (vllm/config/lora.py, MaxLoRARanks); a lower one fits into the next."""
EngineModel = Annotated[str, StringConstraints(pattern=r"^[a-z][-a-z0-9]*:[0-9a-f]{16}$", max_length=64)]
"""The model name by which an engine knows an adapter: `<model>:<16 digits of its manifest's digest>`."""


class AdapterArguments(Contract):
    """`args` of an adapter's application in a RayService's serveConfigV2."""

    name: EngineModel
    model: Name
    """The pool's model, which is also the name of the engine's deployment."""
    model_version: ObjectName
    lineage: ShortText
    manifest_uri: Uri
    manifest_digest: Digest
    base_digest: Digest
    """Digest of the manifest of the version that the engines run."""


def adapter_application(manifest_digest: str) -> str:
    """The Ray Serve application of the adapter in this manifest."""
    return f"{ADAPTER_PREFIX}{manifest_digest.removeprefix('sha256:')[:8]}"


def adapter_name(model: str, manifest_digest: str) -> str:
    """The model name by which the engine knows the adapter in this manifest."""
    return f"{model}:{manifest_digest.removeprefix('sha256:')[:16]}"
