"""Every rule of the three definitions has a manifest that breaks it; the real API server refuses each, and says why.

Rules between fields (CEL) are here, one by one; the bounds of single fields are in test_field_bounds.py.
"""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from sluice_contracts.crd import KINDS, definition

Manifest = dict[str, Any]
Changes = dict[str, Any]
Case = tuple[str, Manifest, Changes, list[str]]
"""What is wrong, what it is wrong in, the fields that make it so (None removes one), words the refusal must contain."""

EXAMPLES = Path(__file__).parents[2] / "manifests" / "examples"
RUN: Manifest = yaml.safe_load((EXAMPLES / "trainingrun-v1.yaml").read_text())
TUNED: Manifest = yaml.safe_load((EXAMPLES / "trainingrun-v2.yaml").read_text())
POOL: Manifest = yaml.safe_load((EXAMPLES / "inferencepool.yaml").read_text())
DIGEST = "sha256:" + "1" * 64
STORED: Changes = {"spec.gateway.interactions": {"databaseSecretRef": {"name": "db", "key": "url"}}}
VERSION: Manifest = {
    "apiVersion": "sluice.dev/v1alpha1",
    "kind": "ModelVersion",
    "metadata": {"name": "support-bot-v1", "namespace": "support"},
    "spec": {
        "model": "support-bot",
        "version": "support-bot-v1",
        "manifest": {"uri": "gs://sluice/runs/1/manifest.json", "digest": DIGEST},
    },
}


def changed(manifest: Manifest, changes: Changes) -> Manifest:
    """A copy of `manifest` with some fields set, by dotted path; None removes one."""
    result = copy.deepcopy(manifest)
    for path, value in changes.items():
        *folders, last = path.split(".")
        inner: Any = result
        for name in folders:
            inner = inner[int(name)] if isinstance(inner, list) else inner.setdefault(name, {})
        if value is None:
            del inner[last]
        else:
            inner[int(last) if isinstance(inner, list) else last] = value
    return result


def hardware(**fields: Any) -> Changes:
    return {"spec.hardware": fields}


def tpu(accelerator: str, topology: str, **fields: Any) -> Changes:
    return hardware(accelerator=accelerator, topology=topology, **fields)


FLAT = "must be 1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16 or 16x16"
PARTS = "must be 2x2x1, 2x2x2, 2x2x4, 2x4x4"
CUBES = "or AxBxC in multiples of 4 with A <= B <= C, from 4x4x4 to"
RESERVED = {"name": "h100s"}

