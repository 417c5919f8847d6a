"""LoRA adapters on the engine of this replica: which there should be, and that each is the one its manifest names.

The cluster's Serve configuration is the one list of adapters (see `sluice_contracts.adapters`). A replica takes what is
on it before it counts as ready, takes more when an adapter's application says so, and looks now and then what is no
longer on it. An adapter that is wrong is refused by itself: the engine and what else it serves go on.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError
from sluice_contracts.adapters import ADAPTER_PREFIX, AdapterArguments
from sluice_contracts.manifest import Artifact, Manifest

from sluice_serving.artifacts import ArtifactError, fetch_model, parse_manifest

logger = logging.getLogger("ray.serve")

ADAPTER_FILES = {"adapter_config.json", "adapter_model.safetensors"}
"""What vLLM loads (vllm/lora/lora_model.py), and all it may find: it would also take pickled weights."""
SWEEP_SECONDS = 10.0
"""How often a replica that holds adapters looks whether they are still wanted."""


LOADER_PLACE: dict[str, Any] = {"num_cpus": 0, "resources": {"node:__internal_head__": 0.001}}
"""What an adapter's application asks of Ray: nothing, and to be on the head. Anywhere else it would keep a machine
whose engines sleep from being idle, for as long as there is the adapter."""


class Engine(Protocol):
    """What an engine can do with adapters."""

    async def load_adapter(self, name: str, folder: str) -> None:
        """Load it, and prove it by a short answer. Raises RuntimeError."""

    async def unload_adapter(self, name: str) -> None:
        """Take no more requests for it."""


def read_adapter(arguments: AdapterArguments) -> Manifest:
    """The manifest of an adapter, proven to be the one that was asked for and to fit the engines' weights.

    Raises ArtifactError, and sluice_storage's StorageError if it cannot be read or was changed.
    """
    manifest = parse_manifest(
        arguments.manifest_uri, arguments.manifest_digest, model=arguments.model, lineage=arguments.lineage
    )
    if manifest.base_digest != arguments.base_digest:
        raise ArtifactError(
            f"{arguments.manifest_uri} is an adapter on the version with manifest {manifest.base_digest[:23]}…, but "
            f"these engines run {arguments.base_digest[:23]}…"
        )
    found = {Path(a.path).name for a in manifest.adapter()}
    if found != ADAPTER_FILES:
        listed = ", ".join(sorted(found)) or "none"
        raise ArtifactError(
            f"{arguments.manifest_uri} must list {' and '.join(sorted(ADAPTER_FILES))} with role 'adapter', and lists "
            f"{listed}: serve its merged weights instead"
        )
    return manifest


def configured(applications: Mapping[str, Mapping[str, Any]]) -> dict[str, AdapterArguments]:
    """The adapters that Serve's configuration has, by name. `applications` are its details by application name."""
    found = {}
    for application, details in applications.items():
        if not application.startswith(ADAPTER_PREFIX) or details.get("status") == "DELETING":
            continue
        try:
            arguments = AdapterArguments.model_validate((details.get("deployed_app_config") or {}).get("args") or {})
        except ValidationError:
            continue  # its own application fails on that, and says so
        found[arguments.name] = arguments
    return found


class Adapters:
    """The adapters of one engine."""

    def __init__(self, engine: Engine, base_digest: str, cache: Path, clock: Callable[[], float] = time.monotonic):
        """`base_digest` is that of the manifest whose weights the engine runs."""
        self._engine, self._base_digest, self._cache, self._clock = engine, base_digest, cache, clock
        self._loaded: dict[str, AdapterArguments] = {}
        self._swept = clock()
        self._lock = asyncio.Lock()

    @property
    def names(self) -> list[str]:
        """The adapters that answer."""
        return sorted(self._loaded)

    async def load(self, arguments: AdapterArguments) -> None:
        """Fetch, verify and load an adapter, if it is not there yet. Raises ArtifactError, StorageError, and
        RuntimeError if the engine does not take it."""
        async with self._lock:
            if self._loaded.get(arguments.name) == arguments:
                return
            if arguments.base_digest != self._base_digest:
                raise ArtifactError(
                    f"{arguments.model_version} is an adapter on manifest {arguments.base_digest[:23]}…, but this "
                    f"engine runs {self._base_digest[:23]}…"
                )
            began = self._clock()
            folder = await asyncio.to_thread(self._fetch, arguments)
            await self._engine.load_adapter(arguments.name, str(folder))
            self._loaded[arguments.name] = arguments
            logger.info("adapter %s answers after %.1f s", arguments.name, self._clock() - began)

    def _fetch(self, arguments: AdapterArguments) -> Path:
        manifest = read_adapter(arguments)
        files: list[Artifact] = manifest.adapter()
        return fetch_model(manifest.run_uri, files, self._cache)

    async def take(self, wanted: Mapping[str, AdapterArguments]) -> None:
        """Load all that is wanted. One that is refused does not keep the engine from serving: whoever waits for it
        hears of it from its own application."""
        for arguments in wanted.values():
            try:
                await self.load(arguments)
            except Exception as error:
                logger.error("adapter %s is not served: %s", arguments.name, error)

    def due(self) -> bool:
        """Whether it is time to look what is still wanted."""
        return bool(self._loaded) and self._clock() - self._swept >= SWEEP_SECONDS

    async def sweep(self, wanted: Mapping[str, AdapterArguments]) -> None:
        """Unload what is no longer wanted."""
        self._swept = self._clock()
        async with self._lock:
            for name in [n for n in self._loaded if n not in wanted]:
                del self._loaded[name]
                await self._engine.unload_adapter(name)
                logger.info("adapter %s was taken off", name)
