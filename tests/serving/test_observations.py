"""What the gateway counts: by version, and by the length of the request, so that like is compared with like."""

from prometheus_client import CollectorRegistry, generate_latest
from sluice_contracts.analysis import LATENCY_EDGES, REQUEST_BYTES_EDGES, AnalysisSnapshot
from sluice_contracts.routing import Backend, RoutingLimits, RoutingTable
from sluice_serving.gateway.metrics import MetricsCollector
from sluice_serving.gateway.observations import Observations, Outcome

LIMITS = RoutingLimits(
    max_output_tokens=64, in_flight_per_replica=1, queue=1, queue_timeout_seconds=1, max_request_bytes=100_000
)


def observations() -> Observations:
    found = Observations()
    backend = Backend(
        model_version="v1",
        lineage="1" * 64,
        manifest_digest="sha256:" + "1" * 64,
        url="http://v1:8000",
        weight=100,
        replicas=1,
        ready=True,
    )
    found.follow(
        RoutingTable(pool="p", namespace="n", model="m", window="w", sticky=True, limits=LIMITS, backends=[backend])
    )
    return found


def answer(seconds: float) -> Outcome:
    return Outcome(failed=False, latency=2 * seconds, ttft=seconds, output_tokens=20, finish_reason="stop")


def test_an_answer_counts_once_in_all_and_once_in_its_requests_bucket() -> None:
    seen = observations()
    for size in (0, 512, 513, 9000, 90_000):
        seen.record("v1", "w", answer(0.1), size)
    seen.record("v1", "w", Outcome(failed=True, label="timeout"), 100)
    counts = AnalysisSnapshot.model_validate_json(seen.snapshot().model_dump_json(by_alias=True)).versions["v1"]
    assert (counts.requests, counts.errors, counts.ttft.n) == (6, 1, 5)
    assert [shape.ttft.n for shape in counts.by_length] == [2, 1, 0, 1, 1]
    assert [shape.output_tokens.n for shape in counts.by_length] == [2, 1, 0, 1, 1]
    assert len(counts.by_length) == len(REQUEST_BYTES_EDGES) + 1


def test_a_request_of_an_earlier_window_is_not_judged() -> None:
    seen = observations()
    seen.record("v1", "before", answer(0.1), 100)
    assert seen.snapshot().versions["v1"].requests == 0
    assert seen.totals["v1"].counts.requests == 1


def test_dashboards_get_fewer_buckets_than_verdicts_with_the_same_counts_below_each() -> None:
    seen = observations()
    for seconds in (0.0005, 0.05, 0.05, 0.7, 500):
        seen.record("v1", "w", answer(seconds), 100)
    registry = CollectorRegistry()
    registry.register(MetricsCollector(seen))
    lines = [x for x in generate_latest(registry).decode().splitlines() if x.startswith("sluice_ttft_seconds_bucket")]
    assert len(lines) == len(LATENCY_EDGES[::5]) + 1
    below = {x.split('le="')[1].split('"')[0]: float(x.rsplit(" ", 1)[1]) for x in lines}
    assert below["0.001"] == 1
    assert below["+Inf"] == 5
    for edge, n in below.items():
        if edge != "+Inf":
            assert n == sum(value <= float(edge) for value in (0.0005, 0.05, 0.05, 0.7, 500))
