"""From a `hardware` block to the pods that GKE schedules."""

import re
from pathlib import Path
from typing import Any

import pytest
from ray._private.accelerators import tpu as ray_tpu
from sluice_contracts.accelerators import GPUS, TPUS, Accelerator
from sluice_contracts.hardware import ReplicaHardware, TrainingHardware, WorkerRange, one_of
from sluice_operator.children.hardware import HardwareError, Machine, machine
from sluice_operator.children.rayjob import ray_job


def hardware(**fields: Any) -> ReplicaHardware:
    return ReplicaHardware.model_validate(fields)


def made(**fields: Any) -> Machine:
    return machine(hardware(**fields))


def tolerated(found: Machine) -> set[tuple[str, str | None]]:
    assert {t["effect"] for t in found.tolerations} <= {"NoSchedule"}
    return {(t["key"], t.get("value")) for t in found.tolerations}


GPU, TPU = "nvidia.com/gpu", "google.com/tpu"
GKE = "cloud.google.com/gke-"


class TestPlainMachines:
    def test_a_cpu_needs_no_node_pool(self) -> None:
        found = made(resources={"cpu": "1500m", "memory": "3Gi"})
        assert (found.node_selector, found.tolerations, found.cpus) == ({}, [], 2)
        assert found.pod_fields() == {}

    @pytest.mark.parametrize("accelerator", GPUS)
    def test_each_gpu_has_its_label_and_resource(self, accelerator: Accelerator) -> None:
        count = GPUS[accelerator].counts[-1]
        found = made(accelerator=accelerator, count=count)
        assert found.node_selector == {f"{GKE}accelerator": accelerator.value}
        assert found.resources["limits"][GPU] == found.resources["requests"][GPU] == str(count)
        assert (found.gpus, found.hosts) == (count, 1)
        assert (GPU, None) in tolerated(found)

    def test_cpu_is_requested_and_never_limited(self) -> None:
        found = made(accelerator="nvidia-l4")
        assert "cpu" in found.resources["requests"]
        assert "cpu" not in found.resources["limits"]

    def test_grace_machines_are_arm(self) -> None:
        assert ("kubernetes.io/arch", "arm64") in tolerated(made(accelerator="nvidia-gb200", count=4))
        assert ("kubernetes.io/arch", "arm64") not in tolerated(made(accelerator="nvidia-b200", count=8))


