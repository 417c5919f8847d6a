"""Server-sent events from the engine: passed on whole, one by one, and read just enough to count. No I/O.

Only events that can matter are parsed as JSON: those with a finish reason, token counts or an error. The others go
through as bytes.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from sluice_serving.gateway.answers import response_counts
from sluice_serving.gateway.errors import ApiError
from sluice_serving.gateway.parameters import Kind

MAX_EVENT = 1 << 20
DONE = b"data: [DONE]"


class BrokenStream(Exception):
    """The engine sent something that is no event stream."""


@dataclass
class EventCutter:
    """Cuts bytes into events, and keeps the counts of one answer; what an event tells, a subclass knows."""

    finished: bool = False
    """The event that closes the stream was seen."""
    tokens_seen: int = 0
    """Events with content: stands in for the token count where the engine gives none."""
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    finish_reason: str | None = None
    error: str | None = None
    events: int = 0
    """Events that went to the client."""
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
                self.events += 1
                yield event + b"\n\n"

    def _notice(self, event: bytes) -> bool:
        raise NotImplementedError


@dataclass
class StreamReader(EventCutter):
    """The stream of a chat or text completion."""

    usage_wanted: bool = False

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


RESPONSE_ENDS = (b"event: response.completed", b"event: response.incomplete", b"event: response.failed")


@dataclass
class ResponseReader(EventCutter):
    """The stream of a response: named events, the last of which holds the whole response with its counts."""

    def _notice(self, event: bytes) -> bool:
        self.tokens_seen += event.startswith(b"event: response.output_text.delta")
        if event.startswith(b"event: error"):
            return self._read_error(event)
        if not event.startswith(RESPONSE_ENDS):
            return True
        counts = response_counts(_data_of(event).get("response"))
        self.prompt_tokens, self.output_tokens = counts.prompt_tokens, counts.output_tokens
        self.finish_reason = counts.finish_reason
        if event.startswith(b"event: response.failed"):
            self.error = "the engine's response failed"
            return False
        self.finished = True
        return True

    def _read_error(self, event: bytes) -> bool:
        self.error = str(_data_of(event).get("message") or "the engine sent an error")
        return False


def _data_of(event: bytes) -> dict[str, Any]:
    """The JSON object in an event's data line; empty if there is none."""
    for line in event.split(b"\n"):
        if line.startswith(b"data:"):
            try:
                content = json.loads(line.removeprefix(b"data:"))
            except ValueError:
                return {}
            return content if isinstance(content, dict) else {}
    return {}


def stream_reader(kind: Kind, usage_wanted: bool) -> "StreamReader | ResponseReader":
    """What reads the stream of one answer of that kind."""
    return ResponseReader() if kind == "responses" else StreamReader(usage_wanted=usage_wanted)


def error_event(kind: Kind, error: ApiError, sequence: int = 0) -> bytes:
    """An error in the middle of a stream, as OpenAI's clients expect it.

    A response's stream documents an event of type `error`; it has the `error` object too, at which the clients raise.
    """
    body = error.body()
    if kind != "responses":
        return b"data: " + json.dumps(body).encode() + b"\n\n"
    content = {"type": "error", "code": error.code, "message": error.message, "param": None,
               "sequence_number": sequence} | body  # fmt: skip
    return b"event: error\ndata: " + json.dumps(content).encode() + b"\n\n"
