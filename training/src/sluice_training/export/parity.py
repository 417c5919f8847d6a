"""The parity gate: is a quantised file, in the engine that devices run, as good as the model it came from?

Distributions are compared on answer tokens alone: what users say is never trained, so there the model has no opinion
worth keeping. Divergence alone misses lost answers (see docs), so held-out tasks are answered by both as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from sluice_contracts.dataset import DatasetRow
from sluice_contracts.evaluation import ParityResult
from sluice_contracts.names import Quantization, Suite
from sluice_contracts.training_run import ParityLimits

from sluice_training.evaluate import suites
from sluice_training.evaluate.run import MAX_TOKENS
from sluice_training.evaluate.suites import TestCase
from sluice_training.export import engine
from sluice_training.export.engine import Scored
from sluice_training.model.chat import ChatTokenizer
from sluice_training.model.generate import greedy
from sluice_training.model.llama import Llama

MAX_TASK_DROP = 0.03
"""Largest share of held-out answers that may be lost."""
MAX_ANSWER = 24
"""Answer tokens compared per turn."""
POSITIONS = 600
"""Answer tokens compared in all."""
CASES_PER_SUITE = 50


@dataclass(frozen=True)
class Measured:
    """One file beside its parent."""

    mean_kld: float
    p99_kld: float
    same_top: float
    perplexity_ratio: float
    task_accuracy: float
    task_accuracy_parent: float
    flips: int
    tokens: int


@dataclass(frozen=True)
class Parent:
    """What the full-precision model says: computed once, compared with every file."""

    scored: list[Scored]
    log_probabilities: npt.NDArray[np.float32]
    cases: list[TestCase]
    right: list[bool]
    vocabulary: int
    plain_token: int


def choose(rows: Sequence[DatasetRow], tokenizer: ChatTokenizer, positions: int) -> list[Scored]:
    """Answers of `rows` to compare on, spread evenly over the file, up to `positions` tokens in all."""
    chosen: list[Scored] = []
    left = positions
    stride = max(1, len(rows) // 400)
    order = [row for start in range(stride) for row in rows[start::stride]]
    order = [row for start in range(7) for row in order[start::7]]  # neighbours are alike
    for row in order:
        for i, message in enumerate(row.messages):
            if message.role != "assistant" or left <= 0:
                continue
            answer = tokenizer.answer(message.content)[: min(MAX_ANSWER, left)]
            chosen.append(Scored(tokenizer.prompt(row.messages[:i]), answer))
            left -= len(answer)
    return chosen


def is_right(case: TestCase, answer: str) -> bool:
    """Whether the answer is the expected one."""
    return answer.strip() == case.expected


@torch.inference_mode()
def ask_parent(model: Llama, tokenizer: ChatTokenizer, rows: Sequence[DatasetRow], wanted: Sequence[Suite]) -> Parent:
    """The parent's distributions and answers."""
    model.eval()
    scored = choose(rows, tokenizer, POSITIONS)
    distributions = []
    for item in scored:
        ids = torch.tensor([item.prompt + item.answer])[:, : model.shape.context]
        first = len(item.prompt) - 1
        logits = model(ids)[0, first : first + len(item.answer)].float()
        distributions.append(logits.log_softmax(-1).numpy())
    cases = [case for suite in wanted for case in suites.cases(suite, CASES_PER_SUITE)]
    prompts = [tokenizer.prompt(case.row.messages[:-1]) for case in cases]
    said = [tokenizer.decode(ids) for ids in greedy(model, prompts, tokenizer.end, MAX_TOKENS)]
    right = [is_right(case, text) for case, text in zip(cases, said, strict=True)]
    return Parent(scored, np.concatenate(distributions), cases, right, model.shape.vocabulary, tokenizer.plain_token)


def divergence(
    parent: npt.NDArray[np.float32], child: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """(Kullback-Leibler divergence in nats from parent to child, whether the most likely token is the same) at each
    position. Both arguments hold log-probabilities, [positions, vocabulary]."""
    p, q = parent.astype(np.float64), child.astype(np.float64)
    kld = np.maximum((np.exp(p) * (p - q)).sum(-1), 0.0)
    return kld, p.argmax(-1) == q.argmax(-1)


def measure(parent: Parent, path: Path, cpus: int) -> Measured:
    """Ask the file everything the parent was asked. Raises ExportError."""
    chats = [case.row.messages[:-1] for case in parent.cases]
    said = engine.ask(path, parent.scored, chats, MAX_TOKENS, parent.vocabulary, parent.plain_token, cpus)
    kld, same = divergence(parent.log_probabilities, said.log_probabilities)
    targets = np.concatenate([np.array(item.answer) for item in parent.scored])
    positions = np.arange(len(targets))
    loss = -said.log_probabilities[positions, targets].astype(np.float64).mean()
    parent_loss = -parent.log_probabilities[positions, targets].astype(np.float64).mean()
    right = [is_right(case, text) for case, text in zip(parent.cases, said.texts, strict=True)]
    return Measured(
        mean_kld=float(kld.mean()),
        p99_kld=float(np.quantile(kld, 0.99)),
        same_top=float(same.mean()),
        perplexity_ratio=float(np.exp(loss - parent_loss)),
        task_accuracy=sum(right) / len(right),
        task_accuracy_parent=sum(parent.right) / len(parent.right),
        flips=sum(a != b for a, b in zip(right, parent.right, strict=True)),
        tokens=len(targets),
    )


def failures(found: Measured, limits: ParityLimits) -> list[str]:
    """What keeps a file from passing: empty if nothing does."""
    reasons = []
    if not found.mean_kld <= limits.max_mean_kld:
        reasons.append(f"mean KL divergence {found.mean_kld:.4g} is above maxMeanKld {limits.max_mean_kld:g}")
    if not found.same_top >= limits.min_same_top:
        reasons.append(f"same most likely token at {found.same_top:.2%}, below minSameTop {limits.min_same_top:.2%}")
    if not found.perplexity_ratio <= limits.max_perplexity_ratio:
        ratio = f"perplexity ratio {found.perplexity_ratio:.4f}"
        reasons.append(f"{ratio} is above maxPerplexityRatio {limits.max_perplexity_ratio:g}")
    if found.task_accuracy < found.task_accuracy_parent - MAX_TASK_DROP:
        reasons.append(f"task accuracy fell from {found.task_accuracy_parent:.3f} to {found.task_accuracy:.3f}")
    return reasons


def judge(found: Measured, limits: ParityLimits, quantization: Quantization, path: str, size: int) -> ParityResult:
    """The verdict on one file."""
    reasons = failures(found, limits)
    return ParityResult(
        quantization=quantization,
        path=path,
        size=size,
        mean_kld=found.mean_kld,
        p99_kld=found.p99_kld,
        same_top=found.same_top,
        perplexity_ratio=found.perplexity_ratio,
        task_accuracy=found.task_accuracy,
        task_accuracy_parent=found.task_accuracy_parent,
        flips=found.flips,
        tokens=found.tokens,
        passed=not reasons,
        reasons=reasons,
    )
