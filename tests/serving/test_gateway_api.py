"""The gateway speaks the OpenAI API: checked with OpenAI's own client."""

from typing import Any

import openai
import pytest
from sluice_contracts.routing import RoutingLimits

MODEL = "support-bot"
HI: Any = [{"role": "user", "content": "hi"}]


async def test_a_chat_completion_comes_back_with_its_version(gateway: Any, engines: Any, served: Any) -> None:
    await gateway.route(served(await engines("All is well .")))
    raw = await gateway.openai().chat.completions.with_raw_response.create(model=MODEL, messages=HI)
    answer = raw.parse()
    assert answer.choices[0].message.content == "All is well ."
    assert answer.usage.completion_tokens == 4
    assert raw.headers["x-sluice-version"] == "v1"
    assert raw.headers["x-sluice-lineage"] == "lineage-of-v1"


async def test_a_streamed_chat_arrives_word_by_word_without_usage_unless_asked(
    gateway: Any, engines: Any, served: Any
) -> None:
    engine = await engines("one two three")
    await gateway.route(served(engine))
    stream = await gateway.openai().chat.completions.create(model=MODEL, messages=HI, stream=True)
    chunks = [chunk async for chunk in stream]
    assert [c.choices[0].delta.content for c in chunks] == ["one ", "two ", "three "]
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert engine.requests[0]["stream_options"] == {"include_usage": True}
    assert (await gateway.analysis())["versions"]["v1"]["outputTokens"]["total"] == 3


