"""The three kinds as the command line sees them: typed spec and status, parsed from what the API server returned."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pydantic import ValidationError
from sluice_contracts.base import Contract
from sluice_contracts.inference_pool import InferencePoolSpec, InferencePoolStatus
from sluice_contracts.kubernetes import Condition
from sluice_contracts.model_version import ModelVersionSpec, ModelVersionStatus
from sluice_contracts.names import ConditionType
from sluice_contracts.training_run import TrainingRunSpec, TrainingRunStatus

from sluice_operator.cli.errors import CliError
from sluice_operator.kube.resources import INFERENCE_POOL, MODEL_VERSION, OWN, TRAINING_RUN, Resource

Spec = TypeVar("Spec", bound=Contract)
Status = TypeVar("Status", bound=Contract)
Json = Mapping[str, Any]


@dataclass(frozen=True)
class Object(Generic[Spec, Status]):
    """One object of ours: the metadata that matters here, and its two halves."""

    resource: Resource
    namespace: str
    name: str
    generation: int
    spec: Spec
    status: Status
    observed_generation: int = 0
    """The generation the operator last looked at; 0 if it never did."""
    conditions: tuple[Condition, ...] = ()
    created: str = ""
    deleting: bool = False
    annotations: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.resource.kind} {self.name}"


Run = Object[TrainingRunSpec, TrainingRunStatus]
Version = Object[ModelVersionSpec, ModelVersionStatus]
Pool = Object[InferencePoolSpec, InferencePoolStatus]
AnyObject = Run | Version | Pool

SHORT = {TRAINING_RUN: "trun", MODEL_VERSION: "mver", INFERENCE_POOL: "ipool"}


def run_of(obj: Json) -> Run:
    """A TrainingRun. Raises CliError if another version of Sluice wrote it."""
    return _parsed(TRAINING_RUN, obj, TrainingRunSpec, TrainingRunStatus)


def version_of(obj: Json) -> Version:
    """A ModelVersion. Raises CliError if another version of Sluice wrote it."""
    return _parsed(MODEL_VERSION, obj, ModelVersionSpec, ModelVersionStatus)


def pool_of(obj: Json) -> Pool:
    """An InferencePool. Raises CliError if another version of Sluice wrote it."""
    return _parsed(INFERENCE_POOL, obj, InferencePoolSpec, InferencePoolStatus)


def parse(resource: Resource, obj: Json) -> AnyObject:
    """The object as its kind. Raises CliError if another version of Sluice wrote it."""
    if resource == TRAINING_RUN:
        return run_of(obj)
    return version_of(obj) if resource == MODEL_VERSION else pool_of(obj)


def kind_named(text: str) -> Resource:
    """The kind a person means: `TrainingRun`, `trainingruns`, `trun`, `run`, … in any case. Raises CliError."""
    word = text.lower().removesuffix(".sluice.dev")
    for resource in OWN:
        names = {resource.kind.lower(), resource.plural, SHORT[resource], SHORT[resource][1:]}
        if resource is MODEL_VERSION:
            names.add("version")
        if word in names:
            return resource
    known = ", ".join(f"{r.kind} ({SHORT[r]})" for r in OWN)
    raise CliError(f"there is no kind {text!r}; the kinds are {known}")


def condition(conditions: Iterable[Condition], type_: ConditionType) -> Condition | None:
    """The condition of that type, if it is there."""
    return next((c for c in conditions if c.type == type_), None)


def holds(conditions: Iterable[Condition], type_: ConditionType) -> bool:
    """Whether the condition is there and True."""
    found = condition(conditions, type_)
    return found is not None and found.status == "True"


def _parsed(resource: Resource, obj: Json, spec: type[Spec], status: type[Status]) -> Object[Spec, Status]:
    meta = obj["metadata"]
    try:
        found = status.model_validate(obj.get("status") or {})
        return Object(
            resource=resource,
            namespace=meta.get("namespace", ""),
            name=meta["name"],
            generation=meta.get("generation", 0),
            spec=spec.model_validate(obj.get("spec") or {}),
            status=found,
            observed_generation=getattr(found, "observed_generation", 0),
            conditions=tuple(getattr(found, "conditions", ())),
            created=meta.get("creationTimestamp") or "",
            deleting="deletionTimestamp" in meta,
            annotations=meta.get("annotations") or {},
        )
    except ValidationError as error:
        detail = error.errors()[0]
        where = ".".join(map(str, detail["loc"])) or "object"
        raise CliError(
            f"cannot read {resource.kind} {meta['name']}: {where}: {detail['msg']}; "
            "the cluster's operator and this command are of different versions: install the same"
        ) from None
