"""One pool on a CPU, an L4, H100s and a TPU slice: `spec.hardware` and `engine` differ, and nothing else does.

From the pool to what vLLM and Kubernetes are told, through the operator's objects and the engine's own reading of them.
"""

import math
from typing import Any

import pytest
import yaml
from sluice_contracts.training_run import ManifestReference
from sluice_operator.children.hardware import HardwareError
from sluice_operator.children.rayservice import Version, ray_service
from sluice_serving.arguments import ServeArguments, deployment_options, llm_config, parse_arguments

Json = dict[str, Any]
GKE = "cloud.google.com/gke-"
BIG = {"cpu": "8", "memory": "64Gi"}


def rendered(make: Any, hardware: Json, engine: Json) -> tuple[Json, Json, ServeArguments]:
    """The RayCluster, the pod of an engine, and what its application reads."""
    spec = make.pool_spec(hardware=hardware, engine={"maxModelLen": 4096} | engine)
    version = Version("v1", "support-bot", "l", ManifestReference(uri="gs://sluice/runs/a/m.json", digest=make.digest))
    body = ray_service(make.meta("chat"), spec, version, make.settings())["spec"]
    cluster = body["rayClusterConfig"]
    group = (cluster.get("workerGroupSpecs") or [cluster["headGroupSpec"]])[0]
    (application,) = yaml.safe_load(body["serveConfigV2"])["applications"]
    return cluster, group, parse_arguments(application["args"])


CASES: list[tuple[str, Json, Json, Json, Json, Json]] = [
    ("cpu", {"resources": {"cpu": "2", "memory": "3Gi"}}, {},
     {"dtype": "auto", "tensor_parallel_size": 1, "enforce_eager": True}, {}, {}),
    ("L4", {"accelerator": "nvidia-l4", "resources": BIG}, {"dtype": "bfloat16", "args": {"quantization": "fp8"}},
     {"dtype": "bfloat16", "quantization": "fp8", "tensor_parallel_size": 1},
     {"nvidia.com/gpu": "1"}, {f"{GKE}accelerator": "nvidia-l4"}),
    ("8 H100", {"accelerator": "nvidia-h100-80gb", "count": 8, "resources": BIG},
     {"args": {"quantization": "fp8", "kv-cache-dtype": "fp8", "pipeline_parallel_size": "2",
               "gpu-memory-utilization": "0.92"}},
     {"dtype": "auto", "quantization": "fp8", "kv_cache_dtype": "fp8", "tensor_parallel_size": 4,
      "pipeline_parallel_size": 2, "gpu_memory_utilization": 0.92},
     {"nvidia.com/gpu": "8"}, {f"{GKE}accelerator": "nvidia-h100-80gb"}),
    ("v6e on one host", {"accelerator": "tpu-v6e-slice", "topology": "2x4", "resources": BIG}, {"dtype": "bfloat16"},
     {"dtype": "bfloat16", "tensor_parallel_size": 8}, {"google.com/tpu": "8"},
     {f"{GKE}tpu-accelerator": "tpu-v6e-slice", f"{GKE}tpu-topology": "2x4"}),
    ("v6e on four hosts", {"accelerator": "tpu-v6e-slice", "topology": "4x4", "resources": BIG}, {},
     {"dtype": "auto", "tensor_parallel_size": 16}, {"google.com/tpu": "4"},
     {f"{GKE}tpu-accelerator": "tpu-v6e-slice", f"{GKE}tpu-topology": "4x4"}),
]  # fmt: skip


@pytest.mark.parametrize(("hardware", "engine", "vllm", "devices", "labels"), [c[1:] for c in CASES],
                         ids=[c[0] for c in CASES])  # fmt: skip
def test_the_spec_alone_moves_a_pool(
    make: Any, hardware: Json, engine: Json, vllm: Json, devices: Json, labels: Json
) -> None:
    _, group, read = rendered(make, hardware, engine)
    pod = group["template"]["spec"]
    (container,) = pod["containers"]
    fields = llm_config(read, "/models/m", {})
    kwargs = fields["engine_kwargs"]
    assert {name: kwargs.get(name) for name in vllm} == vllm
    assert ("enforce_eager" in kwargs) == (read.kind == "cpu"), "what is for a CPU is told to none other"
    for asked in ("requests", "limits"):
        assert {n: v for n, v in container["resources"][asked].items() if n not in ("cpu", "memory")} == devices
    assert container["resources"]["requests"]["cpu"] == hardware["resources"]["cpu"]
    assert pod.get("nodeSelector", {}) == labels
    # vLLM's workers are as many as the devices that the pods of one replica have, and as Ray reserves for them.
    used = kwargs["tensor_parallel_size"] * kwargs.get("pipeline_parallel_size", 1)
    assert used == max(1, group.get("numOfHosts", 1) * int(next(iter(devices.values()), "1")))
    bundles = deployment_options(read).get("placement_group_bundles")
    if read.kind == "gpu":
        assert sum(b["GPU"] for b in bundles) == used
    elif read.kind == "tpu":  # Ray reserves the slice whole, by this
        assert fields["accelerator_config"] == {"kind": "tpu", "topology": hardware["topology"]}
        assert used == math.prod(map(int, hardware["topology"].split("x")))
    else:
        assert bundles == [{"CPU": 1}]


def test_what_differs_is_what_the_spec_says(make: Any) -> None:
    told = [rendered(make, hardware, {})[2].wire() for _, hardware, *_ in CASES]
    for other in told[1:]:
        assert {k for k in other if other.get(k) != told[0].get(k)} <= {"accelerator", "count", "topology"}


def test_an_engine_is_not_split_otherwise_than_its_hardware(make: Any) -> None:
    for hardware, args in (
        ({}, {"tensor_parallel_size": "2"}),
        ({"accelerator": "nvidia-l4", "count": 4}, {"tensor-parallel-size": "8"}),
        ({"accelerator": "nvidia-l4", "count": 4}, {"pipeline_parallel_size": "3"}),
        ({"accelerator": "tpu-v6e-slice", "topology": "2x4"}, {"tensor_parallel_size": "4"}),
    ):
        with pytest.raises(HardwareError, match=r"engine\.args: tensor_parallel_size .* the devices of one engine"):
            rendered(make, hardware, {"args": args})
