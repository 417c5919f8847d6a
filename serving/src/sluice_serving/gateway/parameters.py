"""What a client may send to each endpoint, and of which type. Pure.

A list of what is taken, not of what is refused: the engine understands extensions that would let a client run its own
templates, load tensors or reach other clients' state, and every release adds some. What the API's reference knows is
taken, and those of vLLM's sampling parameters that touch nobody else's request. Values within the right type are the
engine's to judge: its refusals reach the client as they are.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from sluice_serving.gateway.errors import ApiError

Kind = Literal["chat", "text", "responses", "embeddings"]


@dataclass(frozen=True)
class Shape:
    """A type of JSON value, and its name for people."""

    name: str
    fits: Callable[[Any], bool]


def is_int(value: object) -> bool:
    """Of 64 bits: a larger one would break the engine's own messages, and count as the version's failure. True is an
    int in Python, but not in JSON."""
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def _texts(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(v, str) for v in value))


def _objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, dict) for v in value)


def _integers(value: Any) -> bool:
    return isinstance(value, list) and all(is_int(v) for v in value)


ANY = Shape("anything", lambda value: True)
TEXT = Shape("text", lambda value: isinstance(value, str))
NUMBER = Shape("a number", lambda value: isinstance(value, int | float) and not isinstance(value, bool))
INTEGER = Shape("an integer", is_int)
BOOLEAN = Shape("true or false", lambda value: isinstance(value, bool))
OBJECT = Shape("an object", lambda value: isinstance(value, dict))
OBJECTS = Shape("a list of objects", _objects)
INTEGERS = Shape("a list of integers", _integers)
TEXT_OR_TEXTS = Shape("text or a list of texts", _texts)
TEXT_OR_OBJECT = Shape("text or an object", lambda value: isinstance(value, str | dict))
LIST = Shape("a list", lambda value: isinstance(value, list))

WITHHELD = ("user", "safety_identifier", "metadata", "store", "prompt_cache_key")
"""Who asks is not the engine's business."""

_EVERYWHERE = {
    "model": TEXT,
    "user": TEXT,
    "safety_identifier": TEXT,
}
_GENERATING = _EVERYWHERE | {
    "stream": BOOLEAN,
    "stream_options": OBJECT,
    "temperature": NUMBER,
    "top_p": NUMBER,
    "seed": INTEGER,
    "stop": TEXT_OR_TEXTS,
    "presence_penalty": NUMBER,
    "frequency_penalty": NUMBER,
    "logit_bias": OBJECT,
    "metadata": OBJECT,
    "store": BOOLEAN,
    "service_tier": TEXT,
    "prompt_cache_key": TEXT,
    # vLLM's own.
    "top_k": INTEGER,
    "min_p": NUMBER,
    "repetition_penalty": NUMBER,
    "ignore_eos": BOOLEAN,
    "include_stop_str_in_output": BOOLEAN,
    "skip_special_tokens": BOOLEAN,
    "structured_outputs": OBJECT,
}
_SAMPLING = _GENERATING | {
    "n": INTEGER,
    "response_format": OBJECT,
    # vLLM's own.
    "length_penalty": NUMBER,
    "stop_token_ids": INTEGERS,
    "min_tokens": INTEGER,
    "spaces_between_special_tokens": BOOLEAN,
    "truncate_prompt_tokens": INTEGER,
    "truncation_side": TEXT,
    "prompt_logprobs": INTEGER,
    "allowed_token_ids": INTEGERS,
    "bad_words": LIST,
    "echo": BOOLEAN,
    "add_special_tokens": BOOLEAN,
    "return_tokens_as_token_ids": BOOLEAN,
    "return_token_ids": BOOLEAN,
}
PARAMETERS: dict[Kind, dict[str, Shape]] = {
    "chat": _SAMPLING
    | {
        "messages": LIST,
        "max_tokens": INTEGER,
        "max_completion_tokens": INTEGER,
        "logprobs": BOOLEAN,
        "top_logprobs": INTEGER,
        "tools": OBJECTS,
        "tool_choice": TEXT_OR_OBJECT,
        "parallel_tool_calls": BOOLEAN,
        "reasoning_effort": TEXT,
        "verbosity": TEXT,
        "modalities": LIST,
        "include_reasoning": BOOLEAN,
        "add_generation_prompt": BOOLEAN,
        "continue_final_message": BOOLEAN,
    },
    "text": _SAMPLING
    | {
        "prompt": ANY,  # checked with the other inputs
        "max_tokens": INTEGER,
        "logprobs": INTEGER,
        "suffix": TEXT,
    },
    "responses": _GENERATING
    | {
        "input": ANY,
        "instructions": TEXT,
        "max_output_tokens": INTEGER,
        "max_tool_calls": INTEGER,
        "include": LIST,
        "parallel_tool_calls": BOOLEAN,
        "reasoning": OBJECT,
        "text": OBJECT,
        "tool_choice": TEXT_OR_OBJECT,
        "tools": OBJECTS,
        "top_logprobs": INTEGER,
        "truncation": TEXT,
        "background": BOOLEAN,
        "include_reasoning": BOOLEAN,
    },
    "embeddings": _EVERYWHERE
    | {
        "input": ANY,
        "dimensions": INTEGER,
        "encoding_format": TEXT,
        "truncate_prompt_tokens": INTEGER,
        "add_special_tokens": BOOLEAN,
    },
}

