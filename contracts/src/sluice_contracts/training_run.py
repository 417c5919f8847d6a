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
    """When to stop. A limit that is raised lets a run it had stopped go on from its last checkpoint."""

    model_config = cel(
        (
            "!has(self.maxCost) || double(self.maxCost) > 0.0",
            "limits.maxCost must be above 0; leave it out to set no limit",
        )
    )

    max_duration: Duration | None = None
    """Over all attempts. Time in which the run was suspended, waited in a queue or paused between attempts is free."""
    max_cost: Money | None = None
    """Over all attempts, in the currency of the operator's price table, which must know the accelerator."""
    max_failures: Annotated[int, Field(ge=0, le=100)] = 2
    """Failed attempts that are followed by another one."""
    max_preemptions: Annotated[int, Field(ge=0, le=1000)] = 20
    """Times that the cloud may take the head's node back. Not failures: the job goes on from its checkpoint."""


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
        (
            "!has(self.queueName) || !self.suspend",
            "suspend does not go with queueName: Kueue starts and stops what is in its queues; to hold this run, set "
            "spec.active: false on its Workload",
        ),
        (
            "!has(self.queueName) || self.hardware.workers.min == self.hardware.workers.max",
            "queueName needs hardware.workers of a fixed size, min and max the same number: Kueue admits no cluster "
            "that scales by itself",
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
    ttl_after_finished: Duration | None = None
    """How long the RayJobs of an ended run are kept to be looked at; None keeps them as long as the run. Their pods go
    at once, and the run, its ModelVersion and its folder stay."""


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


class Usage(Contract):
    """What a run has used up to a moment, and what it holds from then on. It moves only when that changes."""

    since: Timestamp
    running: bool
    """An attempt is there and not suspended. Counted by `maxDuration`, also while its pods wait for nodes."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Worker pods that run: replicas times hosts."""
    seconds: Annotated[int, Field(ge=0)] = 0
    """Running time until `since`."""
    worker_seconds: Annotated[int, Field(ge=0)] = 0
    """Running time until `since` of every worker pod, added up."""


class Cost(Contract):
    """What a run's workers have cost so far, from the operator's price table."""

    total: Money
    currency: ShortText
    per_worker_hour: Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}(\.[0-9]{1,6})?$", max_length=16)]
    """The price of one worker pod for one hour."""
    as_of: Timestamp


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
    stops: Annotated[int, Field(ge=0)] = 0
    """Attempts that a limit ended: neither failures nor preemptions."""
    started_at: Timestamp | None = None
    job_started_at: Timestamp | None = None
    """When the entry point last began. It moves under the same `job_id` when a lost head pod is replaced: that is how
    preemptions are counted, even those that happened while nobody watched."""
    job_id: ShortText | None = None
    """Ray's id of the submitted job. A job that was suspended and resumed gets a new one."""
    usage: Usage | None = None
    cost: Cost | None = None
    """Absent while the price table does not know the accelerator."""
    eta: ShortText | None = None
    """The time that `progress` still expects, as people write it: `4m30s`."""
    finished_at: Timestamp | None = None
    gates: Annotated[list[GateResult], Field(max_length=32)] = []
    report_uri: Uri | None = None
    manifest: ManifestReference | None = None
    model_version: ObjectName | None = None
    message: Text | None = None
