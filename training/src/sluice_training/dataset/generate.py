"""How many examples of which kind, and the examples: a pure function of the configuration and the evidence."""

from collections.abc import Iterator
from dataclasses import dataclass

from sluice_contracts.names import Domain, Task

from sluice_training.dataset import instructions, intents, questions, recall, safety
from sluice_training.dataset.config import BuildConfig
from sluice_training.dataset.corruption import corrupt
from sluice_training.dataset.example import Example, rng_for
from sluice_training.dataset.signals import Evidence
from sluice_training.errors import InvalidInputError

ATTEMPTS = 4
"""A slice is drawn at most this many times its size: a small slice runs out of new examples."""


@dataclass(frozen=True)
class Slice:
    """So many rows of one domain and task."""

    part: str
    domain: Domain
    task: Task
    rows: int


def largest_remainder(total: int, shares: dict[tuple[str, Domain, Task], float]) -> list[Slice]:
    """`total` rows divided by `shares` (any positive scale): whole numbers that sum to `total`."""
    scale = sum(shares.values())
    exact = {key: total * share / scale for key, share in shares.items() if share > 0}
    rows = {key: int(value) for key, value in exact.items()}
    left = total - sum(rows.values())
    for key in sorted(exact, key=lambda k: (rows[k] - exact[k], k))[:left]:
        rows[key] += 1
    return [Slice(*key, rows=n) for key, n in rows.items() if n]


def focus_domains(config: BuildConfig, evidence: Evidence) -> list[Domain]:
    """The domains to focus on: those named, and those whose signals stand out.

    Raises InvalidInputError if the configuration asks for a focus and none results.
    """
    if config.focus is None:
        return []
    chosen = set(config.focus.domains)
    if config.focus.from_signals:
        chosen |= {w.domain for w in evidence.weights if w.factor >= config.focus.min_factor}
    chosen -= set(config.domains.exclude)
    if not chosen:
        raise InvalidInputError(
            f"focus.fromSignals: no domain's signals reach the factor {config.focus.min_factor:g} "
            f"({evidence.batches} batches, {evidence.suppressed} counts below signals.minCount); "
            "pass --signals with more batches, lower focus.minFactor or signals.minCount, or name focus.domains"
        )
    return [d for d in intents.DOMAINS if d in chosen]


def plan(config: BuildConfig, evidence: Evidence) -> list[Slice]:
    """Rows of each slice. The signals' factors weigh the domains wherever a task has domains."""
    focus = focus_domains(config, evidence)
    known = [d for d in intents.DOMAINS if d not in config.domains.exclude and d not in focus]
    shares: dict[tuple[str, Domain, Task], float] = {}

    def spread(part: str, task: Task, share: float, domains: list[Domain]) -> None:
        if task not in (Task.INTENT, Task.INSTRUCTION):
            domains = [Domain.GENERAL]
        weights = {d: evidence.factor(d) for d in domains}
        for domain, weight in weights.items():
            shares[part, domain, task] = share * weight / sum(weights.values())

    replay = 1.0 if config.replay is None else config.replay
    for task, share in config.mix.items():
        spread("replay" if focus else "main", task, share * replay, known or focus)
    if config.focus is not None:
        for task, share in config.focus.mix.items():
            spread("focus", task, share * (1 - replay), focus)
    return largest_remainder(config.size, shares)


def _draw(piece: Slice, config: BuildConfig, index: int) -> Example:
    rng = rng_for(config.seed, piece.part, piece.domain, piece.task, index)
    match piece.task:
        case Task.INTENT:
            example = intents.make(rng, piece.domain)
        case Task.QUESTION:
            example = questions.make(rng)
        case Task.SAFETY:
            example = safety.make(rng)
        case Task.INSTRUCTION:
            example = instructions.make(rng, piece.domain)
        case Task.RECALL:
            example = recall.make(rng)
    return corrupt(example, config.corruption, rng)


def examples(piece: Slice, config: BuildConfig) -> Iterator[Example]:
    """The slice's examples, without end: the caller stops at `piece.rows` new ones or at `ATTEMPTS` times as many
    draws. Each depends on its index alone."""
    for index in range(piece.rows * ATTEMPTS):
        yield _draw(piece, config, index)
