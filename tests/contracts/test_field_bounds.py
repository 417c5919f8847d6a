"""Every bound of every field of the three specs: the real API server refuses a value beyond it and names the field.

Derived from the definitions themselves, so a new field is tested when it is there.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from sluice_contracts.crd import KINDS, Kind, definition
from sluice_contracts.names import API_VERSION

Schema = dict[str, Any]


@dataclass(frozen=True)
class Bad:
    """One value beyond one bound."""

    kind: Kind
    path: tuple[str, ...]
    bound: str
    value: Any
    said: str
    """What the refusal must contain, besides the field."""

    def __str__(self) -> str:
        return f"{self.kind.name}-{'.'.join(self.path)}-{self.bound}"

    def manifest(self) -> dict[str, Any]:
        """An object that has this field and nothing else. What it lacks is complained of as well, which does no harm:
        the API server names everything that is wrong with the fields."""
        value = copy.deepcopy(self.value)
        for name in reversed(self.path[1:]):
            value = [value] if name == "[]" else {name: value}
        meta = {"name": "bad", "namespace": "support"}
        return {"apiVersion": API_VERSION, "kind": self.kind.name, "metadata": meta, "spec": value}

    def field(self) -> str:
        """The field as the API server writes it."""
        return ".".join(self.path).replace(".[]", "[0]")


def bounds(kind: Kind, schema: Schema, path: tuple[str, ...]) -> Iterator[Bad]:
    """A value beyond each bound of `schema` and of everything in it."""

    def bad(bound: str, value: Any, said: str) -> Bad:
        return Bad(kind, path, bound, value, said)

    if "x-kubernetes-preserve-unknown-fields" in schema:
        yield bad("type", "text", "must be of type object")
        return
    yield bad("type", 7 if schema["type"] in {"string", "array", "object"} else "text", f"of type {schema['type']}")
    if "enum" in schema:
        names = ", ".join(f'"{value}"' for value in schema["enum"])
        yield bad("enum", "none-of-these", f'Unsupported value: "none-of-these": supported values: {names}')
    if "pattern" in schema:
        yield bad("pattern", "\n" * schema.get("minLength", 1), f"should match '{schema['pattern']}'")
    if "maxLength" in schema:
        yield bad("maxLength", "a" * (schema["maxLength"] + 1), f"may not be more than {schema['maxLength']} ")
    if "minLength" in schema:
        yield bad("minLength", "a" * (schema["minLength"] - 1), f"should be at least {schema['minLength']} chars long")
    if "minimum" in schema:
        than = "greater than" if schema.get("exclusiveMinimum") else "greater than or equal to"
        below = schema["minimum"] if schema.get("exclusiveMinimum") else schema["minimum"] - 1
        yield bad("minimum", below, f"should be {than} {schema['minimum']}")
    if "maximum" in schema:
        yield bad("maximum", schema["maximum"] + 1, f"should be less than or equal to {_written(schema['maximum'])}")
    if "minItems" in schema:
        yield bad("minItems", [], f"should have at least {schema['minItems']} items")
    if "maxItems" in schema:
        many = [{} if schema["items"]["type"] == "object" else "a"] * (schema["maxItems"] + 1)
        yield bad("maxItems", many, f"must have at most {schema['maxItems']} items")
    if "maxProperties" in schema:
        many = {f"key{n}": "a" for n in range(schema["maxProperties"] + 1)}
        yield bad("maxProperties", many, f"must have at most {schema['maxProperties']} ")
    for name in schema.get("required", ()):
        yield Bad(kind, (*path, name), "required", None, "Required value")
    for name, inner in schema.get("properties", {}).items():
        yield from bounds(kind, inner, (*path, name))
    if "items" in schema:
        yield from bounds(kind, schema["items"], (*path, "[]"))


def _written(number: float) -> str:
    return str(number)


BAD = [
    bad
    for kind in KINDS
    for bad in bounds(
        kind, definition(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"], ("spec",)
    )
]


@pytest.mark.apiserver
@pytest.mark.parametrize("bad", BAD, ids=str)
def test_a_value_beyond_a_bound_is_refused_by_name(api: Any, bad: Bad) -> None:
    manifest = bad.manifest()
    if bad.bound == "required":
        _remove(manifest, bad.path)
    said = api.refusal(manifest)
    assert bad.field() in said
    assert bad.said in said


def _remove(manifest: dict[str, Any], path: tuple[str, ...]) -> None:
    inner: Any = manifest
    for name in path[:-1]:
        inner = inner[0] if name == "[]" else inner[name]
    del inner[path[-1]]


def test_all_kinds_and_bounds_are_among_them() -> None:
    found = {(bad.kind.name, bad.bound) for bad in BAD}
    everywhere = {"type", "pattern", "maxLength", "required", "minimum", "maximum", "minItems", "maxItems"}
    missing = {(kind.name, bound) for kind in KINDS for bound in everywhere} - found
    assert not missing
    assert {bound for _, bound in found} >= everywhere | {"enum", "minLength", "maxProperties"}
