"""Whether a request may go to another pool's model, and how it is asked there. Pure.

What reads the same to any model may go: messages, text, limits, shapes. What only one model can make sense of may not:
vectors are compared with vectors of the same model, and token ids mean other words in another vocabulary.
"""

import json
from dataclasses import replace
from typing import Any

from sluice_contracts.routing import FallbackModelRoute, RoutingLimits

from sluice_serving.gateway.completion import Completion, cap_tokens
from sluice_serving.gateway.errors import ApiError

TOKEN_IDS = frozenset(
    {"logit_bias", "stop_token_ids", "allowed_token_ids", "return_token_ids", "return_tokens_as_token_ids"}
)
"""Parameters that speak of token ids."""


def for_other_model(completion: Completion, route: FallbackModelRoute, limits: RoutingLimits) -> Completion | None:
    """The request as the other model is asked; None where it may not be. An answer from there is no longer than either
    pool allows: shortened where this pool's `limits` shorten, and not asked for where they refuse."""
    if completion.kind == "embeddings":
        return None
    request: dict[str, Any] = json.loads(completion.body)
    if any(request.get(name) for name in TOKEN_IDS) or _is_tokens(request.get("prompt")):
        return None
    lower = limits.model_copy(update={"max_output_tokens": min(limits.max_output_tokens, route.max_output_tokens)})
    try:
        clamped = cap_tokens(completion.kind, request, lower)
    except ApiError:
        return None
    request["model"] = route.model
    body = json.dumps(request, ensure_ascii=False).encode()
    return replace(completion, body=body, clamped=clamped or completion.clamped)


def _is_tokens(prompt: Any) -> bool:
    """Whether a prompt, or one of several, is given as token ids."""
    return isinstance(prompt, list) and any(not isinstance(part, str) for part in prompt)
