"""What a RayService passes to `app:build`, and what follows from it for Ray and vLLM. Pure: nothing here does I/O."""

import math
from collections.abc import MutableMapping
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import quote

from pydantic import Field, StringConstraints, ValidationError, model_validator
from sluice_contracts.adapters import AdapterRank
from sluice_contracts.base import Contract, Digest, Name, ShortText, Uri
from sluice_contracts.engine_arguments import parallelism, parsed
from sluice_contracts.hardware import Accelerator, Topology
from sluice_contracts.kubernetes import ObjectName
from sluice_contracts.telemetry import OFF_SWITCHES

C = TypeVar("C", bound=Contract)

RAY_ACCELERATORS: dict[Accelerator, str] = {
    Accelerator.NVIDIA_TESLA_T4: "T4",
    Accelerator.NVIDIA_L4: "L4",
    Accelerator.NVIDIA_TESLA_A100: "A100-40G",
    Accelerator.NVIDIA_A100_80GB: "A100-80G",
    Accelerator.NVIDIA_H100_80GB: "H100",
    Accelerator.NVIDIA_H100_MEGA_80GB: "H100",
    Accelerator.NVIDIA_H200_141GB: "H200",
    Accelerator.NVIDIA_B200: "B200",
    Accelerator.NVIDIA_GB200: "GB200",
    Accelerator.NVIDIA_GB300: "B300",
    Accelerator.NVIDIA_RTX_PRO_6000: "RTX-PRO-6000",
    Accelerator.TPU_V4_PODSLICE: "TPU-V4",
    Accelerator.TPU_V5_LITE_PODSLICE: "TPU-V5LITEPOD",
    Accelerator.TPU_V5P_SLICE: "TPU-V5P",
    Accelerator.TPU_V6E_SLICE: "TPU-V6E",
    Accelerator.TPU7X: "TPU-V7X",
}
"""GKE's names of accelerators, as Ray spells them."""

ENGINE_MAX_OUTPUT_TOKENS = 1024
"""Tokens of an answer where neither the request nor the pool says otherwise."""

CPU_ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # `auto` keeps a core free, which of two is half the machine
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # lets the engine process run the model itself, without a third process
}
QUIET_LOGS = {
    "VLLM_LOGGING_LEVEL": "WARNING",
    "RAYLLM_ENABLE_REQUEST_PROMPT_LOGS": "0",
}
"""No prompts in logs."""


class ServeArguments(Contract):
    """`args` of the `llm` application in a RayService's serveConfigV2."""

    model: Name
    model_version: ObjectName
    lineage: ShortText
    manifest_uri: Uri
    manifest_digest: Digest
    max_model_len: Annotated[int, Field(ge=64, le=10_485_760)] = 2048
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    engine_args: Annotated[dict[str, Annotated[str, StringConstraints(max_length=256)]], Field(max_length=32)] = {}
    """By their vLLM names: those of `sluice_contracts.engine_arguments`."""
    max_output_tokens: Annotated[int, Field(ge=1, le=131_072)] = ENGINE_MAX_OUTPUT_TOKENS
    """The engine's own cap, beside the gateway's."""
    max_ongoing: Annotated[int, Field(ge=1, le=4096)] = 8
    accelerator: Accelerator = Accelerator.CPU
    count: Annotated[int, Field(ge=1, le=16)] = 1
    """GPUs of one replica."""
    topology: Topology | None = None
    adapter_slots: Annotated[int, Field(ge=0, le=16)] = 0
    """LoRA adapters that requests of one batch may name; 0 leaves no room for any."""
    max_adapter_rank: AdapterRank = 16
    traces_endpoint: Annotated[str, StringConstraints(pattern=r"^https?://[^\s@?#]+$", max_length=512)] | None = None
    """Where vLLM sends its spans, by OTLP over HTTP. None: nowhere."""
    cpus: Annotated[float, Field(ge=0, le=1024)] = 1
    """Ray CPUs one replica takes: logical, for placement only."""

    @model_validator(mode="after")
    def _consistent(self) -> "ServeArguments":
        if self.accelerator.startswith("tpu") and self.topology is None:
            raise ValueError(f"accelerator {self.accelerator} needs a topology, such as 2x4")
        parallelism(self.further, self.devices)
        return self

    @property
    def further(self) -> dict[str, Any]:
        """`engine_args` as vLLM's Python interface takes them. Raises ValueError that names the first wrong one."""
        return parsed(self.engine_args)

    @property
    def devices(self) -> int:
        """GPUs of the replica, or chips of its slice; 1 on CPU."""
        if self.kind == "tpu":
            return math.prod(int(side) for side in str(self.topology).split("x"))
        return self.count if self.kind == "gpu" else 1

    @property
    def kind(self) -> Literal["cpu", "gpu", "tpu"]:
        """What the replica computes on."""
        if self.accelerator is Accelerator.CPU:
            return "cpu"
        return "tpu" if self.accelerator.startswith("tpu") else "gpu"


