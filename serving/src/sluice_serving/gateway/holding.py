"""Where requests are held: at the lanes of engines that are new, or may be asleep.

A held version's lane has no slots, so its requests stand in the same line as those for busy engines: bounded in length
and time, its keys in turn, left by clients that leave. When the engine answers, the lane gets its slots.
"""

from collections.abc import Iterator, Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sluice_contracts.routing import Backend, RoutingTable

from sluice_serving.gateway.admission import Lane, Overloaded
from sluice_serving.gateway.backends import Look, Newcomers
from sluice_serving.gateway.split import slots
from sluice_serving.gateway.wake import Asleep, Sleepers


class Holding(Collector):
    """Which lanes are open, and what their requests are told when they wait in vain."""

    def __init__(self, look: Look, lanes: Mapping[str, Lane], probe_seconds: float) -> None:
        self.newcomers = Newcomers(look, self._resize, probe_seconds)
        self.sleepers = Sleepers(look, self._waiting, self._resize)
        self._lanes = lanes
        self._table: RoutingTable | None = None

    def follow(self, table: RoutingTable) -> None:
        """Take a new table's engines, and give its lanes their slots."""
        self._table = table
        self.newcomers.follow(table.backends)
        self.sleepers.follow((b.url for b in table.backends if b.may_sleep), table.waking)
        self._resize()

    def choose(self, backends: Sequence[Backend], person: str | None) -> Backend | None:
        """The version for `person`, as things stand."""
        return self.newcomers.choose(backends, person)

    def patience(self, backend: Backend, table: RoutingTable) -> float:
        """How long a request for that version may stand in its lane; wakes the engine if need be. Raises Asleep."""
        lane = self._lanes[backend.model_version]
        wait = self.sleepers.rouse(backend.url, busy=lane.in_flight > 0)
        return table.limits.queue_timeout_seconds if wait is None else wait

    def held(self, backend: Backend) -> bool:
        """Whether requests for that version wait because its engine has not answered yet."""
        return self.sleepers.held(backend.url) or (backend.ready and not self.newcomers.proven(backend))

    def explained(self, error: Overloaded, backend: Backend) -> Overloaded | Asleep:
        """What to tell a request that its lane has turned away: while an engine wakes, all else is a guess."""
        if not self.sleepers.held(backend.url):
            return error
        left = self.sleepers.left(backend.url)
        if error.kind == "queue_timeout":
            return Asleep(left)
        return Overloaded(error.kind, f"{error.reason}, and the model is waking", left)

    def answered(self, backend: Backend) -> None:
        """That version has just answered a request."""
        self.sleepers.answered(backend.url)

    def longest(self, table: RoutingTable) -> float:
        """Seconds that a request may be held before its own time begins."""
        return table.waking.timeout_seconds if any(b.may_sleep for b in table.backends) else 0.0

    def drain(self) -> None:
        """The gateway stops: those who wait for an engine that sleeps are told now, while they still can be."""
        for backend in self._table.backends if self._table else ():
            if self.sleepers.held(backend.url):
                self._lanes[backend.model_version].close()

    def close(self) -> None:
        """Ask no engine any more."""
        self.newcomers.close()
        self.sleepers.close()

    def _resize(self) -> None:
        table = self._table
        for backend in table.backends if table else ():
            lane = self._lanes.get(backend.model_version)
            if lane is not None and table is not None:
                places = table.limits.in_flight_per_replica * backend.replicas
                capacity = 0 if self.held(backend) else slots(backend, table.backends, places)
                lane.resize(capacity, table.limits.queue)

    def _waiting(self, url: str) -> int:
        backends = self._table.backends if self._table else []
        return sum(self._lanes[b.model_version].waiting for b in backends if b.url == url)

    def collect(self) -> Iterator[Metric]:
        """The metrics of docs/scaling.md."""
        backends = self._table.backends if self._table else []
        probing = GaugeMetricFamily(
            "sluice_backend_probing", "1 while a new engine has not answered yet.", labels=["version"]
        )
        asleep = GaugeMetricFamily("sluice_asleep", "1 while requests wait for an engine to wake.", labels=["version"])
        for backend in backends:
            probing.add_metric([backend.model_version], backend.ready and not self.newcomers.proven(backend))
            asleep.add_metric([backend.model_version], self.sleepers.asleep(backend.url))
        probes = CounterMetricFamily(
            "sluice_backend_probes", "Looks at new engines by result.", labels=["version", "result"]
        )
        for (version, result), n in self.newcomers.probes.items():
            probes.add_metric([version, result], n)
        spared = CounterMetricFamily(
            "sluice_backend_spared",
            "Requests that went to another version because theirs had not answered yet.",
            labels=["version"],
        )
        for version, n in self.newcomers.spared.items():
            spared.add_metric([version], n)
        wakes = CounterMetricFamily("sluice_wakes", "Cold starts by result.", labels=["result"])
        for result, n in self.sleepers.wakes.items():
            wakes.add_metric([result], n)
        yield from (probing, asleep, probes, spared, wakes)
        yield GaugeMetricFamily(
            "sluice_cold_start_seconds", "What a cold start is expected to take.", self.sleepers.cold_start.seconds
        )
