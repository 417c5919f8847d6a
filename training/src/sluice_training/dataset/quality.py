"""The quality report of a dataset: what was asked for, what came out, how long it is, how balanced."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from sluice_contracts.dataset import DatasetRow

from sluice_training.dataset.generate import Slice
from sluice_training.dataset.split import SplitName


def _lengths(values: Sequence[int]) -> dict[str, float]:
    if not values:
        return {"n": 0}
    ordered = sorted(values)

    def at(share: float) -> int:
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    return {
        "n": len(ordered),
        "mean": round(sum(ordered) / len(ordered), 2),
        "p50": at(0.5),
        "p95": at(0.95),
        "max": ordered[-1],
    }


def _balance(labels: Counter[str]) -> dict[str, Any]:
    """How evenly answers are spread: entropy over its maximum (1 is even), and the largest share."""
    n = sum(labels.values())
    entropy = -sum(c / n * math.log(c / n) for c in labels.values())
    return {
        "labels": len(labels),
        "evenness": round(entropy / math.log(len(labels)), 4) if len(labels) > 1 else 0.0,
        "largestShare": round(max(labels.values()) / n, 4),
        "smallestShare": round(min(labels.values()) / n, 4),
    }


def report(
    splits: Mapping[SplitName, Sequence[DatasetRow]],
    plan: Sequence[Slice],
    exact: int,
    near: int,
    suppressed_signals: int,
) -> dict[str, Any]:
    """qa.json: counts by file and slice, shortfalls, duplicates, lengths in words, balance of labels and tags."""
    rows = [row for part in splits.values() for row in part]
    wanted: Counter[str] = Counter()
    for piece in plan:
        wanted[f"{piece.domain}/{piece.task}"] += piece.rows
    got = Counter(f"{r.domain}/{r.task}" for r in rows)
    labels: defaultdict[str, Counter[str]] = defaultdict(Counter)
    tags: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        name = f"{row.domain}/{row.task}"
        if row.task == "intent":
            labels[name][row.messages[-1].content[:64]] += 1
        for tag in row.tags:
            if not tag.startswith("intent:"):
                tags[name][tag] += 1
    return {
        "schemaVersion": 1,
        "rows": {name: len(part) for name, part in splits.items()},
        "slices": {name: {"wanted": wanted[name], "kept": got[name]} for name in sorted(wanted)},
        "duplicates": {"exact": exact, "near": near},
        "suppressedSignals": suppressed_signals,
        "validation": {"checked": len(rows), "invalid": 0},
        "words": {
            role: _lengths([len(m.content.split()) for r in rows for m in r.messages if m.role == role])
            for role in ("user", "assistant")
        },
        "turns": _lengths([sum(m.role == "assistant" for m in r.messages) for r in rows]),
        "balance": {name: _balance(labels[name]) for name in sorted(labels)},
        "tags": {
            name: {tag: round(n / got[name], 4) for tag, n in sorted(tags[name].items())} for name in sorted(tags)
        },
    }
