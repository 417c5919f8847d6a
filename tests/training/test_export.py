"""Files for devices hold the model's weights, in llama.cpp's own types, and the parity gate tells good from bad."""

import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from sluice_contracts.dataset import DatasetRow, Message
from sluice_contracts.names import Quantization, Suite
from sluice_contracts.training_run import ParityLimits
from sluice_training.dataset.build import build
from sluice_training.dataset.config import BuildConfig
from sluice_training.dataset.signals import Evidence
from sluice_training.export import engine, ggml, gguf_file, parity
from sluice_training.export.engine import Scored
from sluice_training.export.gguf_file import ExportError
from sluice_training.export.gguf_types import tensor_type
from sluice_training.export.parity import Measured
from sluice_training.model import circuit, files
from sluice_training.model.chat import TEMPLATE
from sluice_training.model.llama import Llama

# Relative root-mean-square error on Gaussian weights that ggml's own quantisers reach.
ERRORS = {Type.Q8_0: 0.006, Type.Q6_K: 0.02, Type.Q5_K: 0.04, Type.Q4_K: 0.08}


@pytest.fixture(scope="module")
def device_files(untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Quantization, Path]:
    folder = tmp_path_factory.mktemp("gguf")
    made = {q: folder / f"bot-{q}.gguf" for q in (Quantization.Q8_0, Quantization.Q4_K_M)}
    for quantization, path in made.items():
        gguf_file.write(untrained, quantization, path)
    return made


@pytest.mark.parametrize("kind", list(ERRORS))
def test_quantising_and_back_loses_no_more_than_the_type_does(kind: Type) -> None:
    weights = np.random.default_rng(0).standard_normal((64, 512), dtype=np.float32)
    back = gguf.quants.dequantize(ggml.quantize(weights, kind), kind)
    error = np.sqrt(((back - weights) ** 2).mean() / (weights**2).mean())
    assert ERRORS[kind] / 4 < error < ERRORS[kind]


@pytest.mark.parametrize(("kind", "columns"), [(Type.Q4_K, 128), (Type.Q8_0, 33)])
def test_rows_that_do_not_fit_are_refused_before_ggml_aborts(kind: Type, columns: int) -> None:
    with pytest.raises(ValueError, match="do not divide by the block"):
        ggml.quantize(np.zeros((2, columns), np.float32), kind)


def test_the_mix_is_llama_cpps() -> None:
    def kinds(name: str, quantization: Quantization, layers: int = 32) -> list[Type]:
        return [tensor_type(f"blk.{i}.{name}.weight", 4096, quantization, layers, True) for i in range(layers)]

    better = {0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31}  # llama.cpp's use_more_bits for 32 layers
    found = kinds("ffn_down", Quantization.Q4_K_M)
    assert {i for i, kind in enumerate(found) if kind is Type.Q6_K} == better
    assert set(kinds("attn_q", Quantization.Q4_K_M)) == {Type.Q4_K}
    assert set(kinds("ffn_down", Quantization.Q8_0)) == {Type.Q8_0}
    assert tensor_type("token_embd.weight", 256, Quantization.Q4_K_M, 3, tied=True) is Type.Q6_K
    assert tensor_type("token_embd.weight", 256, Quantization.Q4_K_M, 3, tied=False) is Type.Q4_K
    assert tensor_type("blk.0.attn_q.weight", 96, Quantization.Q4_K_M, 3, tied=True) is Type.Q5_0
    with pytest.raises(ValueError, match="use multiples of 32"):
        tensor_type("blk.0.attn_q.weight", 100, Quantization.Q4_K_M, 3, tied=True)


def test_a_file_holds_the_weights_and_the_chat_format(untrained: Path, device_files: dict[Quantization, Path]) -> None:
    model, tokenizer = files.load(untrained)
    reader = gguf.GGUFReader(device_files[Quantization.Q4_K_M])
    tensors = {t.name: t for t in reader.tensors}
    weights = {gguf_file.file_name(n): t.numpy() for n, t in model.state_dict().items()}
    assert tensors.keys() == weights.keys()
    for name, tensor in tensors.items():
        expected = weights[name]
        if expected.ndim == 1:
            assert tensor.tensor_type is Type.F32
        if "attn_q" in name or "attn_k" in name:
            expected = gguf_file.interleaved(expected, model.shape.heads)
        back = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(expected.shape)
        assert np.sqrt(((back - expected) ** 2).mean()) <= 0.1 * np.sqrt((expected**2).mean()) + 1e-9
    assert reader.get_field("tokenizer.chat_template").contents() == TEMPLATE
    assert reader.get_field("tokenizer.ggml.eos_token_id").contents() == tokenizer.end
    assert reader.get_field("tokenizer.ggml.add_bos_token").contents() is False


def test_the_same_model_makes_the_same_file(
    untrained: Path, device_files: dict[Quantization, Path], tmp_path: Path
) -> None:
    again = tmp_path / "bot-Q8_0.gguf"
    gguf_file.write(untrained, Quantization.Q8_0, again)
    assert again.read_bytes() == device_files[Quantization.Q8_0].read_bytes()


