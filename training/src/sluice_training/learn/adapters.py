"""Low-rank adaptation (Hu et al. 2021) of all linear layers, through PEFT, and the adapter as files of its own.

The files are PEFT's: adapter_config.json and adapter_model.safetensors, as vLLM loads them beside a base that runs
already. In bfloat16, like the merged weights, and rounded before merging: both are made from the same numbers.

PEFT is imported where it is used: it loads half of transformers, seconds of CPU in each of a training's processes, and
most trainings have no adapters.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from sluice_contracts.training_run import LoraRecipe
from torch import Tensor, nn

from sluice_training.learn.packing import Packed, batch_of
from sluice_training.model.chat import IGNORE
from sluice_training.model.llama import Llama, packed_mask

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
ROWS, POSITIONS = 16, 256
"""What adapter and merged weights are compared on: packed rows at most, and learned tokens at most."""


def adapted(model: Llama, recipe: LoraRecipe, seed: int) -> nn.Module:
    """`model` with adapters of which only they are trained. It is changed in place; call `merged` to get it back."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)  # PEFT draws the adapters' first weights from the global generator
    config = LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, lora_dropout=0.0, target_modules=LINEAR)
    wrapped: nn.Module = get_peft_model(model, config)
    return wrapped


@torch.no_grad()
def round_to_bfloat16(model: nn.Module, *, trained_only: bool) -> None:
    """Round weights in place to what their files will hold. `trained_only`: the adapters alone."""
    for parameter in model.parameters():
        if parameter.requires_grad or not trained_only:
            parameter.copy_(parameter.to(torch.bfloat16))


def merged(model: nn.Module) -> Llama:
    """The model with its adapters added into the weights."""
    whole = model.merge_and_unload()  # type: ignore[operator]
    if not isinstance(whole, Llama):
        raise TypeError(f"merging gave a {type(whole).__name__}")
    return whole


def save(model: nn.Module, recipe: LoraRecipe, base_digest: str, folder: Path) -> None:
    """Write the adapter's two files. The same adapter makes the same bytes. `base_digest` names what it belongs to."""
    from peft import get_peft_model_state_dict

    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "base_model_name_or_path": base_digest,
        "bias": "none",
        "inference_mode": True,
        "lora_alpha": recipe.alpha,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": recipe.rank,
        "target_modules": sorted(LINEAR),
        "task_type": "CAUSAL_LM",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1) + "\n")
    state = get_peft_model_state_dict(model)
    weights = {name: t.detach().to("cpu", torch.bfloat16).contiguous() for name, t in state.items()}
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})


@torch.inference_mode()
def log_probabilities(model: nn.Module, data: Packed, device: torch.device) -> Tensor:
    """[positions, vocabulary]: what the model expects at the first learned tokens of `data`, in float32."""
    model.eval()
    batch = batch_of(data, np.arange(min(ROWS, data.rows))).to(device)
    select = (batch.targets.reshape(-1) != IGNORE).nonzero()[:POSITIONS, 0]
    logits: Tensor = model(batch.ids, batch.positions, packed_mask(batch.documents), select)
    return logits.float().log_softmax(-1)


@dataclass(frozen=True)
class Fidelity:
    """How near the adapter on its base comes to the merged weights, which are what was evaluated."""

    mean_kld: float
    """Mean Kullback-Leibler divergence from the merged weights, in nats."""
    same_top: float
    """Share of positions whose most likely token is the same."""


def fidelity(whole: Tensor, adapter: Tensor) -> Fidelity:
    """Compare two results of `log_probabilities`."""
    kld = (whole.exp() * (whole - adapter)).sum(-1).clamp_min(0.0)
    same = whole.argmax(-1) == adapter.argmax(-1)
    return Fidelity(float(kld.mean()), float(same.float().mean()))
