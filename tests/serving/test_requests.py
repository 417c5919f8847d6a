"""What of a request reaches the engine, and how it is refused otherwise. No gateway needed."""

import inspect
import json
from typing import Any

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sluice_contracts.routing import RoutingLimits
from sluice_serving.gateway.completion import MAX_DEPTH, Completion, read_completion
from sluice_serving.gateway.errors import ApiError
from sluice_serving.gateway.parameters import INSTEAD, PARAMETERS, Kind
from sluice_serving.gateway.upstream import RetryBudget, refusal

MODEL = "support-bot"
INPUTS: dict[Kind, dict[str, Any]] = {
    "chat": {"messages": [{"role": "user", "content": "hi"}]},
    "text": {"prompt": "hi"},
    "responses": {"input": "hi"},
    "embeddings": {"input": "hi"},
}


def read(kind: Kind, limits: RoutingLimits | None = None, **more: Any) -> Completion:
    body = {"model": MODEL} | INPUTS[kind] | more
    return read_completion(kind, json.dumps(body).encode(), MODEL, limits or RoutingLimits())


def sent(kind: Kind, limits: RoutingLimits | None = None, **more: Any) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(read(kind, limits, **more).body)
    return content


def refused(kind: Kind, limits: RoutingLimits | None = None, **more: Any) -> tuple[int, str | None, str | None]:
    with pytest.raises(ApiError) as error:
        read(kind, limits, **more)
    return error.value.status, error.value.param, error.value.code


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("chat", "max_tokens"),
        ("chat", "max_completion_tokens"),
        ("text", "max_tokens"),
        ("responses", "max_output_tokens"),
    ],
)
def test_a_wish_above_the_cap_is_clamped_or_refused_by_policy(kind: Kind, name: str) -> None:
    clamp = RoutingLimits(max_output_tokens=10)
    assert sent(kind, clamp, **{name: 11})[name] == 10
    assert read(kind, clamp, **{name: 11}).clamped == 10
    assert sent(kind, clamp, **{name: 7})[name] == 7
    assert read(kind, clamp, **{name: 10}).clamped is None
    refuse = RoutingLimits(max_output_tokens=10, output_token_policy="refuse")
    assert refused(kind, refuse, **{name: 11}) == (400, name, "invalid_value")
    assert sent(kind, refuse, **{name: 10})[name] == 10


@pytest.mark.parametrize(
    ("kind", "cap", "expected"),
    [
        ("chat", 10, {"max_completion_tokens": 10}),
        ("chat", 1024, {}),  # the engine's own default is as strict
        ("responses", 10, {"max_output_tokens": 10}),
        ("text", 10, {"max_tokens": 10}),
        ("text", 100, {}),  # vLLM's default of 16 is stricter
    ],
)
def test_without_a_wish_the_stricter_of_cap_and_engine_holds(kind: Kind, cap: int, expected: dict[str, int]) -> None:
    body = sent(kind, RoutingLimits(max_output_tokens=cap))
    assert {k: v for k, v in body.items() if k.startswith("max_")} == expected


@pytest.mark.parametrize("kind", list(INPUTS))
def test_who_asks_stays_here(kind: Kind) -> None:
    read_one = read(kind, user="jane")
    assert read_one.user == "jane"
    assert b"jane" not in read_one.body
    if kind != "embeddings":
        assert b"trace" not in read(kind, metadata={"k": "trace"}, prompt_cache_key="trace").body


def test_nothing_else_of_a_response_changes_but_that_it_is_not_stored() -> None:
    more = {
        "instructions": "Be brief.", "temperature": 0.5, "text": {"format": {"type": "json_object"}},
        "tools": [{"type": "function", "name": "f", "parameters": {}}], "reasoning": {"effort": "low"},
    }  # fmt: skip
    assert sent("responses", **more) == {"model": MODEL, "input": "hi", "store": False} | more


PICTURE = "http://169.254.169.254/latest/meta-data"


