"""InferencePool: the place where one model is served, and where a new version must prove itself on live traffic."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, field_validator

from sluice_contracts import engine_arguments
from sluice_contracts.adapters import AdapterRank
from sluice_contracts.base import Contract, Digest, Duration, Name, ShortText, Text, Timestamp
from sluice_contracts.gateway import Gateway
from sluice_contracts.hardware import ReplicaHardware
from sluice_contracts.kubernetes import (
    Conditions,
    ObjectName,
    PodTemplate,
    SecretKeyReference,
    cel,
    immutable,
)


class ScaleToZero(Contract):
    """How a pool with `replicas.min` 0 falls asleep and wakes."""

    model_config = cel(
        (
            "self.coldStart.matches('[1-9]')",
            "replicas.scaleToZero.coldStart must be above 0, such as 2m: it is what clients are told to wait",
        ),
    )

    idle: Duration = "15m"
    """So long after the last request the last engine goes."""
    wake_timeout: Duration = "4m"
    """A request waits so long at most for an engine to wake. 0s holds none: it is refused, told when to come again, and
    wakes the engine all the same. At most a day; whatever lies before the gateway must be as patient."""
    cold_start: Duration = "2m"
    """What waking is believed to take until a gateway has seen it happen."""


class Replicas(Contract):
    """How many engines run, and when there should be more."""

    model_config = cel(
        ("self.min <= self.max", "replicas.min must not be above replicas.max"),
        ("self.min + self.warm <= self.max", "replicas.min and replicas.warm together must not be above replicas.max"),
        (
            "!has(self.scaleToZero) || self.min == 0",
            "replicas.scaleToZero is for replicas.min 0: set min to 0, or leave scaleToZero out",
        ),
    )

    min: Annotated[int, Field(ge=0, le=1000)] = 1
    """Engines that always run. 0: none while nobody asks; the gateway holds requests until one has woken."""
    max: Annotated[int, Field(ge=1, le=1000)] = 1
    """Engines that run at most; above `min`, Ray Serve and KubeRay's autoscaler follow the load."""
    target_ongoing: Annotated[int, Field(ge=1, le=1000)] = 2
    """Requests an engine should be working on; more of them and engines are added, fewer and they are removed."""
    scale_up_delay: Duration = "30s"
    """More engines must have been needed for so long before one is added. Waking from none waits for nothing."""
    scale_down_delay: Duration = "10m"
    """Fewer engines must have been enough for so long before one is removed."""
    warm: Annotated[int, Field(ge=0, le=100)] = 0
    """Machines kept ready beside the engines of `min`. Their nodes and images are there, so that growing waits for no
    more than loading the model. They cost what their accelerators cost."""
    scale_to_zero: ScaleToZero | None = None
    """None with `min` 0: all its defaults."""


class Adapters(Contract):
    """Room in each engine for LoRA adapters beside the weights it runs. It costs memory and some speed, so it is only
    made where it is asked for."""

    slots: Annotated[int, Field(ge=2, le=16)] = 2
    """Adapters that requests of one batch may name: stable's and a candidate's."""
    max_rank: AdapterRank = 16
    """The highest rank there is room for. A version with a higher one gets engines of its own."""


class Engine(Contract):
    """Arguments of the engine that runs the model."""

    max_model_len: Annotated[int, Field(ge=64, le=10_485_760)] = 2048
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    args: Annotated[dict[str, Annotated[str, StringConstraints(max_length=256)]], Field(max_length=32)] = {}
    """Further engine arguments by their vLLM names; values are read as JSON where they are JSON."""
    adapters: Adapters | None = None
    """A candidate that is an adapter on the very version that the engines run is then tried on the same pods."""

    @field_validator("args")
    @classmethod
    def _known(cls, value: dict[str, str]) -> dict[str, str]:
        # Not a CEL rule: the list is long, and here the message can say which argument is wrong and why.
        engine_arguments.parsed(value)
        return value


class ServingLimits(Contract):
    """What the gateway lets through."""

    model_config = cel(("self.queueTimeout.matches('[1-9]')", "limits.queueTimeout must be above 0, such as 20s"))

    max_output_tokens: Annotated[int, Field(ge=1, le=131_072)] = 1024
    """The longest answer, in tokens. A request that does not say how long its answer may be gets this much."""
    output_token_policy: Literal["clamp", "refuse"] = "clamp"
    """What happens to a request for more: it gets maxOutputTokens and a header that says so, or status 400."""
    in_flight_per_replica: Annotated[int, Field(ge=1, le=4096)] = 3
    queue: Annotated[int, Field(ge=0, le=100_000)] = 64
    queue_timeout: Duration = "20s"
    max_request_bytes: Annotated[int, Field(ge=1024, le=67_108_864)] = 1_048_576


