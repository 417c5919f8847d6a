"""The `hardware` block of a TrainingRun and an InferencePool, and the rules that refuse what GKE does not have.

Every rule stands in the CRD, so `kubectl apply` says what is wrong while the person is still there; the operator's
rendering checks the same table again, for objects that an older CRD let through.
"""

from collections.abc import Iterable, Iterator
from typing import Annotated

from pydantic import Field, StringConstraints

from sluice_contracts.accelerators import GPUS, NO_FLEX_START, TPUS, Accelerator, hosts_by_topology
from sluice_contracts.base import Contract
from sluice_contracts.kubernetes import Quantity, Rule, cel

__all__ = ["Accelerator", "ReplicaHardware", "Reservation", "Resources", "Topology", "TrainingHardware", "WorkerRange"]

BUILT_IN_CLASSES = ("Accelerator", "Performance")
"""Compute classes of Autopilot itself, which go together with labels of hardware. A class that a team defined decides
on hardware alone: GKE rejects pods that select both (…/docs/concepts/about-custom-compute-classes)."""


def one_of(values: Iterable[object]) -> str:
    """`1, 2 or 4`."""
    texts = [str(value) for value in values]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} or {texts[-1]}"


def cel_list(values: Iterable[str | int]) -> str:
    """A CEL list of texts or whole numbers."""
    return "[" + ", ".join(f"'{v}'" if isinstance(v, str) else str(v) for v in values) + "]"


def _gpu_rules() -> Iterator[Rule]:
    for accelerator, gpu in GPUS.items():
        yield (
            f"self.accelerator != '{accelerator.value}'"
            f" || (has(self.count) ? self.count : 1) in {cel_list(gpu.counts)}",
            f"hardware.count must be {one_of(gpu.counts)} for {accelerator.value}: its machines have that many GPUs",
        )


def _tpu_rules() -> Iterator[Rule]:
    for accelerator, tpu in TPUS.items():
        yield (
            f"self.accelerator != '{accelerator.value}' || !has(self.topology)"
            f" || self.topology in {cel_list(tpu.topologies)}",
            f"hardware.topology of {accelerator.value} must be {tpu.told}",
        )


HARDWARE_RULES: list[Rule] = [
    (
        "!has(self.topology) || self.accelerator.startsWith('tpu')",
        "hardware.topology is for TPUs only; leave it out, or choose an accelerator that starts with tpu",
    ),
    (
        "!self.accelerator.startsWith('tpu') || has(self.topology)",
        "a TPU needs hardware.topology, such as 2x4 (two sides for v5e and v6e) or 2x2x1 (three for the others)",
    ),
    (
        "!self.accelerator.startsWith('tpu') || !has(self.count)",
        "hardware.count is not for TPUs: the topology says how many chips there are; leave it out",
    ),
    (
        "self.accelerator != 'cpu' || !has(self.count)",
        "hardware.count is the number of GPUs; leave it out with accelerator cpu, and set hardware.resources.cpu",
    ),
    *_gpu_rules(),
    *_tpu_rules(),
    (
        "!self.spot || !self.flexStart",
        "hardware.spot and hardware.flexStart exclude each other: a spot machine may be taken back at any time, one "
        "from flexStart is kept for up to 7 days; choose one",
    ),
    (
        "!has(self.reservation) || !self.spot",
        "hardware.reservation and hardware.spot exclude each other: what is reserved is never spot; leave one out",
    ),
    (
        "!has(self.reservation) || !self.flexStart",
        "hardware.reservation and hardware.flexStart exclude each other: what is reserved needs no queue; leave one "
        "out",
    ),
    (
        f"!self.flexStart || !(self.accelerator in {cel_list(a.value for a in NO_FLEX_START)})",
        f"hardware.flexStart is not offered for {one_of(a.value for a in NO_FLEX_START)}: leave it out",
    ),
    (
        f"!has(self.computeClass) || self.computeClass in {cel_list(BUILT_IN_CLASSES)}"
        " || !(self.spot || self.flexStart || has(self.reservation))",
        "hardware.computeClass names a class that itself decides on spot, flexStart and reservation: leave those out, "
        "or computeClass",
    ),
    (
        "!has(self.computeClass) || self.computeClass != 'Accelerator' || self.accelerator.startsWith('nvidia')",
        "hardware.computeClass Accelerator is Autopilot's class for GPUs: choose one that starts with nvidia",
    ),
]
"""CEL rules (and their messages) of both hardware blocks."""

WORKER_RULE: Rule = ("self.min <= self.max", "workers.min must not be above workers.max")

