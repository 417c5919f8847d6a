"""What clients see when engines fail: another try, another version, an error event, a template, or a clear refusal."""

import asyncio
import json
from typing import Any

import openai
import pytest
from aiohttp import web

MODEL = "support-bot"
HI: Any = [{"role": "user", "content": "hi"}]


def scripted(engine: Any, *answers: Any) -> list[str]:
    """Have the engine answer each request by the next of these (the last for all further ones); the paths asked for."""
    asked: list[str] = []

    async def answer(request: web.Request, _: Any) -> web.StreamResponse:
        asked.append(request.path)
        chosen = answers[min(len(asked), len(answers)) - 1]
        response: web.StreamResponse = await chosen(request)
        return response

    engine._answer = answer
    return asked


def status(code: int, message: str = "no") -> Any:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response({"error": {"message": message}}, status=code)

    return answer


async def hang_up(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.close()
    return web.Response()


async def half_an_answer(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "application/json", "content-length": "1000"})
    await response.prepare(request)
    await response.write(b'{"id": "x", "choices"')
    assert request.transport is not None
    request.transport.close()
    return response


async def no_events(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    return response


async def nonsense(request: web.Request) -> web.StreamResponse:
    return web.json_response({"hello": "world"})


async def good(request: web.Request) -> web.StreamResponse:
    choice = {"index": 0, "message": {"role": "assistant", "content": "fine"}, "finish_reason": "stop"}
    if (await request.json()).get("stream"):
        chunk = {"id": "x", "choices": [{"index": 0, "delta": {"content": "fine"}, "finish_reason": "stop"}]}
        return web.Response(body=b"data: " + json.dumps(chunk).encode() + b"\n\ndata: [DONE]\n\n")
    return web.json_response({"id": "x", "object": "chat.completion", "choices": [choice], "usage": {}})


@pytest.mark.parametrize("trouble", [hang_up, half_an_answer, nonsense, status(500), status(503)])
async def test_a_failure_before_the_first_byte_is_asked_again_once(
    gateway: Any, engines: Any, served: Any, trouble: Any
) -> None:
    engine = await engines()
    asked = scripted(engine, trouble, good)
    await gateway.route(served(engine))
    answer = await gateway.openai().chat.completions.create(model=MODEL, messages=HI)
    assert answer.choices[0].message.content == "fine"
    assert len(asked) == 2
    counts = (await gateway.analysis())["versions"]["v1"]
    assert (counts["requests"], counts["errors"]) == (1, 0)
    assert "sluice_upstream_retries_total 1.0" in await gateway.metrics()


async def test_a_stream_without_events_is_asked_again_once(gateway: Any, engines: Any, served: Any) -> None:
    engine = await engines()
    asked = scripted(engine, no_events, good)
    await gateway.route(served(engine))
    stream = await gateway.openai().chat.completions.create(model=MODEL, messages=HI, stream=True)
    assert [chunk.choices[0].delta.content async for chunk in stream] == ["fine"]
    assert len(asked) == 2


async def test_then_another_version_is_asked_once_and_the_first_is_charged(
    gateway: Any, engines: Any, served: Any
) -> None:
    bad, other = await engines(), await engines()
    asked, asked_other = scripted(bad, status(500)), scripted(other, good)
    await gateway.route(served(bad, "v1", 99), served(other, "v2", 1))
    for i in range(3):
        async with gateway.chat(user=f"u{i}") as got:
            assert (got.status, got.headers["x-sluice-version"]) == (200, "v2")
    versions = (await gateway.analysis())["versions"]
    reached = versions["v1"]["requests"]
    assert reached == versions["v1"]["errors"] >= 2
    assert (len(asked), len(asked_other)) == (2 * reached, 3)


async def test_when_both_fail_there_is_one_answer_and_each_is_charged_once(
    gateway: Any, engines: Any, served: Any
) -> None:
    bad, worse = await engines(), await engines()
    asked, asked_worse = scripted(bad, status(500)), scripted(worse, status(500))
    await gateway.route(served(bad, "v1", 50), served(worse, "v2", 50))
    async with gateway.chat(user="u") as got:
        assert (got.status, (await got.json())["error"]["code"]) == (502, "engine_error")
    versions = (await gateway.analysis())["versions"]
    assert [(versions[v]["requests"], versions[v]["errors"]) for v in ("v1", "v2")] == [(1, 1), (1, 1)]
    assert sorted((len(asked), len(asked_worse))) == [1, 2]


async def test_a_failing_engine_is_not_asked_twice_for_every_request(gateway: Any, engines: Any, served: Any) -> None:
    engine = await engines()
    asked = scripted(engine, status(500))
    await gateway.route(served(engine))
    for _ in range(40):
        async with gateway.chat() as got:
            assert got.status == 502
    assert 40 + 10 <= len(asked) <= 40 + 10 + 0.2 * 40


async def test_an_endpoint_that_the_engine_lacks_is_the_clients_error_and_is_not_asked_again(
    gateway: Any, engines: Any, served: Any
) -> None:
    engine = await engines()
    asked = scripted(engine, status(404, "Not Found"))
    await gateway.route(served(engine), fallback_template="Please call us.")
    with pytest.raises(openai.NotFoundError) as refused:
        await gateway.openai().chat.completions.create(model=MODEL, messages=HI)
    assert refused.value.code == "unsupported_endpoint"
    assert len(asked) == 1
    assert (await gateway.analysis())["versions"]["v1"]["errors"] == 0


async def test_a_prompt_that_is_too_long_has_the_code_that_clients_look_for(
    gateway: Any, engines: Any, served: Any
) -> None:
    engine = await engines()
    scripted(engine, status(400, "This model's maximum context length is 256 tokens. However, you requested 999."))
    await gateway.route(served(engine))
    with pytest.raises(openai.BadRequestError) as refused:
        await gateway.openai().chat.completions.create(model=MODEL, messages=HI)
    assert refused.value.code == "context_length_exceeded"


async def test_an_error_in_the_gateway_itself_is_an_answer_too(
    gateway: Any, engines: Any, served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("a mistake")

    monkeypatch.setattr("sluice_serving.gateway.service.read_counts", broken)
    await gateway.route(served(await engines()))
    async with gateway.chat() as got:
        assert (got.status, (await got.json())["error"]["code"]) == (500, "internal_error")


async def test_a_body_in_another_encoding_is_refused(gateway: Any, engines: Any, served: Any) -> None:
    await gateway.route(served(await engines()))
    async with gateway.chat(headers={"content-encoding": "zstd"}) as got:
        assert (got.status, (await got.json())["error"]["code"]) == (415, "unsupported_encoding")


def response_event(kind: str, **content: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind} | content)}\n\n".encode()


