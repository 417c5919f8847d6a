"""Low-rank adaptation (Hu et al. 2021) of all linear layers, through PEFT."""

import torch
from peft import LoraConfig, get_peft_model
from sluice_contracts.training_run import LoraRecipe
from torch import nn

from sluice_training.model.llama import Llama

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def adapted(model: Llama, recipe: LoraRecipe, seed: int) -> nn.Module:
    """`model` with adapters of which only they are trained. It is changed in place; call `merged` to get it back."""
    torch.manual_seed(seed)  # PEFT draws the adapters' first weights from the global generator
    config = LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, lora_dropout=0.0, target_modules=LINEAR)
    wrapped: nn.Module = get_peft_model(model, config)
    return wrapped


def merged(model: nn.Module) -> Llama:
    """The model with its adapters added into the weights."""
    whole = model.merge_and_unload()  # type: ignore[operator]
    if not isinstance(whole, Llama):
        raise TypeError(f"merging gave a {type(whole).__name__}")
    return whole
