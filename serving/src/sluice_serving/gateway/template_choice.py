"""Which template answers a request: the first that is for it and has the shape it asks for. Pure.

A request that wants words gets words, and one that wants JSON a document that obeys its schema. Where that cannot be
told, and where only a model could answer (a tool must be called, a grammar kept), no template fits: the client then
gets an error, which it can tell from an answer.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sluice_contracts.fallback import DEFAULT_TEMPLATE
from sluice_contracts.routing import RoutingTable, TemplateRoute

from sluice_serving.gateway.json_schema import Undecided, conforms
from sluice_serving.gateway.parameters import Kind
from sluice_serving.gateway.validity import ANY_OBJECT

Headers = Iterable[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Shape:
    """What an answer must be to be of use to its reader."""

    schema: Any = None
    """Of the JSON that is wanted; None where words are."""
    choices: tuple[str, ...] = ()
    """The only words that will do; empty where any will."""


WORDS = Shape()


def templates_of(table: RoutingTable) -> list[TemplateRoute]:
    """The table's templates in the order in which they are tried, the plain one last."""
    found = list(table.templates or [])
    if table.fallback_template is not None:
        version = hashlib.sha256(table.fallback_template.encode("utf-8", "replace")).hexdigest()[:8]
        plain = {"name": DEFAULT_TEMPLATE, "version": version, "body": table.fallback_template}
        found.append(TemplateRoute.model_validate(plain))
    return found


def choose_template(
    templates: Sequence[TemplateRoute], kind: Kind, tenant: str, headers: Headers, request: Mapping[str, Any]
) -> TemplateRoute | None:
    """The first that fits, or None."""
    shape = wanted_shape(kind, request)
    if shape is None or not templates:
        return None
    told = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}
    return next((t for t in templates if _is_for(t, kind, tenant, told) and has_shape(t, shape)), None)


def _is_for(template: TemplateRoute, kind: Kind, tenant: str, headers: Mapping[str, str]) -> bool:
    return (
        (not template.endpoints or kind in template.endpoints)
        and (not template.tenants or tenant in template.tenants)
        and all(headers.get(match.name) == match.value for match in template.headers)
    )


def wanted_shape(kind: Kind, request: Mapping[str, Any]) -> Shape | None:
    """The shape that a request asks for; None where no fixed text can have it."""
    if kind == "embeddings" or _must_call(request.get("tool_choice")):
        return None
    options = request.get("structured_outputs")
    if options:
        return _structured(options)
    text = request.get("text")
    form = (
        (text.get("format") if isinstance(text, dict) else None)
        if kind == "responses"
        else request.get("response_format")
    )
    match form:
        case None | {"type": "text"}:
            return WORDS
        case {"type": "json_object"}:
            return Shape(ANY_OBJECT)
        case {"type": "json_schema", "json_schema": {"schema": schema}} if kind != "responses":
            return Shape(schema)
        case {"type": "json_schema", "schema": schema}:
            return Shape(schema)
        case _:
            return None


def _must_call(choice: Any) -> bool:
    return choice == "required" or isinstance(choice, dict)


def _structured(options: Mapping[str, Any]) -> Shape | None:
    """vLLM's own parameter (vllm/sampling_params.py, StructuredOutputsParams)."""
    match {name: value for name, value in options.items() if value}:
        case {"choice": [*choices]} if all(isinstance(choice, str) for choice in choices):
            return Shape(choices=tuple(choices))
        case {"json_object": True}:
            return Shape(ANY_OBJECT)
        case {"json": str(text)}:
            try:
                return Shape(json.loads(text))
            except (ValueError, RecursionError):
                return None
        case {"json": schema}:
            return Shape(schema)
        case _:
            return None


def has_shape(template: TemplateRoute, shape: Shape) -> bool:
    """Whether the template's words, or its document, are what is wanted."""
    if shape.schema is None:
        return template.kind == "text" and (not shape.choices or template.body in shape.choices)
    if template.kind != "json":
        return False
    try:
        return conforms(json.loads(template.body), shape.schema)
    except (Undecided, RecursionError):
        return False


def copies_wanted(kind: Kind, request: Mapping[str, Any]) -> int:
    """How many answers one request asks for: `n` of each prompt."""
    n, prompt = int(request.get("n") or 1), request.get("prompt")
    if kind == "text" and isinstance(prompt, list) and any(not isinstance(part, int) for part in prompt):
        return n * len(prompt)
    return n