_HOSTS = hosts_by_topology()
_HOSTS_AS_NUMBERS = ", ".join(f"'{topology}': {hosts}" for topology, hosts in _HOSTS.items())
_HOSTS_AS_TEXT = ", ".join(f"'{topology}': '{hosts}'" for topology, hosts in _HOSTS.items())
SLICE_RULE: Rule = (
    # A macro over a list of one gives the map a name: CEL in CRDs has no other way.
    f"[{{{_HOSTS_AS_NUMBERS}}}].all(hosts, !has(self.topology) || !(self.topology in hosts)"
    " || (self.workers.min % hosts[self.topology] == 0 && self.workers.max % hosts[self.topology] == 0))",
    "hardware.workers counts hosts: min and max must be multiples of the hosts of one TPU slice",
    # As text, because the API server takes the text of a number for endless when it estimates the cost.
    "'hardware.workers counts hosts: min and max must be multiples of ' "
    f"+ {{{_HOSTS_AS_TEXT}}}[self.topology] + ', the hosts of one ' + self.topology + ' slice of ' + self.accelerator",
)
"""Ray Train gives each TPU host one worker and takes whole slices only (ray.train, _validate_tpu_config)."""

TRAINER_RULE: Rule = (
    "!self.accelerator.startsWith('tpu')",
    "hardware.accelerator: training runs on CPUs and GPUs, not on TPUs; choose cpu or one that starts with nvidia",
)
"""The trainer is PyTorch with CUDA or gloo. On a TPU it would learn on the host's CPUs, beside chips that are paid for:
so such a run is refused before it orders any machine."""

MOST_WORKERS = 2048
"""The largest slice, 16x16x24 of v5p, has 1536 hosts."""


class WorkerRange(Contract):
    """How many workers a run may have; equal numbers mean a fixed size. On TPUs a worker is one host of a slice."""

    model_config = cel(WORKER_RULE)

    min: Annotated[int, Field(ge=1, le=MOST_WORKERS)] = 1
    max: Annotated[int, Field(ge=1, le=MOST_WORKERS)] = 1


Topology = Annotated[str, StringConstraints(max_length=8)]
"""Sides of a TPU slice in chips, such as `2x4`: which there are is in the table of accelerators."""
ComputeClass = Annotated[
    str, StringConstraints(pattern=r"^(Accelerator|Performance|[a-z0-9]([-a-z0-9]*[a-z0-9])?)$", max_length=63)
]
ReservationName = Annotated[str, StringConstraints(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
ProjectId = Annotated[str, StringConstraints(pattern=r"^[a-z][-a-z0-9]*[a-z0-9]$", min_length=6, max_length=30)]


class Resources(Contract):
    """CPU and memory of one worker or replica."""

    model_config = cel(
        (
            "self.cpu.matches('^([0-9]{1,3}([.][0-9]{1,3})?|[0-9]{1,6}m)$') && !self.cpu.matches('^[0.]+m?$')",
            "hardware.resources.cpu must be a number of CPUs above 0 and below 1000, such as 2, 1.5 or 500m",
        ),
        (
            "self.memory.matches('^[0-9]+([.][0-9]+)?[MGT]i?$') && !self.memory.matches('^[0.]+[MGT]i?$')",
            "hardware.resources.memory must be above 0 and have a unit, such as 512Mi or 16Gi",
        ),
    )

    cpu: Quantity = "1"
    memory: Quantity = "2Gi"


class Reservation(Contract):
    """Capacity that was reserved in Compute Engine."""

    name: ReservationName
    project: ProjectId | None = None
    """The project that owns it, if it is shared from another one."""
    block: ReservationName | None = None
    """One block of it, where machines that lie close together matter."""


class ReplicaHardware(Contract):
    """The machine one serving replica runs on."""

    model_config = cel(*HARDWARE_RULES)

    accelerator: Accelerator = Accelerator.CPU
    count: Annotated[int, Field(ge=1, le=16)] | None = None
    """GPUs of one worker; 1 if left out. Not for TPUs (their topology tells) nor for `cpu`."""
    topology: Topology | None = None
    """TPU slice topology, such as `2x4`."""
    spot: bool = False
    """Cheap machines that may be taken back at any time."""
    flex_start: bool = False
    """Wait in GKE's queue until the machines are there; they are kept for up to 7 days."""
    reservation: Reservation | None = None
    """Take the machines from a reservation, and from nowhere else."""
    compute_class: ComputeClass | None = None
    """A GKE ComputeClass: machines in its own order of preference."""
    resources: Resources = Resources()


class TrainingHardware(ReplicaHardware):
    """The machines a run trains on."""

    model_config = cel(*HARDWARE_RULES, SLICE_RULE, TRAINER_RULE)

    workers: WorkerRange = WorkerRange()
