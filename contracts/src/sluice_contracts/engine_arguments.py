"""Which of vLLM's arguments a pool may set, and with what values: one table for the operator, which tells in the pool's
conditions what is wrong, and for the engine.

Left out is what Sluice sets itself (the model, its length, type and place, adapters, logs), what would load bytes that
no manifest covers (other models, configurations by path, formats that are pickles), what names code by its import path
(plug-ins, workers, schedulers, logits processors), what opens a way out (traces, key-value transfer, weight transfer),
what users could send code or tensors by (prompt embeddings), and what a replica of one placement group cannot have
(data and context parallelism). Names and values: vllm/engine/arg_utils.py and vllm/entrypoints/launchers/cli_args.py,
vLLM 0.29; whether vLLM takes a word such as a method of quantisation is for vLLM to say, when the engine starts.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

SWITCH = "true|false"
COUNT = "[1-9][0-9]{0,12}"
WHOLE = "0|[1-9][0-9]{0,12}"
SHARE = r"0\.[0-9]{1,6}|1|1\.0"
AMOUNT = r"[0-9]{1,6}(\.[0-9]{1,6})?"
WORD = "[A-Za-z][A-Za-z0-9_.-]{0,63}"
COUNTS = r"\[[1-9][0-9]{0,6}(, ?[1-9][0-9]{0,6})*\]"
MEDIA = r'\{"[a-z]{1,16}": ?[0-9]{1,3}(, ?"[a-z]{1,16}": ?[0-9]{1,3})*\}'

TOLD = {
    SWITCH: "true or false",
    COUNT: "a whole number from 1",
    WHOLE: "a whole number from 0",
    SHARE: "a number from 0 to 1, such as 0.9",
    AMOUNT: "a number from 0, such as 4 or 2.5",
    WORD: "a word of letters, digits, '_', '.' and '-'",
    COUNTS: "a list of whole numbers, such as [1, 2, 4]",
    MEDIA: 'a number for each kind of input, such as {"image": 2}',
}
"""What a value must be, by the expression that tells."""

ARGUMENTS: dict[str, str] = {
    **dict.fromkeys(
        (
            "allow_deprecated_quantization",
            "async_scheduling",
            "disable_cascade_attn",
            "disable_chunked_mm_input",
            "disable_custom_all_reduce",
            "disable_hybrid_kv_cache_manager",
            "disable_sliding_window",
            "enable_auto_tool_choice",
            "enable_chunked_prefill",
            "enable_expert_parallel",
            "enable_flashinfer_autotune",
            "enable_force_include_usage",
            "enable_prefix_caching",
            "enable_prompt_tokens_details",
            "enforce_eager",
            "exclude_tools_when_tool_choice_none",
            "fully_sharded_loras",
            "kv_sharing_fast_prefill",
            "language_model_only",
            "skip_mm_profiling",
        ),
        SWITCH,
    ),
    **dict.fromkeys(
        (
            "block_size",
            "distributed_timeout_seconds",
            "kv_cache_memory_bytes",
            "max_cudagraph_capture_size",
            "max_num_batched_tokens",
            "max_num_seqs",
            "max_parallel_loading_workers",
            "num_gpu_blocks_override",
            "pipeline_parallel_size",
            "spec_tokens",
            "stream_interval",
            "tensor_parallel_size",
        ),
        COUNT,
    ),
    **dict.fromkeys(("long_prefill_token_threshold", "max_logprobs", "seed"), WHOLE),
    "gpu_memory_utilization": SHARE,
    **dict.fromkeys(("cpu_offload_gb", "kv_offloading_size", "mm_processor_cache_gb"), AMOUNT),
    **dict.fromkeys(
        (
            "attention_backend",
            "convert",
            "kv_cache_dtype",
            "linear_backend",
            "logprobs_mode",
            "mamba_cache_dtype",
            "mm_encoder_tp_mode",
            "moe_backend",
            "performance_mode",
            "prefix_caching_hash_algo",
            "quantization",
            "reasoning_parser",
            "runner",
            "tool_call_parser",
        ),
        WORD,
    ),
    "cudagraph_capture_sizes": COUNTS,
    "generation_config": "auto|vllm",
    "limit_mm_per_prompt": MEDIA,
    "optimization_level": "[0-3]",
    "safetensors_load_strategy": "lazy|eager|prefetch",
    "scheduling_policy": "fcfs|priority",
    "spec_method": "ngram",
}
"""The arguments by vLLM's name, each with the expression that its value must match."""


def parsed(args: Mapping[str, str]) -> dict[str, Any]:
    """A pool's arguments as vLLM's Python interface takes them. Names may have dashes or underscores.

    Raises ValueError that names the first wrong one.
    """
    found: dict[str, Any] = {}
    for given, text in args.items():
        name = given.replace("-", "_")
        form = ARGUMENTS.get(name)
        if form is None:
            raise ValueError(
                f"engine argument {given!r} is not one that a pool can set: it is unknown to vLLM, set by Sluice, or "
                "would load or run what no manifest covers; leave it out"
            )
        if name in found:
            raise ValueError(f"engine argument {given!r} is given twice, with dashes and with underscores")
        if not re.fullmatch(form, text):
            told = TOLD.get(form) or f"one of {form.replace('|', ', ')}"
            raise ValueError(f"engine argument {given!r} must be {told}; it is {text!r}")
        found[name] = text if form == WORD else _value(text)
    return found


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def parallelism(args: Mapping[str, Any], devices: int) -> dict[str, int]:
    """How an engine's devices share the model: `tensor_parallel_size`, and `pipeline_parallel_size` where there are
    several stages. `args` are parsed; what they leave open follows from the number of devices.

    Raises ValueError if they do not come to that number: further ones would wait for ever, fewer leave some idle.
    """
    stages = args.get("pipeline_parallel_size", 1)
    parts = args.get("tensor_parallel_size", max(1, devices // stages))
    if parts * stages != devices:
        raise ValueError(
            f"tensor_parallel_size {parts} x pipeline_parallel_size {stages} must be {devices}, the devices of one "
            "engine as spec.hardware has them: leave tensor_parallel_size out, or change the hardware"
        )
    return {"tensor_parallel_size": parts} | ({"pipeline_parallel_size": stages} if stages > 1 else {})
