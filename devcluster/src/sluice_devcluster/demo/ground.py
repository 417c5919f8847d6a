"""Where the demo plays: the local cluster it starts and stops itself, or an existing one that it only installs into."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sluice_devcluster.places import State

EMULATOR = "http://10.250.0.2:4443"
"""The local cluster's Cloud Storage emulator."""
PUBLIC_STORAGE = "https://storage.googleapis.com"
NEEDED = {
    "KUBECONFIG": "the cluster's kubeconfig file",
    "SLUICE_STORAGE_URI": "a bucket for datasets and runs, such as gs://team-models",
    "SLUICE_RELEASES_URI": "a bucket that devices may read, such as gs://team-models-releases",
    "SLUICE_VALUES": "a Helm values file that names the images (charts/sluice/values.yaml shows the fields)",
}


class GroundError(Exception):
    """The environment does not say where to play; the message names the variable and what it should hold."""


@dataclass(frozen=True)
class Ground:
    """A cluster and its buckets."""

    local: bool
    """Whether the demo starts and stops the cluster."""
    kubeconfig: Path
    storage: str
    releases: str
    values: Path
    """Of the chart."""
    emulator: str | None
    """Base URL of a Cloud Storage emulator; None for the real thing."""

    @property
    def storage_url(self) -> str:
        """Where buckets answer HTTP."""
        return self.emulator or PUBLIC_STORAGE


def ground(environment: Mapping[str, str], repository: Path) -> Ground:
    """The ground that SLUICE_CLUSTER asks for. Raises GroundError."""
    wanted = environment.get("SLUICE_CLUSTER") or "local"
    if wanted == "local":
        values = repository / "charts" / "sluice" / "values-local.yaml"
        return Ground(True, State.default().kubeconfig, "gs://sluice", "gs://sluice-releases", values, EMULATOR)
    if wanted != "existing":
        raise GroundError(f"SLUICE_CLUSTER is {wanted!r}: use local (the default) or existing")
    if lacking := [name for name in NEEDED if not environment.get(name)]:
        told = "; ".join(f"{name} ({NEEDED[name]})" for name in lacking)
        raise GroundError(f"SLUICE_CLUSTER=existing also needs {told}")
    for name in ("SLUICE_STORAGE_URI", "SLUICE_RELEASES_URI"):
        if not environment[name].startswith("gs://"):
            raise GroundError(f"{name} is {environment[name]!r}: it must start with gs://")
    files = {name: Path(environment[name]).absolute() for name in ("KUBECONFIG", "SLUICE_VALUES")}
    for name, path in files.items():
        if not os.access(path, os.R_OK):
            raise GroundError(f"{name}: cannot read {path}")
    return Ground(
        local=False,
        kubeconfig=files["KUBECONFIG"],
        storage=environment["SLUICE_STORAGE_URI"].rstrip("/"),
        releases=environment["SLUICE_RELEASES_URI"].rstrip("/"),
        values=files["SLUICE_VALUES"],
        emulator=environment.get("STORAGE_EMULATOR_HOST") or None,
    )
