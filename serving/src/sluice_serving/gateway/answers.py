"""What a whole answer tells: token counts and why it ended. Pure."""

import json
from dataclasses import dataclass
from typing import Any

from sluice_serving.gateway.errors import EngineFailed
from sluice_serving.gateway.parameters import Kind


@dataclass(frozen=True)
class Counts:
    """Of one answer; None where it does not say."""

    prompt_tokens: int | None = None
    output_tokens: int | None = None
    finish_reason: str | None = None


def read_counts(kind: Kind, body: bytes) -> Counts:
    """The counts in the engine's answer. Raises EngineFailed if it is no such answer: the client cannot use it."""
    try:
        answer = json.loads(body)
        match kind:
            case "responses":
                if answer["status"] == "failed" or not isinstance(answer["output"], list):
                    raise EngineFailed("the engine's response failed", retriable=True)
                return response_counts(answer)
            case "embeddings":
                answer["data"][0]["embedding"]
                return Counts(prompt_tokens=(answer.get("usage") or {}).get("prompt_tokens"))
            case _:
                usage = answer.get("usage") or {}
                reason = answer["choices"][0].get("finish_reason")
                return Counts(usage.get("prompt_tokens"), usage.get("completion_tokens"), reason)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        raise EngineFailed("the engine's answer is no such answer", retriable=True) from None


def response_counts(response: Any) -> Counts:
    """The counts of a response object, with its end in the words of chat completions, which the metrics have."""
    if not isinstance(response, dict):
        return Counts()
    usage = response.get("usage") or {}
    reason: str | None = "stop"
    if response.get("status") == "incomplete":
        cut = (response.get("incomplete_details") or {}).get("reason")
        reason = "length" if cut == "max_output_tokens" else cut
    return Counts(usage.get("input_tokens"), usage.get("output_tokens"), reason)
