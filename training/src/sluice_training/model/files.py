"""A model as a folder in Hugging Face's layout: what vLLM loads, and what fine-tuning starts from."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from sluice_training.errors import InvalidInputError
from sluice_training.model.chat import ChatTokenizer
from sluice_training.model.llama import Llama, Shape

SERVED_FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def config_of(shape: Shape, tokenizer: ChatTokenizer) -> dict[str, Any]:
    """config.json."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.feed_forward,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": shape.context,
        "rms_norm_eps": shape.epsilon,
        "rope_theta": shape.theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.theta},
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": shape.tied,
        "use_cache": True,
        "bos_token_id": tokenizer.bos,
        "eos_token_id": tokenizer.end,
        "pad_token_id": tokenizer.pad,
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
    }


def shape_of(config: dict[str, Any], source: str) -> Shape:
    """The shape a config.json describes. Raises InvalidInputError for another architecture or a missing field."""
    if config.get("model_type") != "llama":
        raise InvalidInputError(f"{source}: model_type is {config.get('model_type')!r}; only llama can be fine-tuned")
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default":
        raise InvalidInputError(f"{source}: rope_type {rope['rope_type']!r} is not supported; use default")
    try:
        heads = int(config["num_attention_heads"])
        return Shape(
            vocabulary=int(config["vocab_size"]),
            hidden=int(config["hidden_size"]),
            feed_forward=int(config["intermediate_size"]),
            layers=int(config["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads", heads)),
            head_dim=int(config.get("head_dim") or int(config["hidden_size"]) // heads),
            theta=float(rope.get("rope_theta") or config.get("rope_theta", 10_000.0)),
            epsilon=float(config.get("rms_norm_eps", 1e-5)),
            context=int(config.get("max_position_embeddings", 2048)),
            tied=bool(config.get("tie_word_embeddings", False)),
        )
    except KeyError as error:
        raise InvalidInputError(f"{source} lacks {error}") from None


def save(model: Llama, tokenizer: ChatTokenizer, folder: Path) -> None:
    """Write the five files, weights in bfloat16. The folder is made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: t.detach().to("cpu", torch.bfloat16).contiguous() for name, t in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(folder)
    (folder / "config.json").write_text(json.dumps(config_of(model.shape, tokenizer), indent=1) + "\n")
    generation = {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.end, "pad_token_id": tokenizer.pad}
    generation |= {"do_sample": False}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=1) + "\n")


def load(folder: Path) -> tuple[Llama, ChatTokenizer]:
    """The model (float32, on the CPU) and its tokenizer. Raises InvalidInputError naming the file that is wrong."""
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        if not (folder / name).is_file():
            raise InvalidInputError(f"{folder} holds no {name}; it must be a model folder in Hugging Face's layout")
    try:
        config = json.loads((folder / "config.json").read_text())
    except ValueError as error:
        raise InvalidInputError(f"{folder}/config.json is not JSON: {error}") from None
    model = Llama(shape_of(config, f"{folder}/config.json"))
    weights = load_file(folder / "model.safetensors")
    try:
        model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    except RuntimeError as error:
        raise InvalidInputError(f"{folder}/model.safetensors does not fit config.json: {error}") from None
    try:
        tokenizer = ChatTokenizer.load(folder)
    except ValueError as error:
        raise InvalidInputError(f"{folder}/tokenizer.json: {error}") from None
    return model, tokenizer