def parse_arguments(args: dict[str, Any]) -> ServeArguments:
    """The engine's validated arguments. Raises ValueError that names the first wrong one."""
    return validated(ServeArguments, args)


def validated(model: type[C], args: dict[str, Any]) -> C:
    """`args` of an application. Raises ValueError that names the first wrong one."""
    try:
        return model.model_validate(args)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "args"
        raise ValueError(f"serveConfigV2 application args: {where}: {first['msg']}") from None


def kv_cache_bytes(config: dict[str, Any], max_model_len: int, sequences: int) -> int:
    """Memory for keys and values on CPU, where vLLM would otherwise take a fraction of the whole machine's.

    `config` is the model's config.json. Enough for `sequences` full contexts, between 64 MiB and 4 GiB; two bytes a
    value is bfloat16, four are assumed where the configuration names float32.
    """
    heads = int(config.get("num_attention_heads", 1))
    head_dim = int(config.get("head_dim") or int(config.get("hidden_size", heads)) // heads)
    kv_heads = int(config.get("num_key_value_heads") or heads)
    width = 4 if "32" in str(config.get("dtype") or config.get("torch_dtype")) else 2
    per_token = 2 * int(config.get("num_hidden_layers", 1)) * kv_heads * head_dim * width
    # vLLM hands memory out in blocks of 128 tokens a sequence; one block more for each leaves room to round up.
    wanted = per_token * (max_model_len + 256) * sequences
    return max(64 << 20, min(wanted, 4 << 30))


def prepare(arguments: ServeArguments, variables: MutableMapping[str, str]) -> None:
    """Make the replica's environment that of its engine. What the pod sets holds, but for OpenTelemetry's variables:
    vLLM's processes would send traces on their word alone (vllm/tracing/otel.py, `init_otel_worker_tracer`)."""
    for name in [name for name in variables if name.startswith("OTEL_")]:
        del variables[name]
    for name, value in environment(arguments).items():
        variables.setdefault(name, value)


def environment(arguments: ServeArguments) -> dict[str, str]:
    """Variables of the replica and its engine, where the pod does not set them."""
    variables = OFF_SWITCHES | QUIET_LOGS
    if arguments.traces_endpoint is not None:
        variables |= {
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",  # vLLM's default is gRPC
            # The gateway says in `traceparent` what is sampled; what comes without one, such as warming up, is not.
            "OTEL_TRACES_SAMPLER": "parentbased_always_off",
            "OTEL_SERVICE_NAME": f"{arguments.model}-engine",
            "OTEL_RESOURCE_ATTRIBUTES": ",".join(
                f"sluice.{name}={quote(value, safe='')}"
                for name, value in (("version", arguments.model_version), ("lineage", arguments.lineage))
            ),
        }
    if arguments.kind == "cpu":
        variables |= CPU_ENVIRONMENT
        if engine_kwargs(arguments, {})["enforce_eager"]:
            # vLLM's sampler is compiled on first use even then: 11 s for the first user, with a C++ compiler.
            variables["TORCH_COMPILE_DISABLE"] = "1"
    return variables


def engine_kwargs(arguments: ServeArguments, config: dict[str, Any]) -> dict[str, Any]:
    """vLLM's arguments: Sluice's defaults for the hardware, then the pool's own."""
    kwargs: dict[str, Any] = {
        "dtype": arguments.dtype,
        "max_model_len": arguments.max_model_len,
        "disable_log_stats": True,
        "enable_log_requests": False,
        "trust_remote_code": False,
        # Default and cap at once; shortened to what the prompt leaves of the context.
        "override_generation_config": {"max_new_tokens": arguments.max_output_tokens},
    }
    if arguments.traces_endpoint is not None:
        # Spans are made from the statistics: without them the first request ends vLLM's output loop with an
        # AssertionError (vLLM 0.29, OutputProcessor.do_tracing).
        kwargs |= {"otlp_traces_endpoint": arguments.traces_endpoint, "disable_log_stats": False}
    if arguments.adapter_slots:
        kwargs |= {
            "enable_lora": True,
            "max_loras": arguments.adapter_slots,
            "max_lora_rank": arguments.max_adapter_rank,
            # Beside those in use: one that drains and one that a rollback may return to.
            "max_cpu_loras": arguments.adapter_slots + 2,
        }
    if arguments.kind == "cpu":
        sequences = min(arguments.max_ongoing, 16)
        kwargs |= {
            "enforce_eager": True,  # compiling costs 20 s and a C++ compiler
            "max_num_seqs": sequences,
            "kv_cache_memory_bytes": kv_cache_bytes(config, arguments.max_model_len, sequences),
        }
    # Always said: vLLM would use one chip of a slice, and leave the rest idle.
    return kwargs | arguments.further | parallelism(arguments.further, arguments.devices)


def placement_bundles(arguments: ServeArguments) -> list[dict[str, float]] | None:
    """Ray's placement group of one replica, its own process included. None for a TPU slice, which Ray Serve LLM
    reserves whole from within the replica."""
    if arguments.kind == "cpu":
        return [{"CPU": arguments.cpus}]
    if arguments.kind == "tpu":
        return None
    bundle = {"GPU": 1.0, f"accelerator_type:{RAY_ACCELERATORS[arguments.accelerator]}": 0.001}
    first = bundle | {"CPU": arguments.cpus}
    return [first] + [dict(bundle) for _ in range(arguments.count - 1)]


def llm_config(arguments: ServeArguments, path: str, config: dict[str, Any]) -> dict[str, Any]:
    """Fields of `ray.serve.llm.LLMConfig` for the verified model folder `path`."""
    fields: dict[str, Any] = {
        "model_loading_config": {"model_id": arguments.model, "model_source": path},
        "engine_kwargs": engine_kwargs(arguments, config),
        "accelerator_config": {"kind": arguments.kind},
        "log_engine_metrics": False,
    }
    if arguments.kind == "tpu":
        fields["accelerator_config"]["topology"] = arguments.topology
    if arguments.kind != "cpu":
        fields["accelerator_type"] = RAY_ACCELERATORS[arguments.accelerator]
    bundles = placement_bundles(arguments)
    if bundles is not None:
        fields["placement_group_config"] = {"bundles": bundles}
    return fields


def deployment_options(arguments: ServeArguments) -> dict[str, Any]:
    """Options of the Serve deployment. How many replicas it has, and when there are more, stands beside the
    application's arguments, in serveConfigV2's `deployments`: a change of those replaces no engine."""
    options: dict[str, Any] = {
        "name": arguments.model,
        "num_replicas": 1,
        "max_ongoing_requests": arguments.max_ongoing,
        "health_check_period_s": 5,
        "health_check_timeout_s": 30,
        "graceful_shutdown_timeout_s": 20,
        "ray_actor_options": {"num_cpus": arguments.cpus},
    }
    bundles = placement_bundles(arguments)
    if bundles is not None:
        options |= {"placement_group_bundles": bundles, "placement_group_strategy": "PACK"}
    return options
