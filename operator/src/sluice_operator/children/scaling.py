"""How many engines Ray Serve runs between the pool's bounds, and how many machines there are when a version starts."""

from typing import Any

from sluice_contracts.base import seconds
from sluice_contracts.inference_pool import Replicas, ScaleToZero
from sluice_contracts.routing import Waking

LONGEST_SECONDS = 86_400.0
SHORTEST_SECONDS = 0.001


def deployment_scaling(replicas: Replicas, *, awake: bool) -> dict[str, Any]:
    """Options of the Serve deployment, for `deployments` of a Serve application's configuration.

    There, not among the application's arguments: Ray Serve takes new options in its stride, but builds an application
    with other arguments anew and replaces every engine (ray.serve, `get_app_code_version`).

    `awake`: keep an engine though the pool may sleep. Ray Serve counts a delay to zero from the deployment's first
    moment: a version that has not served yet could be taken away before it is up, and pass for one that is well.
    """
    if replicas.min == replicas.max:
        return {"num_replicas": replicas.min}
    scaling: dict[str, Any] = {
        "min_replicas": max(1, replicas.min) if awake else replicas.min,
        "max_replicas": replicas.max,
        "target_ongoing_requests": replicas.target_ongoing,
        "upscale_delay_s": seconds(replicas.scale_up_delay),
        "downscale_delay_s": seconds(replicas.scale_down_delay),
    }
    if replicas.min == 0:
        scaling["downscale_to_zero_delay_s"] = seconds(_sleep(replicas).idle)
    return {"autoscaling_config": scaling}


def first_machines(replicas: Replicas) -> int:
    """Machines a version starts with: every version runs once before it may sleep."""
    return min(replicas.max, max(1, replicas.min) + replicas.warm)


def waking(replicas: Replicas) -> Waking:
    """What the gateway is told of engines that sleep."""
    sleep = _sleep(replicas)
    return Waking(
        timeout_seconds=min(LONGEST_SECONDS, seconds(sleep.wake_timeout)),
        cold_start_seconds=min(LONGEST_SECONDS, max(SHORTEST_SECONDS, seconds(sleep.cold_start))),
    )


def _sleep(replicas: Replicas) -> ScaleToZero:
    return replicas.scale_to_zero or ScaleToZero()
