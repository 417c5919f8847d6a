"""What runs now: training and traffic, as `sluice top` shows it. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from rich.text import Text
from sluice_contracts.base import parse_timestamp
from sluice_contracts.inference_pool import MetricVerdict, Verdict

from sluice_operator.cli.objects import Pool, Run
from sluice_operator.cli.rates import Rate
from sluice_operator.cli.rollout_text import STYLES, step
from sluice_operator.cli.state import headline
from sluice_operator.cli.text import Cell, age, aligned, percent, span

STALE_SECONDS = 60
"""Progress older than this is shown with its age: the job writes it every few seconds while it trains."""


@dataclass(frozen=True)
class Activity:
    """What was found."""

    namespace: str | None
    """None: all namespaces."""
    runs: Sequence[Run]
    """Those that have not ended."""
    pools: Sequence[Pool]
    rates: Mapping[tuple[str, str], Mapping[str, Rate]] = field(default_factory=dict)
    """By namespace and name of the pool, then by version."""
    problems: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """Why a pool's rates are not known."""


def running(runs: Sequence[Run]) -> list[Run]:
    """The runs that have not ended."""
    return [run for run in runs if run.status.finished_at is None and not run.deleting]


def render(found: Activity, now: datetime) -> list[Text]:
    """Two tables, and why a number is missing."""
    wide = found.namespace is None
    lines = _table(
        "Training", "run|state|stage|step|tokens/s|loss|left|cost", wide, [_run(r, now, wide) for r in found.runs]
    )
    rows = [row for pool in found.pools for row in _pool(pool, found.rates.get(_key(pool), {}), wide)]
    heads = "pool|state|version|traffic|req/s|errors|ttft p95|tokens/s|step"
    lines += [Text(), *_table("Serving", heads, wide, rows)]
    for (_, name), problem in found.problems.items():
        lines.append(Text(f" no request rates of {name}: {problem}", style="dim"))
    return lines


def wire(found: Activity) -> dict[str, Any]:
    """The same as JSON data."""
    return {
        "namespace": found.namespace,
        "trainingRuns": [
            {
                "namespace": run.namespace,
                "name": run.name,
                "state": headline(run).plain,
                "progress": run.status.progress.wire() if run.status.progress else None,
                "cost": run.status.cost.wire() if run.status.cost else None,
            }
            for run in found.runs
        ],
        "inferencePools": [
            {
                "namespace": pool.namespace,
                "name": pool.name,
                "state": headline(pool).plain,
                "step": pool.status.step,
                "versions": [
                    {
                        "modelVersion": weight.model_version,
                        "percent": weight.percent,
                        **_rate_wire(found.rates.get(_key(pool), {}).get(weight.model_version)),
                    }
                    for weight in pool.status.weights
                ],
                "problem": found.problems.get(_key(pool)),
            }
            for pool in found.pools
        ],
    }


def _key(pool: Pool) -> tuple[str, str]:
    return pool.namespace, pool.name


def _table(title: str, heads: str, wide: bool, rows: list[list[Cell]]) -> list[Text]:
    if not rows:
        return [Text.assemble((title, "bold"), "  nothing")]
    head: list[Cell] = [Text(word, style="dim") for word in (["namespace"] if wide else []) + heads.split("|")]
    return [Text(title, style="bold"), *aligned([head, *rows], indent=1)]


def _run(run: Run, now: datetime, wide: bool) -> list[Cell]:
    found = run.status.progress
    name: list[Cell] = [run.namespace] if wide else []
    name += [Text(run.name, style="bold"), headline(run)]
    spent = f"{run.status.cost.total} {run.status.cost.currency}" if run.status.cost is not None else "-"
    if found is None:
        return [*name, "-", "-", "-", "-", "-", spent]
    stale = ""
    if found.updated_at and (now - parse_timestamp(found.updated_at)).total_seconds() > STALE_SECONDS:
        stale = f" ({age(found.updated_at, now)} ago)"
    return [
        *name,
        found.stage.value + stale,
        f"{found.step:,}/{found.total_steps:,}" if found.total_steps else "-",
        f"{found.tokens_per_second:,.0f}" if found.tokens_per_second is not None else "-",
        f"{found.loss:.3f}" if found.loss is not None else "-",
        span(found.eta_seconds) if found.eta_seconds is not None else "-",
        spent,
    ]


def _pool(pool: Pool, known: Mapping[str, Rate], wide: bool) -> list[list[Cell]]:
    """A line a version; the pool's own facts on the first."""
    name: list[Cell] = [pool.namespace] if wide else []
    name += [Text(pool.name, style="bold"), headline(pool)]
    rows: list[list[Cell]] = []
    for weight in pool.status.weights:
        first: list[Cell] = name if not rows else [""] * len(name)
        tried = pool.status.candidate is not None and pool.status.candidate.model_version == weight.model_version
        progress: Cell = _trial(pool) if tried else ""
        numbers = _rate(known.get(weight.model_version))
        rows.append([*first, weight.model_version, f"{weight.percent} %", *numbers, progress])
    return rows or [[*name, "-", "-", *_rate(None), ""]]


def _trial(pool: Pool) -> Text:
    worst = [v for v in (Verdict.HARMFUL, Verdict.UNDECIDED, Verdict.EQUIVALENT) if _any(pool.status.verdicts, v)]
    text = Text(step(pool))
    if worst:
        text.append(f" {worst[0].value}", style=STYLES[worst[0]])
    return text


def _any(verdicts: Sequence[MetricVerdict], verdict: Verdict) -> bool:
    return any(v.verdict is verdict and not v.dry_run for v in verdicts)


def _rate(rate: Rate | None) -> list[Cell]:
    if rate is None:
        return ["-", "-", "-", "-"]
    return [
        f"{rate.requests:,.1f}",
        percent(rate.errors) if rate.errors is not None else "-",
        f"{rate.ttft_p95 * 1000:,.0f} ms" if rate.ttft_p95 is not None else "-",
        f"{rate.tokens:,.0f}",
    ]


def _rate_wire(rate: Rate | None) -> dict[str, float | None]:
    if rate is None:
        return {"requestsPerSecond": None, "errorRate": None, "ttftP95Seconds": None, "tokensPerSecond": None}
    return {
        "requestsPerSecond": round(rate.requests, 3),
        "errorRate": rate.errors,
        "ttftP95Seconds": rate.ttft_p95,
        "tokensPerSecond": round(rate.tokens, 1),
    }