async def test_a_streamed_chat_ends_with_usage_if_asked(gateway: Any, engines: Any, served: Any) -> None:
    await gateway.route(served(await engines("one two three")))
    stream = await gateway.openai().chat.completions.create(
        model=MODEL, messages=HI, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 3


async def test_text_completions_work_streamed_and_whole(gateway: Any, engines: Any, served: Any) -> None:
    await gateway.route(served(await engines("one two")))
    client = gateway.openai()
    whole = await client.completions.create(model=MODEL, prompt="count")
    assert whole.choices[0].text == "onetwo"
    stream = await client.completions.create(model=MODEL, prompt="count", stream=True)
    assert [c.choices[0].text async for c in stream] == ["one ", "two "]


async def test_models_are_listed_and_found_by_name(gateway: Any, engines: Any, served: Any) -> None:
    await gateway.route(served(await engines()))
    client = gateway.openai()
    assert [m.id async for m in client.models.list()] == [MODEL]
    assert (await client.models.retrieve(MODEL)).id == MODEL
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("gpt-9")


async def test_a_wrong_key_is_refused_and_a_missing_one_too(gateway: Any, engines: Any, served: Any) -> None:
    await gateway.route(served(await engines()))
    with pytest.raises(openai.AuthenticationError, match="Incorrect API key"):
        await gateway.openai("sk-wrong").chat.completions.create(model=MODEL, messages=HI)
    with pytest.raises(openai.AuthenticationError):
        await gateway.openai("sk-wrong").models.list()
    async with gateway.session.get(f"{gateway.url}/v1/models") as got:
        assert got.status == 401
        assert (await got.json())["error"]["code"] == "missing_api_key"


@pytest.mark.parametrize(
    ("change", "param", "status"),
    [
        ({"model": "other"}, "model", 404),
        ({"model": None}, "model", 400),
        ({"messages": []}, "messages", 400),
        ({"messages": "hi"}, "messages", 400),
        ({"messages": [{"content": "hi"}]}, "messages[0].role", 400),
        ({"max_tokens": 0}, "max_tokens", 400),
        ({"max_tokens": "many"}, "max_tokens", 400),
        ({"max_completion_tokens": True}, "max_completion_tokens", 400),
        ({"stream": "yes"}, "stream", 400),
        ({"stream": True, "stream_options": 3}, "stream_options", 400),
        ({"n": 100}, "n", 400),
        ({"user": 7}, "user", 400),
        ({"user": "\ud800"}, "user", 400),
        ({"messages": [{"role": "user", "content": "half \ud83d"}]}, None, 400),
        ({"chat_template": "{{ 1/0 }}"}, "chat_template", 400),
    ],
)
async def test_bad_requests_are_refused_by_field(
    gateway: Any, engines: Any, served: Any, change: dict[str, Any], param: str | None, status: int
) -> None:
    engine = await engines()
    await gateway.route(served(engine))
    async with gateway.chat(**change) as got:
        error = (await got.json())["error"]
        assert (got.status, error["param"]) == (status, param)
        assert error["type"] == "invalid_request_error"
        assert error["message"]
    assert not engine.requests


async def test_what_is_no_json_and_what_is_too_long_is_refused(gateway: Any, engines: Any, served: Any) -> None:
    await gateway.route(served(await engines()), limits=RoutingLimits(max_request_bytes=2048))
    url, headers = f"{gateway.url}/v1/chat/completions", {"authorization": "Bearer sk-test-5f1c2d"}
    async with gateway.session.post(url, data=b"{nonsense", headers=headers) as got:
        assert (got.status, (await got.json())["error"]["code"]) == (400, "invalid_json")
    async with gateway.session.post(url, data=b'{"temperature": NaN}', headers=headers) as got:
        assert (got.status, (await got.json())["error"]["code"]) == (400, "invalid_json")
    async with gateway.session.post(url, data=b"[" * 2000, headers=headers) as got:
        assert got.status == 400
    async with gateway.session.post(url, data=b" " * 4096, headers=headers) as got:
        assert (got.status, (await got.json())["error"]["code"]) == (413, "request_too_large")
    async with gateway.session.get(url, headers=headers) as got:
        assert got.status == 405
    async with gateway.session.post(f"{gateway.url}/v1/nothing", headers=headers) as got:
        assert (got.status, (await got.json())["error"]["code"]) == (404, "unknown_url")


async def test_output_is_capped_whatever_the_client_asks(gateway: Any, engines: Any, served: Any) -> None:
    engine = await engines("a b c d e f g h")
    await gateway.route(served(engine), limits=RoutingLimits(max_output_tokens=3))
    client = gateway.openai()
    for asked in ({}, {"max_tokens": 1000}, {"max_completion_tokens": 1000}, {"max_tokens": 2}):
        answer = await client.chat.completions.create(model=MODEL, messages=HI, **asked)
        assert answer.usage.completion_tokens == min(3, asked.get("max_tokens", 3))
        assert answer.choices[0].finish_reason == "length"


async def test_the_cap_is_1024_by_default_and_left_to_the_engine_where_no_wish_is_stated(
    gateway: Any, engines: Any, served: Any
) -> None:
    engine = await engines()
    await gateway.route(served(engine))
    client = gateway.openai()
    await client.chat.completions.create(model=MODEL, messages=HI, max_completion_tokens=4000)
    await client.chat.completions.create(model=MODEL, messages=HI)
    assert [r.get("max_completion_tokens") for r in engine.requests] == [1024, None]


async def test_the_engine_does_not_learn_who_asks(gateway: Any, engines: Any, served: Any) -> None:
    engine = await engines()
    await gateway.route(served(engine))
    await gateway.openai().chat.completions.create(model=MODEL, messages=HI, user="jane@example.org")
    assert "jane" not in str(engine.requests)


async def test_the_engines_own_refusal_reaches_the_client_and_is_not_the_versions_error(
    gateway: Any, engines: Any, served: Any
) -> None:
    engine = await engines()
    engine.status = 400
    await gateway.route(served(engine))
    with pytest.raises(openai.BadRequestError, match="the engine says no"):
        await gateway.openai().chat.completions.create(model=MODEL, messages=HI)
    assert (await gateway.analysis())["versions"]["v1"]["errors"] == 0


async def test_an_engine_error_is_a_clear_502_and_counts_against_the_version(
    gateway: Any, engines: Any, served: Any
) -> None:
    engine = await engines()
    engine.status = 500
    await gateway.route(served(engine))
    with pytest.raises(openai.InternalServerError, match="could not answer"):
        await gateway.openai().chat.completions.create(model=MODEL, messages=HI)
    counts = (await gateway.analysis())["versions"]["v1"]
    assert (counts["requests"], counts["errors"]) == (1, 1)


async def test_a_stream_that_breaks_ends_in_an_error_event(gateway: Any, engines: Any, served: Any) -> None:
    engine = await engines("one two three four")
    engine.break_after = 2
    await gateway.route(served(engine))
    stream = await gateway.openai().chat.completions.create(model=MODEL, messages=HI, stream=True)
    words = [(await anext(stream)).choices[0].delta.content for _ in range(2)]
    assert words == ["one ", "two "]
    with pytest.raises(openai.APIError, match="broke off"):
        await anext(stream)
    counts = (await gateway.analysis())["versions"]["v1"]
    assert (counts["requests"], counts["errors"], sum(counts["ttft"]["counts"])) == (1, 1, 1)


async def test_the_template_answers_when_no_version_can(gateway: Any, engines: Any, served: Any) -> None:
    engine = await engines()
    await gateway.route(served(engine), fallback_template="Please call us.")
    await engine.stop()
    client = gateway.openai()
    raw = await client.chat.completions.with_raw_response.create(model=MODEL, messages=HI)
    assert raw.parse().choices[0].message.content == "Please call us."
    assert raw.headers["x-sluice-fallback"] == "template"
    stream = await client.chat.completions.create(model=MODEL, messages=HI, stream=True)
    assert "".join([c.choices[0].delta.content or "" async for c in stream]) == "Please call us."
    assert (await gateway.analysis())["versions"]["v1"]["errors"] == 2


async def test_without_a_template_an_unreachable_engine_is_503_with_retry_after(
    gateway: Any, engines: Any, served: Any
) -> None:
    engine = await engines()
    await gateway.route(served(engine))
    await engine.stop()
    async with gateway.chat() as got:
        assert (got.status, got.headers["retry-after"]) == (503, "5")
