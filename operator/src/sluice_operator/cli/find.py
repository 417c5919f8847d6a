"""Finding the object a person named; and when there is none, saying which there are."""

from difflib import get_close_matches

from sluice_operator.cli.cluster import Cluster
from sluice_operator.cli.errors import CliError
from sluice_operator.cli.objects import AnyObject, Pool, kind_named, parse, pool_of
from sluice_operator.kube.resources import INFERENCE_POOL, MODEL_VERSION, TRAINING_RUN, Resource

SHOWN = 12
"""Names listed when the one asked for is not there."""


def find_one(cluster: Cluster, resource: Resource, namespace: str, name: str) -> AnyObject:
    """The object of that kind and name. Raises CliError, naming those that exist."""
    found = cluster.get(resource, namespace, name)
    if found is None:
        raise _not_found(cluster, (resource,), namespace, name)
    return parse(resource, found)


def find_pool(cluster: Cluster, namespace: str, name: str) -> Pool:
    """The InferencePool. Raises CliError, naming those that exist."""
    found = cluster.get(INFERENCE_POOL, namespace, name)
    if found is None:
        raise _not_found(cluster, (INFERENCE_POOL,), namespace, name)
    return pool_of(found)


def find_named(cluster: Cluster, namespace: str, target: str) -> AnyObject:
    """`KIND/NAME`, or a bare name: a ModelVersion, else a TrainingRun, else an InferencePool. Raises CliError."""
    kind, slash, name = target.partition("/")
    if slash:
        return find_one(cluster, kind_named(kind), namespace, name)
    kinds = (MODEL_VERSION, TRAINING_RUN, INFERENCE_POOL)
    for resource in kinds:
        found = cluster.get(resource, namespace, target)
        if found is not None:
            return parse(resource, found)
    raise _not_found(cluster, kinds, namespace, target)


def _not_found(cluster: Cluster, kinds: tuple[Resource, ...], namespace: str, name: str) -> CliError:
    there = sorted({item["metadata"]["name"] for kind in kinds for item in cluster.everything(kind, namespace)})
    what = " or ".join(kind.kind for kind in kinds)
    begin = f"there is no {what} {name!r} in namespace {namespace}"
    if not there:
        return CliError(f"{begin}, nor any other; is it in another namespace (-n)? `sluice status -A` shows all")
    close = get_close_matches(name, there, n=1)
    meant = f"; did you mean {close[0]!r}?" if close else ""
    more = f" and {len(there) - SHOWN} more" if len(there) > SHOWN else ""
    return CliError(f"{begin}{meant} There are: {', '.join(there[:SHOWN])}{more}")
