"""A template's words as an answer of each kind: what is said when no version can answer. Pure."""

import json
from itertools import product
from typing import Any

from sluice_serving.gateway.events import DONE
from sluice_serving.gateway.parameters import Kind


def template_answer(kind: Kind, identity: str, created: int, model: str, text: str, copies: int = 1) -> bytes | None:
    """A whole answer in one piece that says `text`, in as many choices as were asked for. None for a kind that no text
    can answer."""
    match kind:
        case "embeddings":
            return None
        case "responses":
            return json.dumps(_response(identity, created, model, "completed", [_message(identity, text)])).encode()
        case _:
            return json.dumps(_completion(kind, identity, created, model, text, copies)).encode()


def template_events(kind: Kind, identity: str, created: int, model: str, text: str, copies: int = 1) -> bytes | None:
    """A whole streamed answer that says `text`."""
    match kind:
        case "embeddings":
            return None
        case "responses":
            return _response_events(identity, created, model, text)
        case _:
            return _chunks(kind, identity, created, model, text, copies)


def _completion(kind: Kind, identity: str, created: int, model: str, text: str, copies: int) -> dict[str, Any]:
    choice: dict[str, Any] = {"finish_reason": "stop", "logprobs": None}
    choice |= {"message": {"role": "assistant", "content": text}} if kind == "chat" else {"text": text}
    return {
        "id": f"chatcmpl-{identity}" if kind == "chat" else f"cmpl-{identity}",
        "object": "chat.completion" if kind == "chat" else "text_completion",
        "created": created,
        "model": model,
        "choices": [{"index": i, **choice} for i in range(copies)],
        "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
    }


def _chunks(kind: Kind, identity: str, created: int, model: str, text: str, copies: int) -> bytes:
    events = []
    parts: tuple[tuple[dict[str, str], str | None], ...] = (
        ({"role": "assistant", "content": text}, None),
        ({}, "stop"),
    )
    for i, (delta, reason) in product(range(copies), parts):
        choice: dict[str, Any] = {"index": i, "finish_reason": reason, "logprobs": None}
        choice |= {"delta": delta} if kind == "chat" else {"text": delta.get("content", "")}
        chunk = {
            "id": f"chatcmpl-{identity}" if kind == "chat" else f"cmpl-{identity}",
            "object": "chat.completion.chunk" if kind == "chat" else "text_completion",
            "created": created,
            "model": model,
            "choices": [choice],
        }
        events.append(b"data: " + json.dumps(chunk).encode() + b"\n\n")
    return b"".join(events) + DONE + b"\n\n"


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": []}


def _message(identity: str, text: str) -> dict[str, Any]:
    return {
        "id": f"msg_{identity}",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [_part(text)],
    }


def _response(identity: str, created: int, model: str, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
    usage = {
        "input_tokens": 0,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 0,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 0,
    }
    return {
        "id": f"resp_{identity}",
        "object": "response",
        "created_at": created,
        "status": status,
        "model": model,
        "output": output,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "temperature": None,
        "top_p": None,
        "usage": usage if status == "completed" else None,
    }


def _response_events(identity: str, created: int, model: str, text: str) -> bytes:
    message = _message(identity, text)
    begun = message | {"status": "in_progress", "content": []}
    item = {"item_id": message["id"], "output_index": 0, "content_index": 0}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": _response(identity, created, model, "in_progress", [])},
        {"type": "response.in_progress", "response": _response(identity, created, model, "in_progress", [])},
        {"type": "response.output_item.added", "output_index": 0, "item": begun},
        {"type": "response.content_part.added", "part": _part(""), **item},
        {"type": "response.output_text.delta", "delta": text, "logprobs": [], **item},
        {"type": "response.output_text.done", "text": text, "logprobs": [], **item},
        {"type": "response.content_part.done", "part": _part(text), **item},
        {"type": "response.output_item.done", "output_index": 0, "item": message},
        {"type": "response.completed", "response": _response(identity, created, model, "completed", [message])},
    ]
    return b"".join(
        f"event: {event['type']}\ndata: {json.dumps(event | {'sequence_number': i})}\n\n".encode()
        for i, event in enumerate(events)
    )