@pytest.mark.parametrize(
    ("kind", "more", "param"),
    [
        ("chat", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": PICTURE}}]}]},
         "messages[0].content[0].image_url"),
        ("chat", {"messages": [{"role": "user", "content": [{"type": "audio_url", "audio_url": {"url": "file:///x"}}]}]},
         "messages[0].content[0].audio_url"),
        ("chat", {"messages": [{"role": "user", "content": [{"type": "image_embeds", "image_embeds": "gAR9"}]}]},
         "messages[0].content[0].type"),
        ("chat", {"messages": [{"role": "user", "content": [{"image_url": PICTURE}]}]}, "messages[0].content[0].type"),
        ("responses", {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": PICTURE}]}]},
         "input[0].content[0].image_url"),
        ("responses", {"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].type"),
        ("responses", {"input": [{"type": "function_call_output", "call_id": "c", "output": [
            {"type": "input_image", "image_url": PICTURE}]}]}, "input[0].content[0].image_url"),
    ],
)  # fmt: skip
def test_no_address_is_fetched_and_no_tensor_loaded(kind: Kind, more: dict[str, Any], param: str) -> None:
    assert refused(kind, **more) == (400, param, "invalid_value")


def test_content_that_comes_along_is_taken() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    assert sent("chat", messages=[{"role": "user", "content": [picture]}])["messages"][0]["content"] == [picture]


@pytest.mark.parametrize(
    ("kind", "more", "expected"),
    [
        ("text", {"prompt": ["a", "b"], "n": 8}, None),
        ("text", {"prompt": ["a"] * 5, "n": 8}, (400, "n", "invalid_value")),
        ("text", {"prompt": ["a"] * 33}, (400, "prompt", "array_above_max_length")),
        ("text", {"prompt": [1, 2, 3]}, None),
        ("text", {"prompt": [[1, 2], [3]]}, None),
        ("text", {"prompt": [[1, 2], "a"]}, (400, "prompt[1]", "invalid_type")),
        ("text", {"prompt": ["a", ""]}, (400, "prompt[1]", "invalid_value")),
        ("text", {"prompt": {}}, (400, "prompt", "invalid_type")),
        ("text", {"prompt": None}, (400, "prompt", "missing_required_parameter")),
        ("text", {"best_of": 100}, (400, "best_of", "unknown_parameter")),
        ("text", {"prompt_embeds": "AA"}, (400, "prompt_embeds", "unknown_parameter")),
        ("text", {"max_completion_tokens": 4}, (400, "max_completion_tokens", "unknown_parameter")),
        ("chat", {"n": 0}, (400, "n", "invalid_value")),
        ("chat", {"n": 9}, (400, "n", "invalid_value")),
        ("chat", {"messages": [{"role": "user"}] * 513}, (400, "messages", "array_above_max_length")),
        ("chat", {"functions": []}, (400, "functions", "unknown_parameter")),
        ("chat", {"modalities": ["audio"]}, (400, "modalities", "invalid_value")),
        ("chat", {"modalities": ["text"]}, None),
        ("embeddings", {"input": [""]}, (400, "input[0]", "invalid_value")),
        ("embeddings", {"stream": True}, (400, "stream", "unknown_parameter")),
        ("embeddings", {"dimensions": "3"}, (400, "dimensions", "invalid_type")),
        ("responses", {"conversation": "c"}, (400, "conversation", "unknown_parameter")),
        ("responses", {"input": []}, (400, "input", "invalid_value")),
        ("responses", {"store": False, "background": False}, None),
        ("chat", {"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": False}}, None),
        ("chat", {"stream": True, "stream_options": {"sseq": 1}}, (400, "stream_options.sseq", "unknown_parameter")),
    ],
)  # fmt: skip
def test_what_each_endpoint_takes(kind: Kind, more: dict[str, Any], expected: object) -> None:
    if expected is None:
        assert read(kind, **more).kind == kind
    else:
        assert refused(kind, **more) == expected


def test_another_endpoints_name_for_the_cap_is_answered_with_the_right_one() -> None:
    with pytest.raises(ApiError, match="this endpoint has 'max_output_tokens'"):
        read("responses", max_completion_tokens=5)


JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5000) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KINDS: Any = st.sampled_from(list(INPUTS))


@given(KINDS, st.data())
@settings(max_examples=300, deadline=None)
def test_whatever_is_sent_is_taken_or_refused_in_the_apis_terms(kind: Kind, data: st.DataObject) -> None:
    names = st.sampled_from(sorted(PARAMETERS[kind])) | st.text(max_size=8)
    request = {"model": MODEL} | INPUTS[kind] | data.draw(st.dictionaries(names, JSON, max_size=4))
    try:
        completion = read_completion(kind, json.dumps(request).encode(), MODEL, RoutingLimits(max_output_tokens=50))
    except ApiError as error:
        refused_with = error
    else:
        body = json.loads(completion.body)
        assert all(body[name] <= 50 for name in body if name.startswith("max_") and "token" in name)
        assert not {"user", "safety_identifier", "metadata"} & body.keys()
        return
    assert 400 <= refused_with.status < 500
    assert refused_with.message


@pytest.mark.parametrize(
    ("kind", "name"),
    [("chat", "chat.completions"), ("text", "completions"), ("responses", "responses"), ("embeddings", "embeddings")],
)
def test_whatever_the_official_client_can_send_is_taken_or_refused_with_a_reason(kind: Kind, name: str) -> None:
    resource: Any = openai.OpenAI(api_key="x")
    for part in name.split("."):
        resource = getattr(resource, part)
    of_the_client = {"self", "extra_headers", "extra_query", "extra_body", "timeout"}
    sends = inspect.signature(inspect.unwrap(resource.create)).parameters.keys() - of_the_client
    assert sends - PARAMETERS[kind].keys() - INSTEAD.keys() == set()


