"""/metrics: one table, the documented one; and the same counts as /analysis, however they are read."""

import re
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from sluice_contracts.analysis import VersionCounts
from sluice_contracts.analysis_rows import Row, from_rows
from sluice_contracts.routing import Backend, Price, RoutingTable
from sluice_serving.gateway.cache_settings import RedisSettings
from sluice_serving.gateway.costs import request_cost
from sluice_serving.gateway.metrics import FAMILIES, Counted, Distribution, MetricsCollector
from sluice_serving.gateway.observations import Mirrored, Observations, Outcome
from sluice_serving.gateway.shared_cache import shared_cache

DOCUMENT = (Path(__file__).parents[2] / "docs/gateway-metrics.md").read_text()


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def observations(clock: Clock | None = None, price: Price | None = None) -> Observations:
    seen = Observations(clock or Clock())
    backends = [
        Backend(
            model_version=f"v{i}",
            lineage="1" * 64,
            manifest_digest="sha256:" + str(i) * 64,
            url=f"http://v{i}:8000",
            weight=50,
            price=price,
        )
        for i in (1, 2)
    ]
    seen.follow(RoutingTable(pool="chat", namespace="support", model="m", window="w-1", backends=backends))
    return seen


def full() -> Observations:
    """Something of everything."""
    seen = observations(price=Price(prompt_token=0.001, output_token=0.002))
    for i in range(12):
        seen.record(
            "v1",
            "w-1",
            Outcome(
                failed=False,
                latency=0.4 + i / 10,
                ttft=0.1 * (i + 1),
                prompt_tokens=9,
                output_tokens=10 + i,
                finish_reason="stop" if i else "length",
                schema_owed=True,
                schema_valid=[True, False, None][i % 3],
            ),
            100 * 4**i,
        )
    seen.record("v1", "w-1", Outcome(failed=True, label="timeout"), 100)
    seen.waited("v1", "w-1", 0.7)
    seen.mirrored("v2", "w-1", Mirrored("scored", 0.75, similarity=0.5, length=0.25, schema_valid=True))
    seen.mirrored("v2", "w-1", Mirrored("no_room"))
    seen.rejected["queue_full"] += 1
    seen.fallbacks["template", "busy@1"] += 1
    seen.fallback_model["no_room"] += 1
    return seen


def samples(seen: Observations) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    registry = CollectorRegistry()
    collector = MetricsCollector(seen)
    collector.gauges.cache.shared = shared_cache(RedisSettings(), b"secret", "pool")
    registry.register(collector)
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def one(seen: Observations, name: str, **labels: str) -> float:
    return samples(seen)[name][tuple(sorted(labels.items()))]


def test_the_document_lists_what_there_is_with_its_labels() -> None:
    listed = {
        cells[1].strip("` "): (cells[2].strip(), tuple(re.findall(r"`(\w+)`", cells[3])))
        for line in DOCUMENT.splitlines()
        if (cells := line.split("|"))[0] == "" and len(cells) > 4 and cells[1].strip().startswith("`sluice_")
    }
    emitted = {}
    for family in FAMILIES:
        if isinstance(family, Counted):
            name = family.name if family.gauge else f"{family.name}_total"
            emitted[name] = ("gauge" if family.gauge else "counter", family.labels)
        else:
            emitted[family.name] = ("histogram" if isinstance(family, Distribution) else "summary", ("version",))
    assert listed == emitted


def test_every_family_shows_what_was_counted() -> None:
    found = samples(full())
    for family in FAMILIES:
        if isinstance(family, Counted) and not family.gauge:
            assert f"{family.name}_total" in found
        elif not isinstance(family, Counted):
            assert f"{family.name}_count" in found


def test_the_analysis_reads_the_same_counts_from_a_scrape() -> None:
    seen = full()
    rows: dict[str, list[Row]] = {}
    for key, value in samples(seen)["sluice_analysis_counts"].items():
        labels = dict(key)
        assert (labels["pool"], labels["window"], labels["process"]) == ("support/chat", "w-1", seen.instance)
        rows.setdefault(labels["version"], []).append(Row(labels["count"], labels["length"], labels["bin"], value))
    asked = seen.snapshot().versions
    assert rows.keys() == asked.keys()
    for version, counts in asked.items():
        read = from_rows(rows[version])
        assert numbers(read) == numbers(counts)
        assert read.cost.total == counts.cost.total


def numbers(counts: VersionCounts) -> list[object]:
    """What verdicts are made from. Buckets of length without any answer may be missing."""
    found: list[object] = [counts.requests, counts.errors, counts.finish_reasons, counts.queue.counts]
    found += [counts.schema_checked, counts.schema_invalid, counts.mirror_scored, counts.mirror_score]
    names = ("ttft", "latency", "inter_token", "output_tokens", "cost")
    found += [getattr(counts, name).counts for name in names]
    full = [shape for shape in counts.by_length if any(getattr(shape, name).n for name in names)]
    return [*found, [[getattr(shape, name).counts for name in names] for shape in full]]


def test_without_a_window_there_is_nothing_to_analyse() -> None:
    seen = full()
    assert seen.window
    seen.window = ""
    assert "sluice_analysis_counts" not in samples(seen)


def test_one_wait_in_five_seconds_is_judged_and_all_are_shown() -> None:
    clock = Clock()
    seen = observations(clock)
    for seconds in (0.0, 3.0, 4.9, 5.0, 6.0):
        clock.now = seconds
        seen.waited("v1", "w-1", 1.0 + seconds)
    judged = seen.snapshot().versions["v1"].queue
    assert judged.n == 2
    assert judged.total == 1.0 + 6.0
    assert one(seen, "sluice_queue_seconds_count", version="v1") == 5
    seen.waited("v2", "w-1", 0.0)
    assert seen.snapshot().versions["v2"].queue.total == 0.025, "shorter waits count as 25 ms"
    clock.now = 20
    seen.waited("v2", "before", 9.0)
    assert seen.snapshot().versions["v2"].queue.n == 1


def test_an_answer_costs_its_tokens_or_its_place_for_as_long_as_it_took() -> None:
    tokens, place = Price(prompt_token=0.001, output_token=0.01), Price(slot_second=0.5)
    assert request_cost(tokens, 2.0, 10, 3) == 0.04
    assert request_cost(place, 2.0, None, None) == 1.0
    assert request_cost(None, 2.0, 10, 3) is None
    assert request_cost(tokens, 2.0, 10, None) is None, "half a sum is no cost"
    seen = observations(price=place)
    seen.record("v1", "w-1", Outcome(failed=False, latency=2.0), 10)
    seen.record("v1", "w-1", Outcome(failed=True, label="timeout"), 10)
    assert one(seen, "sluice_cost_total", version="v1") == 1.0
    assert one(seen, "sluice_request_cost_count", version="v1") == 1
    assert seen.snapshot().versions["v1"].cost.n == 1


def test_answers_that_owe_a_shape_are_counted_by_whether_they_have_it() -> None:
    seen = full()
    for result in ("valid", "invalid", "unchecked"):
        assert one(seen, "sluice_schema_answers_total", version="v1", result=result) == 4
    counts = seen.snapshot().versions["v1"]
    assert (counts.schema_checked, counts.schema_invalid) == (8, 4)
