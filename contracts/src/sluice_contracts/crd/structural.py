"""A pydantic model's JSON Schema, rewritten as a Kubernetes structural schema.

What Kubernetes wants otherwise: no $ref, no title, const, discriminator or null types; exclusive bounds as flags;
integers with a format; lists that say how they merge; every string, list and map bounded, or the API server refuses
the CEL rules for their estimated cost.
"""

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

Schema = dict[str, Any]

DESCRIPTION_LIMIT = 200
"""Characters of a description: the first sentence serves `kubectl explain`, the rest is for readers of the code."""
INT32_MAX = 2**31 - 1
_COPIED = ("type", "pattern", "minLength", "maxLength", "minItems", "maxItems", "minimum", "maximum", "enum")


class SchemaError(ValueError):
    """A model cannot be said in a structural schema; the message names the field and the remedy."""


def structural_schema(model: type[BaseModel]) -> Schema:
    """The structural schema of `model`. Raises SchemaError for what Kubernetes would refuse."""
    source = model.model_json_schema(by_alias=True)
    rewriting = _Rewriting(source.get("$defs", {}), {c.__name__: c for c in _models(model)})
    return rewriting.object(source, model, model.__name__)


class _Rewriting:
    """One pass over one model: the definitions it may refer to, and the classes they came from."""

    def __init__(self, definitions: Mapping[str, Schema], models: Mapping[str, type[BaseModel]]) -> None:
        self.definitions = definitions
        self.models = models

    def object(self, source: Schema, model: type[BaseModel], path: str) -> Schema:
        result: Schema = {"type": "object"}
        if description := _first_sentence(inspect.getdoc(model)):
            result["description"] = description
        if required := source.get("required"):
            result["required"] = list(required)
        if rules := source.get("x-kubernetes-validations"):
            result["x-kubernetes-validations"] = [dict(rule) for rule in rules]
        aliases = {field.alias or name: name for name, field in model.model_fields.items()}
        documented = attribute_docstrings(model)
        result["properties"] = {}
        for alias, schema in source.get("properties", {}).items():
            rewritten = self.value(schema, f"{path}.{alias}")
            if description := _first_sentence(documented.get(aliases[alias])):
                rewritten["description"] = description
            result["properties"][alias] = rewritten
        return result

    def value(self, source: Schema, path: str) -> Schema:
        source = _without_null(source, path)
        if reference := source.get("$ref"):
            result = self.referenced(reference.rpartition("/")[2], path)
        elif source.get("x-opaque"):
            result = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        elif source.get("type") == "array":
            result = self.list(source, path)
        elif source.get("type") == "object":
            result = self.map(source, path)
        else:
            result = _scalar(source, path)
        default = _absent_none(source.get("default"))
        if default is not None:
            short = default == _inner_defaults(result) and not _has_rules(result)
            result["default"] = {} if short else default
        return result

    def referenced(self, name: str, path: str) -> Schema:
        definition = self.definitions[name]
        if "properties" in definition:
            return self.object(definition, self.models[name], path)
        return _scalar(definition, path)

    def list(self, source: Schema, path: str) -> Schema:
        _require(source, "maxItems", path, "give the list a max_length")
        result = _copied(source)
        result["items"] = self.value(source["items"], f"{path}[]")
        keys = source.get("x-list-map-keys")
        result["x-kubernetes-list-type"] = "map" if keys else "atomic"
        if keys:
            missing = set(keys) - set(result["items"].get("required", []))
            if missing:
                raise SchemaError(f"{path}: keys of a list map must be required fields; {sorted(missing)} are not")
            result["x-kubernetes-list-map-keys"] = list(keys)
        return result

    def map(self, source: Schema, path: str) -> Schema:
        values = source.get("additionalProperties")
        if not isinstance(values, dict):
            raise SchemaError(f"{path}: a map needs a type for its values, or json_schema_extra x-opaque")
        _require(source, "maxProperties", path, "give the map a max_length")
        return {
            "type": "object",
            "maxProperties": source["maxProperties"],
            "additionalProperties": self.value(values, f"{path}{{}}"),
        }


def _scalar(source: Schema, path: str) -> Schema:
    source = dict(source)
    if "const" in source:
        source["enum"] = [source.pop("const")]
    kind = source.get("type")
    if kind not in {"string", "integer", "number", "boolean"}:
        raise SchemaError(f"{path}: type {kind!r} cannot be written as a structural schema")
    result = _copied(source)
    if kind == "string" and "enum" not in source:
        _require(source, "maxLength", path, "give the string a max_length")
    if kind == "integer":
        result["format"] = "int32" if source.get("maximum", INT32_MAX + 1) <= INT32_MAX else "int64"
    for bound, flag in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if flag in source:
            result[bound] = source[flag]
            result[flag] = True
    return result


def _without_null(source: Schema, path: str) -> Schema:
    """`X | None` as X: an absent field says None, and no field of a Kubernetes object need be null to say it."""
    options = source.get("anyOf")
    if options is None:
        return source
    real = [option for option in options if option.get("type") != "null"]
    if len(real) != 1:
        raise SchemaError(f"{path}: a union of several types; use one type, or separate fields and a CEL rule")
    return {**real[0], **{key: value for key, value in source.items() if key != "anyOf"}}


def _absent_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _absent_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_absent_none(item) for item in value]
    return value


def _inner_defaults(schema: Schema) -> Any:
    """What the API server fills into an empty object of `schema`; None if it is no object."""
    if "properties" not in schema:
        return None
    filled = {}
    for name, inner in schema["properties"].items():
        if "default" in inner:
            filled[name] = _inner_defaults(inner) if inner["default"] == {} else inner["default"]
    return filled


def _has_rules(schema: Schema) -> bool:
    """Whether CEL rules stand in `schema`. They are run on its default as it is written, before any inner default is
    filled in, so such a default must be written out."""
    inner = [*schema.get("properties", {}).values(), *([schema["items"]] if "items" in schema else [])]
    return "x-kubernetes-validations" in schema or any(_has_rules(s) for s in inner)


def _copied(source: Schema) -> Schema:
    return {key: source[key] for key in _COPIED if key in source}


def _require(source: Schema, bound: str, path: str, remedy: str) -> None:
    if bound not in source:
        raise SchemaError(f"{path} is unbounded: {remedy}")


def _models(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """`model` and every model its fields mention."""
    seen: set[type[BaseModel]] = set()
    waiting: list[Any] = [model]
    while waiting:
        annotation = waiting.pop()
        waiting.extend(getattr(annotation, "__args__", ()))
        if inspect.isclass(annotation) and issubclass(annotation, BaseModel) and annotation not in seen:
            seen.add(annotation)
            waiting.extend(field.annotation for field in annotation.model_fields.values())
            yield annotation


def attribute_docstrings(model: type[BaseModel]) -> dict[str, str]:
    """The string that follows each field in the class body, by field name, of `model` and its bases.

    Read from the source here and not through pydantic's use_attribute_docstrings, which would make every program
    that imports a contract parse that source at start-up.
    """
    found: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        if not issubclass(cls, BaseModel) or cls is BaseModel:
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
                and isinstance(text.value.value, str)
            ):
                found[field.target.id] = inspect.cleandoc(text.value.value)
    return found


def _first_sentence(text: str | None) -> str:
    if not text:
        return ""
    paragraph = " ".join(text.split("\n\n", 1)[0].split())
    sentence = paragraph.split(". ", 1)[0].rstrip(".")
    if len(sentence) > DESCRIPTION_LIMIT:
        sentence = sentence[: DESCRIPTION_LIMIT - 1].rsplit(" ", 1)[0] + "…"
    return sentence