async def response_stream(request: web.Request, *, whole: bool) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    for word in ("Good ", "night"):
        await response.write(response_event("response.output_text.delta", delta=word, sequence_number=1))
    if whole:
        details = {"usage": {"input_tokens": 3, "output_tokens": 2}, "status": "incomplete", "output": [],
                   "incomplete_details": {"reason": "max_output_tokens"}}  # fmt: skip
        await response.write(response_event("response.incomplete", response=details))
    return response


@pytest.fixture
async def responder(engines: Any) -> Any:
    """An engine with the responses API."""
    engine = await engines()
    await engine.stop()
    app = web.Application()

    async def handle(request: web.Request) -> web.StreamResponse:
        return await response_stream(request, whole=engine.whole)

    engine.whole = True
    app.router.add_post("/v1/responses", handle)
    engine._runner = web.AppRunner(app, shutdown_timeout=0.1)
    await engine._runner.setup()
    await web.TCPSite(engine._runner, "127.0.0.1", engine.port).start()
    return engine


async def test_a_streamed_response_is_counted_like_any_other(gateway: Any, responder: Any, served: Any) -> None:
    await gateway.route(served(responder))
    stream = await gateway.openai().responses.create(model=MODEL, input="hi", stream=True)
    kinds = [event.type async for event in stream]
    assert kinds == ["response.output_text.delta"] * 2 + ["response.incomplete"]
    counts = (await gateway.analysis())["versions"]["v1"]
    assert (counts["requests"], counts["errors"], counts["finishReasons"]) == (1, 0, {"length": 1})
    assert (counts["outputTokens"]["total"], sum(counts["ttft"]["counts"])) == (2, 1)


