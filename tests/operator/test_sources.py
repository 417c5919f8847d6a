"""Reading the evidence from a Prometheus: the same counts, deadlines, and errors that say what is wrong."""

import asyncio
import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry, start_http_server
from sluice_contracts.inference_pool import PrometheusSource
from sluice_contracts.routing import Backend, RoutingTable
from sluice_devcluster.ports import free_port
from sluice_operator.inference_pool.sources import SourceError, gather_from_prometheus, queries, vector, versions
from sluice_operator.plan import Meta
from sluice_operator.settings import Prometheus
from sluice_serving.gateway.metrics import MetricsCollector
from sluice_serving.gateway.observations import Observations, Outcome

RECORDED = Path(__file__).parent / "recordings_prometheus"
META = Meta(namespace="support", name="chat", uid="u", generation=1)


def recorded(name: str) -> bytes:
    return (RECORDED / f"{name}.json").read_bytes()


def test_the_queries_name_the_pool_the_window_and_how_far_to_look_back() -> None:
    live, counts = queries(META, "w-1", 900)
    chosen = 'sluice_analysis_counts{pool="support/chat",window="w-1"}'
    assert live == f"count(count by (process) (last_over_time({chosen}[300s])))"
    assert counts == f"sum by (version, count, length, bin) (last_over_time({chosen}[1200s]))"
    assert "[600s]" in queries(META, "w", 0)[1]
    assert "[86400s]" in queries(META, "w", 1e9)[1]
    assert 'window="a\\"} or vector(1) #\\\\"' in queries(META, 'a"} or vector(1) #\\', 0)[0]


