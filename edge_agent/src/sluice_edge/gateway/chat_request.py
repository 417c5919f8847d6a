"""What a caller may ask: a whitelist. Whatever is not on it never reaches the engine.

The engine understands many more fields, among them some that fetch addresses or have had holes; a field is let through
only when it is needed.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator
from sluice_contracts.names import Domain, Task

MAX_TOKENS = 1024
MAX_BODY = 1024 * 1024
Content = Annotated[str, StringConstraints(max_length=131_072)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)


class TextPart(_Strict):
    """A part of a message. Pictures, sounds and addresses to fetch are not accepted."""

    type: Literal["text"]
    text: Content


class ChatMessage(_Strict):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content | Annotated[list[TextPart], Field(min_length=1, max_length=64)]

    def plain(self) -> dict[str, str]:
        """The turn with its content as one string."""
        text = self.content if isinstance(self.content, str) else "".join(p.text for p in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class StreamOptions(_Strict):
    """Of a streamed answer."""

    include_usage: bool = False


class SliceMetadata(_Strict):
    """What the request is about, for the signals. Closed: nothing else can be said."""

    domain: Domain = Domain.GENERAL
    task: Task = Task.QUESTION


class ResponseFormat(_Strict):
    """Text, or any JSON object."""

    type: Literal["text", "json_object"]


class ChatRequest(_Strict):
    """POST /v1/chat/completions."""

    model: Annotated[str, StringConstraints(max_length=256)]
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=256)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] | None = None
    stop: (
        Annotated[str, StringConstraints(max_length=64)]
        | Annotated[list[Annotated[str, StringConstraints(max_length=64)]], Field(max_length=4)]
        | None
    ) = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    n: Literal[1] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    metadata: SliceMetadata = SliceMetadata()
    user: Annotated[str, StringConstraints(max_length=256)] | None = None
    """Accepted because clients send it; dropped."""

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, value: Any) -> Any:
        return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value

    def conflict(self) -> tuple[str, str] | None:
        """A field that contradicts another, and what is wrong with it."""
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            return "max_tokens", "max_completion_tokens and max_tokens cannot both be given; use max_completion_tokens"
        if self.stream_options is not None and not self.stream:
            return "stream_options", "stream_options is only allowed together with stream: true"
        if self.top_logprobs is not None and not self.logprobs:
            return "top_logprobs", "top_logprobs is only allowed together with logprobs: true"
        return None

    @property
    def clamped(self) -> bool:
        """Whether the answer may not become as long as was asked for."""
        return (self.max_completion_tokens or self.max_tokens or 0) > MAX_TOKENS

    def for_engine(self) -> dict[str, Any]:
        """What the engine gets. The number of tokens is capped; a stream always ends with its usage."""
        body: dict[str, Any] = {
            "messages": [m.plain() for m in self.messages],
            "max_tokens": min(self.max_completion_tokens or self.max_tokens or MAX_TOKENS, MAX_TOKENS),
            "stream": self.stream,
        }
        for field in (
            "temperature", "top_p", "seed", "stop", "presence_penalty", "frequency_penalty", "logprobs", "top_logprobs",
        ):  # fmt: skip
            value = getattr(self, field)
            if value is not None:
                body[field] = value
        if self.response_format is not None:
            body["response_format"] = {"type": self.response_format.type}
        if self.stream:
            body["stream_options"] = {"include_usage": True}
        return body


class FeedbackRequest(_Strict):
    """POST /v1/feedback."""

    id: Annotated[str, StringConstraints(min_length=1, max_length=128)]
    feedback: Annotated[int, Field(ge=-1, le=1)] = 0
    outcome: Literal["success", "partial", "failure"] | None = None


CODES = {
    "json_invalid": "invalid_json",
    "extra_forbidden": "unknown_parameter",
    "missing": "missing_required_parameter",
}


def problem(error: ValidationError) -> tuple[str | None, str, str]:
    """The field as the API's own errors name it (`messages[0].role`), what is wrong with it, and the error's code.
    Shows the value of no field."""
    detail = error.errors(include_input=False, include_url=False)[0]
    kind, name = detail["type"], ""
    for part in detail["loc"]:
        if isinstance(part, int):
            name += f"[{part}]"
        elif not part.startswith(("function-", "list[", "constrained-", "lax-or-strict")) and part != "str":
            name += f".{part}" if name else part
    if kind == "model_type":
        return name or None, "must be an object", "invalid_json" if not name else "invalid_type"
    if kind == "extra_forbidden":
        return name or None, "this endpoint does not know it", CODES[kind]
    wrong_type = kind.endswith(("_type", "_parsing"))
    return name or None, detail["msg"], CODES.get(kind, "invalid_type" if wrong_type else "invalid_value")
