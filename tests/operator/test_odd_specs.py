"""Whatever a spec says, it is decided: what the definitions let through, and what should never have come past them.

Specs are made from the definitions' own schemas, then broken. The rules between fields (CEL) are not applied here, on
purpose: a plan must not rely on them.
"""

import json
import re
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sluice_contracts.crd import KINDS, Kind, definition
from sluice_contracts.engine_arguments import ARGUMENTS
from sluice_contracts.inference_pool import InferencePoolSpec, InferencePoolStatus
from sluice_contracts.model_version import ModelVersionSpec, ModelVersionStatus
from sluice_contracts.names import API_VERSION
from sluice_contracts.training_run import ManifestReference, TrainingRunSpec, TrainingRunStatus
from sluice_operator.artifacts import Artifacts, Problem
from sluice_operator.children.pods import overlay
from sluice_operator.children.rayservice import Version
from sluice_operator.engine.cache import Cache
from sluice_operator.inference_pool.engine_state import EngineState
from sluice_operator.inference_pool.observe import GatewayState, VersionState
from sluice_operator.inference_pool.observe import Observed as ObservedPool
from sluice_operator.inference_pool.plan import plan as plan_pool
from sluice_operator.kinds import World, deciders, references
from sluice_operator.kube.resources import INFERENCE_POOL, MODEL_VERSION, TRAINING_RUN, Resource
from sluice_operator.plan import Plan
from sluice_operator.training_run.observe import Inputs
from sluice_operator.training_run.observe import Observed as ObservedRun
from sluice_operator.training_run.plan import plan as plan_run

Schema = dict[str, Any]
RESOURCES = {"TrainingRun": TRAINING_RUN, "ModelVersion": MODEL_VERSION, "InferencePool": INFERENCE_POOL}
SPECS = {"TrainingRun": TrainingRunSpec, "ModelVersion": ModelVersionSpec, "InferencePool": InferencePoolSpec}
STATUSES = {
    "TrainingRun": TrainingRunStatus,
    "ModelVersion": ModelVersionStatus,
    "InferencePool": InferencePoolStatus,
}
SCHEMAS: dict[str, Schema] = {
    kind.name: definition(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    for kind in KINDS
}
LINEAGE = "a" * 64
quick = settings(
    max_examples=40,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking a whole spec takes minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)

POD_WORDS = ["metadata", "labels", "spec", "containers", "volumes", "env", "name", "image", "ray-head", "tmp", "value"]
scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(-1e9, 1e9) | st.text(max_size=9)
junk = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(POD_WORDS) | st.text(max_size=5), inner)
    ),
    max_leaves=8,
)
overlays = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(POD_WORDS), inner, max_size=4),
    max_leaves=12,
)


def values(schema: Schema) -> st.SearchStrategy[Any]:
    """What `schema` allows, each field by itself."""
    if "x-kubernetes-preserve-unknown-fields" in schema:
        return st.dictionaries(st.sampled_from(POD_WORDS), overlays, max_size=3)
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    match schema["type"]:
        case "boolean":
            return st.booleans()
        case "integer":
            return st.integers(schema.get("minimum", -(2**63)), schema.get("maximum", 2**63 - 1))
        case "number":
            return st.floats(
                schema.get("minimum"),
                schema.get("maximum"),
                exclude_min=schema.get("exclusiveMinimum", False),
                allow_nan=False,
                allow_infinity=False,
            )
        case "string":
            return texts(schema)
        case "array":
            most = min(4, schema["maxItems"])
            return st.lists(values(schema["items"]), min_size=schema.get("minItems", 0), max_size=most)
        case _:
            return objects(schema)


def texts(schema: Schema) -> st.SearchStrategy[str]:
    if "pattern" not in schema:
        return st.text(min_size=schema.get("minLength", 0), max_size=min(40, schema["maxLength"]))
    pattern = re.compile(schema["pattern"].removesuffix("$") + r"\Z")
    made = st.from_regex(pattern, alphabet=st.characters(codec="ascii"))
    return made.filter(lambda text: schema.get("minLength", 0) <= len(text) <= schema["maxLength"])