HARDWARE: list[tuple[str, Changes, list[str]]] = [
    (
        "an accelerator nobody has",
        hardware(accelerator="nvidia-l5"),
        ["spec.hardware.accelerator", 'Unsupported value: "nvidia-l5"', '"cpu", "nvidia-tesla-t4", "nvidia-l4"'],
    ),
    ("a topology on a CPU", hardware(topology="2x4"), ["hardware.topology is for TPUs only; leave it out"]),
    ("a topology on a GPU", hardware(accelerator="nvidia-l4", topology="2x4"), ["hardware.topology is for TPUs only"]),
    ("a TPU without a topology", hardware(accelerator="tpu7x"), ["a TPU needs hardware.topology, such as 2x4"]),
    ("a TPU with a count", tpu("tpu-v6e-slice", "2x4", count=8), ["hardware.count is not for TPUs: the topology says"]),
    ("a CPU with a count", hardware(count=2), ["leave it out with accelerator cpu, and set hardware.resources.cpu"]),
    (
        "three T4s",
        hardware(accelerator="nvidia-tesla-t4", count=3),
        ["hardware.count must be 1, 2 or 4 for nvidia-tesla-t4: its machines have that many GPUs"],
    ),
    ("six L4s", hardware(accelerator="nvidia-l4", count=6), ["hardware.count must be 1, 2, 4 or 8 for nvidia-l4"]),
    (
        "twelve A100s",
        hardware(accelerator="nvidia-tesla-a100", count=12),
        ["hardware.count must be 1, 2, 4, 8 or 16 for nvidia-tesla-a100"],
    ),
    (
        "sixteen A100s of 80 GB",
        hardware(accelerator="nvidia-a100-80gb", count=16),
        ["hardware.count must be 1, 2, 4 or 8 for nvidia-a100-80gb"],
    ),
    (
        "three H100s",
        hardware(accelerator="nvidia-h100-80gb", count=3),
        ["hardware.count must be 1, 2, 4 or 8 for nvidia-h100-80gb"],
    ),
    (
        "one H100 of eight",
        hardware(accelerator="nvidia-h100-mega-80gb"),
        ["hardware.count must be 8 for nvidia-h100-mega-80gb"],
    ),
    (
        "four H200s of eight",
        hardware(accelerator="nvidia-h200-141gb", count=4),
        ["hardware.count must be 8 for nvidia-h200-141gb"],
    ),
    ("two B200s of eight", hardware(accelerator="nvidia-b200", count=2), ["hardware.count must be 8 for nvidia-b200"]),
    ("eight GB200s", hardware(accelerator="nvidia-gb200", count=8), ["hardware.count must be 4 for nvidia-gb200"]),
    ("one GB300", hardware(accelerator="nvidia-gb300"), ["hardware.count must be 4 for nvidia-gb300"]),
    (
        "five RTX PRO 6000",
        hardware(accelerator="nvidia-rtx-pro-6000", count=5),
        ["hardware.count must be 1, 2, 4 or 8 for nvidia-rtx-pro-6000"],
    ),
    (
        "a v4 slice of two sides",
        tpu("tpu-v4-podslice", "2x4"),
        [f"topology of tpu-v4-podslice {PARTS}, {CUBES} 12x12x16"],
    ),
    ("a v5e slice with an odd side", tpu("tpu-v5-lite-podslice", "3x3"), [f"topology of tpu-v5-lite-podslice {FLAT}"]),
    (
        "a v5p slice upside down",
        tpu("tpu-v5p-slice", "8x4x4"),
        [f"topology of tpu-v5p-slice {PARTS}, {CUBES} 16x16x24"],
    ),
    ("a v6e slice of three sides", tpu("tpu-v6e-slice", "2x2x2"), [f"hardware.topology of tpu-v6e-slice {FLAT}"]),
    ("a TPU7x slice that is not offered", tpu("tpu7x", "4x4x12"), [f"topology of tpu7x {PARTS}, 4x4x4, 4x4x8, 4x8x8"]),
    ("a topology in words", tpu("tpu-v6e-slice", "2by4"), [f"hardware.topology of tpu-v6e-slice {FLAT}"]),
    ("an empty topology", tpu("tpu-v6e-slice", ""), [f"hardware.topology of tpu-v6e-slice {FLAT}"]),
    (
        "spot and flex-start",
        hardware(accelerator="nvidia-l4", spot=True, flexStart=True),
        ["hardware.spot and hardware.flexStart exclude each other", "choose one"],
    ),
    (
        "reserved and spot",
        hardware(accelerator="nvidia-l4", spot=True, reservation=RESERVED),
        ["hardware.reservation and hardware.spot exclude each other: what is reserved is never spot"],
    ),
    (
        "reserved and flex-start",
        hardware(accelerator="nvidia-l4", flexStart=True, reservation=RESERVED),
        ["hardware.reservation and hardware.flexStart exclude each other"],
    ),
    ("a CPU in the queue", hardware(flexStart=True), ["hardware.flexStart is not offered for cpu or tpu-v4-podslice"]),
    (
        "a v4 slice in the queue",
        tpu("tpu-v4-podslice", "2x2x1", flexStart=True),
        ["hardware.flexStart is not offered for cpu or tpu-v4-podslice"],
    ),
    *(
        (
            f"a class of one's own and {field}",
            hardware(accelerator="nvidia-l4", computeClass="our-gpus", **{field: value}),
            ["hardware.computeClass names a class that itself decides on spot, flexStart and reservation"],
        )
        for field, value in (("spot", True), ("flexStart", True), ("reservation", RESERVED))
    ),
    (
        "Autopilot's GPU class without a GPU",
        hardware(computeClass="Accelerator"),
        ["hardware.computeClass Accelerator is Autopilot's class for GPUs: choose one that starts with nvidia"],
    ),
    *(
        (
            f"{cpu} CPUs",
            hardware(resources={"cpu": cpu}),
            ["hardware.resources.cpu must be a number of CPUs above 0 and below 1000, such as 2, 1.5 or 500m"],
        )
        for cpu in ("0", "0m", "4Gi", "5000")
    ),
    *(
        (
            f"memory of {memory}",
            hardware(resources={"memory": memory}),
            ["hardware.resources.memory must be above 0 and have a unit, such as 512Mi or 16Gi"],
        )
        for memory in ("16", "0Gi", "500m", "64k")
    ),
]