class MetricName(StrEnum):
    """What the canary is judged by. All are measured at the gateway, per version, in the same window."""

    ERROR_RATE = "errorRate"
    TTFT_P95 = "ttftP95"
    LATENCY_P95 = "latencyP95"
    INTER_TOKEN_P95 = "interTokenP95"
    OUTPUT_LENGTH = "outputLength"
    FINISH_REASONS = "finishReasons"
    ABORT_RATE = "abortRate"
    QUEUE_TIME_P95 = "queueTimeP95"
    SCHEMA_INVALID_RATE = "schemaInvalidRate"
    COST_P95 = "costP95"
    MIRROR_SCORE = "mirrorScore"


class RolloutMetric(Contract):
    """One metric and how much worse than stable the candidate may be."""

    name: MetricName
    tolerance: Annotated[float, Field(gt=0, le=10)]
    """errorRate, abortRate, schemaInvalidRate: absolute difference of rates. Latencies, queueTimeP95 and costP95:
    relative growth of the quantile. outputLength: largest difference of the two distribution functions
    (Kolmogorov-Smirnov distance). finishReasons: largest difference of any reason's share. mirrorScore: how far the
    mean score falls. Latencies, costs and lengths are compared among requests of like length."""
    dry_run: bool = False
    """Recorded and shown, never decides."""


Url = Annotated[str, StringConstraints(pattern=r"^https?://[^ /@]+(/[^ ]*)?$", max_length=512)]
"""Without a user or password: those belong in a Secret."""


class Judge(Contract):
    """Who scores mirrored answers: code in the gateway's image, or a service. It sees the question and both answers."""

    model_config = cel(
        (
            "has(self.entryPoint) != has(self.url)",
            "rollout.mirror.judge needs exactly one of entryPoint (code in the gateway's image) and url (a service)",
        ),
        (
            "!has(self.tokenSecretRef) || has(self.url)",
            "rollout.mirror.judge.tokenSecretRef is for a judge with a url: an entry point needs no token",
        ),
        ("self.timeout.matches('[1-9]')", "rollout.mirror.judge.timeout must be above 0, such as 10s"),
    )

    entry_point: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=128)] | None = (
        None
    )
    """Name in the entry point group `sluice.judges`."""
    url: Url | None = None
    """Takes POST {request, reference, answer} and answers {"score": 0 to 1}."""
    token_secret_ref: SecretKeyReference | None = None
    """Sent to `url` as a bearer token."""
    timeout: Duration = "10s"


class Mirror(Contract):
    """A copy of some requests goes to the candidate; its answers are scored and never shown."""

    model_config = cel(("self.timeout.matches('[1-9]')", "rollout.mirror.timeout must be above 0, such as 60s"))

    percent: Annotated[int, Field(ge=0, le=100)] = 0
    """Of the requests that stable answered. Half of the copies go to stable itself: the scores of its own second
    answers are what the candidate's are measured against."""
    max_in_flight: Annotated[int, Field(ge=1, le=64)] = 2
    """Copies that a gateway has under way at once; with no place free, or none at the engine, there is no copy."""
    timeout: Duration = "60s"
    """A copy that is not answered by then scores 0."""
    judge: Judge | None = None


class PrometheusSource(Contract):
    """The analysis reads what a Prometheus has scraped from the gateways."""

    model_config = cel(
        ("self.timeout.matches('[1-9]')", "analysis.source.prometheus.timeout must be above 0, such as 5s")
    )

    url: Url | None = None
    """Its base URL, without `/api/v1`. Absent: the one in the chart's values. A token goes to that one only."""
    timeout: Duration = "5s"


class AnalysisSource(Contract):
    """Where the counts come from: the gateways themselves, unless another source is named."""

    prometheus: PrometheusSource | None = None


class Analysis(Contract):
    """How the evidence is read."""

    source: AnalysisSource = AnalysisSource()


