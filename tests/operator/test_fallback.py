"""A pool's fallbacks: the other pool that is named, who may reach its engines, and what the gateways are told."""

from typing import Any

import pytest
from sluice_contracts.inference_pool import ServedBase, ServedVersion
from sluice_contracts.names import LABEL_POOL
from sluice_operator.children.boundaries import engine_policy, pod_labels
from sluice_operator.engine.cache import Cache
from sluice_operator.inference_pool.fallback import ObservedFallback, OtherPool, observe_fallback, plan_fallback
from sluice_operator.kinds import references
from sluice_operator.kube.resources import INFERENCE_POOL, NETWORK_POLICY
from sluice_operator.prices import Prices

from tests.operator.test_flows import serve_first

KEYS = {"auth": {"secretRef": {"name": "keys"}}}
DIGEST = "sha256:" + "5" * 64
SERVED = ServedVersion(
    model_version="small-3", lineage="l3", manifest_digest=DIGEST, ray_service="small-55555555", ready=True
)


def pool(name: str, fallback: dict[str, Any], status: Any = None, **spec: Any) -> dict[str, Any]:
    body = {"model": "support-bot", "modelVersion": "v1", "gateway": KEYS | {"fallback": fallback}, **spec}
    meta = {"name": name, "namespace": "support", "uid": f"uid-{name}", "resourceVersion": "1"}
    return {"metadata": meta, "spec": body, "status": status or {}}


def holding(*pools: dict[str, Any]) -> Cache:
    cache = Cache(references)
    for one in pools:
        cache.upsert(INFERENCE_POOL, one)
    return cache


def spec_of(make: Any, fallback: dict[str, Any]) -> Any:
    return make.pool_spec(gateway=KEYS | {"fallback": fallback})


def peers(policy: dict[str, Any]) -> list[str]:
    """The pools whose gateways a policy lets in."""
    selectors = [p.get("podSelector", {}).get("matchLabels", {}) for r in policy["spec"]["ingress"] for p in r["from"]]
    return [s[LABEL_POOL] for s in selectors if s == pod_labels("gateway", s.get(LABEL_POOL, ""))]


class TestTheOtherPool:
    def test_its_stable_version_is_what_the_gateways_are_told_of(self, make: Any) -> None:
        other = make.pool_spec(
            model="small-bot",
            limits={"maxOutputTokens": 128, "inFlightPerReplica": 5},
            costs={"tokens": {"prompt": "1", "output": "2"}},
        )
        spec = spec_of(
            make, {"model": {"pool": "small", "timeout": "15s", "patience": "3s", "when": ["failed", "asleep"]}}
        )
        made = plan_fallback(make.meta("chat"), spec, ObservedFallback(OtherPool(other, SERVED)), Prices())
        told = made.model
        assert told is not None
        assert (told.pool, told.model, told.backend.model_version, told.backend.lineage) == (
            "small", "small-bot", "small-3", "l3"
        )  # fmt: skip
        assert told.backend.url == "http://small-55555555-serve-svc.support.svc.cluster.local:8000"
        assert told.backend.price is not None
        assert told.backend.price.output_token == pytest.approx(2e-6)
        assert (told.timeout_seconds, told.patience_seconds, told.when) == (15, 3, ["failed", "asleep"])
        assert told.max_in_flight == 5, "as many as one of its engines works on"
        assert told.max_output_tokens == 128
        assert made.condition is not None
        assert made.condition[:2] == (True, "Serving")

    def test_an_adapter_there_is_asked_under_its_engines_name_for_it(self, make: Any) -> None:
        adapter = SERVED.model_copy(update={"base": ServedBase(model_version="small-1", manifest_digest=DIGEST)})
        observed = ObservedFallback(OtherPool(make.pool_spec(model="small-bot"), adapter))
        told = plan_fallback(make.meta("chat"), spec_of(make, {"model": {"pool": "small"}}), observed, Prices()).model
        assert told is not None
        assert told.backend.engine_model == "small-bot:" + "5" * 16

    @pytest.mark.parametrize(
        ("found", "reason", "says"),
        [
            ([], "PoolNotFound", "there is no InferencePool small in namespace support"),
            ([pool("small", {})], "PoolNotServing", "no version of small has served yet"),
            (
                [pool("small", {}, {"stable": SERVED.model_copy(update={"ready": False}).wire()})],
                "PoolNotServing",
                "small-3 of small is not ready",
            ),
            ([pool("small", {}, replicas={"min": "many"})], "PoolUnreadable", "see its own conditions"),
        ],
    )
    def test_one_that_cannot_help_is_told(self, make: Any, found: Any, reason: str, says: str) -> None:
        spec, meta = spec_of(make, {"model": {"pool": "small"}}), make.meta("chat")
        made = plan_fallback(meta, spec, observe_fallback(meta, spec, holding(*found)), Prices())
        assert made.condition is not None
        assert made.condition[:2] == (False, reason)
        assert says in made.condition[2]
        assert made.model is None or not made.model.backend.ready

    def test_two_may_name_each_other_and_each_lets_exactly_the_other_in(self, make: Any) -> None:
        cache = holding(
            pool("chat", {"model": {"pool": "small"}}),
            pool("small", {"model": {"pool": "chat"}}),
            pool("third", {"template": "no"}),
        )
        for name, other in (("chat", "small"), ("small", "chat")):
            meta, spec = make.meta(name), spec_of(make, {"model": {"pool": other}})
            borrowers = observe_fallback(meta, spec, cache).borrowers
            assert borrowers == (other,)
            assert peers(engine_policy(meta, spec, borrowers)) == [name, other]
        alone = observe_fallback(make.meta("third"), spec_of(make, {}), cache)
        assert peers(engine_policy(make.meta("third"), spec_of(make, {}), alone.borrowers)) == ["third"]