@pytest.mark.parametrize("name", ["seed", "top_k", "min_tokens"])
def test_an_integer_that_would_break_the_engines_messages_is_refused(name: str) -> None:
    assert sent("chat", **{name: 2**63 - 1})[name] == 2**63 - 1
    for beyond in (2**63, -(2**63) - 1, 10**30):
        assert refused("chat", **{name: beyond}) == (400, name, "invalid_type")
    assert refused("text", prompt=[[1, 2**64]]) == (400, "prompt[0]", "invalid_type")


@pytest.mark.parametrize("opens", ["[", '{"a":'])
def test_what_is_nested_too_deeply_is_refused(opens: str) -> None:
    def nested(depth: int) -> bytes:
        inner = opens * depth + "0" + ("]" if opens == "[" else "}") * depth
        return (
            json.dumps({"model": MODEL} | INPUTS["chat"])[:-1].encode() + f', "logit_bias": {{"a": {inner}}}}}'.encode()
        )

    def read_it(depth: int) -> Completion:
        return read_completion("chat", nested(depth), MODEL, RoutingLimits())

    assert read_it(MAX_DEPTH - 2).kind == "chat"
    for depth in (MAX_DEPTH - 1, 500, 100_000):
        with pytest.raises(ApiError) as error:
            read_it(depth)
        assert (error.value.status, error.value.code) == (400, "invalid_json")
    wide = [{"role": "user", "content": [{"type": "text", "text": "["}]}] * 100  # many, but not deep
    assert len(sent("chat", messages=wide)["messages"]) == 100


def test_of_a_name_that_comes_twice_the_engine_gets_what_was_checked() -> None:
    raw = json.dumps({"model": MODEL} | INPUTS["chat"])[:-1] + ', "max_tokens": 7, "max_tokens": 100000, "model": "x"'
    with pytest.raises(ApiError, match="does not exist"):
        read_completion("chat", f"{raw}}}".encode(), MODEL, RoutingLimits())
    body = read_completion(
        "chat", f'{raw}, "model": "{MODEL}"}}'.encode(), MODEL, RoutingLimits(max_output_tokens=50)
    ).body
    assert body.count(b'"max_tokens": 50') == body.count(b"max_tokens") == body.count(b"model") == 1


def test_a_number_beyond_all_numbers_is_refused() -> None:
    raw = json.dumps({"model": MODEL} | INPUTS["chat"])[:-1] + ', "temperature": 1e999}'
    with pytest.raises(ApiError, match="out of range"):
        read_completion("chat", raw.encode(), MODEL, RoutingLimits())


@given(KINDS, st.binary(max_size=60))
def test_bytes_that_are_no_request_are_refused(kind: Kind, raw: bytes) -> None:
    with pytest.raises(ApiError) as error:
        read_completion(kind, raw, MODEL, RoutingLimits())
    assert error.value.status == 400


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (404, b"Path '/v1/chat/completions' not found. Please ping http://.../-/routes", "unavailable"),
        (404, b'{"error": {"message": "Not Found", "code": 404}}', "unsupported_endpoint"),
        (404, b'{"detail":"Not Found"}', "unsupported_endpoint"),  # recorded from vLLM 0.29
        (405, b'{"error": {"message": "Method Not Allowed"}}', "unsupported_endpoint"),
        (501, b'{"error": {"message": "The model does not support Responses API"}}', "unsupported_endpoint"),
        (404, b'{"error": {"message": "The model `x` does not exist."}}', "unavailable"),
        (503, b"", "unavailable"),
        (429, b"", "unavailable"),
        (500, b'{"error": {"message": "EngineDeadError"}}', "failed"),
        (302, b"", "failed"),
        (400, b'{"error": {"message": "This model\'s maximum context length is 256 tokens."}}',
         "context_length_exceeded"),
        (400, b'{"error": {"message": "top_p must be in (0, 1]", "param": "top_p"}}', "invalid_request"),
        (422, b"<html>", "invalid_request"),
    ],
)  # fmt: skip
def test_what_an_engines_status_means(status: int, body: bytes, expected: str) -> None:
    meaning = refusal(status, body)
    if isinstance(meaning, ApiError):
        assert meaning.code == expected
    else:
        assert ("unavailable" if meaning.unavailable else "failed") == expected
        assert meaning.retriable


def test_retries_are_a_share_of_requests() -> None:
    budget = RetryBudget(share=0.2, reserve=3)
    assert [budget.spend() for _ in range(4)] == [True, True, True, False]
    spent = 0
    for _ in range(100):
        budget.earn()
        spent += budget.spend()
    assert spent == pytest.approx(20, abs=1)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ApiError(429, "full", retry_after=60), None),  # waited for by the official clients
        (ApiError(429, "spent", retry_after=61), b"false"),
        (ApiError(503, "waking", retry_after=5), None),
        (ApiError(504, "late"), b"false"),  # the next one would take as long
    ],
)
def test_clients_are_told_where_asking_again_is_of_no_use(error: ApiError, told: bytes | None) -> None:
    assert dict(error.headers()).get(b"x-should-retry") == told