def test_the_engine_computes_what_pytorch_computes(untrained: Path, device_files: dict[Quantization, Path]) -> None:
    model, tokenizer = files.load(untrained)
    messages = [Message(role="system", content="Recall."), Message(role="user", content="anna is blue. anna?")]
    prompt, answer = tokenizer.prompt(messages), tokenizer.answer("blue")
    said = engine.ask(
        device_files[Quantization.Q8_0],
        [Scored(prompt, answer)],
        [messages],
        max_tokens=4,
        vocabulary=model.shape.vocabulary,
        plain_token=tokenizer.plain_token,
        cpus=2,
    )
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + answer]))[0, len(prompt) - 1 : -1]
    kld, _ = parity.divergence(logits.log_softmax(-1).numpy(), said.log_probabilities)
    assert said.log_probabilities.shape == (len(answer), model.shape.vocabulary)
    assert kld.max() < 0.01
    assert len(said.texts) == 1


def test_a_file_that_is_no_model_is_an_error_and_not_the_end(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + b"\0" * 100)
    with pytest.raises(ExportError, match=r"llama\.cpp failed with broken\.gguf"):
        engine.ask(broken, [], [], 1, 10, 0, 1)


def test_a_folder_that_is_no_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"quantising to Q8_0 failed .* holds no config\.json"):
        gguf_file.write(tmp_path, Quantization.Q8_0, tmp_path / "x.gguf")


@pytest.fixture(scope="module")
def some_rows(small_config: BuildConfig) -> list[DatasetRow]:
    lines = build(small_config, Evidence()).files["test.jsonl"].splitlines() * 2
    return [DatasetRow.model_validate_json(line) for line in lines]


def test_parity_tells_the_models_own_file_from_another_models(
    untrained: Path, device_files: dict[Quantization, Path], some_rows: list[DatasetRow], tmp_path: Path
) -> None:
    model, tokenizer = files.load(untrained)
    parent = parity.ask_parent(model, tokenizer, some_rows[:12], [Suite.GROUNDING])
    own = parity.measure(parent, device_files[Quantization.Q8_0], cpus=2)
    assert own.mean_kld < 0.01
    assert own.tokens == len(parent.log_probabilities) > 20

    other = Llama(model.shape)
    circuit.initialise(other, seed=77)
    folder = tmp_path / "other"
    files.save(other, tokenizer, folder)
    gguf_file.write(folder, Quantization.Q8_0, tmp_path / "other.gguf")
    found = parity.measure(parent, tmp_path / "other.gguf", cpus=2)
    assert found.mean_kld > 10 * own.mean_kld
    assert parity.failures(found, ParityLimits())


def test_answers_to_compare_on_come_from_the_whole_file(untrained: Path, some_rows: list[DatasetRow]) -> None:
    _, tokenizer = files.load(untrained)
    chosen = parity.choose(some_rows, tokenizer, positions=60)
    assert sum(len(s.answer) for s in chosen) == 60
    assert all(s.prompt[-1] == tokenizer.roles["assistant"] for s in chosen)


GOOD = Measured(0.001, 0.01, 0.999, 1.001, 0.9, 0.9, 0, 1000)


def test_a_good_file_passes() -> None:
    result = parity.judge(GOOD, ParityLimits(), Quantization.Q8_0, "export/gguf/x.gguf", 10)
    assert result.passed
    assert result.reasons == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"mean_kld": 0.031}, "maxMeanKld"),
        ({"mean_kld": float("nan")}, "maxMeanKld"),
        ({"same_top": 0.92}, "minSameTop"),
        ({"perplexity_ratio": 1.04}, "maxPerplexityRatio"),
        ({"task_accuracy": 0.86}, "task accuracy fell"),
    ],
)
def test_each_limit_stops_a_file(change: dict[str, float], named: str) -> None:
    (reason,) = parity.failures(Measured(**{**vars(GOOD), **change}), ParityLimits())
    assert named in reason


def test_divergence_is_zero_for_equals_and_positive_else() -> None:
    generator = np.random.default_rng(0)
    logits = generator.standard_normal((2, 50, 30))
    p, q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in logits.astype(np.float32))
    same, top = parity.divergence(p, p)
    assert (same == 0).all()
    assert top.all()
    kld, _ = parity.divergence(p, q)
    assert (kld > 0).all()


def test_the_child_leaves_nothing_behind(device_files: dict[Quantization, Path], tmp_path: Path) -> None:
    copy = tmp_path / "m" / "bot.gguf"
    copy.parent.mkdir()
    shutil.copy(device_files[Quantization.Q8_0], copy)
    engine.ask(copy, [], [[Message(role="user", content="hi")]], 2, 1024, 0, 1)
    assert [p.name for p in copy.parent.iterdir()] == ["bot.gguf"]