def objects(schema: Schema) -> st.SearchStrategy[dict[str, Any]]:
    if "additionalProperties" in schema:
        return st.dictionaries(st.text(max_size=9), values(schema["additionalProperties"]), max_size=3)
    fields = {name: values(inner) for name, inner in schema["properties"].items()}
    required = set(schema.get("required", ()))
    optional = {name: made for name, made in fields.items() if name not in required}
    return st.fixed_dictionaries({name: fields[name] for name in sorted(required)}, optional=optional)


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every part of `value` but itself."""
    found = [path] if path else []
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in parts:
        found += paths(inner, (*path, name))
    return found


@st.composite
def broken(draw: st.DrawFn, kind: str) -> Any:
    """A spec with one part replaced by anything at all, or anything at all."""
    spec = draw(values(SCHEMAS[kind]) | junk)
    where = paths(spec)
    if where and draw(st.booleans()):
        *folders, last = draw(st.sampled_from(where))
        inner = spec
        for name in folders:
            inner = inner[name]
        inner[last] = draw(junk)
    return spec


@st.composite
def pools(draw: st.DrawFn) -> dict[str, Any]:
    """A spec of an InferencePool that the schema and the rules between its fields allow."""
    spec: dict[str, Any] = draw(values(SCHEMAS["InferencePool"]))
    if "args" in spec.get("engine", {}):
        names = draw(st.lists(st.sampled_from(sorted(ARGUMENTS)), max_size=3, unique=True))
        spec["engine"]["args"] = {name: draw(st.from_regex(ARGUMENTS[name], fullmatch=True)) for name in names}
    try:
        InferencePoolSpec.model_validate(spec)
    except ValidationError as error:
        # Rules between fields are the API server's (CEL); where Python has them too, they are not what is tried here.
        assume(any(one["type"] != "value_error" for one in error.errors()))
    return spec


class EmptyBucket(Artifacts):
    """Storage in which nothing is found."""

    async def _call(self, function: Any) -> Any:
        return Problem("NotFound", "there is nothing")


class BareServer:
    """An API server without any kind that a cluster need not have."""

    async def knows(self, resource: Resource) -> bool:
        return False


def thing(kind: str, spec: Any, status: Any = None) -> dict[str, Any]:
    meta = {"name": "odd", "namespace": "support", "uid": "u", "generation": 2, "resourceVersion": "1"}
    made = {"apiVersion": API_VERSION, "kind": kind, "metadata": meta, "spec": spec}
    return made if status is None else made | {"status": status}


async def decided(make: Any, kind: str, obj: dict[str, Any]) -> Plan:
    resource: Resource = RESOURCES[kind]
    cache = Cache(references)
    cache.upsert(resource, obj)
    nobody = cast(Any, None)  # nothing is asked of a gateway for an object without children
    world = World(cache, cast(Any, BareServer()), EmptyBucket(), nobody, make.settings(), lambda: make.now)
    return await deciders(world)[resource](obj)


def conditions(kind: str, made: Plan) -> dict[str, Any]:
    """The conditions of a plan, once its status is found to be one that the API server takes."""
    assert made.status is not None
    status: Any = STATUSES[kind].model_validate(made.status)
    assert status.observed_generation in {0, 1, 2}
    return {c.type: c for c in status.conditions}


def applied(made: Plan) -> None:
    """All that is applied is JSON with a name."""
    for apply in made.apply:
        assert json.loads(json.dumps(apply.object, allow_nan=False))["metadata"]["name"]


@pytest.mark.parametrize("kind", RESOURCES)
@quick
@given(data=st.data())
async def test_any_spec_is_decided_and_a_wrong_one_is_stalled(make: Any, kind: str, data: st.DataObject) -> None:
    spec = data.draw(broken(kind))
    found = conditions(kind, made := await decided(make, kind, thing(kind, spec)))
    applied(made)
    try:
        SPECS[kind].model_validate(spec or {})
    except ValidationError:
        assert (found["Stalled"].status, found["Stalled"].reason) == ("True", "InvalidSpec")
        assert found["Ready"].status == "False"
        assert made.apply == made.delete == []
        assert [event.reason for event in made.events] == ["InvalidSpec"]
    else:
        assert found["Ready"].reason != "InvalidSpec"


async def test_an_engine_argument_that_is_not_passed_on_is_told_by_its_name(make: Any) -> None:
    spec = make.pool_spec().wire() | {"engine": {"args": {"worker-cls": "mine.Worker"}}}
    found = conditions("InferencePool", await decided(make, "InferencePool", thing("InferencePool", spec)))
    assert found["Stalled"].message.startswith("spec.engine.args: engine argument 'worker-cls' is not one that a pool")
    assert "upgrade the chart" not in found["Stalled"].message, "the versions are not to blame"


@quick
@given(spec=values(SCHEMAS["TrainingRun"]))
def test_a_run_is_planned_or_its_hardware_is_refused(make: Any, spec: dict[str, Any]) -> None:
    parsed = TrainingRunSpec.model_validate(spec | {"suspend": False})
    observed = ObservedRun(status=TrainingRunStatus(), inputs=Inputs(LINEAGE, "c0ffee"))
    made = plan_run(make.meta("run"), parsed, observed, make.settings(), make.now)
    found = conditions("TrainingRun", made)
    applied(made)
    started = any(apply.resource.kind == "RayJob" for apply in made.apply)
    assert started != (found["Stalled"].status == "True"), found["Stalled"]
    if not started:
        assert found["Stalled"].reason in {"InvalidHardware", "PriceUnknown"}
        assert re.match(r"(spec\.)?(hardware|limits)\.", found["Stalled"].message)


@quick
@given(spec=pools(), ready=st.booleans())
def test_a_pool_is_planned_or_its_hardware_is_refused(make: Any, spec: dict[str, Any], ready: bool) -> None:
    parsed = InferencePoolSpec.model_validate(spec)
    manifest = ManifestReference(uri="gs://bucket/manifest.json", digest=make.digest)
    version = Version(parsed.model_version, parsed.model, LINEAGE, manifest)
    status = InferencePoolStatus()
    for _ in range(3):
        engines = {}
        if status.stable is not None:
            engines[status.stable.ray_service] = EngineState(name=status.stable.ray_service, ready=ready)
        observed = ObservedPool(
            status=status,
            versions={parsed.model_version: VersionState(version)},
            engines=engines,
            gateway=GatewayState(ready=1),
        )
        made = plan_pool(make.meta("pool"), parsed, observed, make.settings(), make.now)
        found = conditions("InferencePool", made)
        applied(made)
        status = InferencePoolStatus.model_validate(made.status)
        if found["Stalled"].status == "True":
            assert found["Stalled"].reason == "InvalidHardware"
            assert re.search(r"spec\.(hardware|engine)\.", found["Stalled"].message)


@quick
@given(obj=st.fixed_dictionaries({"spec": junk, "status": junk}), kind=st.sampled_from(KINDS))
def test_who_names_whom_is_found_in_anything(obj: dict[str, Any], kind: Kind) -> None:
    whole = thing(kind.name, obj["spec"], obj["status"])
    assert all(isinstance(key.name, str) for key in references(RESOURCES[kind.name], whole))


async def test_what_was_known_outlives_a_spec_that_does_not_read(make: Any) -> None:
    served = {"modelVersion": "v1", "lineage": LINEAGE, "manifestDigest": make.digest, "rayService": "pool-1"}
    available = {"type": "Available", "status": "True", "reason": "Serving", "lastTransitionTime": make.at(0)}
    status = {"stable": served, "conditions": [available], "observedGeneration": 1}
    first = await decided(make, "InferencePool", thing("InferencePool", {"fromTheFuture": 1}, status))
    found = conditions("InferencePool", first)
    assert first.status is not None
    assert first.status["stable"]["modelVersion"] == "v1"
    assert found["Available"].status == "True"
    assert found["Stalled"].message.startswith("spec.")
    assert "upgrade the chart" in found["Stalled"].message
    again = await decided(make, "InferencePool", thing("InferencePool", {"fromTheFuture": 1}, first.status))
    assert again.status == first.status
    assert again.events == []


RUN = {
    "model": "support-bot",
    "dataset": {"uri": "gs://bucket/data", "digest": "sha256:" + "0" * 64},
    "recipe": {"method": "sft", "steps": 1},
}


async def test_a_base_that_names_nothing_is_stalled(make: Any) -> None:
    found = conditions("TrainingRun", await decided(make, "TrainingRun", thing("TrainingRun", RUN | {"base": {}})))
    assert (found["Stalled"].status, found["Stalled"].reason) == ("True", "InvalidBase")


async def test_a_pools_table_is_written_whatever_its_patience(make: Any) -> None:
    spec = make.pool_spec(limits={"queueTimeout": "0s"}).wire()
    made = await decided(make, "InferencePool", thing("InferencePool", spec))
    assert any(apply.object["metadata"]["name"] == "odd-routes" for apply in made.apply)


def test_a_pod_template_of_the_wrong_form_is_left_to_the_api_server_to_refuse() -> None:
    template = {"spec": {"containers": [{"name": "main"}]}}
    odd = {"spec": {"containers": ["what", {"name": "main", "image": "a"}, {"name": 7}, None]}}
    assert overlay(template, odd)["spec"]["containers"] == [{"name": "main", "image": "a"}, "what", {"name": 7}, None]
