"""Reading a request for an answer, and what of it goes on to the engine. Pure."""

import json
from dataclasses import dataclass
from typing import Any

from sluice_contracts.routing import RoutingLimits

from sluice_serving.arguments import ENGINE_MAX_OUTPUT_TOKENS
from sluice_serving.gateway.errors import ApiError
from sluice_serving.gateway.inputs import check_input
from sluice_serving.gateway.parameters import CAPS, WITHHELD, Kind, check_parameters

__all__ = ["PATHS", "Completion", "Kind", "read_completion"]

PATHS: dict[Kind, str] = {
    "chat": "/v1/chat/completions",
    "text": "/v1/completions",
    "responses": "/v1/responses",
    "embeddings": "/v1/embeddings",
}
"""Where each kind is asked for, here as at the engine."""

MAX_USER_CHARACTERS = 256
STREAM_OPTIONS = frozenset({"include_usage", "include_obfuscation"})
"""Those of the API's reference. Nothing is padded here, so that the second one changes nothing."""
MAX_DEPTH = 64
"""Lists and objects within each other. No schema of a function is as deep; the engine's readers of JSON and of grammars
recurse, and a request that breaks them would count as the version's failure."""
ENGINE_DEFAULT_TOKENS: dict[Kind, int] = {
    "chat": ENGINE_MAX_OUTPUT_TOKENS,
    "text": 16,
    "responses": ENGINE_MAX_OUTPUT_TOKENS,
}
"""How long the engine lets an answer become where the request does not say: `arguments.engine_kwargs`, and for text
completions vLLM's own default (CompletionRequest.max_tokens)."""


@dataclass(frozen=True)
class Completion:
    """One request, checked and made ready for the engine."""

    kind: Kind
    stream: bool
    usage_wanted: bool
    """Whether the client asked for the closing chunk with token counts."""
    user: str | None
    body: bytes
    clamped: int | None = None
    """The cap that was put in place of a higher wish of the client's."""
    repeatable: bool = False
    """Whether the engine would give the same answer again."""

    @property
    def path(self) -> str:
        """The engine's endpoint."""
        return PATHS[self.kind]


def read_completion(kind: Kind, raw: bytes, model: str, limits: RoutingLimits) -> Completion:
    """The request in `raw`, with its output tokens capped. Raises ApiError in the API's own terms."""
    request = _parse(raw)
    _check_model(request.get("model"), model)
    check_parameters(kind, request)
    check_input(kind, request)
    clamped = cap_tokens(kind, request, limits)
    stream = request.get("stream", False)
    usage_wanted = _ask_for_usage(kind, request) if stream else _no_stream_options(request)
    if kind == "responses":
        _keep_nothing(request)
    elif "modalities" in request and request["modalities"] != ["text"]:
        raise ApiError(400, "Invalid value for 'modalities': answers are text; send [\"text\"], or leave it out.",
                       param="modalities", code="invalid_value")  # fmt: skip
    user = _user(request)
    for name in WITHHELD:
        request.pop(name, None)
    if kind == "responses":
        request["store"] = False
    return Completion(kind, stream, usage_wanted, user, _encoded(request), clamped, repeatable(kind, request))


