"""TrainingRun: one attempt to make a model, from a dataset to an exported, evaluated version."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from sluice_contracts.base import Contract, Digest, Duration, Fraction, Money, Name, ShortText, Text, Timestamp, Uri
from sluice_contracts.hardware import TrainingHardware
from sluice_contracts.kubernetes import Conditions, ObjectName, PodTemplate, cel, immutable
from sluice_contracts.names import Domain, Quantization, Suite


class BaseModelReference(Contract):
    """What training starts from: files in a bucket, or an earlier ModelVersion of this namespace."""

    model_config = cel(
        (
            "has(self.modelVersion) ? !has(self.uri) && !has(self.digest) : has(self.uri) && has(self.digest)",
            "base takes either modelVersion alone, or uri together with digest",
        )
    )

    uri: Uri | None = None
    digest: Digest | None = None
    model_version: ObjectName | None = None


class DatasetReference(Contract):
    """A folder made by `sluice-train dataset build`, and the digest of its manifest.json."""

    uri: Uri
    digest: Digest


class Method(StrEnum):
    """How weights are changed."""

    SCRATCH = "scratch"
    SFT = "sft"
    LORA = "lora"


class LoraRecipe(Contract):
    """Low-rank adaptation of all linear layers."""

    rank: Annotated[int, Field(ge=1, le=512)] = 16
    alpha: Annotated[int, Field(ge=1, le=1024)] = 32


class Recipe(Contract):
    """How to train. Part of the lineage: any change makes another model."""

    model_config = cel(
        (
            "(self.method == 'lora') == has(self.lora)",
            "recipe.lora goes with method lora and with no other; write `lora: {}` there for its defaults",
        )
    )

    method: Method
    steps: Annotated[int, Field(ge=1, le=10_000_000)]
    """Optimiser steps. A number of steps, never of seconds: a busy machine must not make another model."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    """Peak learning rate; None takes the method's own."""
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 16
    """Packed rows a step, over all workers."""
    sequence_length: Annotated[int, Field(ge=32, le=1_048_576)] = 128
    """Tokens a packed row."""
    seed: Annotated[int, Field(ge=0, le=2_147_483_647)] = 7
    lora: LoraRecipe | None = None


class CheckpointPolicy(Contract):
    """When training state is kept."""

    every_steps: Annotated[int, Field(ge=1, le=1_000_000)] = 50
    keep: Annotated[int, Field(ge=1, le=100)] = 2


class Gate(Contract):
    """One bound a version must keep to go on."""

    model_config = cel(
        (
            "has(self.min) || has(self.max) || has(self.nonInferiorTo)",
            "a gate needs a bound: min, max or nonInferiorTo",
        ),
        ("!has(self.margin) || has(self.nonInferiorTo)", "a gate's margin goes with nonInferiorTo: stable only"),
        ("!has(self.min) || !has(self.max) || self.min <= self.max", "a gate's min must not be above its max"),
    )

    metric: Annotated[str, StringConstraints(pattern=r"^[a-z]+\.[a-zA-Z]+$", max_length=64)]
    """`<suite>.<metric>`, such as `intent.accuracy` or `grounding.hallucination`."""
    slice: Domain | None = None
    """Judge this slice alone; None judges all examples together."""
    min: Fraction | None = None
    max: Fraction | None = None
    non_inferior_to: Literal["stable"] | None = None
    """Compare pairwise with the pool's stable version: the lower bound of the paired 95 % interval of the difference
    must stay above minus `margin`."""
    margin: Fraction | None = None


class Waiver(Contract):
    """A person takes the failed gates upon themselves. Recorded in the report, the manifest and the status."""

    reason: Annotated[str, StringConstraints(min_length=10, max_length=512)]
    approved_by: Annotated[str, StringConstraints(min_length=2, max_length=128)]


class EvaluationSpec(Contract):
    """Which held-out suites are run, and the bounds they must keep."""

    model_config = cel(
        (
            "self.gates.all(g, self.suites.exists(s, g.metric.startsWith(s + '.')))",
            "a gate's metric must begin with one of evaluation.suites, such as intent.accuracy",
        )
    )

    suites: Annotated[list[Suite], Field(min_length=1, max_length=8)] = [Suite.INTENT, Suite.GROUNDING, Suite.SAFETY]
    examples: Annotated[int, Field(ge=20, le=100_000)] = 400
    """Held-out examples a suite."""
    gates: Annotated[list[Gate], Field(max_length=32)] = []
    waiver: Waiver | None = None


