"""Whether a JSON value obeys a JSON Schema, in bounded time. Pure.

The schema and the value come from outside, and the check runs where requests are served; so no work may grow without a
bound. A general validator cannot promise that: a regular expression, or a tree of alternatives that refer to
each other, costs as much as its author likes. Here every step is counted, `pattern` and `format` are not looked at, and
a schema with words that are not known gets no verdict rather than a wrong one.

Semantics: JSON Schema 2020-12, core and validation vocabularies (json-schema.org/draft/2020-12); tests compare them
with the `jsonschema` package.
"""

from collections.abc import Callable, Mapping
from typing import Any

STEPS = 20_000
"""Comparisons in one check: about 10 ms."""
DEPTH = 64

IGNORED = frozenset(
    {
        *("$schema", "$id", "$comment", "$defs", "definitions", "title", "description", "default", "examples"),
        *("deprecated", "readOnly", "writeOnly", "format", "pattern", "contentEncoding", "contentMediaType", "strict"),
    }
)
"""Words that forbid nothing, and the two that are not looked at."""


class Undecided(Exception):
    """The schema says something that is not understood here, or the check takes too long."""


def conforms(value: Any, schema: Any, steps: int = STEPS) -> bool:
    """Whether `value` obeys `schema`. Raises Undecided."""
    return _Check(schema, steps).obeys(value, schema, 0)


class _Check:
    def __init__(self, root: Any, steps: int) -> None:
        self.root, self.left = root, steps

    def step(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Undecided("the check takes too many steps")

    def obeys(self, value: Any, schema: Any, depth: int) -> bool:
        self.step()
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict) or depth > DEPTH:
            raise Undecided("no schema, or one nested too deeply")
        if unknown := schema.keys() - IGNORED - KEYWORDS.keys() - HELPERS:
            raise Undecided(f"the schema has {min(unknown, key=str)!r}")
        return all(KEYWORDS[word](self, value, schema, depth + 1) for word in schema if word in KEYWORDS)

    # -- words for any value ------------------------------------------------------------------------------------------

    def reference(self, value: Any, schema: Mapping[str, Any], depth: int) -> bool:
        return self.obeys(value, self._target(schema["$ref"]), depth)

    def _target(self, pointer: Any) -> Any:
        """What a reference inside the schema names; others are never fetched."""
        if not isinstance(pointer, str) or (pointer != "#" and not pointer.startswith("#/")):
            raise Undecided("the schema refers to another document")
        found = self.root
        for part in pointer[2:].split("/") if pointer != "#" else []:
            self.step()
            name = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, dict) and name in found:
                found = found[name]
            else:
                raise Undecided("the schema refers to a part that it does not have")
        return found

    def types(self, value: Any, schema: Mapping[str, Any], _: int) -> bool:
        wanted = schema["type"]
        names = wanted if isinstance(wanted, list) else [wanted]
        if not names or any(not isinstance(name, str) or name not in TYPES for name in names):
            raise Undecided("the schema names an unknown type")
        return any(TYPES[name](value) for name in names)

    def enum(self, value: Any, schema: Mapping[str, Any], depth: int) -> bool:
        choices = schema["enum"]
        if not isinstance(choices, list):
            raise Undecided("enum is no list")
        return any(self.same(value, choice, depth) for choice in choices)

    def const(self, value: Any, schema: Mapping[str, Any], depth: int) -> bool:
        return self.same(value, schema["const"], depth)

    def same(self, a: Any, b: Any, depth: int) -> bool:
        """Equal as JSON: 1 is 1.0, and true is not 1."""
        self.step()
        if depth > DEPTH:
            raise Undecided("values nested too deeply")
        if isinstance(a, list) and isinstance(b, list):
            return len(a) == len(b) and all(self.same(x, y, depth + 1) for x, y in zip(a, b, strict=True))
        if isinstance(a, dict) and isinstance(b, dict):
            return a.keys() == b.keys() and all(self.same(a[key], b[key], depth + 1) for key in a)
        return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)

    # -- alternatives -------------------------------------------------------------------------------------------------

    def all_of(self, value: Any, schema: Mapping[str, Any], depth: int) -> bool:
        return all(self.obeys(value, one, depth) for one in _list(schema, "allOf"))

    def any_of(self, value: Any, schema: Mapping[str, Any], depth: int) -> bool:
        return any(self.obeys(value, one, depth) for one in _list(schema, "anyOf"))

    def one_of(self, value: Any, schema: Mapping[str, Any], depth: int) -> bool:
        return sum(self.obeys(value, one, depth) for one in _list(schema, "oneOf")) == 1

    def none_of(self, value: Any, schema: Mapping[str, Any], depth: int) -> bool:
        return not self.obeys(value, schema["not"], depth)

    def if_then(self, value: Any, schema: Mapping[str, Any], depth: int) -> bool:
        branch = "then" if self.obeys(value, schema["if"], depth) else "else"
        return branch not in schema or self.obeys(value, schema[branch], depth)

    # -- numbers and text ---------------------------------------------------------------------------------------------

    def multiple(self, value: Any, schema: Mapping[str, Any], _: int) -> bool:
        by = _number(schema, "multipleOf")
        if by <= 0:
            raise Undecided("multipleOf is not above 0")
        if not _is_number(value):
            return True
        if isinstance(value, int) and isinstance(by, int):
            return value % by == 0
        return (value / by).is_integer() if abs(value) < 1e300 else True

    # -- lists --------------------------------------------------------------------------------------------------------

    def prefix(self, value: Any, schema: Mapping[str, Any], depth: int) -> bool:
        parts = _list(schema, "prefixItems")
        return not isinstance(value, list) or all(self.obeys(v, p, depth) for v, p in zip(value, parts, strict=False))

    def items(self, value: Any, schema: Mapping[str, Any], depth: int) -> bool:
        rest = len(schema["prefixItems"]) if isinstance(schema.get("prefixItems"), list) else 0
        return not isinstance(value, list) or all(self.obeys(v, schema["items"], depth) for v in value[rest:])

    # -- objects ------------------------------------------------------------------------------------------------------

    def properties(self, value: Any, schema: Mapping[str, Any], depth: int) -> bool:
        parts = _object(schema, "properties")
        return not isinstance(value, dict) or all(
            self.obeys(value[name], part, depth) for name, part in parts.items() if name in value
        )

    def additional(self, value: Any, schema: Mapping[str, Any], depth: int) -> bool:
        named = schema.get("properties", {})
        return not isinstance(value, dict) or all(
            self.obeys(inner, schema["additionalProperties"], depth)
            for name, inner in value.items()
            if name not in named
        )

    def required(self, value: Any, schema: Mapping[str, Any], _: int) -> bool:
        names = _list(schema, "required")
        return not isinstance(value, dict) or all(name in value for name in names)


