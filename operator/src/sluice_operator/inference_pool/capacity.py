"""How many engines a version has now, and for how many the gateway should let requests through.

Ray Serve adds an engine when the engines it has are asked for more than `targetOngoing` each. It can only see what the
gateway lets through: so the gateway makes room for one engine more than there are, and growth goes on engine by engine.
"""

from sluice_contracts.inference_pool import InferencePoolSpec

from sluice_operator.children.hardware import HardwareError, machine
from sluice_operator.children.rayservice import has_worker_group
from sluice_operator.inference_pool.engine_state import EngineState


def engines(spec: InferencePoolSpec, state: EngineState | None) -> int:
    """Engines of a version, by the machines that KubeRay reports; `replicas.min` where it reports none yet."""
    if not has_worker_group(spec):
        return 1
    if state is None or state.pods is None:
        return spec.replicas.min
    try:
        hosts = machine(spec.hardware).hosts
    except HardwareError:
        hosts = 1
    return min(spec.replicas.max, max(spec.replicas.min, state.pods // hosts))


def asleep(spec: InferencePoolSpec, state: EngineState | None) -> bool:
    """Whether a version has no engine because nobody asks. Where machines are kept warm, they hide it: KubeRay tells of
    machines, not of engines."""
    return spec.replicas.min == 0 and state is not None and state.ready and not state.pods


def room(spec: InferencePoolSpec, state: EngineState | None) -> int:
    """Engines for which the gateway lets requests through."""
    return (
        min(spec.replicas.max, engines(spec, state) + 1) if spec.replicas.max > spec.replicas.min else spec.replicas.min
    )
