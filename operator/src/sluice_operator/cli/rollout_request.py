"""What a person may ask of a rollout, and whether asking makes sense just now. Pure.

The asking itself is one annotation (see `sluice_contracts.names.RolloutRequest`): the operator obeys and removes it.
"""

from dataclasses import dataclass

from sluice_contracts.names import ANNOTATION_ROLLOUT, ConditionType, RolloutRequest

from sluice_operator.cli.errors import CliError
from sluice_operator.cli.objects import Pool, condition
from sluice_operator.cli.rollout_text import traffic


@dataclass(frozen=True)
class Change:
    """The annotation to set (None: to remove), and what will come of it."""

    value: str | None
    effect: str


APPROVABLE = {"AwaitingApproval", "Inconclusive"}
"""Reasons of Ready in which the operator waits for a person's word."""


def ask(pool: Pool, request: RolloutRequest) -> Change:
    """What to write for `request`. Raises CliError where it could only be misunderstood."""
    if request is RolloutRequest.RETRY:
        return _retry(pool)
    if request is RolloutRequest.PAUSE:
        return _pause(pool)
    candidate = _candidate(pool, request.value)
    if request is RolloutRequest.ABORT:
        return Change(request.value, f"{candidate} gets no more traffic; the stable version takes all of it")
    ready = condition(pool.conditions, ConditionType.READY)
    if ready is None or ready.reason not in APPROVABLE:
        said = f" ({ready.reason}: {ready.message})" if ready is not None else ""
        raise CliError(
            f"{pool} does not wait for approval of {candidate}{said}; it asks when all metrics are equivalent "
            "and rollout.manualGate is set, or when the deadline has passed without a decision"
        )
    return Change(request.value, f"{candidate} becomes stable")


def resume(pool: Pool) -> Change:
    """Take a pause back. Raises CliError if there is none."""
    if pool.annotations.get(ANNOTATION_ROLLOUT) != RolloutRequest.PAUSE:
        raise CliError(f"the rollout of {pool.spec.model_version} in {pool} is not paused; nothing to resume")
    return Change(None, f"the rollout of {pool.spec.model_version} goes on")


def _pause(pool: Pool) -> Change:
    """A rollout may be held while it runs, and before it begins."""
    status, wanted = pool.status, pool.spec.model_version
    if pool.annotations.get(ANNOTATION_ROLLOUT) == RolloutRequest.PAUSE:
        raise CliError(f"the rollout of {wanted} in {pool} is paused already; `sluice rollout resume {pool.name}`")
    if status.candidate is not None:
        effect = f"{wanted} stays at its share ({traffic(pool)}); harm found meanwhile still rolls it back"
        return Change(RolloutRequest.PAUSE.value, effect)
    if status.stable is None or status.stable.model_version == wanted:
        _candidate(pool, RolloutRequest.PAUSE.value)
    return Change(RolloutRequest.PAUSE.value, f"the rollout of {wanted} does not begin until resume")


def _retry(pool: Pool) -> Change:
    status, wanted = pool.status, pool.spec.model_version
    if status.candidate is not None:
        raise CliError(f"{pool} is trying {status.candidate.model_version} right now; abort that first, or wait for it")
    if status.stable is not None and status.stable.model_version == wanted:
        raise CliError(f"{pool} already serves {wanted}, the version it should serve; nothing to retry")
    return Change(RolloutRequest.RETRY.value, f"{wanted} is tried again from the first step, on new evidence")


def _candidate(pool: Pool, verb: str) -> str:
    status = pool.status
    if status.candidate is not None:
        return status.candidate.model_version
    serves = f"it serves {status.stable.model_version}" if status.stable is not None else "it serves nothing yet"
    last = status.history[-1] if status.history else None
    ended = f"; {last.model_version} was {last.outcome.value} at {last.ended_at}" if last is not None else ""
    retry = ""
    if last is not None and status.stable is not None and status.stable.model_version != pool.spec.model_version:
        retry = f"; `sluice rollout retry {pool.name}` tries {pool.spec.model_version} again"
    raise CliError(f"cannot {verb}: no rollout is under way in {pool}: {serves}{ended}{retry}")
