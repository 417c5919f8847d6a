"""The gates: a pure function of measured values and bounds. The decision that lets a version go on, or not."""

from collections.abc import Sequence
from dataclasses import dataclass

from sluice_contracts.evaluation import MetricValue, SampleOutcome, SuiteResult
from sluice_contracts.names import Domain, Suite
from sluice_contracts.training_run import EvaluationSpec, Gate, GateResult

from sluice_training.errors import InvalidInputError
from sluice_training.evaluate.statistics import paired_difference
from sluice_training.evaluate.suites import LOWER_IS_BETTER, METRICS

SLICED = frozenset({Suite.INTENT, Suite.INSTRUCTION})
"""Suites whose examples belong to several domains."""


@dataclass(frozen=True)
class Stable:
    """What the version to compare with was measured at."""

    suites: Sequence[SuiteResult]
    samples: Sequence[SampleOutcome]


def check(spec: EvaluationSpec) -> None:
    """Find gates that could never be judged, before hours of training. Raises InvalidInputError naming the gate."""
    for number, gate in enumerate(spec.gates):
        where = f"evaluation.gates[{number}]"
        suite_name, metric = gate.metric.split(".", 1)
        suite = next((s for s in Suite if s.value == suite_name), None)
        if suite is None:
            raise InvalidInputError(f"{where}.metric: there is no suite {suite_name!r}; choose from {', '.join(Suite)}")
        if metric not in METRICS[suite]:
            known = ", ".join(f"{suite}.{m}" for m in METRICS[suite])
            raise InvalidInputError(f"{where}.metric: there is no {gate.metric!r}; choose from {known}")
        if suite not in spec.suites:
            raise InvalidInputError(f"{where}.metric: {gate.metric} needs {suite!s} in evaluation.suites")
        if gate.slice is not None and (suite not in SLICED or gate.slice is Domain.GENERAL):
            raise InvalidInputError(f"{where}.slice: the suite {suite} has no slice {gate.slice}; leave slice out")
        if gate.min is None and gate.max is None and gate.non_inferior_to is None:
            raise InvalidInputError(f"{where}: give min, max or nonInferiorTo")
        if gate.non_inferior_to is not None and gate.margin is None:
            raise InvalidInputError(f"{where}: nonInferiorTo needs a margin")


def judge(
    gates: Sequence[Gate], suites: Sequence[SuiteResult], samples: Sequence[SampleOutcome], stable: Stable | None
) -> list[GateResult]:
    """One result for each bound of each gate, in order.

    `stable` None: non-inferiority is skipped, passes, and its bound says so. Raises InvalidInputError if the stable
    version was measured on other examples.
    """
    results = []
    for gate in gates:
        if gate.min is not None or gate.max is not None:
            results += _absolute(gate, _find(suites, gate))
        if gate.non_inferior_to is not None:
            results.append(_non_inferior(gate, suites, samples, stable))
    return results


def _find(suites: Sequence[SuiteResult], gate: Gate) -> MetricValue:
    for suite in suites:
        for value in suite.metrics:
            if value.metric == gate.metric and value.slice == gate.slice:
                return value
    raise InvalidInputError(f"{gate.metric} of {gate.slice or 'all'} was not measured")


def _absolute(gate: Gate, found: MetricValue) -> list[GateResult]:
    bounds = [(b, op) for b, op in ((gate.min, ">="), (gate.max, "<=")) if b is not None]
    return [
        GateResult(
            metric=gate.metric,
            slice=gate.slice,
            value=found.value,
            low=found.low,
            high=found.high,
            bound=f"{op} {bound:g}",
            n=found.n,
            passed=found.n > 0 and (found.value >= bound if op == ">=" else found.value <= bound),
        )
        for bound, op in bounds
    ]


def _non_inferior(
    gate: Gate, suites: Sequence[SuiteResult], samples: Sequence[SampleOutcome], stable: Stable | None
) -> GateResult:
    margin = gate.margin or 0.0
    lower = gate.metric in LOWER_IS_BETTER
    bound = f"<= stable + {margin:g}" if lower else f">= stable - {margin:g}"
    if stable is None:
        value = _find(suites, gate)
        return GateResult(
            metric=gate.metric,
            slice=gate.slice,
            value=value.value,
            bound=f"{bound} (skipped: there is no stable version)",
            n=0,
            passed=True,
        )
    _same_examples(gate, suites, stable)
    old = {s.id: s.outcomes[gate.metric] for s in stable.samples if gate.metric in s.outcomes}
    chosen = [s for s in samples if gate.metric in s.outcomes and gate.slice in (None, s.domain)]
    if missing := [s.id for s in chosen if s.id not in old]:
        raise InvalidInputError(f"the stable version's samples lack {missing[0]}, though its suite is the same")
    pair = paired_difference([s.outcomes[gate.metric] for s in chosen], [old[s.id] for s in chosen])
    return GateResult(
        metric=gate.metric,
        slice=gate.slice,
        value=pair.difference,
        low=pair.low,
        high=pair.high,
        bound=bound,
        n=pair.n,
        passed=pair.high <= margin if lower else pair.low >= -margin,
    )


def _same_examples(gate: Gate, suites: Sequence[SuiteResult], stable: Stable) -> None:
    name = gate.metric.split(".", 1)[0]
    own = next(s for s in suites if s.suite.value == name)
    theirs = next((s for s in stable.suites if s.suite.value == name), None)
    if theirs is None:
        raise InvalidInputError(f"the stable version was not evaluated on {name}, so {gate.metric} cannot be compared")
    if theirs.digest != own.digest:
        raise InvalidInputError(
            f"the stable version was evaluated on {theirs.n} other examples of {name} (this run: {own.n}); "
            "use the same evaluation.examples and the same release of the trainer"
        )


def describe(results: Sequence[GateResult]) -> str:
    """The failed gates in one sentence, with numbers; or that all hold."""
    failed = [r for r in results if not r.passed]
    if not failed:
        return f"all {len(results)} gates hold" if results else "no gates were set"
    parts = []
    for r in failed:
        where = f"[{r.slice}]" if r.slice else ""
        interval = f" [{r.low:.3f}, {r.high:.3f}]" if r.low is not None and r.high is not None else ""
        parts.append(f"{r.metric}{where} {r.value:.3f}{interval}, must be {r.bound}")
    return f"{len(failed)} of {len(results)} gates failed: " + "; ".join(parts)