class TestSlices:
    @pytest.mark.parametrize(
        ("accelerator", "topology", "hosts", "chips"),
        [
            ("tpu-v6e-slice", "1x1", 1, 1),
            ("tpu-v6e-slice", "2x4", 1, 8),
            ("tpu-v6e-slice", "4x4", 4, 4),
            ("tpu-v5-lite-podslice", "2x2", 1, 4),
            ("tpu-v5-lite-podslice", "4x8", 8, 4),
            ("tpu-v5p-slice", "2x2x1", 1, 4),
            ("tpu-v5p-slice", "2x2x4", 4, 4),
            ("tpu-v4-podslice", "2x2x2", 2, 4),
            ("tpu7x", "2x2x2", 2, 4),
            ("tpu7x", "8x16x16", 512, 4),
        ],
    )
    def test_a_topology_becomes_hosts_and_chips(self, accelerator: str, topology: str, hosts: int, chips: int) -> None:
        found = made(accelerator=accelerator, topology=topology)
        assert (found.hosts, found.tpu_chips) == (hosts, chips)
        assert found.resources["limits"][TPU] == found.resources["requests"][TPU] == str(chips)
        assert found.node_selector == {f"{GKE}tpu-accelerator": accelerator, f"{GKE}tpu-topology": topology}
        assert tolerated(found) == {(TPU, None)}

    def test_ray_knows_every_slice_and_counts_its_hosts_alike(self) -> None:
        names = {
            Accelerator.TPU_V4_PODSLICE: "v4",
            Accelerator.TPU_V5_LITE_PODSLICE: "v5litepod",
            Accelerator.TPU_V5P_SLICE: "v5p",
            Accelerator.TPU_V6E_SLICE: "v6e",
            Accelerator.TPU7X: "v7x",
        }
        assert names.keys() == TPUS.keys()
        for accelerator, tpu in TPUS.items():
            generation = names[accelerator]
            assert set(tpu.topologies) <= ray_tpu.VALID_TPU_TOPOLOGY[generation]
            for topology in tpu.topologies:
                hosts, chips = tpu.shape(topology)
                assert hosts * chips == ray_tpu.get_num_chips_from_topology(topology)
                assert chips == ray_tpu._get_default_chips_per_vm(topology, generation)

    def test_workers_are_hosts_and_kuberays_replicas_are_slices(self, make: Any) -> None:
        block = {"accelerator": "tpu-v6e-slice", "topology": "4x4", "workers": {"min": 4, "max": 12}}
        job = ray_job(make.meta("run"), make.run_spec(hardware=block), "a" * 64, 1, make.settings())
        (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
        assert (group["numOfHosts"], group["minReplicas"], group["maxReplicas"]) == (4, 1, 3)
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert limits[TPU] == "4"

    def test_part_of_a_slice_is_refused(self) -> None:
        box = machine(TrainingHardware(accelerator=Accelerator.TPU_V6E_SLICE, topology="4x4"))
        with pytest.raises(HardwareError, match=r"hardware\.workers counts hosts: min and max must be multiples of 4"):
            box.groups(WorkerRange(min=2, max=4))


class TestCapacity:
    def test_spot(self) -> None:
        found = made(accelerator="nvidia-l4", spot=True)
        assert found.node_selector[f"{GKE}spot"] == "true"
        assert (f"{GKE}spot", "true") in tolerated(found)
        assert made(spot=True).node_selector == {f"{GKE}spot": "true"}

    def test_flex_start(self) -> None:
        found = made(accelerator="nvidia-h200-141gb", count=8, flexStart=True)
        assert found.node_selector == {f"{GKE}accelerator": "nvidia-h200-141gb", f"{GKE}flex-start": "true"}
        assert (f"{GKE}flex-start", "true") in tolerated(found)

    def test_a_reservation_is_taken_by_name_and_nothing_else(self) -> None:
        block = {"name": "h100s", "project": "our-project", "block": "b-1"}
        found = made(accelerator="nvidia-h100-80gb", count=8, reservation=block)
        assert found.node_selector == {
            f"{GKE}accelerator": "nvidia-h100-80gb",
            "cloud.google.com/reservation-affinity": "specific",
            "cloud.google.com/reservation-blocks": "b-1",
            "cloud.google.com/reservation-name": "h100s",
            "cloud.google.com/reservation-project": "our-project",
        }

    def test_a_class_of_ones_own_decides_on_the_gpu(self) -> None:
        """GKE rejects a pod that selects the class and the accelerator's label; the class may choose spot nodes."""
        found = made(accelerator="nvidia-l4", count=2, computeClass="our-gpus")
        assert found.node_selector == {"cloud.google.com/compute-class": "our-gpus"}
        assert found.resources["limits"][GPU] == "2"
        assert {("cloud.google.com/compute-class", "our-gpus"), (f"{GKE}spot", "true")} <= tolerated(found)

    def test_autopilots_own_class_goes_with_the_label(self) -> None:
        found = made(accelerator="nvidia-l4", computeClass="Accelerator", spot=True)
        assert found.node_selector == {
            "cloud.google.com/compute-class": "Accelerator",
            f"{GKE}accelerator": "nvidia-l4",
            f"{GKE}spot": "true",
        }

    def test_a_slice_keeps_its_labels_in_a_class(self) -> None:
        found = made(accelerator="tpu-v6e-slice", topology="2x4", computeClass="our-tpus")
        assert found.node_selector == {
            "cloud.google.com/compute-class": "our-tpus",
            f"{GKE}tpu-accelerator": "tpu-v6e-slice",
            f"{GKE}tpu-topology": "2x4",
        }


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"accelerator": "tpu-v6e-slice", "topology": "2x2x2"}, "topology of tpu-v6e-slice must be 1x1, 2x2, 2x4"),
        ({"accelerator": "tpu-v5p-slice", "topology": "2x4"}, "topology of tpu-v5p-slice must be 2x2x1, .*; it is 2x4"),
        ({"accelerator": "tpu-v6e-slice", "topology": "x"}, "topology of tpu-v6e-slice must be"),
        ({"accelerator": "tpu7x"}, "hardware.topology is missing: tpu7x takes 2x2x1"),
        ({"accelerator": "nvidia-b200"}, "hardware.count must be 8 for nvidia-b200"),
        ({"accelerator": "nvidia-l4", "count": 3}, "hardware.count must be 1, 2, 4 or 8 for nvidia-l4"),
        ({"accelerator": "nvidia-l4", "spot": True, "flexStart": True}, "hardware.spot and hardware.flexStart exclude"),
        (
            {"accelerator": "nvidia-l4", "spot": True, "computeClass": "ours"},
            "hardware.spot and hardware.computeClass exclude each other",
        ),
    ],
)
def test_what_came_past_the_definitions_rules_is_refused_again(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(HardwareError, match=told):
        made(**fields)


def test_the_documentation_lists_what_there_is() -> None:
    text = (Path(__file__).parents[2] / "docs" / "hardware.md").read_text()
    told = {name: (field, values) for name, field, values in re.findall(r"\| `(.+)` \| `(.+)` \| (.+) \|", text)}
    gpus = {accelerator.value: ("count", one_of(gpu.counts)) for accelerator, gpu in GPUS.items()}
    tpus = {accelerator.value: ("topology", tpu.told) for accelerator, tpu in TPUS.items()}
    assert told == gpus | tpus


SHAPES: list[dict[str, Any]] = [
    {"workers": {"max": 2}, "spot": True},
    *({"accelerator": accelerator, "count": gpu.counts[0], "spot": True} for accelerator, gpu in GPUS.items()),
    *({"accelerator": accelerator, "topology": tpu.topologies[0]} for accelerator, tpu in TPUS.items()),
    {"accelerator": "nvidia-l4", "computeClass": "our-gpus"},
    {"accelerator": "nvidia-l4", "flexStart": True},
    {"accelerator": "nvidia-l4", "reservation": {"name": "r", "project": "our-project", "block": "b"}},
]


@pytest.mark.apiserver
def test_every_pod_is_one_that_the_api_server_takes(make: Any, kubectl: Any) -> None:
    pods = []
    for number, shape in enumerate(SHAPES):
        job = ray_job(make.meta("run"), make.run_spec(hardware=shape), "a" * 64, 1, make.settings())
        (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
        template = group["template"]
        meta = template["metadata"] | {"name": f"pod-{number}", "namespace": "support"}
        pods.append({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": template["spec"]})
    listed = {"apiVersion": "v1", "kind": "List", "items": pods}
    made = kubectl("create", "--dry-run=server", "--validate=strict", "-f", "-", stdin=listed)
    assert made.returncode == 0, made.stderr
    assert len(made.stdout.splitlines()) == len(SHAPES)
