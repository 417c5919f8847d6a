"""Where the local cluster keeps its things: built programs in a cache, everything else in one state folder."""

import os
from dataclasses import dataclass
from pathlib import Path

GIB = 1024**3
DISK_FOR_STATE = 2 * GIB
"""Room that a running cluster needs: its databases, logs, buckets and the writable layers of the pods."""


def cache_folder() -> Path:
    """`$SLUICE_CACHE`, or the user's cache folder."""
    given = os.environ.get("SLUICE_CACHE")
    if given:
        return Path(given).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sluice"


@dataclass(frozen=True)
class State:
    """The folders and files of one local cluster.

    `run` is emptied by every `up` and removed by `down`; so are the keys and certificates, because they belong to one
    life of the cluster. Only the logs of the last life stay until the next one, for whoever looks into a failure.
    """

    root: Path

    @classmethod
    def default(cls) -> "State":
        """`$SLUICE_STATE`, or a folder below the user's state folder."""
        given = os.environ.get("SLUICE_STATE")
        if given:
            return cls(Path(given).absolute())
        home = os.environ.get("XDG_STATE_HOME")
        return cls((Path(home) if home else Path.home() / ".local" / "state") / "sluice" / "dev")

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig; its place never changes."""
        return self.root / "kubeconfig"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def etc(self) -> Path:
        return self.root / "etc"

    @property
    def pki(self) -> Path:
        return self.root / "pki"

    @property
    def logs(self) -> Path:
        return self.root / "log"

    @property
    def lock(self) -> Path:
        return self.root / ".lock"

    @property
    def plan(self) -> Path:
        """What `up` decided, for the node's first process to carry out."""
        return self.etc / "node.json"

    @property
    def failure(self) -> Path:
        """Written by the node's first process when it gives up: why."""
        return self.run / "failure.json"

    @property
    def started(self) -> Path:
        """Written by the node's first process once every program of the node runs."""
        return self.run / "started.json"
