"""Where a pool stands, in words and numbers that follow from its status."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from sluice_contracts.base import parse_timestamp
from sluice_contracts.inference_pool import InferencePoolSpec, InferencePoolStatus, MetricVerdict, Verdict


class Manner(StrEnum):
    """How a standing is shown in the three kstatus conditions."""

    READY = "ready"
    RECONCILING = "reconciling"
    WAITING = "waiting"
    STALLED = "stalled"


@dataclass(frozen=True)
class Standing:
    """Where the pool stands, for its conditions."""

    manner: Manner
    reason: str
    message: str


def candidate_weight(spec: InferencePoolSpec, status: InferencePoolStatus) -> int:
    """The candidate's share of the traffic by `status`: its step's, if it is ready."""
    if status.candidate is None or status.step is None or not status.candidate.ready:
        return 0
    return spec.rollout.steps[min(status.step, len(spec.rollout.steps) - 1)]


def paused(status: InferencePoolStatus, now: datetime) -> timedelta:
    """How long the rollout was held by a person, up to now."""
    held = timedelta(seconds=status.paused_seconds)
    return held if status.paused_at is None else held + max(timedelta(), now - parse_timestamp(status.paused_at))


def evidence_text(verdicts: list[MetricVerdict]) -> str:
    """The verdicts in one line, the harmful first."""
    order = {Verdict.HARMFUL: 0, Verdict.UNDECIDED: 1, Verdict.EQUIVALENT: 2}
    parts = []
    for v in sorted(verdicts, key=lambda v: order[v.verdict]):
        interval = "" if v.low is None else f" [{v.low:.4g}, {'inf' if v.high is None else format(v.high, '.4g')}]"
        effect = "" if v.effect is None else f" by {v.effect:+.4g}{interval}"
        dry = " (dry run)" if v.dry_run else ""
        parts.append(f"{v.name.value} {v.verdict.value}{effect}: {v.message}{dry}")
    return "; ".join(parts)
