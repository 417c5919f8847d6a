"""A pool's rollout as a person reads it: who gets how much traffic, on which step, and what the evidence says. Pure."""

from datetime import datetime
from typing import Any

from rich.text import Text
from sluice_contracts.base import seconds
from sluice_contracts.inference_pool import MetricName, MetricVerdict, RolloutOutcome, ServedVersion, Verdict
from sluice_contracts.names import ANNOTATION_ROLLOUT

from sluice_operator.cli.objects import Pool
from sluice_operator.cli.state import headline
from sluice_operator.cli.text import WIDTH, age, aligned, moment, percent, short, span

STYLES = {Verdict.HARMFUL: "bold red", Verdict.EQUIVALENT: "green", Verdict.UNDECIDED: "yellow"}


ABSOLUTE = {MetricName.OUTPUT_LENGTH, MetricName.MIRROR_SCORE}
"""Metrics whose effect is a distance of distributions or of scores; that of all others is a difference of rates or a
growth."""


def as_percent(name: MetricName) -> bool:
    """Whether the metric's effect and tolerance are read as percent."""
    return name not in ABSOLUTE


def effect_text(name: MetricName, value: float | None) -> str:
    """An effect in its metric's unit: differences of rates and relative growth as percent, distances as they are."""
    if value is None:
        return "-"
    return percent(value, signed=True) if as_percent(name) else f"{value:.3f}"


def interval_text(verdict: MetricVerdict) -> str:
    """The effect's interval, `[low, high]`; an open end where it is not bounded yet."""
    if verdict.low is None and verdict.high is None:
        return "-"
    low = effect_text(verdict.name, verdict.low) if verdict.low is not None else "…"
    high = effect_text(verdict.name, verdict.high) if verdict.high is not None else "…"
    return f"[{low}, {high}]"


def verdict_text(verdict: MetricVerdict) -> str:
    """One verdict on one line: `errorRate equivalent +0.1 % [-0.5 %, +0.8 %] n=812`."""
    effect = effect_text(verdict.name, verdict.effect)
    text = f"{verdict.name} {verdict.verdict} {effect} {interval_text(verdict)} n={verdict.samples:,}"
    return text + (" (dry run)" if verdict.dry_run else "")


def traffic(pool: Pool) -> str:
    """The weights: `support-bot-1 75 %, support-bot-2 25 %`."""
    return ", ".join(f"{w.model_version} {w.percent} %" for w in pool.status.weights if w.percent) or "none"


def step(pool: Pool) -> str:
    """The step of a rollout that is under way: `2 of 3 (25 %)`."""
    steps, at = pool.spec.rollout.steps, pool.status.step
    if pool.status.candidate is None or at is None:
        return "-"
    share = f" ({steps[at]} %)" if at < len(steps) else ""
    return f"{min(at + 1, len(steps))} of {len(steps)}{share}"


def render(pool: Pool, now: datetime) -> list[Text]:
    """One pool's rollout, on one screen."""
    status, spec = pool.status, pool.spec
    rows: list[list[str | Text]] = [
        ["pool", Text.assemble((pool.name, "bold"), f"  serves {spec.model} in namespace {pool.namespace}")],
        ["state", headline(pool)],
        ["wanted", spec.model_version],
        ["stable", _served(status.stable)],
        ["candidate", _served(status.candidate)],
        ["traffic", traffic(pool)],
    ]
    if status.candidate is not None:
        rows.append(["step", _step(pool, now)])
        if status.rollout_started_at:
            rows.append(["running for", f"{age(status.rollout_started_at, now)} of {spec.rollout.deadline} allowed"])
    if status.rollout_needs is not None:
        rows.append(["takes", status.rollout_needs.message])
    asked = pool.annotations.get(ANNOTATION_ROLLOUT)
    if asked:
        rows.append(["asked for", f"{asked}"])
    lines = aligned(rows, gap=3)
    if status.verdicts:
        lines += [Text(), *_verdict_table(status.verdicts, pool)]
    elif status.candidate is not None:
        lines += [Text(), Text("no verdict yet: the first comes when the candidate has had traffic", style="dim")]
    if status.history:
        lines += [Text(), Text("before", style="bold")]
        lines += aligned(
            [[moment(r.ended_at), r.model_version, _outcome(r.outcome), r.message] for r in reversed(status.history)],
            indent=1,
            width=WIDTH,
        )
    return lines


def wire(pool: Pool) -> dict[str, Any]:
    """The same as JSON data."""
    status = pool.status
    return {
        "pool": pool.name,
        "namespace": pool.namespace,
        "state": headline(pool).plain,
        "wanted": pool.spec.model_version,
        "stable": status.stable.wire() if status.stable else None,
        "candidate": status.candidate.wire() if status.candidate else None,
        "weights": {w.model_version: w.percent for w in status.weights},
        "step": status.step,
        "steps": pool.spec.rollout.steps,
        "needs": status.rollout_needs.wire() if status.rollout_needs else None,
        "verdicts": [v.wire() for v in status.verdicts],
        "request": pool.annotations.get(ANNOTATION_ROLLOUT),
        "history": [r.wire() for r in status.history],
    }


def progress_line(pool: Pool) -> str:
    """What changes while a rollout goes on, on one line: for `watch`, terminals and logs alike."""
    if pool.status.candidate is None:
        return f"{headline(pool).plain}; traffic {traffic(pool)}"
    verdicts = "; ".join(verdict_text(v) for v in pool.status.verdicts) or "no verdict yet"
    return f"step {step(pool)}; traffic {traffic(pool)}; {verdicts}"


def _step(pool: Pool, now: datetime) -> str:
    text = step(pool)
    if pool.status.step_started_at:
        least = span(seconds(pool.spec.rollout.step_duration))
        text += f", for {age(pool.status.step_started_at, now)} (at least {least})"
    if pool.spec.rollout.manual_gate:
        text += "; promotion needs `sluice rollout approve`"
    return text


def _served(version: ServedVersion | None) -> str:
    if version is None:
        return "-"
    ready = "ready" if version.ready else "not ready"
    return f"{version.model_version}  lineage {short(version.lineage)}  {ready}"


def _verdict_table(verdicts: list[MetricVerdict], pool: Pool) -> list[Text]:
    tolerance = {m.name: m.tolerance for m in pool.spec.rollout.metrics}
    head = ["metric", "verdict", "effect", "interval", "tolerance", "n", "n stable", ""]
    rows: list[list[str | Text]] = [[Text(word, style="dim") for word in head]]
    for v in verdicts:
        rows.append(
            [
                v.name.value,
                Text(v.verdict.value, style=STYLES[v.verdict]),
                effect_text(v.name, v.effect),
                interval_text(v),
                effect_text(v.name, tolerance.get(v.name)),
                f"{v.samples:,}",
                f"{v.baseline_samples:,}",
                ("dry run; " if v.dry_run else "") + v.message,
            ]
        )
    return aligned(rows, indent=1, width=WIDTH)


def _outcome(outcome: RolloutOutcome) -> Text:
    words = {
        RolloutOutcome.PROMOTED: ("promoted", "green"),
        RolloutOutcome.ROLLED_BACK: ("rolled back", "red"),
        RolloutOutcome.ABORTED: ("aborted", "yellow"),
        RolloutOutcome.SUPERSEDED: ("superseded", "yellow"),
    }
    return Text(words[outcome][0], style=words[outcome][1])
