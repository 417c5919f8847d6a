"""Which answers owe a JSON shape, and whether they have it; answers put together from a stream."""

import json
from typing import Any

import pytest
from sluice_serving.gateway.transcript import MAX_CHARACTERS, Transcript
from sluice_serving.gateway.validity import expectation, holds

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
PERSON = {
    "type": "json_schema",
    "json_schema": {
        "name": "person",
        "schema": {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]},
    },
}


def request(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": "?"}], **fields}).encode()


def answer(content: str | None = None, *calls: tuple[str, str], **fields: Any) -> Transcript:
    message: dict[str, Any] = {"role": "assistant", "content": content, **fields}
    if calls:
        message["tool_calls"] = [
            {"id": f"c{i}", "type": "function", "function": {"name": name, "arguments": text}}
            for i, (name, text) in enumerate(calls)
        ]
    return Transcript.of({"choices": [{"index": 0, "finish_reason": "stop", "message": message}]})


def judged(body: bytes, said: Transcript) -> bool | None:
    expected = expectation(body)
    assert expected is not None
    return holds(expected, said)


@pytest.mark.parametrize(
    ("fields", "said", "verdict"),
    [
        ({"response_format": PERSON}, answer('{"age": 3}'), True),
        ({"response_format": PERSON}, answer('{"age": "three"}'), False),
        ({"response_format": PERSON}, answer('{"age": 3'), False),
        ({"response_format": PERSON}, answer("I am three."), False),
        ({"response_format": PERSON}, answer(None, refusal="I will not say."), None),
        ({"response_format": {"type": "json_object"}}, answer("{}"), True),
        ({"response_format": {"type": "json_object"}}, answer("[]"), False),
        ({"tools": [WEATHER]}, answer("It rains."), None),
        ({"tools": [WEATHER]}, answer(None, ("weather", '{"city": "Bern"}')), True),
        ({"tools": [WEATHER]}, answer(None, ("weather", '{"town": "Bern"}')), False),
        ({"tools": [WEATHER]}, answer(None, ("weather", '{"city": "Bern"}'), ("weather", "{")), False),
        ({"tools": [WEATHER]}, answer(None, ("climate", "{}")), False),
        ({"tools": [WEATHER], "tool_choice": "required"}, answer("It rains."), False),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "weather"}}},
            answer("?"),
            False,
        ),
        ({"tools": [WEATHER], "response_format": PERSON}, answer(None, ("weather", '{"city": "Bern"}')), True),
        ({"tools": [{"type": "function", "function": {"name": "now"}}]}, answer(None, ("now", "")), True),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"dependentRequired": {}}}}},
            answer("{}"),
            None,
        ),
    ],
)
def test_an_answer_has_the_shape_that_its_request_asked_for(
    fields: dict[str, Any], said: Transcript, verdict: bool | None
) -> None:
    assert judged(request(**fields), said) is verdict


def test_requests_that_ask_for_no_shape_expect_none() -> None:
    assert expectation(request()) is None
    assert expectation(request(response_format={"type": "text"}, tools=[])) is None
    assert expectation(json.dumps({"model": "m", "prompt": 'the word "tools"'}).encode()) is None


def test_all_choices_must_have_it() -> None:
    good, bad = ({"message": {"content": text}} for text in ('{"age": 1}', "{}"))
    said = Transcript.of({"choices": [{"index": 0, **good}, {"index": 1, **bad}]})
    assert judged(request(response_format=PERSON), said) is False


def event(**choice: Any) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, **choice}]}).encode() + b"\n\n"


def test_a_stream_is_put_together() -> None:
    said = Transcript()
    said.feed(event(delta={"role": "assistant", "content": None}))
    for name, arguments in (("weather", ""), (None, '{"ci'), (None, 'ty": "Bern"}')):
        function = {"arguments": arguments} | ({"name": name} if name else {})
        said.feed(event(delta={"tool_calls": [{"index": 0, "function": function}]}))
    said.feed(event(delta={}, finish_reason="tool_calls"))
    said.feed(b"data: [DONE]\n\n")
    assert judged(request(tools=[WEATHER]), said) is True
    assert said.first is not None
    assert said.first.finish_reason == "tool_calls"
    assert said.first.as_text() == 'weather({"city": "Bern"})'


def test_no_more_is_kept_than_the_bound() -> None:
    said = Transcript()
    for _ in range(100):
        said.feed(event(delta={"content": "x" * 1000}))
    assert said.overflowed
    assert said.first is None
    assert sum(len(choice.text) for choice in said.choices.values()) <= MAX_CHARACTERS
    assert judged(request(response_format=PERSON), said) is None
    many = Transcript.of({"choices": [{"index": i, "message": {"content": ""}} for i in range(1000)]})
    assert many.overflowed


@pytest.mark.parametrize("text", [b"data: {", b'data: {"choices": [7]}', b'data: {"choices": [{"index": "x"}]}'])
def test_what_does_not_read_is_not_judged(text: bytes) -> None:
    said = Transcript()
    said.feed(text)
    assert judged(request(response_format=PERSON), said) is None
