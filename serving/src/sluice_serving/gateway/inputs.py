"""What a client asks about: messages, prompts and texts to embed. Pure.

Pictures and sounds are taken inline only: an address would be fetched by the engine, from inside the cluster.
"""

from typing import Any

from sluice_serving.gateway.errors import ApiError
from sluice_serving.gateway.parameters import Kind, invalid_type, is_int

MAX_MESSAGES = 512
MAX_PARTS = 256
MAX_GENERATIONS = 32
"""Answers of one request: prompts times choices. They share one slot of the lane."""
MAX_CHOICES = 8
MAX_TEXTS = 2048
"""Of one embeddings request, as in the API's reference."""
ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
PARTS = frozenset(
    {
        "text", "refusal", "image_url", "video_url", "audio_url", "input_audio",  # chat
        "input_text", "output_text", "input_image", "reasoning_text", "summary_text",  # responses
    }
)  # fmt: skip
ITEMS = frozenset({"message", "function_call", "function_call_output", "reasoning"})
"""Kinds of input items of a response; the others name things that the server would have to keep or run."""
ADDRESSES = ("image_url", "video_url", "audio_url")


def check_input(kind: Kind, request: dict[str, Any]) -> None:
    """Raises ApiError that names the first thing that is wrong."""
    match kind:
        case "chat":
            _check_messages(request.get("messages"))
        case "text":
            _check_choices(request, _count_prompts("prompt", request.get("prompt"), MAX_GENERATIONS))
        case "embeddings":
            _count_prompts("input", request.get("input"), MAX_TEXTS)
        case "responses":
            _check_items(request.get("input"))
    if kind == "chat":
        _check_choices(request, 1)


def _check_messages(messages: object) -> None:
    if messages is None:
        raise _missing("messages")
    if not isinstance(messages, list):
        raise invalid_type("messages", "a list", messages)
    if not messages:
        raise ApiError(400, "Invalid 'messages': empty list; at least one message is needed.", param="messages",
                       code="empty_array")  # fmt: skip
    if len(messages) > MAX_MESSAGES:
        raise _too_long("messages", MAX_MESSAGES)
    for i, message in enumerate(messages):
        where = f"messages[{i}]"
        if not isinstance(message, dict):
            raise invalid_type(where, "an object", message)
        _check_role(message.get("role"), where)
        _check_content(message.get("content"), where)


def _check_role(role: object, where: str) -> None:
    if role is None:
        raise _missing(f"{where}.role")
    if not isinstance(role, str) or role not in ROLES:
        raise ApiError(400, f"Invalid value for '{where}.role': expected one of {', '.join(sorted(ROLES))}.",
                       param=f"{where}.role", code="invalid_value")  # fmt: skip


def _check_content(content: object, where: str) -> None:
    if content is None or isinstance(content, str):
        return
    if not isinstance(content, list):
        raise invalid_type(f"{where}.content", "text or a list of parts", content)
    if len(content) > MAX_PARTS:
        raise _too_long(f"{where}.content", MAX_PARTS)
    for i, part in enumerate(content):
        _check_part(part, f"{where}.content[{i}]")


def _check_part(part: object, where: str) -> None:
    if not isinstance(part, dict):
        raise invalid_type(where, "an object", part)
    kind = part.get("type")
    if not isinstance(kind, str) or kind not in PARTS:
        raise ApiError(400, f"Invalid value for '{where}.type': expected one of {', '.join(sorted(PARTS))}.",
                       param=f"{where}.type", code="invalid_value")  # fmt: skip
    for name in ADDRESSES:
        value = part.get(name)
        url = value.get("url") if isinstance(value, dict) else value
        if url is not None and not (isinstance(url, str) and url.startswith("data:")):
            raise ApiError(400, f"Invalid value for '{where}.{name}': addresses are not fetched; send the content "
                           "itself, as a data: URL.", param=f"{where}.{name}", code="invalid_value")  # fmt: skip


def _check_items(given: object) -> None:
    if given is None:
        raise _missing("input")
    if isinstance(given, str):
        if not given:
            raise _empty("input")
        return
    if not isinstance(given, list):
        raise invalid_type("input", "text or a list of items", given)
    if not given:
        raise _empty("input")
    if len(given) > MAX_MESSAGES:
        raise _too_long("input", MAX_MESSAGES)
    for i, item in enumerate(given):
        where = f"input[{i}]"
        if not isinstance(item, dict):
            raise invalid_type(where, "an object", item)
        kind = item.get("type", "message")
        if not isinstance(kind, str) or kind not in ITEMS:
            raise ApiError(400, f"Invalid value for '{where}.type': expected one of {', '.join(sorted(ITEMS))}.",
                           param=f"{where}.type", code="invalid_value")  # fmt: skip
        if kind == "message":
            _check_role(item.get("role"), where)
        _check_content(item.get("content"), where)
        if kind == "function_call_output" and not isinstance(item.get("output"), str):
            _check_content(item.get("output"), where)


def _count_prompts(name: str, given: object, most: int) -> int:
    """How many texts `given` holds: a text, a list of texts, one text as tokens, or a list of these."""
    expected = "text, a list of texts, or lists of token ids"
    if given is None:
        raise _missing(name)
    if isinstance(given, str):
        if not given:
            raise _empty(name)
        return 1
    if not isinstance(given, list):
        raise invalid_type(name, expected, given)
    if not given:
        raise _empty(name)
    if all(is_int(v) for v in given):
        return 1
    if len(given) > most:
        raise _too_long(name, most)
    first = str if isinstance(given[0], str) else list
    for i, text in enumerate(given):
        if not isinstance(text, first) or (isinstance(text, list) and not all(is_int(v) for v in text)):
            raise invalid_type(f"{name}[{i}]", expected, text)
        if not text:
            raise _empty(f"{name}[{i}]")
    return len(given)


def _check_choices(request: dict[str, Any], prompts: int) -> None:
    choices = request.get("n", 1)
    if not 1 <= choices <= MAX_CHOICES:
        raise ApiError(400, f"Invalid value for 'n': expected 1 to {MAX_CHOICES}.", param="n", code="invalid_value")
    if prompts * choices > MAX_GENERATIONS:
        raise ApiError(400, f"Prompts times 'n' must not be above {MAX_GENERATIONS}; got {prompts * choices}.",
                       param="n", code="invalid_value")  # fmt: skip


def _missing(name: str) -> ApiError:
    return ApiError(400, f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter")


def _empty(name: str) -> ApiError:
    return ApiError(400, f"Invalid '{name}': it is empty.", param=name, code="invalid_value")


def _too_long(name: str, most: int) -> ApiError:
    return ApiError(400, f"Invalid '{name}': at most {most} elements are taken.", param=name,
                    code="array_above_max_length")  # fmt: skip
