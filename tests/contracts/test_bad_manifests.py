"""Every rule of the three definitions has a manifest that breaks it; the real API server refuses each, and says why.

Rules between fields (CEL) are here, one by one; the bounds of single fields are in test_field_bounds.py.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from sluice_contracts.crd import KINDS, definition

from tests.contracts.bad_hardware import HARDWARE, TRAINER
from tests.contracts.manifests import POOL, RUN, STORED, TUNED, VERSION, Case, Changes, Manifest, changed, tpu

WORKERS = "hardware.workers counts hosts: min and max must be multiples of"
RULES: list[Case] = [
    *((f"{what} to {m['kind']}", m, changes, words) for what, changes, words in HARDWARE for m in (RUN, POOL)),
    ("training on a TPU", RUN, tpu("tpu-v6e-slice", "2x4"), [TRAINER]),
    ("workers upside down", RUN, {"spec.hardware.workers": {"min": 3, "max": 2}}, ["workers.min must not be above"]),
    (
        "half a slice",
        RUN,
        tpu("tpu-v6e-slice", "4x4", workers={"min": 2, "max": 4}),
        [WORKERS, "of 4, the hosts of one 4x4 slice of tpu-v6e-slice"],
    ),
    (
        "a slice and a half",
        RUN,
        tpu("tpu-v5p-slice", "2x2x4", workers={"min": 4, "max": 6}),
        [WORKERS, "of 4, the hosts of one 2x2x4 slice of tpu-v5p-slice"],
    ),
    (
        "one worker on a slice of many hosts",
        RUN,
        tpu("tpu7x", "4x4x4"),
        [WORKERS, "of 16, the hosts of one 4x4x4 slice of tpu7x"],
    ),
    ("scratch with a base", RUN, {"spec.base": {"modelVersion": "x"}}, ["scratch starts from nothing: remove base"]),
    ("fine-tuning nothing", TUNED, {"spec.base": None}, ["add base, or choose method scratch"]),
    (
        "two bases",
        TUNED,
        {"spec.base.uri": "gs://bucket/m"},
        ["either modelVersion alone, or uri together with digest"],
    ),
    ("half a base", TUNED, {"spec.base": {"uri": "gs://bucket/m"}}, ["base takes either modelVersion alone, or uri"]),
    ("lora without its block", TUNED, {"spec.recipe.lora": None}, ["write `lora: {}` there for its defaults"]),
    ("lora's block with sft", TUNED, {"spec.recipe.method": "sft"}, ["recipe.lora goes with method lora"]),
    ("a gate without a bound", RUN, {"spec.evaluation.gates": [{"metric": "intent.f"}]}, ["a gate needs a bound: min"]),
    (
        "a margin without a baseline",
        RUN,
        {"spec.evaluation.gates": [{"metric": "intent.accuracy", "min": 0.5, "margin": 0.1}]},
        ["a gate's margin goes with nonInferiorTo: stable only"],
    ),
    (
        "a gate upside down",
        RUN,
        {"spec.evaluation.gates": [{"metric": "intent.accuracy", "min": 0.9, "max": 0.1}]},
        ["a gate's min must not be above its max"],
    ),
    (
        "a gate on a suite that is not run",
        RUN,
        {"spec.evaluation.gates": [{"metric": "instruction.accuracy", "min": 0.5}]},
        ["a gate's metric must begin with one of evaluation.suites, such as intent.accuracy"],
    ),
    ("no money at all", RUN, {"spec.limits.maxCost": "0.00"}, ["limits.maxCost must be above 0; leave it out"]),
    (
        "an elastic run in a queue",
        RUN,
        {"spec.queueName": "team-a", "spec.hardware.workers": {"min": 1, "max": 2}},
        ["queueName needs hardware.workers of a fixed size, min and max the same number"],
    ),
    (
        "suspended in a queue",
        RUN,
        {"spec.suspend": True, "spec.queueName": "team-a"},
        ["suspend does not go with queueName: Kueue starts and stops what is in its queues"],
    ),
    (
        "replicas upside down",
        POOL,
        {"spec.replicas": {"min": 3, "max": 1}},
        ["replicas.min must not be above replicas.max"],
    ),
    ("too many warm", POOL, {"spec.replicas": {"max": 2, "warm": 3}}, ["replicas.warm together must not be above"]),
    (
        "sleep for engines that always run",
        POOL,
        {"spec.replicas": {"min": 1, "scaleToZero": {"idle": "5m"}}},
        ["replicas.scaleToZero is for replicas.min 0"],
    ),
    (
        "waking in no time",
        POOL,
        {"spec.replicas": {"min": 0, "scaleToZero": {"coldStart": "0s"}}},
        ["replicas.scaleToZero.coldStart must be above 0, such as 2m"],
    ),
    (
        "a gateway that hides the load",
        POOL,
        {"spec.replicas": {"min": 1, "max": 4, "targetOngoing": 9}, "spec.limits.inFlightPerReplica": 3},
        ["replicas.targetOngoing must not be above limits.inFlightPerReplica"],
    ),
    (
        "steps that fall",
        POOL,
        {"spec.rollout.steps": [50, 10]},
        ["rollout.steps must rise strictly, such as 5, 25, 50"],
    ),
    ("steps that stand still", POOL, {"spec.rollout.steps": [10, 10]}, ["rollout.steps must rise strictly"]),
    (
        "metrics that only look",
        POOL,
        {"spec.rollout.metrics": [{"name": "errorRate", "tolerance": 0.1, "dryRun": True}]},
        ["rollout.metrics needs at least one metric without dryRun: nothing else could decide"],
    ),
    (
        "the same metric twice",
        POOL,
        {"spec.rollout.metrics.1.name": "errorRate"},
        ["spec.rollout.metrics[1]: Duplicate value", "errorRate"],
    ),
    ("no patience", POOL, {"spec.limits.queueTimeout": "0s"}, ["limits.queueTimeout must be above 0, such as 20s"]),
    ("no pause between looks", POOL, {"spec.rollout.interval": "0m0s"}, ["rollout.interval must be above 0"]),
    (
        "no patience with copies",
        POOL,
        {"spec.rollout.mirror": {"percent": 5, "timeout": "0s"}},
        ["rollout.mirror.timeout must be above 0, such as 60s"],
    ),
    (
        "an issuer without keys",
        POOL,
        {"spec.gateway.auth.jwt": {"issuer": "https://i", "audience": "a", "tenant": "acme"}},
        ["gateway.auth.jwt needs exactly one of keysUrl (fetched from the issuer) and keysConfigMapRef (mounted)"],
    ),
    (
        "tokens of no tenant",
        POOL,
        {"spec.gateway.auth.jwt": {"issuer": "https://i", "audience": "a", "keysUrl": "https://i/keys"}},
        ["gateway.auth.jwt needs exactly one of tenant (all tokens are that tenant's) and tenantClaim"],
    ),
    (
        "an algorithm with a shared secret",
        POOL,
        {
            "spec.gateway.auth.jwt": {
                "issuer": "https://i",
                "audience": "a",
                "tenant": "acme",
                "keysUrl": "https://i/keys",
                "algorithms": ["HS256"],
            }
        },
        ['spec.gateway.auth.jwt.algorithms[0]: Unsupported value: "HS256"'],
    ),
    (
        "records that are gone at once",
        POOL,
        {"spec.gateway.interactions": {"retention": "0d"}},
        ["gateway.interactions.retention must be above 0, such as 30d"],
    ),
    (
        "a spool of nothing",
        POOL,
        {"spec.gateway.interactions": {"spoolSize": "100k"}},
        ["gateway.interactions.spoolSize must be from 1Mi to 1Ti"],
    ),
    (
        "a judge of nothing",
        POOL,
        {"spec.rollout.metrics": [{"name": "mirrorScore", "tolerance": 0.1}]},
        ["rollout.metrics has mirrorScore, and nothing is mirrored: set rollout.mirror.percent, such as 5"],
    ),
    (
        "two judges",
        POOL,
        {"spec.rollout.mirror": {"percent": 5, "judge": {"entryPoint": "rubric", "url": "http://judge"}}},
        ["rollout.mirror.judge needs exactly one of entryPoint (code in the gateway's image) and url (a service)"],
    ),
    (
        "a token for nobody",
        POOL,
        {
            "spec.rollout.mirror": {
                "percent": 5,
                "judge": {"entryPoint": "rubric", "tokenSecretRef": {"name": "judge", "key": "token"}},
            }
        },
        ["rollout.mirror.judge.tokenSecretRef is for a judge with a url: an entry point needs no token"],
    ),
    (
        "no patience with a judge",
        POOL,
        {"spec.rollout.mirror": {"percent": 5, "judge": {"url": "http://judge", "timeout": "0s"}}},
        ["rollout.mirror.judge.timeout must be above 0, such as 10s"],
    ),
    (
        "no patience with Prometheus",
        POOL,
        {"spec.rollout.analysis": {"source": {"prometheus": {"url": "http://prometheus:9090", "timeout": "0s"}}}},
        ["analysis.source.prometheus.timeout must be above 0, such as 5s"],
    ),
    (
        "a certificate where TLS has ended already",
        POOL,
        {
            "spec.gateway": {
                "auth": {"secretRef": {"name": "keys"}},
                "tls": {"secretRef": {"name": "t"}},
                "route": {"parentRefs": [{"name": "g"}]},
            }
        },
        ["gateway.tls and gateway.route do not go together: with a route, TLS ends at its Gateway; leave tls out"],
    ),
    (
        "a collector's token in plain sight",
        POOL,
        {
            "spec.gateway.tracing": {
                "endpoint": "http://c:4318/v1/traces",
                "headersSecretRef": {"name": "t", "key": "h"},
            }
        },
        ["gateway.tracing.headersSecretRef needs an endpoint that begins with https://"],
    ),
    (
        "a collector's token for engines",
        POOL,
        {
            "spec.gateway.tracing": {
                "endpoint": "https://c/v1/traces",
                "headersSecretRef": {"name": "t", "key": "h"},
                "engines": True,
            }
        },
        ["gateway.tracing.engines and gateway.tracing.headersSecretRef do not go together"],
    ),
    (
        "a collector's password in the pool",
        POOL,
        {"spec.gateway.tracing": {"endpoint": "https://me:pass@c/v1/traces"}},
        ["spec.gateway.tracing.endpoint"],
    ),
    (
        "counts of weeks in a database that goes with its pod",
        POOL,
        {"spec.gateway.drift": {}},
        ["gateway.drift needs gateway.interactions.databaseSecretRef: a pod's own database goes with the pod"],
    ),
    *(
        (f"drift: {what}", POOL, STORED | {"spec.gateway.drift": drift}, [said])
        for what, drift, said in (
            ("an intent by a taken name", {"intents": [{"name": "rare"}]}, "are names of the counts' own"),
            ("an intent nobody has named", {"intentField": "intent"}, "gateway.drift.intentField needs"),
            ("a beginning only", {"reference": {"firstDay": "2026-01-01"}}, "needs both firstDay and lastDay"),
            (
                "an end before the beginning",
                {"reference": {"firstDay": "2026-01-02", "lastDay": "2026-01-01"}},
                "gateway.drift.reference.firstDay must not be after lastDay",
            ),
            ("thresholds that cross", {"thresholds": {"moderate": 0.3}}, "thresholds.moderate must be below major"),
            ("forgotten before it is used", {"retentionDays": 29}, "gateway.drift.retentionDays must be more than"),
        )
    ),
    (
        "a cache that forgets at once",
        POOL,
        {"spec.gateway.cache": {"maxEntries": 9, "ttl": "0s"}},
        ["gateway.cache.ttl must be above 0, such as 1h"],
    ),
    (
        "a shared cache that keeps nothing",
        POOL,
        {"spec.gateway.cache": {"redis": {"secretRef": {"name": "redis", "key": "url"}}}},
        ["gateway.cache.redis needs gateway.cache.maxEntries above 0: what is found in Redis is kept in memory too"],
    ),
    (
        "answers shared without a secret of the gateways",
        POOL,
        {"spec.gateway.cache": {"maxEntries": 9, "redis": {"secretRef": {"name": "redis", "key": "url"}}}},
        [
            "gateway.cache.redis needs gateway.interactions.pseudonymKeySecretRef: what gateways share is encrypted "
            "with a key that follows from it"
        ],
    ),
    (
        "stages that never end",
        VERSION,
        {"spec.publish": {"stages": [{"percent": 5}, {"percent": 50}]}},
        ["publish.stages must rise strictly and end at percent 100, such as 5, 25, 100"],
    ),
    (
        "stages that fall",
        VERSION,
        {"spec.publish": {"stages": [{"percent": 50}, {"percent": 5}, {"percent": 100}]}},
        ["publish.stages must rise strictly"],
    ),
    (
        "a retention that keeps nothing",
        VERSION,
        {"spec.retention": {"dryRun": True}},
        ["retention needs keepLast, ttl or both; leave retention out to keep the files for ever"],
    ),
    (
        "a fallback to itself",
        POOL,
        {"metadata.name": "narcissus", "spec.gateway.fallback.model": {"pool": "narcissus"}},
        ["gateway.fallback.model.pool names the pool itself: name another InferencePool of its namespace"],
    ),
    (
        "a fallback without time",
        POOL,
        {"spec.gateway.fallback.model": {"pool": "small", "timeout": "0s"}},
        ["gateway.fallback.model.timeout must be above 0, such as 60s"],
    ),
    (
        "patience with what is not given up",
        POOL,
        {"spec.gateway.fallback.model": {"pool": "small", "patience": "5s", "when": ["asleep"]}},
        ["gateway.fallback.model.patience must be above 0, such as 20s, and needs failed in when"],
    ),
    (
        "a template of nothing",
        POOL,
        {"spec.gateway.fallback.templates": [{"name": "busy", "version": "1"}]},
        ["each needs exactly one of text (for requests that want words) and document"],
    ),
    (
        "a template with the name of the plain one",
        POOL,
        {"spec.gateway.fallback.templates": [{"name": "default", "version": "1", "text": "Later."}]},
        ["gateway.fallback.templates: the name default is that of gateway.fallback.template"],
    ),
    (
        "a template for one key",
        POOL,
        {
            "spec.gateway.fallback.templates": [
                {
                    "name": "busy",
                    "version": "1",
                    "text": "Later.",
                    "match": {"headers": [{"name": "authorization", "value": "Bearer x"}]},
                }
            ]
        },
        ["would put a secret into the spec; match on tenants instead"],
    ),
    *(
        (
            f"{what} of {m['kind']}",
            m,
            {"metadata.name": name},
            ["metadata.name must have at most 38 lower-case letters"],
        )
        for m in (RUN, VERSION, POOL)
        for what, name in (("a long name", "a" * 39), ("a name from a digit", "7b"), ("a name with a dot", "a.b"))
    ),
    ("an unknown field", RUN, {"spec.learningRate": 0.1}, ['unknown field "spec.learningRate"']),
    ("an unknown field inside", POOL, {"spec.rollout.step": [5]}, ['unknown field "spec.rollout.step"']),
    ("a typo in hardware", RUN, {"spec.hardware.spots": True}, ['unknown field "spec.hardware.spots"']),
    ("no spec", VERSION, {"spec": None}, ["spec: Required value"]),
]


@pytest.mark.apiserver
@pytest.mark.parametrize(
    ("base", "changes", "words"), [r[1:] for r in RULES], ids=[r[0].replace(" ", "-") for r in RULES]
)
def test_what_breaks_a_rule_is_refused_in_words(api: Any, base: Manifest, changes: Changes, words: list[str]) -> None:
    said = api.refusal(changed(base, {"metadata.name": "bad"} | changes))
    missing = [word for word in words if word not in said]
    assert not missing, f"{missing} is not in: {said}"


OVERLAY = {"metadata": {"labels": {"team": "a"}}}
STEADY_RUN = changed(
    TUNED, {"spec.queueName": "team-a", "spec.storageUri": "gs://bucket/a", "spec.podTemplate": OVERLAY}
)
FROZEN: list[tuple[Manifest, str, Any]] = [
    (STEADY_RUN, "spec.model", "another"),
    (STEADY_RUN, "spec.base", {"modelVersion": "another"}),
    (STEADY_RUN, "spec.dataset.uri", "gs://bucket/another"),
    (STEADY_RUN, "spec.recipe.seed", 8),
    (STEADY_RUN, "spec.hardware.spot", True),
    (STEADY_RUN, "spec.checkpoint.keep", 3),
    (STEADY_RUN, "spec.evaluation.examples", 400),
    (STEADY_RUN, "spec.export", {"quantizations": ["Q6_K"]}),
    (STEADY_RUN, "spec.queueName", "team-b"),
    (STEADY_RUN, "spec.storageUri", "gs://bucket/b"),
    (STEADY_RUN, "spec.podTemplate.metadata.labels.team", "b"),
    (VERSION, "spec.model", "another"),
    (VERSION, "spec.version", "another"),
    (VERSION, "spec.manifest.digest", "sha256:" + "2" * 64),
    (POOL, "spec.model", "another"),
]


@pytest.mark.apiserver
@pytest.mark.parametrize(("base", "path", "value"), FROZEN, ids=[f"{f[0]['kind']}-{f[1]}" for f in FROZEN])
def test_what_must_not_change_cannot(api: Any, base: Manifest, path: str, value: Any) -> None:
    first = changed(base, {"metadata.name": "frozen"})
    api.stored(first)
    field = ".".join(path.split(".")[:2])
    said = api.change_refusal(changed(first, {path: value}))
    assert f"{field} cannot be changed: apply a new {base['kind']} under another name" in said


def rules(schema: Manifest) -> Iterator[str]:
    """The message of every CEL rule in a schema."""
    yield from (rule["message"] for rule in schema.get("x-kubernetes-validations", ()))
    inner = [*schema.get("properties", {}).values(), *([schema["items"]] if "items" in schema else [])]
    for one in inner:
        yield from rules(one)


def test_every_rule_has_a_manifest_that_breaks_it() -> None:
    for kind in KINDS:
        schema = definition(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        broken = [word for _, base, _, words in RULES if base["kind"] == kind.name for word in words]
        broken += [
            f"{'.'.join(path.split('.')[:2])} cannot be changed"
            for base, path, _ in FROZEN
            if base["kind"] == kind.name
        ]
        unbroken = [message for message in rules(schema) if not any(word in message for word in broken)]
        assert not unbroken, f"{kind.name}: add a manifest to RULES or FROZEN that is refused with {unbroken}"


def test_there_are_as_many_as_promised() -> None:
    assert len(RULES) + len(FROZEN) >= 80
