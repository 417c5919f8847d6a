"""Both endpoints keep one contract, with OpenAI's client for Python."""

import pytest
from openai_behaviours import BEHAVIOURS


@pytest.mark.parametrize("behaviour", BEHAVIOURS, ids=lambda b: b.__name__)
@pytest.mark.parametrize("endpoint", ["gateway_api", "edge_api"])
def test_the_contract(endpoint: str, behaviour, request: pytest.FixtureRequest) -> None:
    behaviour(request.getfixturevalue(endpoint))


def test_what_the_engine_gets_is_what_was_asked(gateway_api, upstream) -> None:
    """Nothing but the caps and who asks is changed on the way."""
    asked = {
        "messages": [{"role": "user", "content": "hi"}], "temperature": 0.3, "top_p": 0.5, "seed": 3, "stop": ["x"],
        "n": 2, "logprobs": True, "top_logprobs": 4, "presence_penalty": 0.1, "frequency_penalty": 0.2,
        "logit_bias": {"5": 1}, "response_format": {"type": "json_object"}, "max_completion_tokens": 9,
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": True}}],
        "tool_choice": {"type": "function", "function": {"name": "f"}}, "parallel_tool_calls": False,
    }  # fmt: skip
    gateway_api.client.chat.completions.create(model=gateway_api.model, user="jane", **asked)
    path, body = upstream.requests[-1]
    assert (path, body) == ("/v1/chat/completions", {"model": gateway_api.model} | asked)


def test_who_leaves_a_stream_stops_the_engine(gateway_api, upstream) -> None:
    import time

    upstream.word_delay = 0.3
    try:
        before = upstream.aborted
        stream = gateway_api.client.chat.completions.create(
            model=gateway_api.model, messages=[{"role": "user", "content": "hi"}], stream=True
        )
        next(iter(stream))
        assert upstream.running == 1
        stream.close()
        deadline = time.monotonic() + 10
        while upstream.running:
            assert time.monotonic() < deadline, "the engine goes on"
            time.sleep(0.01)
        assert upstream.aborted == before + 1
    finally:
        upstream.word_delay = 0.0
