"""Names that several rooms must spell alike: API group, labels, condition types, slices of the data."""

from enum import StrEnum

GROUP = "sluice.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

LABEL_LINEAGE = f"{GROUP}/lineage"
"""The first 16 hexadecimal digits of the lineage id (a label value holds 63 characters)."""
LABEL_MODEL = f"{GROUP}/model"
LABEL_TRAINING_RUN = f"{GROUP}/training-run"
LABEL_MODEL_VERSION = f"{GROUP}/model-version"
LABEL_POOL = f"{GROUP}/inference-pool"
LABEL_COMPONENT = "app.kubernetes.io/component"
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGED_BY = "sluice"
ANNOTATION_LINEAGE = f"{GROUP}/lineage"
ANNOTATION_ROLLOUT = f"{GROUP}/rollout"
"""What a person asks of a running rollout: see `RolloutRequest`."""

FINALIZER_IN_USE = f"{GROUP}/in-use"
"""On a ModelVersion while the status of an InferencePool names it: what serves cannot be lost by deletion."""


class RolloutRequest(StrEnum):
    """Values of the rollout annotation of an InferencePool."""

    APPROVE = "approve"
    PAUSE = "pause"
    ABORT = "abort"
    RETRY = "retry"


class ConditionType(StrEnum):
    """Condition types in use. Ready, Reconciling and Stalled have kstatus's meaning."""

    READY = "Ready"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"
    AVAILABLE = "Available"
    """Of an InferencePool: requests are answered, by whichever version. Ready also wants that version to be spec's."""
    DEGRADED = "Degraded"
    """Of an InferencePool: it serves less, or something else, than its spec asks for; the message says why."""
    ROUTE_ACCEPTED = "RouteAccepted"
    """Of an InferencePool with `gateway.route`: its HTTPRoute is there, and the Gateways it names have taken it."""
    FALLBACK_READY = "FallbackReady"
    """Of an InferencePool with `gateway.fallback` model or templates: they can answer; the message says what cannot."""
    EVALUATED = "Evaluated"
    EXPORTED = "Exported"
    VERIFIED = "Verified"
    PROMOTED = "Promoted"
    PUBLISHED = "Published"
    RETAINED = "Retained"
    """Of a ModelVersion with `retention`: its files are kept; the message says why, and until when."""


class Domain(StrEnum):
    """The subject of a request. Closed: a device's signal can say nothing else."""

    HEALTHCARE = "healthcare"
    BUSINESS = "business"
    EDUCATION = "education"
    CREATIVE = "creative"
    LEADERSHIP = "leadership"
    GENERAL = "general"


class Task(StrEnum):
    """The form of a request. Closed, as `Domain`."""

    INTENT = "intent"
    QUESTION = "question"
    SAFETY = "safety"
    INSTRUCTION = "instruction"
    RECALL = "recall"


class Suite(StrEnum):
    """The held-out evaluation suites."""

    INTENT = "intent"
    GROUNDING = "grounding"
    SAFETY = "safety"
    INSTRUCTION = "instruction"


class Quantization(StrEnum):
    """GGUF types that are exported for devices."""

    Q8_0 = "Q8_0"
    Q6_K = "Q6_K"
    Q5_K_M = "Q5_K_M"
    Q4_K_M = "Q4_K_M"
