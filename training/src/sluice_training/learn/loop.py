"""The training loop. Everything it does in a step is on one page; data, optimiser and checkpoints are beside it."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from sluice_contracts.training_run import CheckpointPolicy, Method, Recipe
from torch import Tensor, nn
from torch.nn import functional as F

from sluice_training.learn.adapters import adapted, merged, round_to_bfloat16
from sluice_training.learn.checkpoints import Checkpoints, State
from sluice_training.learn.device import Compute
from sluice_training.learn.optimizer import Optimizers, Schedule, for_adapters, for_all_weights
from sluice_training.learn.packing import Batch, Packed, batch_of, rows_of_step
from sluice_training.learn.worker import Worker
from sluice_training.model.chat import IGNORE
from sluice_training.model.llama import Llama, packed_mask

PEAK_RATES = {Method.SCRATCH: 0.02, Method.SFT: 0.008, Method.LORA: 0.004}
"""Learning rates that a recipe without one gets: Muon's for whole weights, AdamW's for adapters."""
DECAY = {Method.SCRATCH: 0.7, Method.SFT: 0.7, Method.LORA: 1.0}
WARMUP_STEPS = 20
CLIP = 1.0
"""Largest norm of the gradient."""
LOG_EVERY = 10
SELECT_MULTIPLE = 128
"""Learned positions are padded to a multiple of this: oneDNN compiles and keeps a kernel for each new shape, which cost
a megabyte a step."""


@dataclass(frozen=True)
class Logged:
    """What is told every few steps."""

    step: int
    loss: float
    """Mean over the steps since the last one told, per learned token."""
    tokens_per_second: float
    """Tokens that are not padding, of all workers."""
    eta_seconds: float


def loss_sum(model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
    """The cross-entropy summed over the batch's learned tokens, and their number. Chats packed into one row do not see
    each other, and positions count from the beginning of each chat."""
    targets = batch.targets.reshape(-1)
    select = (targets != IGNORE).nonzero()[:, 0]
    learned = len(select)
    spare = -learned % SELECT_MULTIPLE
    chosen = F.pad(targets[select], (0, spare), value=IGNORE)
    logits = model(batch.ids, batch.positions, packed_mask(batch.documents), F.pad(select, (0, spare)))
    return F.cross_entropy(logits.float(), chosen, reduction="sum", ignore_index=IGNORE), learned


def _nothing(model: nn.Module) -> None:
    """Nobody wants the adapter."""


def train(
    model: Llama,
    data: Packed,
    recipe: Recipe,
    compute: Compute,
    worker: Worker,
    checkpoints: Checkpoints,
    policy: CheckpointPolicy,
    on_log: Callable[[Logged], None],
    on_checkpoint: Callable[[Logged], None],
    on_adapter: Callable[[nn.Module], None] = _nothing,
) -> Llama:
    """Train `model` for the recipe's steps, going on from the newest checkpoint, and return it with adapters merged.

    `on_log` is called every few steps by the leading worker; `on_checkpoint` by every worker after each checkpoint;
    `on_adapter` at the end, with the adapted model, where the method has adapters.
    """
    rate = recipe.learning_rate or PEAK_RATES[recipe.method]
    warmup = min(WARMUP_STEPS, max(1, recipe.steps // 10))
    schedule = Schedule(recipe.steps, warmup, DECAY[recipe.method])
    model.to(compute.device)
    learner: nn.Module = model
    optimizers: Optimizers
    if recipe.method is Method.LORA:
        if recipe.lora is None:
            raise ValueError("a LoRA recipe needs its lora block")
        learner = adapted(model, recipe.lora, recipe.seed)
        optimizers = for_adapters(learner, rate, schedule)
    else:
        optimizers = for_all_weights(learner, rate, schedule, compute.dtype)
    trained = {name: p for name, p in learner.named_parameters() if p.requires_grad}

    first = 0
    if (resumed := checkpoints.newest()) is not None:
        first = resumed.step
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(resumed.model[name])
        optimizers.load(resumed.optimizer)

    learner.train()
    since, tokens, losses = time.monotonic(), 0, torch.zeros((), device=compute.device)
    steps_told, logged = first, None
    for step in range(first, recipe.steps):
        rows = rows_of_step(data.rows, recipe.batch_size, recipe.seed, step)
        learned = int((data.targets[rows] != IGNORE).sum())  # over all workers: each sees the whole step's rows
        with compute.autocast():
            loss, _ = loss_sum(learner, batch_of(data, worker.share(rows)).to(compute.device))
        loss = loss / learned
        torch.autograd.backward(loss)
        worker.sum_gradients(trained.values())
        torch.nn.utils.clip_grad_norm_(trained.values(), CLIP)
        optimizers.step(step)

        done = step + 1
        losses += loss.detach()
        tokens += int((data.documents[rows] >= 0).sum())
        saving = done % policy.every_steps == 0 or done == recipe.steps
        if done % LOG_EVERY == 0 or saving:
            elapsed = time.monotonic() - since
            mean = worker.sum_number(float(losses.item())) / (done - steps_told)
            if not mean < float("inf"):
                raise FloatingPointError(f"the loss is {mean} at step {done}; lower recipe.learningRate")
            speed = (done - steps_told) / elapsed
            logged = Logged(done, mean, tokens / elapsed, (recipe.steps - done) / speed)
            if worker.leads:
                on_log(logged)
            steps_told, tokens = done, 0
            losses.zero_()
        if saving and logged is not None:
            if worker.leads:
                checkpoints.save(State(done, {n: p.detach() for n, p in trained.items()}, optimizers.state()))
            on_checkpoint(logged)
        if done == steps_told:
            since = time.monotonic()
    if recipe.method is not Method.LORA:
        return model
    round_to_bfloat16(learner, trained_only=True)
    on_adapter(learner)
    return merged(learner)


@torch.inference_mode()
def mean_loss(model: Llama, data: Packed, compute: Compute, rows_at_once: int = 16) -> float:
    """The cross-entropy per learned token over all of `data`."""
    model.eval()
    total, learned = 0.0, 0
    for start in range(0, data.rows, rows_at_once):
        rows = np.arange(start, min(start + rows_at_once, data.rows))
        with compute.autocast():
            loss, n = loss_sum(model, batch_of(data, rows).to(compute.device))
        total, learned = total + float(loss.item()), learned + n
    return total / max(1, learned)