def _list(schema: Mapping[str, Any], word: str) -> list[Any]:
    found = schema[word]
    if not isinstance(found, list):
        raise Undecided(f"{word} is no list")
    return found


def _object(schema: Mapping[str, Any], word: str) -> dict[str, Any]:
    found = schema[word]
    if not isinstance(found, dict):
        raise Undecided(f"{word} is no object")
    return found


def _number(schema: Mapping[str, Any], word: str) -> Any:
    found = schema[word]
    if not _is_number(found):
        raise Undecided(f"{word} is no number")
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_integer(value: Any) -> bool:
    return _is_number(value) and (isinstance(value, int) or value.is_integer())


TYPES: dict[str, Callable[[Any], bool]] = {
    "null": lambda value: value is None,
    "boolean": lambda value: isinstance(value, bool),
    "number": _is_number,
    "integer": _is_integer,
    "string": lambda value: isinstance(value, str),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}


def _bound(word: str, kind: type | tuple[type, ...], holds: Callable[[Any, Any], bool]) -> Any:
    """A word that compares values of one kind with a number."""

    def check(_: _Check, value: Any, schema: Mapping[str, Any], __: int) -> bool:
        limit = _number(schema, word)
        return not isinstance(value, kind) or isinstance(value, bool) or holds(value, limit)

    return check


NUMBERS = (int, float)
KEYWORDS: dict[str, Callable[[_Check, Any, Mapping[str, Any], int], bool]] = {
    "$ref": _Check.reference,
    "type": _Check.types,
    "enum": _Check.enum,
    "const": _Check.const,
    "allOf": _Check.all_of,
    "anyOf": _Check.any_of,
    "oneOf": _Check.one_of,
    "not": _Check.none_of,
    "if": _Check.if_then,
    "multipleOf": _Check.multiple,
    "minimum": _bound("minimum", NUMBERS, lambda v, x: v >= x),
    "maximum": _bound("maximum", NUMBERS, lambda v, x: v <= x),
    "exclusiveMinimum": _bound("exclusiveMinimum", NUMBERS, lambda v, x: v > x),
    "exclusiveMaximum": _bound("exclusiveMaximum", NUMBERS, lambda v, x: v < x),
    "minLength": _bound("minLength", str, lambda v, x: len(v) >= x),
    "maxLength": _bound("maxLength", str, lambda v, x: len(v) <= x),
    "minItems": _bound("minItems", list, lambda v, x: len(v) >= x),
    "maxItems": _bound("maxItems", list, lambda v, x: len(v) <= x),
    "minProperties": _bound("minProperties", dict, lambda v, x: len(v) >= x),
    "maxProperties": _bound("maxProperties", dict, lambda v, x: len(v) <= x),
    "prefixItems": _Check.prefix,
    "items": _Check.items,
    "properties": _Check.properties,
    "additionalProperties": _Check.additional,
    "required": _Check.required,
}
HELPERS = frozenset({"then", "else"})
"""Words that say nothing on their own."""