class TestTemplates:
    def test_are_told_in_the_specs_order_with_documents_as_text(self, make: Any) -> None:
        spec = spec_of(
            make,
            {
                "templates": [
                    {"name": "b", "version": "2", "text": "Later.", "match": {"tenants": ["acme"]}},
                    {
                        "name": "a",
                        "version": "1",
                        "document": {"z": None, "a": ["ü"]},
                        "match": {"endpoints": ["chat"]},
                    },
                ]
            },
        )
        made = plan_fallback(make.meta("chat"), spec, ObservedFallback(), Prices())
        assert [(t.name, t.version, t.kind, t.body) for t in made.templates] == [
            ("b", "2", "text", "Later."),
            ("a", "1", "json", '{"a":["ü"],"z":null}'),
        ]
        assert (made.templates[0].tenants, made.templates[1].endpoints) == (["acme"], ["chat"])
        assert made.condition is None

    def test_a_document_without_bounds_is_left_out_and_named(self, make: Any) -> None:
        spec = spec_of(make, {"templates": [{"name": "huge", "version": "1", "document": {"a": "x" * 9000}}]})
        made = plan_fallback(make.meta("chat"), spec, ObservedFallback(), Prices())
        assert made.templates == ()
        assert made.condition is not None
        assert made.condition[:2] == (False, "DocumentTooLarge")
        assert "huge" in made.condition[2]


@pytest.mark.apiserver
async def test_a_pool_that_comes_later_becomes_the_fallback_and_lets_that_gateway_in(
    cluster: Any, bucket: Any, make: Any
) -> None:
    async def admitted(*wanted: str) -> bool:
        policy = await cluster.get(NETWORK_POLICY, "chat-engines")
        return policy is not None and peers(policy) == list(wanted)

    templates = [{"name": "busy", "version": "3", "document": {"answer": None}}]
    fallback = KEYS | {"fallback": {"model": {"pool": "chat"}, "templates": templates}}
    asking = make.pool_spec(modelVersion="not-there", gateway=fallback).wire()
    await cluster.apply(INFERENCE_POOL, "front", asking)
    await cluster.condition(INFERENCE_POOL, "front", "FallbackReady", "False", "PoolNotFound")
    await serve_first(cluster, bucket, make)
    await cluster.condition(INFERENCE_POOL, "front", "FallbackReady", "True", "Serving")
    await cluster.until("the wall lets it in", lambda: admitted("chat", "front"))

    async def told() -> Any:
        return (await cluster.routes("front")).get("fallbackModel")

    model = await cluster.until("the gateways are told", told)
    assert (model["pool"], model["backend"]["modelVersion"], model["backend"]["ready"]) == ("chat", "v1", True)
    (template,) = (await cluster.routes("front"))["templates"]
    assert (template["name"], template["body"]) == ("busy", '{"answer":null}')
    await cluster.kube.delete(INFERENCE_POOL, cluster.namespace, "front")
    await cluster.until("the wall is shut again", lambda: admitted("chat"))
