"""Training resumes exactly, two workers learn what one learns, and the optimiser does what its papers say."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from safetensors.torch import load_file
from sluice_contracts.base import sha256
from sluice_contracts.dataset import Message
from sluice_contracts.job import JobConfig
from sluice_storage import open_store
from sluice_training.errors import InvalidInputError
from sluice_training.job.inputs import find_inputs
from sluice_training.job.train_stage import train_here
from sluice_training.learn.adapters import fidelity
from sluice_training.learn.checkpoints import Checkpoints, State
from sluice_training.learn.device import cpu_has_bf16
from sluice_training.learn.loop import Logged
from sluice_training.learn.optimizer import Schedule, orthogonalised
from sluice_training.learn.worker import Worker
from sluice_training.model import files
from torch import Tensor

MakeJob = Callable[..., JobConfig]


class Killed(Exception):
    """Stands for the process that is gone."""


def kill_after(step: int) -> Callable[[Logged], None]:
    def on_checkpoint(log: Logged) -> None:
        if log.step >= step:
            raise Killed

    return on_checkpoint


def run(config: JobConfig, on_checkpoint: Callable[[Logged], None] = lambda log: None) -> dict[str, Tensor]:
    train_here(config, find_inputs(config), Worker(), on_checkpoint)
    return served(config)


def served(config: JobConfig) -> dict[str, Tensor]:
    return load_file(Path(config.run_uri.removeprefix("file://")) / "export/safetensors/model.safetensors")


def moved(config: JobConfig, name: str) -> JobConfig:
    """The same training in another run folder."""
    return config.model_copy(update={"run_uri": f"{config.run_uri}-{name}"})


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture
def make_any_job(make_job: MakeJob, untrained: Path) -> MakeJob:
    """Jobs of every method; those that fine-tune start from the untrained model."""

    def make(method: str, **changes: object) -> JobConfig:
        recipe = {"method": method, "steps": 6, "batchSize": 4, "sequenceLength": 96}
        if method != "scratch":
            digest = sha256((untrained / "model.safetensors").read_bytes())
            changes["base"] = {"uri": f"file://{untrained}", "digest": digest}
        if method == "lora":
            recipe["lora"] = {"rank": 4, "alpha": 8}
        return make_job(recipe=recipe, **changes)

    return make


@pytest.mark.parametrize("method", ["scratch", "sft", "lora"])
def test_a_training_that_was_killed_ends_with_the_same_weights(make_any_job: MakeJob, method: str) -> None:
    config = make_any_job(method)
    whole = run(moved(config, "whole"))
    with pytest.raises(Killed):
        run(config, kill_after(3))
    assert equal(run(config), whole)
    lines = open_store(config.run_uri).read("history.jsonl").splitlines()
    assert len(lines) == len(set(lines)) == 2


def test_training_changes_the_weights_and_another_seed_changes_them_otherwise(make_job: MakeJob) -> None:
    first = run(make_job())
    recipe = {"method": "scratch", "steps": 6, "batchSize": 4, "sequenceLength": 96, "seed": 8}
    assert not equal(first, run(make_job(recipe=recipe)))


def test_an_adapter_on_its_base_says_what_the_merged_weights_say(make_any_job: MakeJob, untrained: Path) -> None:
    """Read back from its files by PEFT itself, as somebody else would."""
    config = make_any_job("lora")
    run(config)
    folder = Path(config.run_uri.removeprefix("file://")) / "export"
    assert sorted(p.name for p in (folder / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    merged, _ = files.load(folder / "safetensors")
    base, tokenizer = files.load(untrained)
    adapted = inject_adapter_in_model(LoraConfig.from_pretrained(folder / "adapter"), files.load(untrained)[0])
    loaded = set_peft_model_state_dict(adapted, load_file(folder / "adapter" / "adapter_model.safetensors"))
    assert not loaded.unexpected_keys
    ids = torch.tensor([tokenizer.prompt([Message(role="user", content="How do I reset my password?")])])
    with torch.inference_mode():
        said = [model.eval()(ids).log_softmax(-1) for model in (merged, adapted, base)]
    near = fidelity(said[0].flatten(0, 1), said[1].flatten(0, 1))
    far = fidelity(said[0].flatten(0, 1), said[2].flatten(0, 1))
    assert near.mean_kld < 1e-4
    assert far.mean_kld > 10 * near.mean_kld, "the adapter does something"
    summary = json.loads((folder.parent / "training.json").read_bytes())["adapter"]
    assert summary["mean_kld"] < 1e-4
    assert summary["same_top"] > 0.99


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-100], lambda b: b[:-100] + bytes(99) + b"\x40"], ids=["cut", "flipped"]
)
def test_a_damaged_checkpoint_is_passed_over_for_an_older_one(
    make_job: MakeJob, damage: Callable[[bytes], bytes]
) -> None:
    config = make_job(checkpoint={"everySteps": 2, "keep": 3})
    whole = run(moved(config, "whole"))
    with pytest.raises(Killed):
        run(config, kill_after(4))
    state = Path(config.run_uri.removeprefix("file://")) / "checkpoints/step-00000004/state.safetensors"
    state.write_bytes(damage(state.read_bytes()))
    assert equal(run(config), whole)


def checkpoint(step: int) -> State:
    return State(step, {"w": torch.full((2, 2), float(step))}, {"0.0.exp_avg": torch.ones(2)})


def test_only_the_newest_checkpoints_are_kept(store: str) -> None:
    checkpoints = Checkpoints(store, "me", keep=2)
    for step in (10, 20, 30):
        checkpoints.save(checkpoint(step))
    folders = {key.split("/")[1] for key in open_store(store).list("checkpoints/")}
    assert folders == {"step-00000020", "step-00000030"}
    newest = checkpoints.newest()
    assert newest is not None
    assert newest.step == 30
    assert torch.equal(newest.model["w"], torch.full((2, 2), 30.0))


def test_a_checkpoint_of_another_training_or_without_its_end_is_not_taken(store: str) -> None:
    Checkpoints(store, "other", keep=2).save(checkpoint(40))
    mine = Checkpoints(store, "me", keep=2)
    assert mine.newest() is None
    mine.save(checkpoint(10))
    open_store(store).delete("checkpoints/step-00000010/complete.json")
    assert mine.newest() is None


def test_two_workers_learn_what_one_learns(make_job: MakeJob, tmp_path: Path) -> None:
    config = make_job(hardware={"resources": {"cpu": "1"}, "workers": {"min": 2, "max": 2}})
    one = run(moved(config, "one"))
    job = tmp_path / "run.json"
    job.write_bytes(config.canonical())
    script = str(Path(__file__).with_name("gloo_worker.py"))
    command = [sys.executable, script]
    workers = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "rendezvous"), str(job)], stderr=subprocess.PIPE)
        for rank in (0, 1)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors.decode()
    for name, tensor in served(config).items():
        torch.testing.assert_close(tensor, one[name], atol=2e-2, rtol=2e-2)  # sums in another order, saved in bfloat16


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"recipe": {"method": "lora", "steps": 2}}, "recipe.lora is missing"),
        ({"recipe": {"method": "sft", "steps": 2}}, "give base.modelVersion or base.uri"),
        ({"base": {"uri": "file:///tmp/x", "digest": "sha256:" + "0" * 64}}, "recipe.method is scratch, but a base"),
        ({"recipe": {"method": "sft", "steps": 2}, "base": {"uri": "file:///tmp/x"}}, "base.uri needs base.digest"),
        (
            {"recipe": {"method": "sft", "steps": 2, "batchSize": 1}, "hardware": {"workers": {"min": 2, "max": 2}}},
            "recipe.batchSize 1 is smaller than hardware.workers.max 2: some workers would have no rows; raise it to 2",
        ),
        (
            {
                "recipe": {"method": "scratch", "steps": 2, "batchSize": 3},
                "hardware": {"workers": {"min": 1, "max": 4}},
            },
            "recipe.batchSize 3 is smaller than hardware.workers.max 4",
        ),
        (
            {
                "recipe": {"method": "scratch", "steps": 2, "batchSize": 6},
                "hardware": {"accelerator": "nvidia-l4", "count": 4, "workers": {"min": 2, "max": 2}},
            },
            "recipe.batchSize 6 is smaller than hardware.workers.max 2 times hardware.count 4",
        ),
        (
            {"hardware": {"accelerator": "tpu-v6e-slice", "topology": "2x4"}},
            "this trainer knows CPUs and GPUs, no TPUs",
        ),
    ],
)
def test_a_recipe_that_does_not_fit_is_named(make_job: MakeJob, changes: dict[str, object], named: str) -> None:
    config = make_job()
    spec = config.spec.wire() | {"recipe": {"method": "scratch", "steps": 2}} | changes
    wrong = JobConfig.model_validate(config.wire() | {"spec": spec})
    with pytest.raises(InvalidInputError) as error:
        find_inputs(wrong)
    assert named in str(error.value)


def test_a_base_with_other_bytes_is_refused(make_any_job: MakeJob, untrained: Path) -> None:
    config = make_any_job("sft")
    assert config.spec.base is not None
    config.spec.base.digest = "sha256:" + "0" * 64
    with pytest.raises(InvalidInputError, match=r"model\.safetensors has digest .*, expected sha256:000"):
        run(config)


def test_a_loss_that_is_no_number_ends_the_training(make_job: MakeJob) -> None:
    recipe = {"method": "scratch", "steps": 20, "batchSize": 4, "sequenceLength": 96, "learningRate": 1.0}
    config = make_job(recipe=recipe)
    try:
        weights = run(config)
    except FloatingPointError as error:
        assert "lower recipe.learningRate" in str(error)  # noqa: PT017
    else:
        assert all(w.isfinite().all() for w in weights.values())


def test_the_schedule_warms_up_stays_and_falls_to_zero() -> None:
    schedule = Schedule(steps=100, warmup=10, decay=0.5)
    factors = [schedule.factor(step) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[20] == factors[49] == 1
    assert factors[75] == pytest.approx(0.5)
    assert factors[99] == pytest.approx(0.02)


@pytest.mark.parametrize("shape", [(3, 64, 32), (2, 32, 64)])
def test_muon_brings_all_singular_values_near_one(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    before = torch.linalg.svdvals(matrices)
    values = torch.linalg.svdvals(orthogonalised(matrices, torch.float32))
    assert values.max() < 1.3
    assert (values.min() / values.max()) > 2 * (before.min() / before.max())


@pytest.mark.parametrize(
    ("cpuinfo", "native"),
    [
        ("processor: 0\nflags\t\t: fpu avx2 avx512f avx512_bf16\n", True),
        ("processor: 0\nflags\t\t: fpu amx_bf16 amx_tile\n", True),
        ("Features\t: fp asimd i8mm bf16\n", True),
        ("processor: 0\nflags\t\t: fpu avx2\n", False),
        ("", False),
    ],
)
def test_bfloat16_is_used_only_where_the_cpu_has_it(cpuinfo: str, native: bool) -> None:
    assert cpu_has_bf16(cpuinfo) is native