def test_what_a_real_prometheus_answered_reads_as_the_gateways_counts() -> None:
    found = versions(vector(recorded("counts")))
    assert found.keys() == {"v1", "v2"}
    one, two = found["v1"], found["v2"]
    assert (one.requests, one.errors, one.ttft.n, one.cost.n, one.queue.n) == (13, 1, 12, 12, 1)
    assert one.finish_reasons == {"stop": 11, "length": 1}
    assert (one.schema_checked, one.schema_invalid) == (8, 4)
    assert [shape.ttft.n for shape in one.by_length] == [2, 1, 1, 1, 7]
    assert (two.requests, two.mirror_scored, two.mirror_score) == (0, 1, 0.75)
    assert [value for _, value in vector(recorded("live"))] == [1.0]
    assert vector(recorded("nothing")) == []


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (recorded("bad_query"), "refuses the query: invalid parameter"),
        (b"<html>", "no JSON: is the URL that of a Prometheus"),
        (b'{"status": "success", "data": {"resultType": "matrix", "result": []}}', "no instant vector"),
        (b'{"status": "success", "data": {"resultType": "vector", "result": [{}]}}', "does not read"),
        (b'{"status": "success"}', "does not read"),
        (b"[]", "refuses the query: no reason given"),
    ],
)
def test_other_answers_are_errors_in_words(body: bytes, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        vector(body)


def test_counts_that_do_not_read_are_an_error() -> None:
    with pytest.raises(SourceError, match="there is no bucket '999'"):
        versions([({"version": "v1", "count": "ttft", "bin": "999"}, 1.0)])


# -- asking one -------------------------------------------------------------------------------------------------------


class FakePrometheus:
    """Answers queries with recordings (a fake: it understands none)."""

    def __init__(self) -> None:
        self.live, self.counts, self.status, self.delay = recorded("live"), recorded("counts"), 200, 0.0
        self.asked: list[tuple[str, str | None]] = []
        self.url = f"http://127.0.0.1:{free_port()}"

    async def query(self, request: web.Request) -> web.Response:
        text = str((await request.post())["query"])
        self.asked.append((text, request.headers.get("authorization")))
        await asyncio.sleep(self.delay)
        body = self.live if text.startswith("count(") else self.counts
        return web.Response(body=body, status=self.status, content_type="application/json")


@pytest.fixture
async def prometheus() -> AsyncIterator[FakePrometheus]:
    fake = FakePrometheus()
    app = web.Application()
    app.router.add_post("/api/v1/query", fake.query)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", int(fake.url.rsplit(":", 1)[1])).start()
    yield fake
    await runner.cleanup()


async def gather(url: str | None, default: Prometheus | None = None, within: str = "10s") -> Any:
    source = PrometheusSource(url=url, timeout=within)
    async with aiohttp.ClientSession() as http:
        return await gather_from_prometheus(source, META, "w-1", 60, http, default or Prometheus())


async def test_the_evidence_is_what_was_scraped(prometheus: FakePrometheus) -> None:
    found = await gather(prometheus.url)
    assert (found.asked, found.answered, found.trouble) == (1, 1, "")
    assert found.counts["v1"].requests == 13
    assert [query for query, _ in prometheus.asked] == list(queries(META, "w-1", 60))


async def test_counts_that_nobody_scrapes_any_more_are_none(prometheus: FakePrometheus) -> None:
    prometheus.live = recorded("nothing")
    found = await gather(prometheus.url)
    assert (found.answered, found.counts) == (0, {})
    assert found.trouble.endswith("has scraped no counts of this rollout in the last 300 s")


async def test_the_token_goes_to_the_charts_prometheus_alone(prometheus: FakePrometheus, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret\n")
    assert (await gather(None, Prometheus(prometheus.url, token))).answered == 1
    assert (await gather(f"{prometheus.url}/", Prometheus(prometheus.url, token))).answered == 1
    assert {sent for _, sent in prometheus.asked} == {"Bearer secret"}
    prometheus.asked.clear()
    assert (await gather(prometheus.url, Prometheus("http://elsewhere:9090", token))).answered == 1
    assert {sent for _, sent in prometheus.asked} == {None}
    found = await gather(None, Prometheus(prometheus.url, tmp_path / "none"))
    assert "its token cannot be read: No such file or directory" in found.trouble


async def test_what_goes_wrong_is_told_and_is_no_evidence(prometheus: FakePrometheus) -> None:
    async def trouble(url: str | None, **more: Any) -> str:
        found = await gather(url, **more)
        assert (found.answered, found.counts) == (0, {})
        return str(found.trouble)

    assert await trouble(None) == (
        "analysis.source.prometheus has no url, and the chart's values name none (analysis.prometheus.url)"
    )
    closed = f"http://127.0.0.1:{free_port()}"
    assert await trouble(closed) == f"Prometheus at {closed}: ClientConnectorError"
    prometheus.status = 401
    assert (await trouble(prometheus.url)).endswith("it answered 401")
    prometheus.status, prometheus.live = 400, recorded("bad_query")
    assert "it refuses the query: invalid parameter" in await trouble(prometheus.url)
    prometheus.delay = 30
    assert (await trouble(prometheus.url, within="100ms")).endswith("no answer within 100ms")


# -- the real one -----------------------------------------------------------------------------------------------------


def gateway(port: int) -> tuple[Observations, Any]:
    seen = Observations()
    backends = [
        Backend(model_version="v1", lineage="", manifest_digest="sha256:" + "1" * 64, url="http://x", weight=100)
    ]
    seen.follow(RoutingTable(pool="chat", namespace="support", model="m", window="w-1", backends=backends))
    registry = CollectorRegistry()
    registry.register(MetricsCollector(seen))
    return seen, start_http_server(port, "127.0.0.1", registry=registry)


@pytest.fixture
def real_prometheus(tmp_path: Path) -> Iterator[tuple[str, list[int]]]:
    """A real Prometheus and the ports of two gateways that it scrapes every quarter of a second."""
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("Prometheus is not installed (Debian: apt-get install prometheus)")
    port, *gateways = (free_port() for _ in range(3))
    targets = json.dumps([f"127.0.0.1:{p}" for p in gateways])
    config = tmp_path / "prometheus.yml"
    config.write_text(
        f"global: {{scrape_interval: 250ms, scrape_timeout: 200ms}}\n"
        f"scrape_configs: [{{job_name: g, static_configs: [{{targets: {targets}, labels: {{pod: p}}}}]}}]\n"
    )
    process = subprocess.Popen(
        [binary, f"--config.file={config}", f"--storage.tsdb.path={tmp_path}/data",
         f"--web.listen-address=127.0.0.1:{port}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    yield f"http://127.0.0.1:{port}", gateways
    process.terminate()
    process.wait(30)


async def test_a_real_prometheus_has_what_the_gateways_counted_even_of_one_that_ended(
    real_prometheus: tuple[str, list[int]],
) -> None:
    url, ports = real_prometheus
    running = [gateway(port) for port in ports]
    for i, (seen, _) in enumerate(running):
        for _ in range(10 * (i + 1)):
            seen.record("v1", "w-1", Outcome(failed=False, latency=0.5, ttft=0.1, output_tokens=9), 100)

    async def evidence(requests: int) -> Any:
        async with asyncio.timeout(60):
            while True:
                found = await gather(url)
                if found.counts and found.counts["v1"].requests == requests:
                    return found
                await asyncio.sleep(0.1)

    found = await evidence(30)
    expected = running[0][0].versions["v1"].plus(running[1][0].versions["v1"])
    assert found.answered == 2
    assert found.counts["v1"].ttft.counts == expected.ttft.counts
    assert [s.latency.counts for s in found.counts["v1"].by_length] == [s.latency.counts for s in expected.by_length]
    running[0][1][0].shutdown()
    running[0][1][0].server_close()
    running[1][0].record("v1", "w-1", Outcome(failed=True, label="timeout"), 100)
    after = await evidence(31)
    assert after.counts["v1"].errors == 1
    running[1][1][0].shutdown()
    running[1][1][0].server_close()
