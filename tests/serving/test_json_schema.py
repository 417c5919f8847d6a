"""The bounded check says what the general validator says, and never takes long."""

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from sluice_serving.gateway.json_schema import STEPS, Undecided, conforms

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 6)
    | st.sampled_from([0.5, 1.0, 2.5])
    | st.sampled_from(["", "a", "abc"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)
TYPES = st.sampled_from(["null", "boolean", "integer", "number", "string", "array", "object"])
SMALL = st.integers(0, 3)


def schemas() -> st.SearchStrategy[Any]:
    def grow(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        many = st.lists(inner, min_size=1, max_size=3)
        return st.fixed_dictionaries(
            {},
            optional={
                "type": TYPES | st.lists(TYPES, min_size=1, max_size=2, unique=True),
                "properties": st.dictionaries(st.sampled_from("abc"), inner, max_size=2),
                "required": st.lists(st.sampled_from("abc"), max_size=2, unique=True),
                "additionalProperties": inner,
                "items": inner,
                "prefixItems": many,
                "anyOf": many,
                "oneOf": many,
                "allOf": many,
                "not": inner,
                "if": inner,
                "then": inner,
                "else": inner,
                "title": st.just("a word that forbids nothing"),
            },
        )

    leaf = st.booleans() | st.fixed_dictionaries(
        {},
        optional={
            "type": TYPES,
            "enum": st.lists(VALUES, min_size=1, max_size=3),
            "const": VALUES,
            "minimum": SMALL,
            "exclusiveMaximum": SMALL,
            "maximum": SMALL,
            "exclusiveMinimum": SMALL,
            "multipleOf": st.sampled_from([1, 2, 0.5]),
            "minLength": SMALL,
            "maxLength": SMALL,
            "minItems": SMALL,
            "maxItems": SMALL,
            "minProperties": SMALL,
            "maxProperties": SMALL,
        },
    )
    return st.recursive(leaf, grow, max_leaves=6)


@settings(max_examples=150, deadline=None)
@given(schemas(), VALUES)
def test_it_agrees_with_the_general_validator(schema: Any, value: Any) -> None:
    assert conforms(value, schema) == Draft202012Validator(schema).is_valid(value)


TREE = {
    "$defs": {
        "node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}, "v": {"type": "integer"}},
                 "required": ["v"]}
    },
    "$ref": "#/$defs/node",
}  # fmt: skip


def test_references_inside_the_schema_are_followed() -> None:
    assert conforms({"v": 1, "next": {"v": 2}}, TREE)
    assert not conforms({"v": 1, "next": {"v": "two"}}, TREE)
    assert conforms("x", {"$defs": {"a/b~c": {"const": "x"}}, "$ref": "#/$defs/a~1b~0c"})


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "https://example.com/schema.json"},
        {"$ref": "#/$defs/none"},
        {"$ref": "#"},
        {"patternProperties": {"(a+)+$": True}},
        {"type": "text"},
        {"required": "a"},
        {"minimum": "1"},
        {"multipleOf": 0},
        {"items": [True]},
        "no schema",
    ],
)
def test_what_is_not_understood_gets_no_verdict(schema: Any) -> None:
    with pytest.raises(Undecided):
        conforms(["a"] if schema == {"items": [True]} else {"a": 1}, schema)


def test_a_schema_made_to_be_slow_is_given_up_soon() -> None:
    wide = {f"s{i}": {"anyOf": [{"$ref": f"#/$defs/s{i + 1}"}] * 2} for i in range(20)}
    began = time.process_time()
    with pytest.raises(Undecided, match="too many steps"):
        conforms(1, {"$defs": {**wide, "s20": False}, "$ref": "#/$defs/s0"})
    with pytest.raises(Undecided, match="too many steps"):
        conforms(list(range(STEPS)), {"items": {"type": "integer"}})
    assert time.process_time() - began < 2
    assert conforms("a" * 50 + "!", {"pattern": "^(a+)+$"}), "patterns are not looked at: their cost has no bound"
