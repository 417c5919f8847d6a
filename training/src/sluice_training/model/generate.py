"""Greedy answers for many prompts at once, with a key-value cache. The same prompts give the same answers."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sluice_training.model.llama import Llama

BATCH = 64


@torch.inference_mode()
def greedy(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    stop: int,
    max_tokens: int,
    on_batch: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """The most likely continuation of each prompt, without `stop`, at most `max_tokens` long or as long as the
    context allows. `on_batch` is told how many prompts are done."""
    model.eval()
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        for i, answer in zip(chosen, _batch(model, [prompts[i] for i in chosen], stop, max_tokens), strict=True):
            answers[i] = answer
        if on_batch:
            on_batch(min(start + BATCH, len(order)))
    return answers


def _batch(model: Llama, prompts: Sequence[Sequence[int]], stop: int, max_tokens: int) -> list[list[int]]:
    """Prompts are padded on the left, so that all of them end, and go on, in the same column."""
    device = model.model.embed_tokens.weight.device
    batch, width = len(prompts), max(len(p) for p in prompts)
    total = min(width + max_tokens, model.shape.context)
    ids = torch.zeros(batch, width, dtype=torch.long, device=device)
    real = torch.zeros(batch, total, dtype=torch.bool, device=device)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(list(prompt), device=device)
        real[row, width - len(prompt) :] = True
    starts = width - torch.tensor([len(p) for p in prompts], device=device)
    caches = model.caches(batch, total)
    causal = torch.ones(width, width, dtype=torch.bool, device=device).tril()
    own = torch.eye(width, dtype=torch.bool, device=device)  # padding looks at itself: a row of nothing would be NaN
    mask = ((causal & real[:, None, :width]) | own)[:, None]
    positions = (torch.arange(width, device=device) - starts[:, None]).clamp(min=0)
    last = torch.arange(batch, device=device) * width + width - 1
    logits = model(ids, positions, mask, select=last, caches=caches)
    columns: list[Tensor] = []
    done = torch.zeros(batch, dtype=torch.bool, device=device)
    for column in range(width, total + 1):
        token = logits.argmax(-1)
        columns.append(token)
        done |= token == stop
        if column == total or bool(done.all()):
            break
        seen = real[:, None, None, : column + 1]
        logits = model(token[:, None], (column - starts)[:, None], seen, caches=caches)[:, 0]
    answers = []
    for sequence in torch.stack(columns, 1)[:, :max_tokens].tolist():
        answers.append(sequence[: sequence.index(stop)] if stop in sequence else sequence)
    return answers
