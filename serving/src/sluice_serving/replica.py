"""One replica: verified files, then Ray Serve LLM's server with vLLM, then one generation before it counts as ready.
Adapters that the cluster has are loaded before that too.
"""

import asyncio
import json
import logging
import os
import time
from typing import Any

import ray
from ray.exceptions import RayError
from sluice_contracts.adapters import AdapterArguments
from sluice_contracts.manifest import Artifact
from sluice_storage import StorageError

from sluice_serving import fork_server
from sluice_serving.adapters import Adapters, configured
from sluice_serving.arguments import ServeArguments, llm_config, prepare
from sluice_serving.artifacts import ArtifactError, cache_folder, fetch_model, refuse_code

logger = logging.getLogger("ray.serve")

CONTROLLER_SECONDS = 10.0


class ModelReplica:
    """A Serve deployment whose HTTP interface is vLLM's own, so that tokens stream with no hop in between."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, arguments: dict[str, Any], run_uri: str, artifacts: list[dict[str, Any]]
    ) -> None:
        began = time.monotonic()
        parsed = ServeArguments.model_validate(arguments)
        prepare(parsed, os.environ)
        os.environ.setdefault("USER", "sluice")  # PyTorch asks for the user's name, and a container may have none
        files = [Artifact.model_validate(artifact) for artifact in artifacts]
        folder = await asyncio.to_thread(fetch_model, run_uri, files, cache_folder())
        refuse_code(folder)
        verified = time.monotonic()
        if parsed.kind == "cpu":
            fork_server.begin()
        config = json.loads((folder / "config.json").read_bytes())

        # Imports vLLM, which takes seconds: only after the files are right.
        from sluice_serving.engine import LoraEngine, start_server

        self._server = await start_server(llm_config(parsed, str(folder), config), run_uri, files)
        started = time.monotonic()
        await warm_up(self._server, parsed.model)
        self._adapters: Adapters | None = None
        if parsed.adapter_slots:
            lora = LoraEngine(self._server, lambda name: warm_up(self._server, name))
            self._adapters = Adapters(lora, parsed.manifest_digest, cache_folder())
            wanted = await asyncio.to_thread(_configured_adapters)
            await self._adapters.take(wanted or {})
        logger.info(
            "%s is ready: files verified in %.1f s, engine started in %.1f s, warmed up in %.1f s",
            parsed.model_version,
            verified - began,
            started - verified,
            time.monotonic() - started,
        )

    async def __serve_build_asgi_app__(self) -> Any:
        return await self._server.__serve_build_asgi_app__()

    async def check_health(self) -> None:
        """Serve asks every few seconds; a dead engine raises, and Serve replaces the replica."""
        await self._server.check_health()
        if self._adapters is not None and self._adapters.due():
            wanted = await asyncio.to_thread(_configured_adapters)
            if wanted is not None:
                await self._adapters.sweep(wanted)

    async def load_adapter(self, arguments: dict[str, Any]) -> str:
        """Load an adapter: called by its application on every replica. Returns "", or why it is refused."""
        if self._adapters is None:
            return "these engines were started without room for adapters; set spec.engine.adapters of the pool"
        try:
            await self._adapters.load(AdapterArguments.model_validate(arguments))
        except (ArtifactError, StorageError, RuntimeError) as error:
            return str(error)
        return ""


def _configured_adapters() -> dict[str, AdapterArguments] | None:
    """The adapters in this cluster's Serve configuration; None while Serve's controller does not answer, which is no
    reason to end an engine."""
    from ray.serve.context import _get_global_client  # the public API tells an application's status, not its arguments

    try:
        details = ray.get(
            _get_global_client()._controller.get_serve_instance_details.remote(), timeout=CONTROLLER_SECONDS
        )
    except RayError as error:  # among them GetTimeoutError
        logger.warning("cannot ask Serve which adapters there should be: %s", type(error).__name__)
        return None
    return configured(details.get("applications") or {})


async def warm_up(server: Any, model: str) -> None:
    """Two short answers, greedy and sampled, so that the first user does not wait for what is built on first use.

    Raises RuntimeError if the engine cannot answer: such a version must not become ready.
    """
    from ray.serve.llm.openai_api_models import ChatCompletionRequest, ErrorResponse

    hello = [{"role": "user", "content": "Hello"}]
    for sampling in ({"temperature": 0.0}, {"temperature": 1.0, "top_p": 0.9, "seed": 1}):
        request = ChatCompletionRequest(model=model, messages=hello, max_tokens=4, **sampling)
        async for answer in await server.chat(request):
            if isinstance(answer, ErrorResponse):
                raise RuntimeError(f"{model} failed its first request: {answer.error.message}")