WORKERS = "hardware.workers counts hosts: min and max must be multiples of"
TRAINER = "hardware.accelerator: training runs on CPUs and GPUs, not on TPUs; choose cpu or one that starts with nvidia"
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


GOOD: list[tuple[str, Changes]] = [
    ("a CPU", hardware()),
    ("whole GPUs", hardware(accelerator="nvidia-l4", count=4, spot=True)),
    ("one GPU by default", hardware(accelerator="nvidia-tesla-t4")),
    ("a machine of eight", hardware(accelerator="nvidia-h200-141gb", count=8, flexStart=True)),
    (
        "a reservation",
        hardware(accelerator="nvidia-gb200", count=4, reservation={"name": "r", "project": "our-project"}),
    ),
    ("a class of one's own", hardware(accelerator="nvidia-l4", computeClass="our-gpus")),
    (
        "Autopilot's class",
        hardware(accelerator="nvidia-h100-80gb", count=8, computeClass="Accelerator", reservation=RESERVED),
    ),
    ("half a CPU", hardware(resources={"cpu": "500m", "memory": "1.5Gi"})),
]


@pytest.mark.apiserver
@pytest.mark.parametrize("changes", [g[1] for g in GOOD], ids=[g[0].replace(" ", "-") for g in GOOD])
def test_what_exists_is_accepted(api: Any, changes: Changes) -> None:
    for base in (RUN, POOL):
        api.accepted(changed(base, {"metadata.name": "good"} | changes))


@pytest.mark.apiserver
def test_a_pool_may_scale_to_zero(api: Any) -> None:
    for replicas in ({"min": 0}, {"min": 0, "max": 4, "warm": 1, "scaleToZero": {"idle": "5m", "wakeTimeout": "0s"}}):
        api.accepted(changed(POOL, {"metadata.name": "good", "spec.replicas": replicas}))


@pytest.mark.apiserver
@pytest.mark.parametrize(
    ("accelerator", "topology", "hosts", "more"),
    [
        ("tpu-v6e-slice", "2x4", 1, {"spot": True}),
        ("tpu-v5p-slice", "2x2x1", 1, {"flexStart": True}),
        ("tpu-v6e-slice", "4x4", 4, {}),
        ("tpu-v5-lite-podslice", "16x16", 64, {}),
        ("tpu-v5p-slice", "16x16x24", 1536, {}),
    ],
)
def test_whole_slices_serve_and_only_their_kind_keeps_them_from_training(
    api: Any, accelerator: str, topology: str, hosts: int, more: Changes
) -> None:
    api.accepted(changed(POOL, {"metadata.name": "good"} | tpu(accelerator, topology, **more)))

    said = api.refusal(changed(RUN, tpu(accelerator, topology, workers={"min": hosts, "max": hosts}, **more)))

    assert TRAINER in said
    assert said.count("spec.hardware: Invalid value") == 1, said


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
