"""What a rollout takes beside what runs without it: said before it starts, so that nobody learns it from pending pods.

A candidate is a whole second set of engines (two RayServices), for as long as the rollout and its rollback window last;
unless it is an adapter on the very version that runs, which takes none.
"""

from sluice_contracts.hardware import ReplicaHardware
from sluice_contracts.inference_pool import Replicas, RolloutNeeds

from sluice_operator.children.hardware import machine
from sluice_operator.children.scaling import first_machines


def rollout_needs(hardware: ReplicaHardware, replicas: Replicas, *, takes_over: bool) -> RolloutNeeds:
    """What a candidate needs beyond today's. `takes_over`: an engine of the pool that runs today goes first, and leaves
    its machines to the candidate. Raises HardwareError."""
    box = machine(hardware)
    each = (box.gpus or box.tpu_chips) * box.hosts
    start = first_machines(replicas)
    grows_by = max(0, replicas.max - start)
    beyond = 0 if takes_over else start
    return RolloutNeeds(
        accelerator=hardware.accelerator.value,
        replicas=start,
        accelerators=beyond * each,
        accelerators_at_most=(beyond + grows_by) * each,
        message=_text(hardware, start, each, grows_by, takes_over),
    )


def adapter_needs(hardware: ReplicaHardware, base: str) -> RolloutNeeds:
    """What a candidate needs that is an adapter on the engines of version `base`, which run already."""
    return RolloutNeeds(
        accelerator=hardware.accelerator.value,
        replicas=0,
        accelerators=0,
        accelerators_at_most=0,
        message=f"no machine: it is an adapter on the engines of {base}",
    )


def _text(hardware: ReplicaHardware, start: int, each: int, grows_by: int, takes_over: bool) -> str:
    """Such as `2 replicas of 4 nvidia-l4: 8 beyond today's, 16 if it grows to replicas.max`."""
    name = f"{'spot ' if hardware.spot else ''}{hardware.accelerator.value}"
    if not each:
        size = f"{start} x ({hardware.resources.cpu} CPU, {hardware.resources.memory} memory)"
        return f"{size}, no accelerators" + (", in place of an engine that goes first" if takes_over else "")
    what = f"{start} x {each} {name}"
    if takes_over:
        text = f"{what}, 0 beyond today's: an engine that goes first leaves them"
    else:
        text = f"{what}: {start * each} beyond today's"
    return text + (f", {grows_by * each} more if it grows to replicas.max" if grows_by else "")
