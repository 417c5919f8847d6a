"""Copies of live requests: scored, never shown, in nobody's way."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from sluice_contracts.routing import Backend, JudgeRoute, MirrorRoute, RoutingLimits, RoutingTable
from sluice_devcluster.ports import free_port
from sluice_serving.gateway import judges, mirror
from sluice_serving.gateway.admission import Lane
from sluice_serving.gateway.judges import HttpJudge, JudgeFailed, ThreadJudge, checked, make_judge
from sluice_serving.gateway.mirror import Asked, Mirror
from sluice_serving.gateway.observations import Observations, Totals
from sluice_serving.gateway.settings import read_settings
from sluice_serving.gateway.similarity import length_ratio, similarity
from sluice_serving.gateway.transcript import Transcript
from sluice_serving.gateway.upstream import Upstream

SCHEMA = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object", "required": ["a"]}}}


async def until(condition: Callable[[], bool], what: str) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


class Bench:
    """A mirror between two fake engines, without a gateway around it."""

    def __init__(self, stable: Any, candidate: Any, served: Any, copies: Mirror, observations: Observations) -> None:
        self.stable, self.candidate, self.mirror, self.observations = stable, candidate, copies, observations
        self.backends = [served(stable, "v1", 100), served(candidate, "v2", 0)]
        self.lanes = {"v1": Lane(4, 8), "v2": Lane(4, 8)}
        self.table: RoutingTable | None = None
        self.follow()

    def follow(self, **more: Any) -> None:
        self.table = RoutingTable(
            pool="pool",
            namespace="ns",
            model="m",
            window="w",
            backends=self.backends,
            limits=RoutingLimits(),
            mirror=MirrorRoute(**{"percent": 100, "candidate": "v2"} | more),
        )
        self.observations.follow(self.table)

    def send(self, said: str = "Hello there , friend !", **fields: Any) -> None:
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True, "n": 3, **fields}
        answer = Transcript.of({"choices": [{"index": 0, "message": {"content": said}}]})
        asked = Asked("/v1/chat/completions", json.dumps(body).encode(), self.backends[0], answer, "w")
        self.mirror.send(asked, self.table, self.lanes)

    async def copied(self, version: str = "v2", many: int = 1) -> Totals:
        await until(lambda: self.outcomes(version) >= many, f"{many} copies to {version} are counted")
        return self.observations.totals[version]

    def outcomes(self, version: str) -> int:
        return sum(self.observations.totals[version].mirrored.values())


@pytest.fixture
async def bench(engines: Any, served: Any) -> AsyncIterator[Bench]:
    """All copies go to the candidate."""
    upstream, observations = Upstream(10), Observations()
    await upstream.open()
    copies = Mirror(upstream, observations, chance=lambda: 0.0)
    yield Bench(await engines(), await engines(), served, copies, observations)
    await copies.close()
    await upstream.close()


async def test_the_copy_is_asked_in_one_piece_and_scored_by_likeness(bench: Bench) -> None:
    bench.send(temperature=0.7, stream_options={"include_usage": True})
    seen = await bench.copied()
    (request,) = bench.candidate.requests
    assert not bench.stable.requests
    assert (request["messages"], request["temperature"], request["n"]) == ([{"role": "user", "content": "hi"}], 0.7, 1)
    assert "stream" not in request
    assert "stream_options" not in request
    assert seen.mirrored == {"scored": 1}
    assert (seen.mirror_score.total, seen.mirror_similarity.total, seen.mirror_length.total) == (1, 1, 1)
    counts = bench.observations.snapshot().versions["v2"]
    assert (counts.mirror_scored, counts.mirror_score) == (1, 1)
    assert (counts.requests, counts.latency.n, counts.errors) == (0, 0, 0), "a copy is no live traffic"
    assert seen.counts.requests == 0


async def test_an_adapter_is_asked_by_the_name_its_engine_knows(bench: Bench) -> None:
    bench.backends[1] = bench.backends[1].model_copy(update={"engine_model": "m:0123456789abcdef"})
    bench.follow()
    bench.send()
    await bench.copied()
    assert bench.candidate.requests[0]["model"] == "m:0123456789abcdef"


async def test_another_answer_scores_less(bench: Bench) -> None:
    bench.send("Something else entirely was said before.")
    seen = await bench.copied()
    assert 0 < seen.mirror_score.total < 0.6
    assert seen.mirror_length.total < 1


async def test_no_answer_scores_nothing(bench: Bench) -> None:
    bench.candidate.status = 500
    bench.send()
    assert (await bench.copied()).mirrored == {"failed": 1}
    bench.candidate.status, bench.candidate.hold = 200, asyncio.Event()
    bench.follow(timeout_seconds=0.05)
    bench.send()
    seen = await bench.copied(many=2)
    assert seen.mirrored == {"failed": 2}
    assert (seen.mirror_score.n, seen.mirror_score.total) == (2, 0)
    await until(lambda: bench.candidate.running == 0, "the late copy is stopped in the engine")


async def test_breaking_a_schema_that_stable_kept_scores_nothing(bench: Bench) -> None:
    bench.send('{"a": 1}', response_format=SCHEMA)
    seen = await bench.copied()
    assert (seen.mirror_score.n, seen.mirror_score.total) == (1, 0)
    assert seen.mirror_schema == {"invalid": 1}
    bench.send("no JSON either", response_format=SCHEMA)
    seen = await bench.copied(many=2)
    assert seen.mirror_score.total > 0, "stable was no better"
    assert seen.mirror_schema == {"invalid": 2}


async def test_copies_are_bounded_and_live_requests_go_first(bench: Bench) -> None:
    bench.candidate.hold = asyncio.Event()
    bench.follow(max_in_flight=2)
    for _ in range(5):
        bench.send()
    seen = await bench.copied(many=3)
    assert seen.mirrored == {"no_room": 3}
    taken = [await asyncio.wait_for(bench.lanes["v2"].acquire("acme", 0), 1) for _ in range(4)]
    for at in taken:  # no live request waited for a copy that came before it
        bench.lanes["v2"].release(at, served=True)
    bench.candidate.hold.set()
    assert (await bench.copied(many=5)).mirrored == {"no_room": 3, "scored": 2}
    assert bench.candidate.most_running == 2
    for _ in range(4):
        await bench.lanes["v2"].acquire("acme", 1)
    bench.send()
    assert (await bench.copied(many=6)).mirrored["no_room"] == 4, "every place is a live request's"


async def test_what_belongs_to_another_window_or_an_unready_version_is_not_copied(bench: Bench) -> None:
    table = bench.table
    assert table is not None
    bench.table = table.model_copy(update={"window": "next"})
    bench.send()
    bench.table = table.model_copy(update={"mirror": None})
    bench.send()
    bench.table = table.model_copy(
        update={"backends": [bench.backends[0].model_copy(), bench.backends[1].model_copy(update={"ready": False})]}
    )
    bench.send()
    bench.table = table
    bench.send()
    await bench.copied()
    assert len(bench.candidate.requests) == 1


def test_a_share_of_stables_requests_is_mirrored_and_none_of_the_candidates() -> None:
    draws = iter([i / 100 for i in range(100)])
    copies = Mirror(Upstream(1), Observations(), chance=lambda: next(draws))
    stable, candidate = (
        Backend(model_version=v, lineage="", manifest_digest="sha256:" + "1" * 64, url="http://x", weight=w)
        for v, w in (("v1", 90), ("v2", 10))
    )
    table = RoutingTable(pool="p", namespace="n", model="m", backends=[stable, candidate],
                         mirror=MirrorRoute(percent=7, candidate="v2"))  # fmt: skip
    assert not copies.wants(table, candidate, "/v1/chat/completions")
    assert not copies.wants(table, stable, "/v1/embeddings")
    assert not copies.wants(table.model_copy(update={"mirror": None}), stable, "/v1/completions")
    assert sum(copies.wants(table, stable, "/v1/chat/completions") for _ in range(100)) == 7


# -- through the gateway ----------------------------------------------------------------------------------------------


async def test_clients_never_see_nor_wait_for_copies(gateway: Any, engines: Any, served: Any) -> None:
    stable, candidate = await engines("From stable ."), await engines("From the candidate .")
    candidate.hold = asyncio.Event()  # it never answers
    route = MirrorRoute(percent=100, candidate="v2", max_in_flight=64)
    limits = RoutingLimits(in_flight_per_replica=64)
    await gateway.route(served(stable, "v1", 100), served(candidate, "v2", 0), mirror=route, limits=limits)
    client = gateway.openai()
    ask: dict[str, Any] = {"model": "support-bot", "messages": [{"role": "user", "content": "hi"}]}
    for _ in range(12):
        whole = await client.chat.completions.create(**ask)
        assert whole.choices[0].message.content == "From stable ."
        stream = await client.chat.completions.create(**ask, stream=True)
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "From stable . "
    await until(lambda: candidate.running > 0 and len(stable.requests) > 24, "both got copies")
    seen = await gateway.analysis()
    assert seen["versions"]["v1"]["requests"] == 24
    assert seen["versions"]["v2"]["requests"] == 0
    candidate.hold.set()

    async def scored() -> bool:
        versions = (await gateway.analysis())["versions"]
        return bool(versions["v1"]["mirrorScored"] + versions["v2"]["mirrorScored"] == 24)

    async with asyncio.timeout(20):
        while not await scored():
            await asyncio.sleep(0.02)
    versions = (await gateway.analysis())["versions"]
    assert versions["v1"]["mirrorScore"] == pytest.approx(versions["v1"]["mirrorScored"])
    assert 0 < versions["v2"]["mirrorScore"] < versions["v2"]["mirrorScored"]
    text = await gateway.metrics()
    assert 'sluice_mirror_requests_total{outcome="scored",version="v2"}' in text


async def test_answers_are_checked_whole_or_streamed(gateway: Any, engines: Any, served: Any) -> None:
    good, bad = await engines('{"a": 1}'), await engines("no JSON")
    ask: dict[str, Any] = {
        "model": "support-bot",
        "messages": [{"role": "user", "content": "hi"}],
        "response_format": SCHEMA,
    }
    client = gateway.openai()
    for engine, invalid in ((good, 0), (bad, 2)):
        await gateway.route(served(engine))
        await client.chat.completions.create(**ask)
        stream = await client.chat.completions.create(**ask, stream=True)
        _ = [chunk async for chunk in stream]
        await client.chat.completions.create(model="support-bot", messages=ask["messages"])
        seen = (await gateway.analysis())["versions"]["v1"]
        assert (seen["requests"], seen["schemaChecked"], seen["schemaInvalid"]) == (3, 2, invalid)


# -- scores -----------------------------------------------------------------------------------------------------------

TEXTS = st.text(max_size=60)


@given(TEXTS, TEXTS)
def test_likeness_is_symmetric_and_bounded(a: str, b: str) -> None:
    assert 0 <= similarity(a, b) <= 1 + 1e-12
    assert similarity(a, b) == pytest.approx(similarity(b, a))
    assert similarity(a, a) == pytest.approx(1)
    assert 0 <= length_ratio(a, b) <= 1


def test_likeness_falls_with_what_differs() -> None:
    text = "Restart the router, then wait for the green light."
    near = similarity(text, "Restart the router and wait for the green light.")
    far = similarity(text, "Your invoice was sent on Monday.")
    assert 1 > near > 0.7 > 0.3 > far > 0
    assert similarity("abc", "xyz") == 0
    # "ab" has a, b, ab; "abc" has a, b, c, ab, bc, abc. Precision (2/2 + 1/1 + 0) / 3, recall (2/3 + 1/2 + 0) / 3.
    assert similarity("ab", "abc") == pytest.approx(2 * (2 / 3) * (7 / 18) / (2 / 3 + 7 / 18))


@pytest.mark.parametrize("value", [None, "1", True, -0.1, 1.1, float("nan")])
def test_a_judges_word_is_a_number_from_0_to_1(value: object) -> None:
    with pytest.raises(JudgeFailed, match="no number from 0 to 1"):
        checked(value)


async def test_a_judge_in_the_image_is_found_by_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    found = EntryPoint("half", "tests_judge:half", judges.GROUP)
    monkeypatch.setattr(EntryPoint, "load", lambda _: lambda request, reference, answer: len(answer) / len(reference))
    monkeypatch.setattr(judges, "entry_points", lambda group, name: [found] if name == "half" else [])
    judge = make_judge(JudgeRoute(entry_point="half"), None)
    assert await judge.score({}, "four", "12") == 0.5
    with pytest.raises(JudgeFailed, match="raised ZeroDivisionError"):
        await judge.score({}, "", "12")
    await judge.close()
    with pytest.raises(JudgeFailed, match="no package in the gateway's image has an entry point 'other'"):
        make_judge(JudgeRoute(entry_point="other"), None)


async def test_a_judge_that_hangs_stops_the_judging_and_nothing_else() -> None:
    go_on = threading.Event()
    judge = ThreadJudge(lambda *_: float(go_on.wait(60)), timeout=0.05)
    for _ in range(5):
        with pytest.raises(JudgeFailed, match=r"no score within 0\.05 s"):
            await judge.score({}, "", "")
    go_on.set()
    patient = ThreadJudge(lambda *_: 1.0, timeout=30)
    assert await patient.score({}, "", "") == 1
    await judge.close()
    await patient.close()


@pytest.fixture
async def judge_service() -> AsyncIterator[Any]:
    """A judge that is a service (a fake): it remembers what it was asked and answers what it is told to."""

    class Service:
        url = ""
        asked: list[Any] = []
        answer: Any = {"score": 0.25}
        status = 200

        async def handle(self, request: web.Request) -> web.Response:
            self.asked.append((request.headers.get("authorization"), await request.json()))
            return web.json_response(self.answer, status=self.status)

    service = Service()
    service.asked = []
    app = web.Application()
    app.router.add_post("/score", service.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    service.url = f"http://127.0.0.1:{port}/score"
    yield service
    await runner.cleanup()


async def test_a_judge_that_is_a_service_sees_both_answers(bench: Bench, judge_service: Any) -> None:
    bench.follow(judge=JudgeRoute(url=judge_service.url))
    bench.send("What stable said.")
    seen = await bench.copied()
    assert seen.mirror_score.total == 0.25
    assert 0 < seen.mirror_similarity.total < 1
    ((authorization, content),) = judge_service.asked
    assert authorization is None
    assert (content["reference"], content["answer"]) == ("What stable said.", "Hello there , friend !")
    assert content["request"]["messages"] == [{"role": "user", "content": "hi"}]


async def test_without_the_judges_word_there_is_no_score(bench: Bench, judge_service: Any, caplog: Any) -> None:
    bench.follow(judge=JudgeRoute(url=judge_service.url))
    judge_service.status = 500
    bench.send("A secret that stable told.")
    seen = await bench.copied()
    assert seen.mirrored == {"judge_failed": 1}
    assert seen.mirror_score.n == 0
    assert "the judge answered 500" in caplog.text
    assert "secret" not in caplog.text


async def test_judges_that_are_no_longer_named_are_closed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    class Counting(ThreadJudge):
        closed = False

        async def close(self) -> None:
            self.closed = True
            await super().close()

    def make(*_: Any) -> Counting:
        made.append(Counting(lambda *_: 1.0, 30))
        return made[-1]

    monkeypatch.setattr(mirror, "make_judge", make)
    for i in range(6):
        bench.follow(judge=JudgeRoute(entry_point=f"judge{i}"))
        bench.send()
        assert (await bench.copied(many=i + 1)).mirrored == {"scored": i + 1}
    await until(lambda: sum(judge.closed for judge in made) == 3, "the oldest are closed")
    await bench.mirror.close()
    assert all(judge.closed for judge in made)


def test_the_gateway_is_told_where_the_judges_token_lies(tmp_path: Path) -> None:
    env = {"SLUICE_ROUTES_FILE": "r.json", "SLUICE_KEYS_DIR": str(tmp_path)}
    assert read_settings(env).judge_token_file is None
    assert read_settings(env | {"SLUICE_JUDGE_TOKEN_FILE": "/etc/t"}).judge_token_file == Path("/etc/t")


async def test_the_judges_token_is_read_anew_each_time(tmp_path: Path, judge_service: Any) -> None:
    token = tmp_path / "token"
    judge = HttpJudge(judge_service.url, 10, token)
    with pytest.raises(JudgeFailed, match="could not be asked: FileNotFoundError"):
        await judge.score({}, "a", "b")
    for text in ("first", "second"):
        token.write_text(f"{text}\n")
        assert await judge.score({}, "a", "b") == 0.25
    assert [authorization for authorization, _ in judge_service.asked] == ["Bearer first", "Bearer second"]
    judge_service.answer = {"verdict": "good"}
    with pytest.raises(JudgeFailed, match="no number from 0 to 1"):
        await judge.score({}, "a", "b")
    await judge.close()
