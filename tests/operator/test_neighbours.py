"""A pool among other people's objects, on a real API server: Gateway API's routes, the inference extension's own pools
of the same plural, and versions that somebody deletes while they serve."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sluice_contracts.names import FINALIZER_IN_USE
from sluice_operator.kube.resources import HTTP_ROUTE, INFERENCE_POOL, JOB, MODEL_VERSION, POD, RAY_SERVICE, Resource

from tests.operator.test_flows import LINEAGE_1, finish_publisher, pool_body, serve_first, weights

pytestmark = pytest.mark.apiserver
PUBLIC = {"parentRefs": [{"name": "public", "namespace": "infra"}], "hostnames": ["bot.example.com"]}
THEIRS = Resource("inference.networking.k8s.io", "v1", "inferencepools", "InferencePool")


def definition(resource: Resource, short: str | None = None) -> dict[str, Any]:
    """A small definition of a kind that is not ours, open to any spec."""
    opened = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    schema = {"type": "object", "properties": {"spec": opened, "status": opened}}
    names = {"kind": resource.kind, "plural": resource.plural, "singular": resource.kind.lower()}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{resource.plural}.{resource.group}",
            "annotations": {"api-approved.kubernetes.io": "unapproved, a stand-in for a test"},
        },
        "spec": {
            "group": resource.group,
            "scope": "Namespaced",
            "names": names | ({"shortNames": [short]} if short else {}),
            "versions": [
                {
                    "name": resource.version,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": schema},
                    "subresources": {"status": {}},
                }
            ],
        },
    }


Install = Callable[..., None]


@pytest.fixture
def install(ray_kinds: Any) -> Iterator[Install]:
    """A function that installs a definition; all go after the test, so that others find the cluster without them."""
    installed: list[str] = []

    def add(resource: Resource, short: str | None = None) -> None:
        ray_kinds.applied(definition(resource, short))
        name = f"crd/{resource.plural}.{resource.group}"
        installed.append(name)
        assert ray_kinds("wait", "--for=condition=Established", "--timeout=30s", name).returncode == 0

    yield add
    for name in installed:
        assert ray_kinds("delete", "--timeout=30s", name).returncode == 0


async def touch(cluster: Any, value: str) -> None:
    """Have the pool looked at now."""
    patch = {"metadata": {"annotations": {"touched": value}}}
    await cluster.kube.merge(INFERENCE_POOL, cluster.namespace, "chat", patch)


def routed(make: Any, route: dict[str, Any] | None) -> dict[str, Any]:
    gateway = {"auth": {"secretRef": {"name": "keys"}}} | ({"route": route} if route else {})
    return pool_body(make, gateway=gateway)


class TestRoute:
    async def test_without_the_gateway_api_the_pool_says_so_and_serves(
        self, cluster: Any, bucket: Any, make: Any, install: Install
    ) -> None:
        await serve_first(cluster, bucket, make, gateway=routed(make, PUBLIC)["gateway"])
        await cluster.condition(INFERENCE_POOL, "chat", "RouteAccepted", "False", "GatewayApiMissing")
        await cluster.condition(INFERENCE_POOL, "chat", "Ready", "True", "Serving")
        install(HTTP_ROUTE)
        await touch(cluster, "the CRD is there now")
        route = await cluster.exists(HTTP_ROUTE, "chat-gateway")
        assert route["spec"]["hostnames"] == ["bot.example.com"]
        assert route["metadata"]["ownerReferences"][0]["name"] == "chat"
        await cluster.condition(INFERENCE_POOL, "chat", "RouteAccepted", "Unknown", "Waiting")

    async def test_a_route_lives_as_long_as_its_block_and_tells_what_its_gateways_say(
        self, cluster: Any, bucket: Any, make: Any, install: Install
    ) -> None:
        install(HTTP_ROUTE)
        await cluster.stop()
        await cluster.start()  # in single namespaces kinds are looked for at the start only
        await serve_first(cluster, bucket, make, gateway=routed(make, PUBLIC)["gateway"])
        route = await cluster.exists(HTTP_ROUTE, "chat-gateway")
        said = [{"type": t, "status": "True", "observedGeneration": 1} for t in ("Accepted", "ResolvedRefs")]
        parents = [{"parentRef": route["spec"]["parentRefs"][0], "controllerName": "x/y", "conditions": said}]
        await cluster.status(HTTP_ROUTE, "chat-gateway", {"parents": parents})
        await cluster.condition(INFERENCE_POOL, "chat", "RouteAccepted", "True", "Accepted")
        await cluster.apply(INFERENCE_POOL, "chat", routed(make, None))

        async def gone() -> bool:
            pool = await cluster.get(INFERENCE_POOL, "chat")
            types = {c["type"] for c in pool["status"]["conditions"]}
            return await cluster.get(HTTP_ROUTE, "chat-gateway") is None and "RouteAccepted" not in types

        await cluster.until("the route to go with its block", gone)

    async def test_somebody_elses_route_of_that_name_is_never_touched(
        self, cluster: Any, bucket: Any, make: Any, install: Install
    ) -> None:
        install(HTTP_ROUTE)
        theirs = await cluster.apply(HTTP_ROUTE, "chat-gateway", {"hostnames": ["theirs.example.com"]})
        await serve_first(cluster, bucket, make, gateway=routed(make, PUBLIC)["gateway"])
        await cluster.condition(INFERENCE_POOL, "chat", "RouteAccepted", "False", "RouteNotOurs")
        await cluster.apply(INFERENCE_POOL, "chat", routed(make, None))

        async def quiet() -> bool:
            pool = await cluster.get(INFERENCE_POOL, "chat")
            return "RouteAccepted" not in {c["type"] for c in pool["status"]["conditions"]}

        await cluster.until("the condition to go with the block", quiet)
        now = await cluster.get(HTTP_ROUTE, "chat-gateway")
        assert now["metadata"]["resourceVersion"] == theirs["metadata"]["resourceVersion"]


async def test_beside_the_inference_extensions_pools_everyone_keeps_to_their_own(
    cluster: Any, bucket: Any, make: Any, install: Install, ray_kinds: Any
) -> None:
    install(THEIRS, "infpool")
    theirs = await cluster.apply(THEIRS, "chat", {"targetPorts": [{"number": 8000}]})
    await serve_first(cluster, bucket, make)
    await weights(cluster, ("v1", 100))

    def listed(what: str) -> list[str]:
        answer = ray_kinds("get", what, "-n", cluster.namespace, "-o", "json")
        assert answer.returncode == 0, answer.stderr
        return [item["apiVersion"] for item in json.loads(answer.stdout)["items"]]

    ours = ["sluice.dev/v1alpha1"]
    assert listed("inferencepools.sluice.dev") == listed("ipool") == ours
    assert listed("inferencepools.inference.networking.k8s.io") == listed("infpool") == [THEIRS.api_version]
    now = await cluster.get(THEIRS, "chat")
    assert now["metadata"]["resourceVersion"] == theirs["metadata"]["resourceVersion"]


class TestDeletion:
    async def test_a_version_in_use_goes_when_no_pool_names_it_any_more(
        self, cluster: Any, bucket: Any, make: Any
    ) -> None:
        await serve_first(cluster, bucket, make)

        async def held() -> bool:
            version = await cluster.get(MODEL_VERSION, "v1")
            return FINALIZER_IN_USE in (version["metadata"].get("finalizers") or [])

        await cluster.until("the finalizer", held)
        assert FINALIZER_IN_USE not in ((await cluster.get(MODEL_VERSION, "v2"))["metadata"].get("finalizers") or [])
        await cluster.kube.delete(MODEL_VERSION, cluster.namespace, "v1")
        version = await cluster.condition(MODEL_VERSION, "v1", "Reconciling", "True", "InUse")
        assert "InferencePool chat" in next(
            c["message"] for c in version["status"]["conditions"] if c["type"] == "Reconciling"
        )
        (service,) = await cluster.names(RAY_SERVICE)
        await cluster.kube.delete(RAY_SERVICE, cluster.namespace, service)
        await cluster.exists(RAY_SERVICE, service)  # what serves it is still made anew
        await cluster.kube.delete(INFERENCE_POOL, cluster.namespace, "chat")

        async def gone() -> bool:
            return await cluster.get(MODEL_VERSION, "v1") is None

        await cluster.until("v1 to go", gone)

    async def test_an_operator_that_was_away_lets_go_of_what_is_not_used_any_more(
        self, cluster: Any, bucket: Any, make: Any
    ) -> None:
        await serve_first(cluster, bucket, make)
        await cluster.condition(MODEL_VERSION, "v1", "Promoted", "True")
        await cluster.stop()
        await cluster.kube.delete(MODEL_VERSION, cluster.namespace, "v1")
        assert await cluster.get(MODEL_VERSION, "v1") is not None
        await cluster.kube.delete(INFERENCE_POOL, cluster.namespace, "chat")
        await cluster.start()

        async def gone() -> bool:
            return await cluster.get(MODEL_VERSION, "v1") is None

        await cluster.until("v1 to go", gone)


async def test_a_published_version_is_withdrawn_and_published_again(cluster: Any, bucket: Any) -> None:
    async def want(**publish: Any) -> None:
        spec = {"model": "support-bot", "version": "v1", "manifest": reference.wire()}
        await cluster.apply(MODEL_VERSION, "v1", spec | {"publish": {"channel": "beta"} | publish})

    async def signed(job: str, message: str) -> None:
        await cluster.exists(JOB, job)
        await finish_publisher(cluster, job, message)

    reference = bucket.version(LINEAGE_1)
    await want()
    await signed("v1-publish", '{"tufVersion": 4}')
    await cluster.condition(MODEL_VERSION, "v1", "Published", "True", "AllStagesOpen")
    await want(yanked=True)
    await signed("v1-yank", "")
    version = await cluster.condition(MODEL_VERSION, "v1", "Published", "False", "Yanked")
    assert (version["status"]["release"]["percent"], "yankedAt" in version["status"]["release"]) == (0, True)
    assert await cluster.names(JOB) == ["v1-yank"]
    await cluster.kube.delete(POD, cluster.namespace, "v1-publish-x")  # as the garbage collector does
    await want()
    await signed("v1-publish", '{"tufVersion": 6}')
    version = await cluster.condition(MODEL_VERSION, "v1", "Published", "True", "AllStagesOpen")
    assert version["status"]["release"]["tufVersion"] == 6
    assert "yankedAt" not in version["status"]["release"]
