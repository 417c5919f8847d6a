"""When requests are sent, and what came of them. Pure.

The load is open-loop: each request has its moment, whether or not earlier ones have been answered, and its latency
counts from that moment. A server that stalls is thus seen as its users see it (no coordinated omission).
"""

import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Arrivals = Literal["poisson", "uniform"]


def moments(rate: float, arrivals: Arrivals, seed: int) -> Iterator[float]:
    """Seconds from the start at which requests are due, for ever: `rate` a second on average."""
    chance = random.Random(seed)
    at = 0.0
    while True:
        at += chance.expovariate(rate) if arrivals == "poisson" else 1 / rate
        yield at


@dataclass(frozen=True)
class Result:
    """One request, as its sender saw it. Times count from the moment it was due."""

    version: str
    ok: bool
    error: str | None
    ttft: float | None
    latency: float
    output_tokens: int


def quantile(values: Sequence[float], q: float) -> float | None:
    """The smallest value that at least a share `q` of `values` does not exceed; None of none."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)]


@dataclass
class Tally:
    """All results of one version."""

    n: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    ttft: list[float] = field(default_factory=list)
    latency: list[float] = field(default_factory=list)
    output_tokens: int = 0

    def add(self, result: Result) -> None:
        """Count one result."""
        self.n += 1
        if not result.ok:
            self.errors[result.error or "unknown"] += 1
            return
        self.latency.append(result.latency)
        self.output_tokens += result.output_tokens
        if result.ttft is not None:
            self.ttft.append(result.ttft)

    def summary(self) -> dict[str, Any]:
        """Plain data: counts, and quantiles in seconds."""
        return {
            "requests": self.n,
            "errors": sum(self.errors.values()),
            "errorsByKind": dict(self.errors),
            "outputTokens": self.output_tokens,
            "ttft": {"p50": quantile(self.ttft, 0.5), "p95": quantile(self.ttft, 0.95)},
            "latency": {"p50": quantile(self.latency, 0.5), "p95": quantile(self.latency, 0.95)},
        }
