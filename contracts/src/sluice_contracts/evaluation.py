"""What evaluation and the parity gate write down."""

from typing import Annotated, Literal

from pydantic import Field

from sluice_contracts.base import Contract, Digest, Fraction, RelativePath, ShortText, Timestamp
from sluice_contracts.names import Domain, Quantization, Suite
from sluice_contracts.training_run import GateResult, ParityLimits, Waiver


class MetricValue(Contract):
    """One metric of one suite, for all examples or for one slice, with its Wilson 95 % interval."""

    metric: ShortText
    """`<suite>.<name>`, such as `intent.accuracy`."""
    slice: Domain | None = None
    value: Fraction
    low: Fraction
    high: Fraction
    n: Annotated[int, Field(ge=0)]


class SuiteResult(Contract):
    """One held-out suite."""

    suite: Suite
    digest: Digest
    """Digest of the examples: two reports compare pairwise only if it is equal."""
    n: Annotated[int, Field(ge=0)]
    metrics: Annotated[list[MetricValue], Field(max_length=256)]


class Baseline(Contract):
    """The version a non-inferiority gate compares with."""

    lineage: ShortText
    report_digest: Digest


class EvaluationReport(Contract):
    """The evaluation of one model: metrics, gates, verdict. `samples` holds each answer's outcome for paired tests."""

    schema_version: Literal[1] = 1
    lineage: ShortText
    suites: list[SuiteResult]
    gates: list[GateResult]
    passed: bool
    """All gates hold (a waiver does not change this)."""
    waiver: Waiver | None = None
    baseline: Baseline | None = None
    samples_path: RelativePath
    samples_digest: Digest
    created_at: Timestamp

    def value(self, metric: str, slice_: Domain | None = None) -> MetricValue | None:
        """The metric's value, or None where the report does not hold it."""
        for suite in self.suites:
            for m in suite.metrics:
                if m.metric == metric and m.slice == slice_:
                    return m
        return None


class SampleOutcome(Contract):
    """One line of the samples file: how one held-out example was answered."""

    id: ShortText
    suite: Suite
    domain: Domain
    outcomes: dict[str, bool]
    """Metric name to whether it counts for this example, such as `intent.accuracy: true`."""


class ParityResult(Contract):
    """One quantised file against its full-precision parent, on answer tokens, in the engine that devices run."""

    quantization: Quantization
    path: RelativePath
    size: Annotated[int, Field(ge=1)]
    mean_kld: float
    p99_kld: float
    same_top: Fraction
    perplexity_ratio: float
    task_accuracy: Fraction
    task_accuracy_parent: Fraction
    flips: Annotated[int, Field(ge=0)]
    """Examples answered right by one of the two and wrong by the other."""
    tokens: Annotated[int, Field(ge=0)]
    passed: bool
    reasons: list[ShortText] = []


class ParityReport(Contract):
    """The proof that each device file is as good as the served model."""

    schema_version: Literal[1] = 1
    lineage: ShortText
    limits: ParityLimits
    engine: ShortText
    results: list[ParityResult]
    passed: bool
    created_at: Timestamp
