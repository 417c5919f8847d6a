"""`sluice-edge verify-offline`: answers without a network, proven with a negative control.

A listener on this machine is the canary. Outside, it must be reached, else the attempts prove nothing. Inside a network
namespace with loopback alone it must not be, nor anything else, and a question must still be answered.
"""

import json
import socket
import subprocess
import sys
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from sluice_edge import slots
from sluice_edge.errors import EdgeError, FenceError
from sluice_edge.home import Home
from sluice_edge.offline.reach import Attempt, attempts, interfaces

PROBE_SECONDS = 420.0
QUESTION = "Hello! What can you do?"


@dataclass(frozen=True)
class Proof:
    """What was seen."""

    control: Attempt
    """The canary, from outside: must be reached."""
    outside_interfaces: list[str]
    inside_interfaces: list[str]
    inside: list[Attempt]
    answer: str
    tokens: int
    seconds: float
    version: str
    lineage: str
    engine_fence: dict[str, bool]

    @property
    def problems(self) -> list[str]:
        """Why it proves nothing, or the opposite; an empty list is a proof."""
        found = []
        if not self.control.reached:
            found.append(
                "the control failed: even outside, the listener was not reached, so the attempts prove nothing"
            )
        if self.inside_interfaces != ["lo"]:
            found.append(f"inside there were the interfaces {', '.join(self.inside_interfaces)}, not only loopback")
        found += [f"inside, {t.what} to {t.target}: {t.result}" for t in self.inside if t.reached]
        if not self.answer.strip():
            found.append("inside, the question got no answer")
        return found

    def wire(self) -> dict[str, Any]:
        """As `-o json` prints it."""
        return {
            "proven": not self.problems,
            "problems": self.problems,
            "attempts": len(self.inside),
            "blocked": sum(not t.reached for t in self.inside),
            "control": {"target": self.control.target, "result": self.control.result, "reached": self.control.reached},
            "interfacesOutside": self.outside_interfaces,
            "interfacesInside": self.inside_interfaces,
            "inside": [{"what": t.what, "target": t.target, "result": t.result} for t in self.inside],
            "answer": self.answer,
            "answered": bool(self.answer.strip()),
            "tokens": self.tokens,
            "seconds": self.seconds,
            "version": self.version,
            "lineage": self.lineage,
            "engineFence": self.engine_fence,
        }


def verify_offline(home: Home, question: str = QUESTION) -> Proof:
    """Run the proof. Raises NoModelError, FenceError (no network namespaces here), EdgeError."""
    config = home.config()
    slots.current(home)
    url = urlsplit(config.repository)
    repository = None
    if url.scheme != "file" and url.hostname:
        repository = (url.hostname, url.port or (443 if url.scheme == "https" else 80))
    with socket.create_server(("127.0.0.1", 0)) as canary:
        port = canary.getsockname()[1]
        control = attempts(port, None)[0]
        inside = _inside({"home": str(home.root), "canaryPort": port, "repository": repository, "question": question})
    if "error" in inside:
        kind = FenceError if "network namespace" in inside["error"] else EdgeError
        raise kind(inside["error"])
    return Proof(
        control=control,
        outside_interfaces=interfaces(),
        inside_interfaces=inside["interfaces"],
        inside=[Attempt(**t) for t in inside["attempts"]],
        answer=inside["answer"],
        tokens=inside["tokens"],
        seconds=inside["seconds"],
        version=inside["version"],
        lineage=inside["lineage"],
        engine_fence=inside["engineFence"],
    )


def _inside(config: dict[str, Any]) -> dict[str, Any]:
    try:
        probe = subprocess.run(
            [sys.executable, "-P", "-m", "sluice_edge.offline.probe"],
            input=json.dumps(config).encode() + b"\n",
            stdout=subprocess.PIPE,
            timeout=PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise EdgeError(f"the proof was not done after {PROBE_SECONDS:.0f} s") from None
    try:
        result: dict[str, Any] = json.loads(probe.stdout)
    except ValueError:
        raise EdgeError(f"the proof's process ended with code {probe.returncode}; see its messages above") from None
    return result