async def test_a_streamed_response_that_breaks_ends_in_an_error_event(
    gateway: Any, responder: Any, served: Any
) -> None:
    responder.whole = False
    await gateway.route(served(responder))
    stream = await gateway.openai().responses.create(model=MODEL, input="hi", stream=True)
    with pytest.raises(openai.APIError, match="broke off"):
        [event async for event in stream]
    body = {"model": MODEL, "input": "hi", "stream": True}
    headers = {"authorization": "Bearer sk-test-5f1c2d"}
    async with gateway.session.post(f"{gateway.url}/v1/responses", json=body, headers=headers) as got:
        last = (await got.text()).split("\n\n")[-2]
    name, data = last.split("\n")
    content = json.loads(data.removeprefix("data:"))
    assert (name, content["type"], content["code"]) == ("event: error", "error", "engine_error")
    assert content["sequence_number"] == 2
    assert (await gateway.analysis())["versions"]["v1"]["errors"] == 2


async def test_a_stream_that_takes_longer_than_any_may_ends_in_an_error_event(
    start_gateway: Any, engines: Any, served: Any
) -> None:
    gateway = await start_gateway(request_timeout=0.5)
    engine = await engines(" ".join(["word"] * 1000))
    engine.word_delay = 0.05
    await gateway.route(served(engine))
    stream = await gateway.openai().chat.completions.create(model=MODEL, messages=HI, stream=True)
    with pytest.raises(openai.APIError, match="did not answer in time"):
        [chunk async for chunk in stream]
    counts = (await gateway.analysis())["versions"]["v1"]
    assert (counts["requests"], counts["errors"]) == (1, 1)


async def test_the_template_answers_in_the_words_of_each_endpoint(gateway: Any, engines: Any, served: Any) -> None:
    engine = await engines()
    await gateway.route(served(engine), fallback_template="Please call us.")
    await engine.stop()
    client = gateway.openai()
    assert (await client.completions.create(model=MODEL, prompt="hi")).choices[0].text == "Please call us."
    whole = await client.responses.create(model=MODEL, input="hi")
    assert (whole.output_text, whole.status) == ("Please call us.", "completed")
    stream = await client.responses.create(model=MODEL, input="hi", stream=True)
    events = [event async for event in stream]
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == "Please call us."
    assert [e.sequence_number for e in events] == list(range(len(events)))
    assert events[-1].response.output_text == "Please call us."
    with pytest.raises(openai.InternalServerError):  # no text is a vector
        await client.embeddings.create(model=MODEL, input="hi")


async def test_a_stream_outlives_the_weight_and_the_version_it_began_with(
    gateway: Any, engines: Any, served: Any
) -> None:
    old, new = await engines("one two three four"), await engines("fresh")
    old.word_delay = 0.1
    await gateway.route(served(old, "v1", 100), served(new, "v2", 0))
    client = gateway.openai()
    stream = await client.chat.completions.create(model=MODEL, messages=HI, stream=True)
    words = [(await anext(stream)).choices[0].delta.content]
    await gateway.route(served(old, "v1", 0), served(new, "v2", 100))
    assert (await client.chat.completions.create(model=MODEL, messages=HI)).choices[0].message.content == "fresh"
    await gateway.route(served(new, "v2", 100))
    words += [chunk.choices[0].delta.content async for chunk in stream]
    assert words == ["one ", "two ", "three ", "four "]


async def test_events_go_out_as_they_come(gateway: Any, engines: Any, served: Any) -> None:
    engine = await engines()
    go_on = asyncio.Event()

    async def slowly(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for word in ("one", "two"):
            chunk = {"id": "x", "choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]}
            await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
            await asyncio.wait_for(go_on.wait(), 10)
        await response.write(b"data: [DONE]\n\n")
        return response

    scripted(engine, slowly)
    await gateway.route(served(engine))
    stream = await gateway.openai().chat.completions.create(model=MODEL, messages=HI, stream=True)
    first = await asyncio.wait_for(anext(stream), 5)  # while the engine waits to be let on
    assert first.choices[0].delta.content == "one"
    go_on.set()
    assert [chunk.choices[0].delta.content async for chunk in stream] == ["two"]