CAPS: dict[Kind, tuple[str, ...]] = {
    "chat": ("max_completion_tokens", "max_tokens"),
    "text": ("max_tokens",),
    "responses": ("max_output_tokens",),
    "embeddings": (),
}
"""How a client bounds the answer; the first is the one to recommend."""
_EVERY_CAP = {name for names in CAPS.values() for name in names}

INSTEAD = {
    "functions": "use `tools`",
    "function_call": "use `tool_choice`",
    "audio": "answers are text",
    "web_search_options": "no tool runs on the server",
    "previous_response_id": "responses are not stored: send the whole conversation in `input`",
    "conversation": "conversations are not stored: send the whole conversation in `input`",
    "prompt_cache_retention": "prompts are not kept",
    "prompt_cache_options": "prompts are not kept",
    "prompt": "prompts are not stored: send the text itself",
    "context_management": "conversations are not stored: shorten `input` yourself",
    "prediction": "answers are not predicted",
    "moderation": "nothing is moderated here",
    "image": "answers are text",
    "access_programs": "there are none here",
    "best_of": "use `n`",
}
"""Parameters of the API that are not built, and what to do."""


def check_parameters(kind: Kind, request: dict[str, Any]) -> None:
    """Remove parameters that are null, which means their default. Raises ApiError for one that is unknown or of the
    wrong type."""
    known = PARAMETERS[kind]
    empty = []
    for name, value in request.items():
        shape = known.get(name)
        if shape is None:
            raise ApiError(400, _unknown(kind, name), param=name[:64], code="unknown_parameter")
        if value is None:
            empty.append(name)
        elif not shape.fits(value):
            raise invalid_type(name, shape.name, value)
    for name in empty:
        del request[name]


def invalid_type(name: str, expected: str, value: object) -> ApiError:
    """The error for a value of the wrong type; the value itself is not repeated."""
    return ApiError(400, f"Invalid type for '{name}': expected {expected}, got {_kind_of(value)}.", param=name,
                    code="invalid_type")  # fmt: skip


def _unknown(kind: Kind, name: str) -> str:
    message = f"Unknown parameter: '{name[:64]}'"
    if name in _EVERY_CAP and CAPS[kind]:
        return f"{message}; this endpoint has '{CAPS[kind][0]}'."
    if name in INSTEAD:
        return f"{message}; {INSTEAD[name]}."
    return f"{message}."


def _kind_of(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int():
            return "an integer" if is_int(value) else "one of more than 64 bits"
        case float():
            return "a number"
        case str():
            return "text"
        case list():
            return "a list"
        case _:
            return "an object"