class Rollout(Contract):
    """How a new version is tried."""

    model_config = cel(
        (
            "self.steps.isSorted() && self.steps.all(a, self.steps.exists_one(b, a == b))",
            "rollout.steps must rise strictly, such as 5, 25, 50",
        ),
        (
            "self.metrics.exists(m, !m.dryRun)",
            "rollout.metrics needs at least one metric without dryRun: nothing else could decide",
        ),
        ("self.interval.matches('[1-9]')", "rollout.interval must be above 0, such as 1m"),
        (
            "!self.metrics.exists(m, m.name == 'mirrorScore') || self.mirror.percent > 0",
            "rollout.metrics has mirrorScore, and nothing is mirrored: set rollout.mirror.percent, such as 5",
        ),
    )

    steps: Annotated[list[Annotated[int, Field(ge=1, le=99)]], Field(min_length=1, max_length=20)] = [5, 25, 50]
    """Shares of the traffic, rising."""
    initial_delay: Duration = "0s"
    """The candidate's first requests are not judged for so long after the first step began: its caches are cold."""
    interval: Duration = "1m"
    """How often the evidence is looked at. Looking often raises no false alarms."""
    failure_limit: Annotated[int, Field(ge=0, le=1000)] = 0
    """Looks with a harmful verdict that are borne; one more rolls back."""
    consecutive_error_limit: Annotated[int, Field(ge=0, le=1000)] = 4
    """Looks in a row at which no gateway had counts that are borne; one more rolls back, as nobody watches."""
    step_duration: Duration = "10m"
    """The least time on one step; a step also needs a verdict that no metric is harmful."""
    min_requests: Annotated[int, Field(ge=1, le=10_000_000)] = 50
    """Requests the candidate must have answered on a step before the next."""
    deadline: Duration = "4h"
    on_inconclusive: Literal["pause", "rollback"] = "pause"
    metrics: Annotated[
        list[RolloutMetric], Field(min_length=1, max_length=16, json_schema_extra={"x-list-map-keys": ["name"]})
    ] = [
        RolloutMetric(name=MetricName.ERROR_RATE, tolerance=0.02),
        RolloutMetric(name=MetricName.TTFT_P95, tolerance=0.5),
        RolloutMetric(name=MetricName.OUTPUT_LENGTH, tolerance=0.3),
    ]
    confidence: Annotated[float, Field(ge=0.8, le=0.9999)] = 0.95
    mirror: Mirror = Mirror()
    analysis: Analysis = Analysis()
    sticky: bool = True
    manual_gate: bool = False
    rollback_window: Duration = "5m"
    """How long the former stable's pods stay after a promotion, so that going back is instant."""


TokenPrice = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,6}(\.[0-9]{1,6})?$", max_length=13)]
"""An amount of money for a million tokens, as decimal text."""


class TokenPrices(Contract):
    """What a million tokens cost, in the currency of the chart's price table."""

    prompt: TokenPrice
    output: TokenPrice


class VersionTokenPrices(TokenPrices):
    """The prices of one version, where they are its own."""

    model_version: ObjectName


class Costs(Contract):
    """What a request costs, for metrics, records and `costP95`. Without token prices it is its share of the machine:
    the chart's price of `hardware`, for as long as the request held one of the engine's `inFlightPerReplica` places."""

    tokens: TokenPrices | None = None
    versions: Annotated[
        list[VersionTokenPrices], Field(max_length=16, json_schema_extra={"x-list-map-keys": ["modelVersion"]})
    ] = []


class InferencePoolSpec(Contract):
    """Which version is wanted, on what, and how it gets there."""

    model_config = cel(
        *immutable("InferencePool", "model"),
        (
            "self.replicas.min == self.replicas.max || self.replicas.targetOngoing <= self.limits.inFlightPerReplica",
            "replicas.targetOngoing must not be above limits.inFlightPerReplica: the gateway would hold back the very "
            "requests that tell when to add an engine",
        ),
    )

    model: Name
    model_version: ObjectName
    """The ModelVersion wanted. The rollout goes there from `status.stable`; setting it back aborts."""
    hardware: ReplicaHardware = ReplicaHardware()
    replicas: Replicas = Replicas()
    engine: Engine = Engine()
    limits: ServingLimits = ServingLimits()
    costs: Costs = Costs()
    rollout: Rollout = Rollout()
    gateway: Gateway
    pod_template: PodTemplate | None = None


class ServedBase(Contract):
    """The version whose engines an adapter runs on."""

    model_version: ObjectName
    manifest_digest: Digest


class ServedVersion(Contract):
    """One version and the RayService that serves it."""

    model_version: ObjectName
    lineage: ShortText
    manifest_digest: Digest
    ray_service: ObjectName
    base: ServedBase | None = None
    """Set where the version is served as an adapter, on the engines of this other one."""
    ready: bool = False
    since: Timestamp | None = None


