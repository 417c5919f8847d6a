"""The generator, without a cluster: what is in crds/ is what the models say, bounded and small."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import Field
from sluice_contracts.base import Contract, ShortText
from sluice_contracts.crd import KINDS, Kind, SchemaError, definition, structural_schema, yaml_text

REPOSITORY = Path(__file__).parents[2]
KUBECTL_ANNOTATION_LIMIT = 262_144
"""Client-side apply copies the object into an annotation, whose size is limited."""


def nodes(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema inside a schema, with its path."""
    yield path, schema
    for name, inner in schema.get("properties", {}).items():
        yield from nodes(inner, f"{path}.{name}")
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from nodes(schema["additionalProperties"], f"{path}{{}}")


def schema_of(kind: Kind) -> dict[str, Any]:
    schema: dict[str, Any] = definition(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


def test_generated_files_are_the_ones_in_the_repository() -> None:
    check = subprocess.run(
        [sys.executable, "-m", "sluice_contracts.crd", "check", str(REPOSITORY)], capture_output=True, text=True
    )
    assert check.returncode == 0, check.stderr


def test_check_names_a_file_that_differs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sluice_contracts.crd"]
    assert subprocess.run([*command, "write", str(tmp_path)]).returncode == 0
    changed = tmp_path / "crds" / "sluice.dev_trainingruns.yaml"
    changed.write_text(changed.read_text().replace("trun", "trn"))
    check = subprocess.run([*command, "check", str(tmp_path)], capture_output=True, text=True)
    assert check.returncode == 1
    assert check.stderr.splitlines() == [
        "crds/sluice.dev_trainingruns.yaml differs from contracts/: run `make crds` and commit it"
    ]


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.name)
def test_secrets_are_named_and_never_written_down(kind: Kind) -> None:
    for path, schema in nodes(schema_of(kind)["properties"]["spec"]):
        *above, name = path.split(".")
        if schema.get("type") != "string" or "enum" in schema:
            continue
        if re.search(r"(?i)url$", name):  # the API server tries the pattern wherever it matches
            assert not re.search(schema["pattern"], "https://user:password@host/path"), path
        elif re.search(r"(?i)password|passwd|secret|token|credential|dsn|key$", name):
            assert above[-1].endswith("Ref"), f"{path} would stand in plain text"


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.name)
def test_every_string_list_and_map_is_bounded(kind: Kind) -> None:
    for path, schema in nodes(schema_of(kind)):
        if path in {".apiVersion", ".kind", ".metadata"} or "x-kubernetes-preserve-unknown-fields" in schema:
            continue
        if schema["type"] == "string" and "enum" not in schema:
            assert "maxLength" in schema, path
        if schema["type"] == "array":
            assert "maxItems" in schema, path
            assert schema["x-kubernetes-list-type"] in {"atomic", "map"}, path
        if "additionalProperties" in schema:
            assert "maxProperties" in schema, path


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.name)
def test_definitions_stay_small_enough_for_every_way_to_apply_them(kind: Kind) -> None:
    assert len(yaml_text(definition(kind))) < KUBECTL_ANNOTATION_LIMIT / 2


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.name)
def test_conditions_merge_by_type(kind: Kind) -> None:
    conditions = schema_of(kind)["properties"]["status"]["properties"]["conditions"]
    assert conditions["x-kubernetes-list-type"] == "map"
    assert conditions["x-kubernetes-list-map-keys"] == ["type"]


def test_an_unbounded_field_is_refused_by_name() -> None:
    class Unbounded(Contract):
        note: str

    with pytest.raises(SchemaError, match=r"Unbounded\.note is unbounded: give the string a max_length"):
        structural_schema(Unbounded)


def test_a_union_is_refused_by_name() -> None:
    class Either(Contract):
        value: int | ShortText

    with pytest.raises(SchemaError, match=r"Either\.value: a union of several types"):
        structural_schema(Either)


def test_a_list_map_needs_its_key_to_be_required() -> None:
    class Row(Contract):
        name: ShortText = ""

    class Table(Contract):
        rows: Annotated[list[Row], Field(max_length=3, json_schema_extra={"x-list-map-keys": ["name"]})]

    with pytest.raises(SchemaError, match=r"Table\.rows: keys of a list map must be required fields"):
        structural_schema(Table)


def test_optional_fields_are_absent_and_bounds_take_kubernetes_form() -> None:
    class Bounds(Contract):
        share: Annotated[float, Field(gt=0, lt=1)] | None = None
        count: Annotated[int, Field(ge=0)] = 3

    schema = structural_schema(Bounds)
    assert schema["properties"] == {
        "share": {
            "type": "number",
            "minimum": 0,
            "exclusiveMinimum": True,
            "maximum": 1,
            "exclusiveMaximum": True,
        },
        "count": {"type": "integer", "minimum": 0, "format": "int64", "default": 3},
    }
    assert "required" not in schema


_scalars = st.text(max_size=20) | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
_values = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)


@given(_values)
@example(1e-07)
def test_yaml_text_means_what_it_was_made_from(value: object) -> None:
    assert yaml.safe_load(yaml_text(value)) == value
