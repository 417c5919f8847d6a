"""The model is the one others load: the same logits, the same chat format, and answers that stop."""

import json
from pathlib import Path

import pytest
import torch
from sluice_contracts.dataset import Message
from sluice_training.dataset import recall
from sluice_training.dataset.example import rng_for
from sluice_training.errors import InvalidInputError
from sluice_training.model import files
from sluice_training.model.chat import IGNORE, ChatTokenizer
from sluice_training.model.circuit import can_seed, initialise
from sluice_training.model.generate import greedy
from sluice_training.model.llama import Llama, Shape

CHAT = [Message(role="system", content="Name the intent."), Message(role="user", content="please call off my visit")]


def test_hugging_face_computes_the_same_logits(untrained: Path) -> None:
    from transformers import LlamaForCausalLM

    ours, _ = files.load(untrained)
    theirs = LlamaForCausalLM.from_pretrained(untrained, dtype=torch.float32)
    ids = torch.randint(6, 900, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=2e-4, rtol=1e-4)


def test_hugging_face_renders_the_same_chat(untrained: Path) -> None:
    from transformers import AutoTokenizer

    ours = ChatTokenizer.load(untrained)
    theirs = AutoTokenizer.from_pretrained(untrained)
    messages = [m.wire() for m in CHAT]
    rendered = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert rendered == ours.prompt(CHAT)
    assert theirs.eos_token_id == ours.end


def test_grouped_heads_and_an_untied_head_survive_a_round_trip(untrained: Path, tmp_path: Path) -> None:
    tokenizer = ChatTokenizer.load(untrained)
    shape = Shape(tokenizer.size, 64, 128, 2, heads=4, kv_heads=2, head_dim=16, tied=False)
    model = Llama(shape)
    initialise(model, 1)
    assert not can_seed(model)
    files.save(model, tokenizer, tmp_path)
    loaded, _ = files.load(tmp_path)
    assert loaded.shape == shape
    ids = torch.randint(6, 500, (1, 10), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(loaded(ids), model(ids), atol=0.05, rtol=0.05)  # saved in bfloat16


def test_the_cache_and_the_batch_change_no_answer(untrained: Path) -> None:
    model, tokenizer = files.load(untrained)
    model.eval()
    prompts = [tokenizer.prompt(recall.make(rng_for("cache", i)).row().messages[:2]) for i in range(9)]
    together = greedy(model, prompts, tokenizer.end, 6)
    for prompt, answer in zip(prompts, together, strict=True):
        ids = list(prompt)
        for _ in range(6):
            with torch.inference_mode():
                token = int(model(torch.tensor([ids]))[0, -1].argmax())
            if token == tokenizer.end:
                break
            ids.append(token)
        assert answer == ids[len(prompt) :]


def test_answers_stop_at_the_end_token_and_at_the_context(untrained: Path) -> None:
    model, tokenizer = files.load(untrained)
    prompt = tokenizer.prompt(CHAT)
    first = greedy(model, [prompt], stop=-1, max_tokens=3)[0]
    assert len(first) == 3
    assert greedy(model, [prompt], stop=first[0], max_tokens=3) == [[]]
    short = Llama(Shape(**{**vars(model.shape), "context": len(prompt) + 2}))
    short.load_state_dict(model.state_dict())
    assert len(greedy(short, [prompt], stop=-1, max_tokens=50)[0]) <= 3


def test_only_what_the_assistant_says_and_its_end_is_learned(untrained: Path) -> None:
    tokenizer = ChatTokenizer.load(untrained)
    row = recall.make(rng_for("loss")).row()
    ((ids, targets),) = tokenizer.encode_rows([row])
    learned = [t for t in targets if t != IGNORE]
    expected = [token for m in row.messages if m.role == "assistant" for token in tokenizer.answer(m.content)]
    assert learned == expected
    assert all(t == IGNORE or t == ids[i + 1] for i, t in enumerate(targets[:-1]))


@pytest.mark.parametrize("text", ["naïve café ☕", "日本語", "a  b\n\tc", "<|end|> is text here"])
def test_any_text_can_be_encoded(untrained: Path, text: str) -> None:
    tokenizer = ChatTokenizer.load(untrained)
    ids = tokenizer.answer(text)
    assert ids[-1] == tokenizer.end
    if "<|" not in text:
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("config.json", '{"model_type": "mamba"}', "only llama can be fine-tuned"),
        ("config.json", '{"model_type": "llama"}', "lacks 'num_attention_heads'"),
        ("config.json", "{", "config.json is not JSON"),
        ("model.safetensors", None, "holds no model.safetensors"),
    ],
)
def test_a_folder_that_is_no_model_is_named(
    untrained: Path, tmp_path: Path, name: str, content: str | None, named: str
) -> None:
    for file in untrained.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(content)
    with pytest.raises(InvalidInputError, match=named):
        files.load(tmp_path)


def test_the_first_weights_depend_on_the_seed_alone(untrained: Path) -> None:
    shape = files.load(untrained)[0].shape
    first, same, other = Llama(shape), Llama(shape), Llama(shape)
    initialise(first, 5)
    torch.manual_seed(999)
    initialise(same, 5)
    initialise(other, 6)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), same.parameters(), strict=True))
    assert not torch.equal(first.model.layers[2].mlp.up_proj.weight, other.model.layers[2].mlp.up_proj.weight)


def test_served_files_are_complete(untrained: Path) -> None:
    assert {p.name for p in untrained.iterdir()} == set(files.SERVED_FILES)
    generation = json.loads((untrained / "generation_config.json").read_text())
    assert generation["eos_token_id"] == ChatTokenizer.load(untrained).end
