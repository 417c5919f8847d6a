"""Device signals become slice weights: what fails on devices is taught more.

Signals are counts of closed combinations. Each batch counts once by its id; small counts are dropped before anything
is derived from them; the weight of a domain is bounded, so no flood of signals can take over the dataset.
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import ValidationError
from sluice_contracts.base import sha256
from sluice_contracts.dataset import SliceWeight
from sluice_contracts.names import Domain, Task
from sluice_contracts.signal import Outcome, SignalBatch
from sluice_storage import open_store

from sluice_training.dataset.config import SignalPolicy, describe
from sluice_training.dataset.intents import DOMAINS
from sluice_training.errors import InvalidInputError


@dataclass(frozen=True)
class Evidence:
    """What all batches together say."""

    digest: str | None = None
    batches: int = 0
    weights: tuple[SliceWeight, ...] = ()
    suppressed: int = 0
    """(domain, task) counts that were too small to be used."""

    def factor(self, domain: Domain) -> float:
        """Weight of `domain`; 1 where nothing is known."""
        return next((w.factor for w in self.weights if w.domain is domain), 1.0)


def parse_batch(data: bytes, source: str) -> SignalBatch:
    """One batch. Raises InvalidInputError naming `source`, the line or the field."""
    try:
        raw = json.loads(data)
    except json.JSONDecodeError as error:
        raise InvalidInputError(f"{source}, line {error.lineno}: not JSON ({error.msg})") from None
    except UnicodeDecodeError:
        raise InvalidInputError(f"{source} is not UTF-8 text") from None
    try:
        return SignalBatch.model_validate(raw)
    except ValidationError as error:
        raise InvalidInputError(f"{source}: {describe(error)}") from None


def read_batches(uri: str) -> list[SignalBatch]:
    """All batches in the folder, in the order of their ids; a batch uploaded twice counts once.

    Raises InvalidInputError if there is none, if a file is no batch, or if two files claim one id with different
    content, and StorageError if the folder cannot be read.
    """
    store = open_store(uri)
    found: dict[str, tuple[str, SignalBatch]] = {}
    for key in store.list():
        if not key.endswith(".json"):
            continue
        batch = parse_batch(store.read(key), f"{uri}/{key}")
        other, first = found.setdefault(batch.batch_id, (key, batch))
        if first != batch:
            raise InvalidInputError(
                f"{uri}/{key} and {other} have the batch id {batch.batch_id} but differ; remove the false one"
            )
    if not found:
        raise InvalidInputError(f"signals: there is no batch below {uri}; check the folder, or leave --signals away")
    return [batch for _, (_, batch) in sorted(found.items())]


def weigh(batches: Iterable[SignalBatch], policy: SignalPolicy) -> Evidence:
    """The evidence in `batches`. A failure is a failed request or one with negative feedback; a partial success is
    half of one. The rate is smoothed as (failures + 1) / (requests + 2)."""
    batches = sorted(batches, key=lambda b: b.batch_id)
    if not batches:
        return Evidence()
    asked: Counter[tuple[Domain, Task]] = Counter()
    failed: dict[tuple[Domain, Task], float] = {}
    for batch in batches:
        for cell in batch.cells:
            key = (cell.domain, cell.task)
            asked[key] += cell.count
            bad = 1.0 if cell.outcome is Outcome.FAILURE or cell.feedback < 0 else 0.0
            bad = max(bad, 0.5 if cell.outcome is Outcome.PARTIAL else 0.0)
            failed[key] = failed.get(key, 0.0) + bad * cell.count
    kept = {key for key, n in asked.items() if n >= policy.min_count}
    weights = []
    for domain in DOMAINS:
        keys = sorted(k for k in kept if k[0] is domain)
        if not keys:
            continue
        n = sum(asked[k] for k in keys)
        rate = (sum(failed[k] for k in keys) + 1) / (n + 2)
        excess = max(0.0, (rate - policy.tolerated) / (1 - policy.tolerated))
        weights.append(
            SliceWeight(
                domain=domain,
                factor=round(1 + (policy.max_factor - 1) * excess, 3),
                reason=f"{rate:.0%} of {n} requests failed on devices",
            )
        )
    return Evidence(
        digest=sha256("\n".join(b.content_digest() for b in batches).encode()),
        batches=len(batches),
        weights=tuple(weights),
        suppressed=len(asked) - len(kept),
    )