def repeatable(kind: Kind, request: dict[str, Any]) -> bool:
    """Whether the engine would give the same answer again: greedy decoding, or no decoding at all."""
    if kind == "embeddings":
        return True
    temperature = request.get("temperature")
    # JSON's false equals 0 in Python.
    return isinstance(temperature, int | float) and not isinstance(temperature, bool) and temperature == 0


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        request = json.loads(raw, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise ApiError(400, "The body is not valid JSON.", code="invalid_json") from None
    if not isinstance(request, dict):
        raise ApiError(400, "The body must be a JSON object.", code="invalid_json")
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH and _deeper_than(request, MAX_DEPTH):
        raise ApiError(400, f"The body is nested more than {MAX_DEPTH} deep.", code="invalid_json")
    return request


def _deeper_than(value: Any, depth: int) -> bool:
    level = [value]
    for _ in range(depth):
        inner = (v for parent in level for v in (parent.values() if isinstance(parent, dict) else parent))
        level = [v for v in inner if isinstance(v, dict | list)]
        if not level:
            return False
    return True


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _encoded(request: dict[str, Any]) -> bytes:
    try:
        return json.dumps(request, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:  # half of a surrogate pair: would fail in the tokenizer, as if the model were at fault
        raise ApiError(400, "The body holds text that is not valid Unicode.", code="invalid_unicode") from None
    except ValueError:
        raise ApiError(400, "The body holds a number that is out of range.", code="invalid_value") from None
    except RecursionError:
        raise ApiError(400, "The body is nested too deeply.", code="invalid_json") from None


def _check_model(named: object, model: str) -> None:
    if not isinstance(named, str):
        raise ApiError(400, "You must provide a model parameter.", param="model", code="missing_model")
    if named != model:
        raise ApiError(404, f"The model '{named[:64]}' does not exist; this endpoint serves '{model}'.",
                       param="model", code="model_not_found")  # fmt: skip


def cap_tokens(kind: Kind, request: dict[str, Any], limits: RoutingLimits) -> int | None:
    """Bound the answer: to the client's wish, or to the cap if that is lower. Returns the cap where it was.

    A request without a wish gets the cap too, unless the engine's own default is at least as strict: vLLM shortens its
    default to what the context leaves, but refuses a wish that does not fit.
    """
    names, cap = CAPS[kind], limits.max_output_tokens
    if not names:
        return None
    given = [name for name in names if name in request]
    if len(given) > 1:
        raise ApiError(400, f"'{given[0]}' and '{given[1]}' cannot both be given; use '{given[0]}'.", param=given[1],
                       code="invalid_value")  # fmt: skip
    if not given:
        if cap < ENGINE_DEFAULT_TOKENS[kind]:
            request[names[0]] = cap
        return None
    name, wish = given[0], request[given[0]]
    if wish < 1:
        raise ApiError(400, f"Invalid value for '{name}': expected an integer of at least 1.", param=name,
                       code="invalid_value")  # fmt: skip
    if wish <= cap:
        return None
    if limits.output_token_policy == "refuse":
        raise ApiError(400, f"'{name}' is too large: {wish}. At most {cap} output tokens are allowed here.", param=name,
                       code="invalid_value")  # fmt: skip
    request[name] = cap
    return cap


def _ask_for_usage(kind: Kind, request: dict[str, Any]) -> bool:
    """Have the engine send token counts; says whether the client wants to see them. A response always ends with them,
    so nothing has to be asked for there."""
    options = request.pop("stream_options", {})
    for name in options:
        if name not in STREAM_OPTIONS:
            where = f"stream_options.{name[:64]}"
            raise ApiError(400, f"Unknown parameter: '{where}'.", param=where,
                           code="unknown_parameter")  # fmt: skip
    wanted = options.get("include_usage")
    if wanted is not None and not isinstance(wanted, bool):
        raise ApiError(400, "Invalid type for 'stream_options.include_usage': expected true or false.",
                       param="stream_options.include_usage", code="invalid_type")  # fmt: skip
    if kind != "responses":
        request["stream_options"] = {"include_usage": True}
    return bool(wanted)


def _no_stream_options(request: dict[str, Any]) -> bool:
    if "stream_options" in request:
        raise ApiError(400, "'stream_options' is only allowed together with 'stream': true.", param="stream_options",
                       code="invalid_value")  # fmt: skip
    return False


def _keep_nothing(request: dict[str, Any]) -> None:
    """Refuse what needs a response to be found again later, or something to run beside the model."""
    for name in ("background", "store"):
        if request.get(name):
            raise ApiError(400, f"Invalid value for '{name}': responses are not stored; send false, or leave it out.",
                           param=name, code="invalid_value")  # fmt: skip
    for i, tool in enumerate(request.get("tools", [])):
        if tool.get("type") != "function":
            raise ApiError(400, f"Invalid value for 'tools[{i}].type': only 'function' is taken; no tool runs on the "
                           "server.", param=f"tools[{i}].type", code="invalid_value")  # fmt: skip


def _user(request: dict[str, Any]) -> str | None:
    for name in ("safety_identifier", "user"):
        user: str = request.get(name, "")
        if user:
            if len(user) > MAX_USER_CHARACTERS or not user.isprintable():
                raise ApiError(400, f"Invalid value for '{name}': expected at most {MAX_USER_CHARACTERS} printable "
                               "characters.", param=name, code="invalid_value")  # fmt: skip
            return user
    return None
