"""Container images without a registry: OCI layouts written as tar files, for containerd to import.

The thin image holds almost nothing: containers started from it under the RuntimeClass `sluice-host` see this machine's
programs, its Python and the locked environment through read-only mounts (see `runtime`).
"""

import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sluice_contracts.telemetry import OFF_SWITCHES

SLUICE_IMAGE = "local.dev/sluice:dev"
PAUSE_IMAGE = "local.dev/pause:1"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
USER = 1000


@dataclass(frozen=True)
class Entry:
    """One thing in a layer: a folder, a symbolic link (`target`), or a file (`data`)."""

    path: str
    mode: int = 0o755
    owner: int = 0
    target: str | None = None
    data: bytes | None = None


def write_image(path: Path, reference: str, entries: Sequence[Entry], config: dict[str, Any]) -> None:
    """Write an OCI layout with one image of one layer. The same input gives the same bytes."""
    layer = _layer(entries)
    layer_digest = hashlib.sha256(layer).hexdigest()
    image = _json(
        {
            "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer_digest}"]},
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": _descriptor("application/vnd.oci.image.config.v1+json", image),
            "layers": [_descriptor("application/vnd.oci.image.layer.v1.tar", layer)],
        }
    )
    entry = _descriptor("application/vnd.oci.image.manifest.v1+json", manifest)
    entry["annotations"] = {
        "io.containerd.image.name": reference,
        "org.opencontainers.image.ref.name": reference.rsplit(":", 1)[1],
    }
    files = {
        "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
        "index.json": _json({"schemaVersion": 2, "manifests": [entry]}),
    }
    for blob in (layer, image, manifest):
        files[f"blobs/sha256/{hashlib.sha256(blob).hexdigest()}"] = blob
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _descriptor(media_type: str, blob: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": f"sha256:{hashlib.sha256(blob).hexdigest()}", "size": len(blob)}


def _layer(entries: Sequence[Entry]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for entry in entries:
            info = tarfile.TarInfo(entry.path)
            info.mode, info.uid, info.gid = entry.mode, entry.owner, entry.owner
            if entry.target is not None:
                info.type, info.linkname = tarfile.SYMTYPE, entry.target
                tar.addfile(info)
            elif entry.data is None:
                info.type = tarfile.DIRTYPE
                tar.addfile(info)
            else:
                info.size = len(entry.data)
                tar.addfile(info, io.BytesIO(entry.data))
    return buffer.getvalue()


def pause_image(path: Path, program: bytes) -> None:
    """The image of the container that holds a pod's namespaces."""
    write_image(path, PAUSE_IMAGE, [Entry("pause", data=program)], {"Entrypoint": ["/pause"], "User": "65535:65535"})


def sluice_image(path: Path, executables: Path, root_links: dict[str, str]) -> None:
    """The thin image of Sluice's own pods.

    `executables` is the environment's folder of programs, as it will be mounted; `root_links` are this machine's
    symbolic links in / (`bin` -> `usr/bin`), which the dynamic loader's path relies on.
    """
    folders = ["usr", "etc", "root", "home", "var", "var/lib", "var/lib/sluice", "run", "opt", "proc", "sys", "dev"]
    entries = [Entry(name) for name in folders]
    entries += [Entry(name, 0o777, target=target) for name, target in sorted(root_links.items())]
    entries += [Entry("tmp", 0o1777), Entry("var/tmp", 0o1777), Entry("home/ray", owner=USER)]
    passwd = (
        f"root:x:0:0:root:/root:/bin/bash\nray:x:{USER}:{USER}:ray:/home/ray:/bin/bash\n"
        "nobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n"
    )
    group = f"root:x:0:\nray:x:{USER}:\nusers:x:100:ray\nnogroup:x:65534:\n"
    entries += [
        Entry("etc/passwd", 0o644, data=passwd.encode()),
        Entry("etc/group", 0o644, data=group.encode()),
        Entry("etc/nsswitch.conf", 0o644, data=b"passwd: files\ngroup: files\nhosts: files dns\n"),
    ]
    environment = {
        "PATH": f"{executables}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
        # The environment is mounted read-only, compiled beforehand.
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        **OFF_SWITCHES,
    }
    config = {
        "Env": [f"{k}={v}" for k, v in environment.items()],
        "User": f"{USER}:{USER}",
        "WorkingDir": "/home/ray",
        "Cmd": ["/bin/bash"],
    }
    write_image(path, SLUICE_IMAGE, entries, config)
