"""The train stage: from data and base to the served files, in this process or on Ray's workers.

The result is the folder export/safetensors/, in bfloat16: what is evaluated afterwards is exactly what is served. With
method lora also export/adapter/, for engines that run the base already; how near the two come to each other is measured
and kept in training.json.
"""

import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sluice_contracts.base import canonical_json
from sluice_contracts.job import JobConfig
from torch import Tensor, nn

from sluice_training.job.inputs import Inputs, find_inputs, prepare, training_identity
from sluice_training.job.progress import ProgressWriter
from sluice_training.job.stages import Markers
from sluice_training.job.workspace import Workspace
from sluice_training.learn import adapters
from sluice_training.learn.checkpoints import Checkpoints
from sluice_training.learn.device import find_compute, use_cpus
from sluice_training.learn.loop import Logged, mean_loss, train
from sluice_training.learn.worker import Worker
from sluice_training.model import files

STAGE = "train"
SERVED_FOLDER = "export/safetensors"
ADAPTER_FOLDER = "export/adapter"
SUMMARY_FILE = "training.json"
MAX_RESTARTS = 3
"""Times that Ray Train starts the workers again within one job."""


def cpus_of(config: JobConfig) -> float:
    """CPUs of one worker."""
    quantity = str(config.spec.hardware.resources.cpu)
    return float(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity)


def _nothing(log: Logged) -> None:
    """Nobody wants to know."""


def train_here(
    config: JobConfig, inputs: Inputs, worker: Worker, on_checkpoint: Callable[[Logged], None] = _nothing
) -> None:
    """Do one worker's part in this process. The leading worker writes the served files and the stage's marker.

    Raises InvalidInputError, StorageError, and RuntimeError if the hardware asked for is not there.
    """
    started = time.monotonic()
    recipe = config.spec.recipe
    threads = use_cpus(cpus_of(config))
    compute = find_compute(config.spec.hardware.accelerator)
    prepared = prepare(config, inputs)
    identity = training_identity(config, inputs)
    checkpoints = Checkpoints(config.run_uri, identity, config.spec.checkpoint.keep)
    compared = prepared.val or prepared.train
    said_by_adapter: list[Tensor] = []
    with ExitStack() as stack:
        temporary = stack.enter_context(tempfile.TemporaryDirectory())
        workspace = Workspace(config.run_uri, Path(temporary))

        def keep_adapter(adapted: nn.Module) -> None:
            if worker.leads and recipe.lora is not None:
                adapters.save(adapted, recipe.lora, inputs.base_digest, workspace.path(ADAPTER_FOLDER))
                said_by_adapter.append(adapters.log_probabilities(adapted, compared, compute.device))

        on_log: Callable[[Logged], None] = _nothing
        if worker.leads:
            resumed = checkpoints.newest()
            progress = ProgressWriter(config.run_uri, recipe.steps)
            progress.resume_history(resumed.step if resumed else 0)
            stack.enter_context(progress)
            on_log = progress.logged
        model = train(
            prepared.model,
            prepared.train,
            recipe,
            compute,
            worker,
            checkpoints,
            config.spec.checkpoint,
            on_log,
            on_checkpoint,
            keep_adapter,
        )
        if not worker.leads:
            return
        adapters.round_to_bfloat16(model, trained_only=False)  # what its files hold is what is measured
        summary: dict[str, Any] = {
            "method": recipe.method.value,
            "steps": recipe.steps,
            "parameters": model.shape.parameters(),
            "packedRows": prepared.train.rows,
            "fill": round(prepared.train.fill, 4),
            "truncatedChats": prepared.train.truncated,
            "validationLoss": round(mean_loss(model, prepared.val, compute), 5) if prepared.val else None,
            "precision": str(compute.dtype).removeprefix("torch."),
            "device": compute.device.type,
            "threads": threads,
            "workers": worker.world,
            "seconds": round(time.monotonic() - started, 1),
        }
        written = [f"{SERVED_FOLDER}/{name}" for name in files.SERVED_FILES]
        if said_by_adapter:
            whole = adapters.log_probabilities(model, compared, compute.device)
            summary["adapter"] = asdict(adapters.fidelity(whole, said_by_adapter[0]))
            written += [f"{ADAPTER_FOLDER}/{name}" for name in adapters.ADAPTER_FILES]
        files.save(model.cpu(), prepared.tokenizer, workspace.path(SERVED_FOLDER))
        workspace.path(SUMMARY_FILE).write_bytes(canonical_json(summary))
        made = [workspace.upload(path) for path in [*written, SUMMARY_FILE]]
    Markers(config.run_uri).write(STAGE, identity, made)


def _ray_worker(payload: dict[str, str]) -> None:
    """What each of Ray Train's workers runs."""
    import ray.train

    config = JobConfig.model_validate_json(payload["config"])
    context = ray.train.get_context()
    worker = Worker(context.get_world_rank(), context.get_world_size())

    def report(log: Logged) -> None:
        # A barrier for all workers. The checkpoint itself is already in the run's folder, where a job that lost the
        # whole cluster finds it again; Ray keeps no second copy.
        ray.train.report({"step": log.step, "loss": log.loss})

    train_here(config, find_inputs(config), worker, report)


def train_on_ray(config: JobConfig) -> None:
    """Train on the workers of the Ray cluster this job runs in (RAY_ADDRESS), or of one started on this machine.

    Raises ray.train.TrainingFailedError if the workers fail more than `MAX_RESTARTS` times.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    hardware = config.spec.hardware
    gpus = hardware.count or (0 if hardware.accelerator == "cpu" else 1)
    workers = hardware.workers
    resources = {"CPU": float(max(1, int(cpus_of(config))))}
    if gpus:
        resources["GPU"] = 1.0
    count: int | tuple[int, int] = workers.max * max(1, gpus)
    if workers.min != workers.max:
        count = (workers.min * max(1, gpus), workers.max * max(1, gpus))
    if not ray.is_initialized():
        ray.init()
    with tempfile.TemporaryDirectory(prefix="sluice-ray-train-") as scratch:
        trainer = TorchTrainer(
            _ray_worker,
            train_loop_config={"config": config.model_dump_json(by_alias=True, exclude_none=True)},
            torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
            scaling_config=ScalingConfig(num_workers=count, use_gpu=bool(gpus), resources_per_worker=resources),
            run_config=RunConfig(
                name=config.lineage[:16],
                storage_path=scratch,
                worker_runtime_env={"env_vars": {"OMP_WAIT_POLICY": "PASSIVE"}},
                failure_config=FailureConfig(max_failures=MAX_RESTARTS),
            ),
        )
        trainer.fit()
