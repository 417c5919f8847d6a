"""What exists is accepted: hardware of every kind, whole slices, a pool that sleeps."""

from typing import Any

import pytest

from tests.contracts.bad_hardware import RESERVED, TRAINER
from tests.contracts.manifests import POOL, RUN, Changes, changed, hardware, tpu

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
def test_drift_is_switched_on_by_its_name_alone(api: Any) -> None:
    stored = {"spec.gateway.interactions": {"databaseSecretRef": {"name": "db", "key": "url"}}}
    drift = {"reference": {"firstDay": "2026-01-01", "lastDay": "2026-01-31"}, "intents": [{"name": "refund"}]}
    for changes in ({}, drift | {"intentField": "intent"}):
        kept = api.accepted(changed(POOL, {"metadata.name": "good", "spec.gateway.drift": changes} | stored))
        assert kept["spec"]["gateway"]["drift"]["thresholds"] == {"moderate": 0.1, "major": 0.25}


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