class ParityLimits(Contract):
    """How far a quantised file may lie from its full-precision parent, on answer tokens."""

    max_mean_kld: Annotated[float, Field(gt=0, le=10)] = 0.03
    """Mean Kullback-Leibler divergence of the next-token distributions, in nats."""
    min_same_top: Fraction = 0.93
    """Share of positions whose most likely token is the same."""
    max_perplexity_ratio: Annotated[float, Field(ge=1, le=10)] = 1.03


class ExportSpec(Contract):
    """What is made for devices, and how good it must be."""

    quantizations: Annotated[list[Quantization], Field(min_length=1, max_length=4)] = [
        Quantization.Q8_0,
        Quantization.Q4_K_M,
    ]
    parity: ParityLimits = ParityLimits()


class RunLimits(Contract):
    """When to stop trying."""

    model_config = cel(("!has(self.maxCost)", "limits.maxCost is not built yet: use limits.maxDuration"))

    max_duration: Duration | None = None
    max_cost: Money | None = None
    max_failures: Annotated[int, Field(ge=0, le=100)] = 2
    max_preemptions: Annotated[int, Field(ge=0, le=1000)] = 20


class TrainingRunSpec(Contract):
    """What to train, on what, from which data, and what must hold before it counts."""

    model_config = cel(
        (
            "self.recipe.method != 'scratch' || !has(self.base)",
            "recipe.method scratch starts from nothing: remove base",
        ),
        (
            "self.recipe.method == 'scratch' || has(self.base)",
            "recipe.method sft and lora change an existing model: add base, or choose method scratch",
        ),
        *immutable(
            "TrainingRun",
            "model",
            "base",
            "dataset",
            "recipe",
            "hardware",
            "checkpoint",
            "evaluation",
            "export",
            "queueName",
            "storageUri",
            "podTemplate",
        ),
    )

    model: Name
    base: BaseModelReference | None = None
    """Absent: train from scratch."""
    dataset: DatasetReference
    recipe: Recipe
    hardware: TrainingHardware = TrainingHardware()
    checkpoint: CheckpointPolicy = CheckpointPolicy()
    evaluation: EvaluationSpec = EvaluationSpec()
    export: ExportSpec = ExportSpec()
    limits: RunLimits = RunLimits()
    suspend: bool = False
    queue_name: ObjectName | None = None
    """Kueue's LocalQueue; Kueue then owns the RayJob's `suspend`."""
    storage_uri: Uri | None = None
    """Where `runs/<lineage>/` goes; None takes the operator's own."""
    pod_template: PodTemplate | None = None


class Stage(StrEnum):
    """Where a run stands, for people to read. Never decided upon: conditions say what holds."""

    QUEUED = "queued"
    STARTING = "starting"
    TRAINING = "training"
    EVALUATING = "evaluating"
    EXPORTING = "exporting"
    PARITY = "parity"
    FINISHED = "finished"


class Progress(Contract):
    """How far the job has come. Written by the job as `progress.json`, copied into status."""

    stage: Stage
    step: Annotated[int, Field(ge=0)] = 0
    total_steps: Annotated[int, Field(ge=0)] = 0
    loss: float | None = None
    tokens_per_second: Annotated[float, Field(ge=0)] | None = None
    eta_seconds: Annotated[int, Field(ge=0)] | None = None
    updated_at: Timestamp | None = None


class ManifestReference(Contract):
    """A manifest.json and the digest of its bytes."""

    uri: Uri
    digest: Digest


class GateResult(Contract):
    """What one gate found."""

    metric: ShortText
    slice: Domain | None = None
    value: float
    low: float | None = None
    """Lower bound of the 95 % interval of `value`, or of the paired difference for a non-inferiority gate."""
    high: float | None = None
    bound: ShortText
    """The bound as text, such as `>= 0.95` or `>= stable - 0.02`."""
    n: Annotated[int, Field(ge=0)]
    passed: bool


class TrainingRunStatus(Contract):
    """What is known of a run."""

    observed_generation: Annotated[int, Field(ge=0)] = 0
    conditions: Conditions = []
    progress: Progress | None = None
    lineage: ShortText | None = None
    run_uri: Uri | None = None
    ray_job: ObjectName | None = None
    attempts: Annotated[int, Field(ge=0)] = 0
    failures: Annotated[int, Field(ge=0)] = 0
    preemptions: Annotated[int, Field(ge=0)] = 0
    started_at: Timestamp | None = None
    job_started_at: Timestamp | None = None
    """When the entry point last began. It moves without a new attempt when a lost head pod is replaced: that is how
    preemptions are counted, even those that happened while nobody watched."""
    finished_at: Timestamp | None = None
    gates: Annotated[list[GateResult], Field(max_length=32)] = []
    report_uri: Uri | None = None
    manifest: ManifestReference | None = None
    model_version: ObjectName | None = None
    message: Text | None = None
