"""Looking at what runs, again and again: the reading half of `sluice top`."""

from collections.abc import Iterator

from sluice_operator.cli.cluster import Cluster
from sluice_operator.cli.objects import Pool, pool_of, run_of
from sluice_operator.cli.rates import Traffic, rates, read_traffic
from sluice_operator.cli.terminal import looks
from sluice_operator.cli.top_text import Activity, running
from sluice_operator.kube.resources import INFERENCE_POOL, TRAINING_RUN

Key = tuple[str, str]


def activities(cluster: Cluster, where: str | None, interval: float, longest: float) -> Iterator[Activity]:
    """What runs in the namespace (None: in all), every `interval` seconds, for at most `longest`. The first has no
    rates yet. Raises CliError."""
    before: dict[Key, Traffic] = {}

    def look() -> Activity:
        runs = running([run_of(item) for item in cluster.everything(TRAINING_RUN, where)])
        pools = [pool_of(item) for item in cluster.everything(INFERENCE_POOL, where)]
        now = {_key(pool): read_traffic(cluster, pool) for pool in pools}
        known = {key: rates(before[key], found) for key, found in now.items() if key in before}
        problems = {key: found.problem for key, found in now.items() if found.problem}
        before.clear()
        before.update(now)
        return Activity(where, runs, pools, known, problems)

    return looks(look, interval, longest)


def _key(pool: Pool) -> Key:
    return pool.namespace, pool.name
