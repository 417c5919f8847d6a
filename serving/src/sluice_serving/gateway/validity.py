"""Whether an answer has the JSON shape that its request asked for: a tool's arguments, or the answer itself. Pure.

An answer owes a shape if the request has `response_format` of a JSON kind, if it must call a tool, or if it calls one.
A refusal to answer owes nothing. An answer that was cut off at its token limit does: its reader cannot use it.
"""

import json
from dataclasses import dataclass, field
from typing import Any

from sluice_serving.gateway.json_schema import Undecided, conforms
from sluice_serving.gateway.transcript import Call, Said, Transcript

ANY_OBJECT: dict[str, Any] = {"type": "object"}
"""What `json_object` promises."""


@dataclass(frozen=True)
class Expectation:
    """The shapes one request asked for."""

    answer: Any = None
    """Schema of the text; None if it is free."""
    tools: dict[str, Any] = field(default_factory=dict)
    """Schemas of the arguments by the tools' names."""
    must_call: bool = False
    only: str | None = None
    """The one tool that may be called."""


def expectation(body: bytes) -> Expectation | None:
    """What the chat request in `body`, which is known to be valid JSON, asked for; None if nothing."""
    if b'"response_format"' not in body and b'"tools"' not in body:
        return None
    request = json.loads(body)
    if not isinstance(request.get("messages"), list):
        return None
    tools = _tools(request.get("tools"))
    choice = request.get("tool_choice")
    named = choice.get("function") if isinstance(choice, dict) else None
    only = named.get("name") if isinstance(named, dict) and isinstance(named.get("name"), str) else None
    found = Expectation(_answer(request.get("response_format")), tools, choice == "required" or only is not None, only)
    return found if found.answer is not None or found.tools else None


def holds(expected: Expectation, said: Transcript) -> bool | None:
    """Whether all choices have their shape; None if none owes one, or nobody can tell."""
    if said.overflowed:
        return None
    try:
        found = [_holds(expected, choice) for choice in said.choices.values()]
    except (Undecided, RecursionError):
        return None
    owed = [one for one in found if one is not None]
    return all(owed) if owed else None


def _answer(wanted: Any) -> Any:
    if not isinstance(wanted, dict):
        return None
    if wanted.get("type") == "json_object":
        return ANY_OBJECT
    inner = wanted.get("json_schema") if wanted.get("type") == "json_schema" else None
    return inner.get("schema") if isinstance(inner, dict) else None


def _tools(wanted: Any) -> dict[str, Any]:
    functions = [t.get("function") for t in wanted if isinstance(t, dict)] if isinstance(wanted, list) else []
    return {
        f["name"]: f.get("parameters", True)
        for f in functions
        if isinstance(f, dict) and isinstance(f.get("name"), str)
    }


def _holds(expected: Expectation, said: Said) -> bool | None:
    if said.calls:
        return all(_call_holds(expected, call) for call in said.calls.values())
    if said.refused:
        return None
    if expected.must_call:
        return False
    return None if expected.answer is None else _text_holds(said.text, expected.answer)


def _call_holds(expected: Expectation, call: Call) -> bool:
    if call.name not in expected.tools or (expected.only is not None and call.name != expected.only):
        return False
    return _text_holds(call.arguments or "{}", expected.tools[call.name])


def _text_holds(text: str, schema: Any) -> bool:
    try:
        value = json.loads(text)
    except ValueError:
        return False
    return conforms(value, schema)
