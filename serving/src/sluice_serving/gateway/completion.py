"""Reading a completion request, and what of it goes on to the engine. Pure."""

import json
from dataclasses import dataclass
from typing import Any, Literal

from sluice_contracts.routing import RoutingLimits

from sluice_serving.arguments import ENGINE_MAX_OUTPUT_TOKENS
from sluice_serving.gateway.errors import ApiError

Kind = Literal["chat", "text"]

MAX_CHOICES = 8
MAX_MESSAGES = 512
MAX_USER_CHARACTERS = 256
WITHHELD = ("user", "safety_identifier", "metadata", "store", "prompt_cache_key")
"""Who asks is not the engine's business."""
REFUSED = (
    "chat_template",
    "chat_template_kwargs",
    "mm_processor_kwargs",
    "kv_transfer_params",
    "vllm_xargs",
    "request_id",
    "priority",
    "cache_salt",
)
"""The engine's own extensions, which would let a client run its templates or reach other clients' state."""


@dataclass(frozen=True)
class Completion:
    """One request, checked and made ready for the engine."""

    kind: Kind
    stream: bool
    usage_wanted: bool
    """Whether the client asked for the closing chunk with token counts."""
    user: str | None
    body: bytes

    @property
    def path(self) -> str:
        """The engine's endpoint."""
        return "/v1/chat/completions" if self.kind == "chat" else "/v1/completions"


def read_completion(kind: Kind, raw: bytes, model: str, limits: RoutingLimits) -> Completion:
    """The request in `raw`, with its output tokens capped. Raises ApiError in the API's own terms."""
    try:
        request = json.loads(raw, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise ApiError(400, "The body is not valid JSON.", code="invalid_json") from None
    if not isinstance(request, dict):
        raise ApiError(400, "The body must be a JSON object.", code="invalid_json")
    named = request.get("model")
    if not isinstance(named, str):
        raise ApiError(400, "You must provide a model parameter.", param="model", code="missing_model")
    if named != model:
        raise ApiError(404, f"The model '{named[:64]}' does not exist; this endpoint serves '{model}'.",
                       param="model", code="model_not_found")  # fmt: skip
    for name in REFUSED:
        if name in request:
            raise ApiError(400, f"Unknown parameter: '{name}'.", param=name, code="unknown_parameter")
    _check_input(kind, request)
    _cap_tokens(kind, request, limits.max_output_tokens)
    choices = request.get("n")
    if choices is not None and not (_is_int(choices) and 1 <= choices <= MAX_CHOICES):
        raise ApiError(400, f"n must be an integer from 1 to {MAX_CHOICES}.", param="n", code="invalid_value")
    stream = _flag(request, "stream")
    usage_wanted = _ask_for_usage(request) if stream else False
    user = _user(request)
    for name in WITHHELD:
        request.pop(name, None)
    return Completion(kind, stream, usage_wanted, user, _encoded(request))


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _encoded(request: dict[str, Any]) -> bytes:
    try:
        return json.dumps(request, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half of a surrogate pair: would fail in the tokenizer, as if the model were at fault
        raise ApiError(400, "The body holds text that is not valid Unicode.", code="invalid_unicode") from None


def _check_input(kind: Kind, request: dict[str, Any]) -> None:
    if kind == "text":
        if not isinstance(request.get("prompt"), str | list) or not request["prompt"]:
            raise ApiError(400, "You must provide a prompt: text, or a list.", param="prompt", code="invalid_type")
        return
    messages = request.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ApiError(400, "messages must be a list with at least one message.", param="messages", code="invalid_type")
    if len(messages) > MAX_MESSAGES:
        raise ApiError(
            400, f"At most {MAX_MESSAGES} messages are taken.", param="messages", code="array_above_max_length"
        )
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ApiError(400, f"messages[{i}] must be an object with a role.", param=f"messages[{i}]",
                           code="invalid_type")  # fmt: skip


def _cap_tokens(kind: Kind, request: dict[str, Any], cap: int) -> None:
    """Bound the answer: to the client's wish, or to the cap if that is lower.

    A request without a wish gets the cap too, unless the engine's own default (see `arguments.engine_kwargs`) is at
    least as strict: vLLM shortens its default to what the context leaves, but refuses a wish that does not fit.
    """
    given = False
    for name in ("max_tokens", "max_completion_tokens"):
        value = request.get(name)
        if value is None:
            request.pop(name, None)
            continue
        if not _is_int(value) or value < 1:
            raise ApiError(400, f"{name} must be an integer of at least 1.", param=name, code="invalid_value")
        request[name] = min(value, cap)
        given = True
    if kind == "chat" and not given and cap < ENGINE_MAX_OUTPUT_TOKENS:
        request["max_completion_tokens"] = cap


def _ask_for_usage(request: dict[str, Any]) -> bool:
    """Have the engine send token counts; says whether the client wants to see them."""
    options = request.get("stream_options")
    if options is None:
        options = {}
    if not isinstance(options, dict):
        raise ApiError(400, "stream_options must be an object.", param="stream_options", code="invalid_type")
    wanted = options.get("include_usage") is True
    request["stream_options"] = {"include_usage": True}
    return wanted


def _user(request: dict[str, Any]) -> str | None:
    user = request.get("safety_identifier") or request.get("user")
    if user is None:
        return None
    if not isinstance(user, str) or len(user) > MAX_USER_CHARACTERS or not user.isprintable():
        raise ApiError(400, f"user must be text of at most {MAX_USER_CHARACTERS} printable characters.", param="user",
                       code="invalid_type")  # fmt: skip
    return user


def _flag(request: dict[str, Any], name: str) -> bool:
    value = request.get(name)
    if value is not None and not isinstance(value, bool):
        raise ApiError(400, f"{name} must be true or false.", param=name, code="invalid_type")
    return bool(value)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
