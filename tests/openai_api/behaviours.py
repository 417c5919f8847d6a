"""What an OpenAI-compatible endpoint does, as one list of behaviours: the cluster's gateway and a device's agent are
held to the same. Where an endpoint lacks a feature, the behaviour is its refusal in the API's own shape."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import pytest

HI: Any = [{"role": "user", "content": "Good evening"}]
TOOL: Any = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
SCHEMA: Any = {
    "type": "json_schema",
    "json_schema": {
        "name": "mood",
        "schema": {"type": "object", "properties": {"mood": {"type": "string"}}, "required": ["mood"]},
    },
}


@dataclass(frozen=True)
class Api:
    """One endpoint. `lacks` names what it refuses."""

    url: str
    key: str
    model: str
    client: openai.OpenAI
    most_bytes: int
    lacks: frozenset[str] = frozenset()
    cap: int = 1024
    """Of output tokens."""

    def post(self, content: bytes | Iterator[bytes], path: str = "/chat/completions", **headers: str) -> httpx.Response:
        """What no client would send."""
        sent = {"authorization": f"Bearer {self.key}", "content-type": "application/json"} | headers
        return httpx.post(self.url + path, content=content, headers=sent, timeout=30, trust_env=False, verify=False)

    def refuses(self, feature: str, ask: Callable[[], object], status: int, param: str | None) -> bool:
        """Whether the endpoint lacks the feature; if so, checks how it says so."""
        if feature not in self.lacks:
            return False
        with pytest.raises(openai.APIStatusError) as refused:
            ask()
        assert (refused.value.status_code, refused.value.param) == (status, param)
        assert refused.value.type == "invalid_request_error"
        assert refused.value.code
        return True


def shape_of(answer: httpx.Response) -> dict[str, Any]:
    """The error in an answer, after a look at its form."""
    assert answer.headers["content-type"].startswith("application/json")
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    error: dict[str, Any] = body["error"]
    return error


def models_are_listed_and_found(api: Api) -> None:
    assert [m.id for m in api.client.models.list()] == [api.model]
    assert api.client.models.retrieve(api.model).id == api.model
    with pytest.raises(openai.NotFoundError) as missing:
        api.client.models.retrieve("gpt-9")
    assert missing.value.code == "model_not_found"


def a_chat_comes_back_whole(api: Api) -> None:
    raw = api.client.chat.completions.with_raw_response.create(
        model=api.model, messages=HI, max_tokens=3, temperature=0
    )
    answer = raw.parse()
    assert (answer.object, answer.model) == ("chat.completion", api.model)
    assert answer.choices[0].message.role == "assistant"
    assert isinstance(answer.choices[0].message.content, str)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 3
    assert raw.headers["x-sluice-version"]


def a_streamed_chat_says_the_same(api: Api) -> None:
    asked: Any = {"model": api.model, "messages": HI, "max_completion_tokens": 4, "temperature": 0}
    whole = api.client.chat.completions.create(**asked)
    chunks = list(api.client.chat.completions.create(**asked, stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] == ["length"]
    assert all(c.usage is None for c in chunks)
    counted = list(api.client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert counted[-1].choices == []
    assert counted[-1].usage is not None
    assert counted[-1].usage.completion_tokens == 4


def the_same_seed_gives_the_same_answer(api: Api) -> None:
    asked: Any = {"model": api.model, "messages": HI, "max_tokens": 4, "temperature": 1, "top_p": 0.9, "seed": 7}
    first, second = (api.client.chat.completions.create(**asked) for _ in range(2))
    assert first.choices[0].message.content == second.choices[0].message.content


def an_answer_ends_before_a_stop_text(api: Api) -> None:
    asked: Any = {"model": api.model, "messages": HI, "max_tokens": 6, "temperature": 0}
    text = api.client.chat.completions.create(**asked).choices[0].message.content or ""
    # A model of random weights may say bytes that are no text; what is cut must be a whole character.
    stop = next((character for character in text[1:] if character.isascii() and character.isprintable()), None)
    if stop is None:
        return
    stopped = api.client.chat.completions.create(**asked, stop=[stop, "\u0000never"]).choices[0]
    assert stop not in (stopped.message.content or "")
    assert stopped.finish_reason == "stop"


def several_choices_or_a_refusal(api: Api) -> None:
    def ask() -> Any:
        return api.client.chat.completions.create(model=api.model, messages=HI, n=2, max_tokens=2)

    if not api.refuses("n", ask, 400, "n"):
        assert [c.index for c in ask().choices] == [0, 1]


def logprobs_come_with_the_tokens(api: Api) -> None:
    asked: Any = {"model": api.model, "messages": HI, "max_tokens": 8, "temperature": 0, "logprobs": True}
    asked |= {"top_logprobs": 2}
    whole = api.client.chat.completions.create(**asked).choices[0].logprobs
    assert whole.content  # fewer than tokens where an engine waits for the rest of a character
    assert all(len(token.top_logprobs) == 2 for token in whole.content)
    assert all(token.logprob <= 0 for token in whole.content)
    chunks = list(api.client.chat.completions.create(**asked, stream=True))
    seen = [c.choices[0].logprobs for c in chunks if c.choices and c.choices[0].logprobs]
    assert all(logprobs.content for logprobs in seen)
    assert seen


def tools_are_called_or_refused(api: Api) -> None:
    def ask(**more: Any) -> Any:
        return api.client.chat.completions.create(model=api.model, messages=HI, tools=[TOOL], max_tokens=60, **more)

    if api.refuses("tools", ask, 400, "tools"):
        return
    choice = ask().choices[0]
    assert choice.finish_reason == "tool_calls"
    assert json.loads(choice.message.tool_calls[0].function.arguments) == {"city": "Oslo"}
    pieces = [c.choices[0].delta.tool_calls for c in ask(stream=True) if c.choices]
    parts = [piece[0].function.arguments or "" for piece in pieces if piece]
    assert json.loads("".join(parts)) == {"city": "Oslo"}
    conversation: Any = [
        *HI,
        {"role": "assistant", "content": None, "tool_calls": [choice.message.tool_calls[0].model_dump()]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    again = api.client.chat.completions.create(model=api.model, messages=conversation, tools=[TOOL])
    assert again.choices[0].message.tool_calls


def json_schema_output_or_a_refusal(api: Api) -> None:
    def ask() -> Any:
        return api.client.chat.completions.create(
            model=api.model, messages=HI, response_format=SCHEMA, max_tokens=60, temperature=0
        )

    if not api.refuses("json_schema", ask, 400, "response_format.type"):
        assert set(json.loads(ask().choices[0].message.content)) == {"mood"}


def text_completions_or_a_refusal(api: Api) -> None:
    def ask(**more: Any) -> Any:
        return api.client.completions.create(model=api.model, prompt="Good", max_tokens=3, temperature=0, **more)

    if api.refuses("completions", ask, 404, "model"):
        return
    whole = ask()
    assert whole.usage.completion_tokens == 3
    assert "".join(c.choices[0].text for c in ask(stream=True)) == whole.choices[0].text
    many = api.client.completions.create(model=api.model, prompt=["a", "b"], max_tokens=1)
    assert [c.index for c in many.choices] == [0, 1]


def embeddings_or_a_refusal(api: Api) -> None:
    def ask(**more: Any) -> Any:
        return api.client.embeddings.create(model=api.model, input=["a", "b"], **more)

    if api.refuses("embeddings", ask, 404, "model"):
        return
    vectors = [e.embedding for e in ask().data]  # the client asks for base64 and decodes it
    assert vectors == [e.embedding for e in ask(encoding_format="float").data]
    assert len(vectors) == 2


def responses_or_a_refusal(api: Api) -> None:
    def ask(**more: Any) -> Any:
        asked: Any = {"model": api.model, "input": "Good evening", "max_output_tokens": 16, "temperature": 0} | more
        return api.client.responses.create(**asked)

    if api.refuses("responses", ask, 404, "model"):
        return
    whole = ask()
    assert whole.status in {"completed", "incomplete"}
    assert whole.usage.output_tokens > 0
    items: Any = [{"role": "user", "content": [{"type": "input_text", "text": "Good evening"}]}]
    events = list(ask(input=items, stream=True))
    assert events[0].type == "response.created"
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == whole.output_text
    assert events[-1].type in {"response.completed", "response.incomplete"}
    assert events[-1].response.usage.output_tokens == whole.usage.output_tokens
    for more, param in (
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"store": True}, "store"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"max_tokens": 3}, "max_tokens"),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            ask(extra_body=more)
        assert refused.value.param == param
    with pytest.raises(openai.NotFoundError):
        api.client.responses.retrieve("resp_1")


def an_unknown_model_is_not_found(api: Api) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        api.client.chat.completions.create(model="gpt-9", messages=HI)
    assert (missing.value.param, missing.value.code) == ("model", "model_not_found")


def a_wrong_key_is_refused(api: Api) -> None:
    stranger = api.client.with_options(api_key="sk-wrong")
    with pytest.raises(openai.AuthenticationError) as refused:
        stranger.chat.completions.create(model=api.model, messages=HI)
    assert refused.value.code == "invalid_api_key"
    with pytest.raises(openai.AuthenticationError):
        list(stranger.models.list())
    assert shape_of(api.post(b"{}", authorization=""))["code"] == "missing_api_key"


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"messages": "hi"}, "messages", "invalid_type"),
    ({"messages": [{"content": "hi"}]}, "messages[0].role", "missing_required_parameter"),
    ({"messages": [{"role": "boss", "content": "hi"}]}, "messages[0].role", "invalid_value"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "invalid_type"),
    ({"max_tokens": "many"}, "max_tokens", "invalid_type"),
    ({"max_completion_tokens": True}, "max_completion_tokens", "invalid_type"),
    ({"max_tokens": 0}, "max_tokens", "invalid_value"),
    ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", "invalid_value"),
    ({"max_output_tokens": 3}, "max_output_tokens", "unknown_parameter"),
    ({"temperature": "warm"}, "temperature", "invalid_type"),
    ({"seed": 1.5}, "seed", "invalid_type"),
    ({"stop": 3}, "stop", "invalid_type"),
    ({"stream": "yes"}, "stream", "invalid_type"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
    ({"user": 7}, "user", "invalid_type"),
    ({"chat_template": "{{ 1/0 }}"}, "chat_template", "unknown_parameter"),
    ({"temprature": 1}, "temprature", "unknown_parameter"),
]


def wrong_requests_are_refused_by_field(api: Api) -> None:
    for change, param, code in WRONG:
        body = {"model": api.model, "messages": HI} | change
        answer = api.post(json.dumps(body).encode())
        error = shape_of(answer)
        assert (answer.status_code, error["param"], error["code"]) == (400, param, code), change
        assert error["type"] == "invalid_request_error"


def null_means_the_default(api: Api) -> None:
    body = {"model": api.model, "messages": HI, "max_tokens": 2, "stream": None, "stop": None, "n": None, "user": None}
    assert api.post(json.dumps(body).encode()).status_code == 200


def what_is_no_request_is_refused(api: Api) -> None:
    for content in (b"{nonsense", b"[]", b'"hi"', b"[" * 5000):
        answer = api.post(content)
        assert (answer.status_code, shape_of(answer)["code"]) == (400, "invalid_json"), content[:20]
    for content in (
        b" " * (api.most_bytes + 1),
        iter([b" " * 65_536] * 64),
    ):  # the second without saying how long it is
        answer = api.post(content)
        assert (answer.status_code, shape_of(answer)["code"]) == (413, "request_too_large")


def wrong_paths_and_methods_are_refused(api: Api) -> None:
    answer = api.post(b"{}", "/nothing")
    assert (answer.status_code, shape_of(answer)["code"]) == (404, "unknown_url")
    headers = {"authorization": f"Bearer {api.key}"}
    for method, path in (("GET", "/chat/completions"), ("DELETE", "/models")):
        answer = httpx.request(method, api.url + path, headers=headers, timeout=30, trust_env=False, verify=False)
        assert (answer.status_code, shape_of(answer)["code"]) == (405, "method_not_allowed")
        assert answer.headers["allow"]


def a_wish_above_the_cap_is_clamped_and_said(api: Api) -> None:
    raw = api.client.chat.completions.with_raw_response.create(
        model=api.model, messages=HI, max_tokens=1_000_000, stop=["."], extra_headers={"x-session-id": "s"}
    )
    assert raw.headers["x-sluice-max-output-tokens"] == str(api.cap)


def who_leaves_a_stream_blocks_nobody(api: Api) -> None:
    for _ in range(12):
        stream = api.client.chat.completions.create(model=api.model, messages=HI, max_tokens=200, stream=True)
        next(iter(stream))
        stream.close()
    assert api.client.chat.completions.create(model=api.model, messages=HI, max_tokens=2).choices


BEHAVIOURS: list[Callable[[Api], None]] = [
    models_are_listed_and_found,
    a_chat_comes_back_whole,
    a_streamed_chat_says_the_same,
    the_same_seed_gives_the_same_answer,
    an_answer_ends_before_a_stop_text,
    several_choices_or_a_refusal,
    logprobs_come_with_the_tokens,
    tools_are_called_or_refused,
    json_schema_output_or_a_refusal,
    text_completions_or_a_refusal,
    embeddings_or_a_refusal,
    responses_or_a_refusal,
    an_unknown_model_is_not_found,
    a_wrong_key_is_refused,
    wrong_requests_are_refused_by_field,
    null_means_the_default,
    what_is_no_request_is_refused,
    wrong_paths_and_methods_are_refused,
    a_wish_above_the_cap_is_clamped_and_said,
    who_leaves_a_stream_blocks_nobody,
]
