"""When a pod of Ray counts as ready: as soon as Ray answers, not at the earliest moment that KubeRay thinks of.

KubeRay's own probe first asks after 10 s and then every 5 s, so that a head that is up after 6 s is told to be ready
after 10 to 15; until then no job is submitted and no engine is declared. A probe that a pod brings along is left alone
(kuberay, ray-operator/controllers/ray/common/pod.go, 1.7). What is asked is the same: the agent's answer for its raylet
and, on a head, for Ray's control store (`/api/healthz`, Ray 2.53 and later).
"""

from typing import Any

AGENT_PORT = 52365
"""Of Ray's agent on every node (kuberay, ray-operator/controllers/ray/utils/constant.go)."""
RAY_READY: dict[str, Any] = {
    "httpGet": {"path": "/api/healthz", "port": AGENT_PORT},
    "initialDelaySeconds": 2,
    "periodSeconds": 2,
    "timeoutSeconds": 5,
    "failureThreshold": 25,
}
"""KubeRay's patience: a pod that was ready is given up on after 50 s without an answer, as with its own probe."""
