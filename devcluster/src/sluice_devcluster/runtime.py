"""What containers see of this machine: containerd's configuration and the mounts of the RuntimeClass `sluice-host`.

The plain runtime shows a container nothing but its image. Only the runtime behind `sluice-host` adds the read-only
mounts of this machine's /usr, Python, environment and sources, so that the thin image needs no copy of them.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sluice_devcluster.errors import DevClusterError
from sluice_devcluster.images import PAUSE_IMAGE

RUNTIME_CLASS = "sluice-host"
CONTAINERD_SOCKET = "/run/containerd/containerd.sock"
UNUSED_PLUGINS = (
    "io.containerd.nri.v1.nri",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.snapshotter.v1.erofs",
    "io.containerd.snapshotter.v1.blockfile",
    "io.containerd.differ.v1.erofs",
    "io.containerd.internal.v1.tracing",
    "io.containerd.image-verifier.v1.bindir",
)
PODS_OWN = (Path("/tmp"), Path("/dev"), Path("/proc"), Path("/run"), Path("/sys"))
"""Folders that a pod gets anew, above what the runtime mounts."""


def editable_sources(site_packages: Path) -> list[Path]:
    """The source folders that the environment's .pth files name: this workspace's packages, installed in place."""
    found = []
    for file in sorted(site_packages.glob("*.pth")):
        for line in file.read_text().splitlines():
            if line.startswith("/") and Path(line).is_dir():
                found.append(Path(line))
    return found


def root_links() -> dict[str, str]:
    """This machine's links in / into /usr: name -> target."""
    names = ("bin", "sbin", "lib", "lib32", "lib64")
    return {name: str(Path("/", name).readlink()).lstrip("/") for name in names if Path("/", name).is_symlink()}


def host_mounts() -> list[Path]:
    """The folders and files of this machine that `sluice-host` containers see at the same place, read-only.

    A folder inside another one of the list is left out. Raises DevClusterError when Python is not run from a virtual
    environment, when another user could not read it, or when a pod's own folders would hide it.
    """
    if sys.prefix == sys.base_prefix:
        raise DevClusterError(
            "sluice-dev does not run from a virtual environment, so there is none to show to pods: "
            "use the one that `uv sync --all-packages --all-extras` makes"
        )
    site_packages = Path(sys.prefix) / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    wanted = [Path("/usr"), Path("/etc/ssl"), Path("/etc/alternatives"), Path("/etc/ld.so.cache")]
    wanted += [Path("/", name) for name in ("bin", "sbin", "lib", "lib64") if not Path("/", name).is_symlink()]
    wanted += [Path(sys.prefix), Path(sys.base_prefix), Path(sys.base_prefix).resolve()]
    wanted += editable_sources(site_packages)
    found: list[Path] = []
    for path in sorted({p for p in wanted if p.exists()}, key=lambda p: len(p.parts)):
        if any(path.is_relative_to(other) for other in found):
            continue
        if hiding := next((own for own in PODS_OWN if path.is_relative_to(own)), None):
            raise DevClusterError(
                f"pods have a {hiding} of their own, which would hide {path}: move the checkout elsewhere"
            )
        if not path.stat().st_mode & 0o004:
            raise DevClusterError(f"pods run as user 1000 and could not read {path}: `chmod -R o+rX {path}`")
        found.append(path)
    return found


def base_spec(default_spec: Mapping[str, Any], mounts: list[Path]) -> dict[str, Any]:
    """containerd's default OCI specification (`ctr oci spec`) with the read-only mounts added."""
    spec = json.loads(json.dumps(default_spec))
    for path in mounts:
        options = ["rbind", "ro", "nosuid", "nodev", "rprivate"]
        spec["mounts"].append({"destination": str(path), "type": "bind", "source": str(path), "options": options})
    # The default names a limit of 1,024 open files, of which Ray needs more; without it the node's own applies.
    spec["process"].pop("rlimits", None)
    return dict(spec)


def containerd_config(runc: str, cni_programs: Path, cni_config: Path, host_spec: Path) -> dict[str, Any]:
    """containerd's configuration as plain data (its file is TOML)."""

    def runtime(**more: Any) -> dict[str, Any]:
        options = {"BinaryName": runc, "SystemdCgroup": False, "Root": "/run/runc"}
        return {"runtime_type": "io.containerd.runc.v2", "options": options, **more}

    return {
        "version": 3,
        "root": "/var/lib/containerd",
        "state": "/run/containerd",
        "imports": [],
        "disabled_plugins": list(UNUSED_PLUGINS),
        "grpc": {"address": CONTAINERD_SOCKET},
        "plugins": {
            "io.containerd.internal.v1.opt": {"path": "/var/lib/containerd/opt"},
            "io.containerd.cri.v1.images": {"pinned_images": {"sandbox": PAUSE_IMAGE}},
            "io.containerd.cri.v1.runtime": {
                "disable_apparmor": True,
                # Root without CAP_SYS_RESOURCE may not lower OOM scores; every sandbox would fail, with an error
                # that names something else ("can't get final child's PID from pipe: EOF").
                "restrict_oom_score_adj": True,
                "containerd": {
                    "default_runtime_name": "runc",
                    "runtimes": {
                        "runc": runtime(),
                        RUNTIME_CLASS: runtime(base_runtime_spec=str(host_spec)),
                    },
                },
                "cni": {
                    "bin_dirs": [str(cni_programs)],
                    "conf_dir": str(cni_config),
                    "use_internal_loopback": True,
                },
            },
        },
    }


def to_toml(value: Mapping[str, Any], path: tuple[str, ...] = ()) -> str:
    """Nested mappings of strings, numbers, booleans and flat lists as TOML; JSON spells those values the same way."""
    lines = [f"{json.dumps(k)} = {json.dumps(v)}" for k, v in value.items() if not isinstance(v, Mapping)]
    text = ""
    if lines:
        header = f"[{'.'.join(json.dumps(p) for p in path)}]\n" if path else ""
        text = header + "\n".join(lines) + "\n"
    return text + "".join(to_toml(v, (*path, k)) for k, v in value.items() if isinstance(v, Mapping))
