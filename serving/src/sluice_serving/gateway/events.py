"""Server-sent events from the engine: passed on whole, one by one, and read just enough to count. No I/O.

Only events that can matter are parsed as JSON: those with a finish reason, token counts or an error. The others go
through as bytes.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

MAX_EVENT = 1 << 20
DONE = b"data: [DONE]"


class BrokenStream(Exception):
    """The engine sent something that is no event stream."""


@dataclass
class StreamReader:
    """Cuts bytes into events and keeps the counts of one answer."""

    usage_wanted: bool
    finished: bool = False
    """The closing [DONE] was seen."""
    tokens_seen: int = 0
    """Events with content: stands in for the token count where the engine gives none."""
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    finish_reason: str | None = None
    error: str | None = None
    _rest: bytearray = field(default_factory=bytearray)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The complete events that `data` ends, each with its closing blank line, as they should reach the client.

        Raises BrokenStream if an event does not end within MAX_EVENT bytes.
        """
        if not self._rest and data.endswith(b"\n\n") and data.count(b"\n\n") == 1:
            whole = [data[:-2]]  # the usual case: one event, whole
        else:
            self._rest += data
            *parts, rest = self._rest.split(b"\n\n")
            self._rest = bytearray(rest)
            whole = [bytes(part) for part in parts]
            if len(self._rest) > MAX_EVENT:
                raise BrokenStream(f"an event of more than {MAX_EVENT} bytes")
        for event in whole:
            if self._notice(event):
                yield event + b"\n\n"

    def _notice(self, event: bytes) -> bool:
        """Count what the event tells; whether the client should see it."""
        if event == DONE:
            self.finished = True
            return True
        self.tokens_seen += b'"content":' in event or b'"text":' in event
        if b'"usage":{' in event or b'"finish_reason":"' in event or b'"error":' in event or b'": ' in event:
            return self._read(event)
        return True

    def _read(self, event: bytes) -> bool:
        try:
            chunk: Any = json.loads(event.removeprefix(b"data:"))
        except ValueError:
            return True
        if not isinstance(chunk, dict):
            return True
        if error := chunk.get("error"):
            self.error = str(error.get("message") if isinstance(error, dict) else error)
            return False
        choices = chunk.get("choices") or []
        for choice in choices:
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
        usage = chunk.get("usage")
        if usage:
            self.prompt_tokens = usage.get("prompt_tokens")
            self.output_tokens = usage.get("completion_tokens")
            return bool(choices) or self.usage_wanted
        return True


def error_event(body: dict[str, Any]) -> bytes:
    """An error in the middle of a stream, as OpenAI's clients expect it."""
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def template_events(identity: str, created: int, model: str, kind: str, text: str) -> bytes:
    """A whole streamed answer that says `text`."""
    objects = []
    for delta, reason in (({"role": "assistant", "content": text}, None), ({}, "stop")):
        choice: dict[str, Any] = {"index": 0, "finish_reason": reason, "logprobs": None}
        choice |= {"delta": delta} if kind == "chat" else {"text": delta.get("content", "")}
        objects.append(
            {
                "id": identity,
                "object": "chat.completion.chunk" if kind == "chat" else "text_completion",
                "created": created,
                "model": model,
                "choices": [choice],
            }
        )
    return b"".join(b"data: " + json.dumps(o).encode() + b"\n\n" for o in objects) + DONE + b"\n\n"


def template_answer(identity: str, created: int, model: str, kind: str, text: str) -> bytes:
    """A whole answer in one piece that says `text`."""
    choice: dict[str, Any] = {"index": 0, "finish_reason": "stop", "logprobs": None}
    choice |= {"message": {"role": "assistant", "content": text}} if kind == "chat" else {"text": text}
    return json.dumps(
        {
            "id": identity,
            "object": "chat.completion" if kind == "chat" else "text_completion",
            "created": created,
            "model": model,
            "choices": [choice],
            "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        }
    ).encode()
