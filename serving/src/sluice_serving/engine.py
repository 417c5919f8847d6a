"""The one place that touches Ray Serve LLM and vLLM from within. Importing it imports vLLM."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import ray
import vllm.v1.engine.utils
from ray.llm._internal.common.callbacks.base import CallbackBase
from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine
from ray.serve.llm import LLMConfig
from ray.serve.llm.deployment import LLMServer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from sluice_contracts.manifest import Artifact
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest, UnloadLoRAAdapterRequest
from vllm.model_executor.models import ModelRegistry

from sluice_serving import fork_server
from sluice_serving.artifacts import cache_folder, fetch_model


class CpuEngine(VLLMEngine):  # type: ignore[misc]  # Ray has no types
    """vLLM on CPU, started without the three further processes that would each import everything again: the one that
    asks a model class what it supports, the multi-process executor's worker (with a single worker it has nothing to run
    in parallel), and the engine itself, which is forked from the fork server.
    """

    async def start(self) -> None:
        vllm.v1.engine.utils.get_mp_context = fork_server.context
        await super().start()

    def _prepare_engine_config(self, callback_ctx: Any) -> Any:
        _import_model_class(self.llm_config)
        engine_args, frontend_args, config = super()._prepare_engine_config(callback_ctx)
        if config.parallel_config.world_size == 1:
            config.parallel_config.distributed_executor_backend = "uni"
        return engine_args, frontend_args, config


def _import_model_class(llm_config: LLMConfig) -> None:
    """Registers the model's class as imported, so that vLLM reads its properties here instead of in a new process."""
    path = llm_config.get_engine_config().actual_hf_model_id
    for architecture in json.loads((Path(path) / "config.json").read_bytes()).get("architectures") or []:
        entry = ModelRegistry.models.get(architecture)
        if entry is not None:
            ModelRegistry.register_model(architecture, entry.load_model_cls())


class Server(LLMServer):  # type: ignore[misc]
    """Ray Serve LLM's server without its usage report, which starts an actor that imports vLLM for nothing else."""

    async def _start_engine(self) -> None:
        await self.engine.start()


class VerifyOnEveryNode(CallbackBase):  # type: ignore[misc]
    """In place of Ray Serve LLM's own download: every node of the replica fetches and verifies the files itself."""

    async def on_before_node_init(self) -> None:
        self.ctx.run_init_node = False
        here = ray.get_runtime_context().get_node_id()
        table = ray.util.placement_group_table(self.ctx.placement_group)
        others = set(table["bundles_to_node_id"].values()) - {here}
        fetch = ray.remote(_fetch_here)
        await asyncio.gather(
            *(
                fetch.options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
                    self.kwargs["run_uri"], self.kwargs["artifacts"]
                )
                for node in others
            )
        )


def _fetch_here(run_uri: str, artifacts: list[dict[str, Any]]) -> str:
    return str(fetch_model(run_uri, [Artifact.model_validate(a) for a in artifacts], cache_folder()))


class LoraEngine:
    """LoRA adapters on a started server."""

    def __init__(self, server: LLMServer, prove: Callable[[str], Awaitable[None]]) -> None:
        """`prove` asks the engine something under a model name, and raises RuntimeError if it cannot answer."""
        self._server, self._prove = server, prove

    @property
    def _models(self) -> OpenAIServingModels:
        return self._server.engine._oai_models

    async def load_adapter(self, name: str, folder: str) -> None:
        """Load it, and prove it by a short answer. Raises RuntimeError."""
        loaded = await self._models.load_lora_adapter(LoadLoRAAdapterRequest(lora_name=name, lora_path=folder))
        if isinstance(loaded, ErrorResponse):
            raise RuntimeError(f"vLLM does not take adapter {name}: {loaded.error.message}")
        try:
            await self._prove(name)
        except RuntimeError:
            await self.unload_adapter(name)
            raise

    async def unload_adapter(self, name: str) -> None:
        """Take no more requests for it. What is being answered is finished: vLLM keeps the weights until it needs
        their slot."""
        await self._models.unload_lora_adapter(UnloadLoRAAdapterRequest(lora_name=name))


async def start_server(fields: dict[str, Any], run_uri: str, artifacts: list[Artifact]) -> LLMServer:
    """Ray Serve LLM's server, started. `fields` are those of `LLMConfig`; the files are already on this node."""
    config = LLMConfig(
        **fields,
        callback_config={
            "callback_class": VerifyOnEveryNode,
            "callback_kwargs": {"run_uri": run_uri, "artifacts": [artifact.wire() for artifact in artifacts]},
        },
    )
    on_cpu = fields["accelerator_config"]["kind"] == "cpu"
    server = Server.sync_init(config, engine_cls=CpuEngine if on_cpu else VLLMEngine)
    await server.start()
    return server
