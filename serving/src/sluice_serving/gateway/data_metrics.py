"""Metrics of keys, budgets, contexts and records. Counts only: no tenant, key or user is a label."""

from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sluice_serving.gateway.accounting import Accounting


class DataMetrics(Collector):
    """Prometheus's view of `Accounting`."""

    def __init__(self, accounting: Accounting) -> None:
        self._accounting = accounting

    def collect(self) -> Iterator[Metric]:
        """All metrics, computed now."""
        seen, log = self._accounting, self._accounting.interactions
        for name, text, label, counts in (
            ("sluice_unauthenticated", "Requests that were not believed, by what they showed.", "shown", seen.refused),
            ("sluice_budget_refusals", "Requests turned away by a spent budget.", "budget", seen.budgets.refused),
            ("sluice_context_lookups", "Look-ups of users' contexts.", "result", seen.contexts.lookups),
            (
                "sluice_interactions_lost",
                "Records that were dropped.",
                "reason",
                log.lost + _corrupt(log.spool.corrupt),
            ),
        ):
            family = CounterMetricFamily(name, text, labels=[label])
            for value, n in sorted(counts.items()):
                family.add_metric([value], n)
            yield family
        yield CounterMetricFamily("sluice_interactions_written", "Records in the database.", log.written)
        yield CounterMetricFamily("sluice_interactions_declined", "Requests that wanted no record.", seen.unrecorded)
        yield GaugeMetricFamily("sluice_spool_bytes", "What lies in the spool on disk.", log.spool.bytes)
        yield GaugeMetricFamily("sluice_spool_limit_bytes", "What the spool holds at most.", log.spool.limit)
        yield GaugeMetricFamily("sluice_budget_meters", "Budgets with a running window.", seen.budgets.meters)
        if seen.tokens is not None:
            family = CounterMetricFamily(
                "sluice_issuer_key_fetches", "Readings of the issuer's keys.", labels=["result"]
            )
            for value, n in sorted(seen.tokens.keys.fetches.items()):
                family.add_metric([value], n)
            yield family


def _corrupt(lines: int) -> Counter[str]:
    return Counter({"corrupt": lines}) if lines else Counter()