class Verdict(StrEnum):
    """What the evidence says of one metric."""

    HARMFUL = "harmful"
    EQUIVALENT = "equivalent"
    UNDECIDED = "undecided"


class MetricVerdict(Contract):
    """The evidence for one metric."""

    name: MetricName
    verdict: Verdict
    effect: float | None = None
    """Candidate against stable, in the unit of the metric's tolerance."""
    low: float | None = None
    high: float | None = None
    """Ends of the anytime-valid interval of the effect."""
    samples: Annotated[int, Field(ge=0)] = 0
    """Candidate's observations."""
    baseline_samples: Annotated[int, Field(ge=0)] = 0
    dry_run: bool = False
    message: ShortText = ""


class RolloutOutcome(StrEnum):
    """How the last rollout ended."""

    PROMOTED = "Promoted"
    ROLLED_BACK = "RolledBack"
    ABORTED = "Aborted"
    SUPERSEDED = "Superseded"


class RolloutRecord(Contract):
    """How one rollout ended; the last few are kept."""

    model_version: ObjectName
    lineage: ShortText
    outcome: RolloutOutcome
    started_at: Timestamp | None = None
    ended_at: Timestamp
    message: Annotated[str, StringConstraints(max_length=1024)] = ""
    verdicts: Annotated[list[MetricVerdict], Field(max_length=16)] = []


class RefusedVersion(Contract):
    """A version that was tried and refused. It is not tried again until `spec` has wanted another, or a person asks."""

    model_version: ObjectName
    manifest_digest: Digest
    reason: ShortText
    message: Text = ""


class RolloutNeeds(Contract):
    """What a rollout takes while it lasts, beside what runs without it."""

    accelerator: ShortText
    replicas: Annotated[int, Field(ge=0)]
    """Machines of the candidate, warm ones included, when it starts; 0 for an adapter on engines that run."""
    accelerators: Annotated[int, Field(ge=0)]
    """GPUs or TPU chips of those; 0 on CPU."""
    accelerators_at_most: Annotated[int, Field(ge=0)]
    """The same if the candidate grows to `replicas.max`."""
    message: ShortText = ""


class Weight(Contract):
    """A version's share of the traffic."""

    model_version: ObjectName
    percent: Annotated[int, Field(ge=0, le=100)]


class InferencePoolStatus(Contract):
    """What is known of a pool."""

    observed_generation: Annotated[int, Field(ge=0)] = 0
    conditions: Conditions = []
    stable: ServedVersion | None = None
    candidate: ServedVersion | None = None
    previous: ServedVersion | None = None
    """The former stable, kept for `rollbackWindow`."""
    weights: Annotated[list[Weight], Field(max_length=3, json_schema_extra={"x-list-map-keys": ["modelVersion"]})] = []
    step: Annotated[int, Field(ge=0)] | None = None
    step_started_at: Timestamp | None = None
    step_base_requests: Annotated[int, Field(ge=0)] = 0
    """Requests the candidate had answered when the step began: counts accumulate over a whole rollout."""
    rollout_started_at: Timestamp | None = None
    rollout_needs: RolloutNeeds | None = None
    """What the rollout takes beside what runs without it; there before it begins, and gone when it ends."""
    paused_at: Timestamp | None = None
    """Since when a person holds the rollout."""
    paused_seconds: Annotated[int, Field(ge=0)] = 0
    """How long it was held before: that time does not count towards `deadline`."""
    refused: RefusedVersion | None = None
    judged_from: Timestamp | None = None
    """The end of `initialDelay`: what was counted before is not judged. Absent without a delay."""
    analyzed_at: Timestamp | None = None
    harmful_looks: Annotated[int, Field(ge=0)] = 0
    """Looks with a harmful verdict in this rollout."""
    failed_looks: Annotated[int, Field(ge=0)] = 0
    """Looks in a row at which no gateway had counts."""
    analysis_error: ShortText = ""
    """Why the last look found no counts, or not all; empty where it found them."""
    verdicts: Annotated[list[MetricVerdict], Field(max_length=16, json_schema_extra={"x-list-map-keys": ["name"]})] = []
    history: Annotated[list[RolloutRecord], Field(max_length=10)] = []
    url: ShortText | None = None
    replicas: Annotated[int, Field(ge=0)] = 0
