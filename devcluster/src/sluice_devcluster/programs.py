"""Which programs the local cluster is made of, and where the built ones lie.

They are Go programs, pinned by the `tool` directives and checksums of the modules under gomods/; a folder of built
programs is named by a digest of those files and of the build flags, so a changed pin never meets an old program.
"""

import hashlib
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from sluice_devcluster.errors import DevClusterError
from sluice_devcluster.places import cache_folder

GOMODS = Path(__file__).parent / "gomods"
KUBERNETES_VERSION = "v1.36.3"
_VERSION_PACKAGE = "k8s.io/component-base/version"
STRIPPED = "-s -w"
LDFLAGS = (
    f"{STRIPPED} -X {_VERSION_PACKAGE}.gitVersion={KUBERNETES_VERSION}"
    f" -X {_VERSION_PACKAGE}.gitMajor=1 -X {_VERSION_PACKAGE}.gitMinor=36"
)
"""Without the version, the API server calls itself v0.0.0 and clients misread it."""
MODULE_ORDER = ("kubernetes", "containerd", "cni", "coredns", "fakegcs", "helm", "pause")
RENAMED = {"go.etcd.io/etcd/server/v3": "etcd"}
COMPLETE = ".complete"


@dataclass(frozen=True)
class Program:
    """One program: its file name, the module folder below gomods/ that pins it, and the package to build."""

    name: str
    module: str
    package: str

    @property
    def ldflags(self) -> str:
        return LDFLAGS if self.module == "kubernetes" else STRIPPED


def tools(go_mod: str) -> list[str]:
    """The packages named by the `tool` directives of a go.mod, single or in a block."""
    found: list[str] = []
    inside = False
    for raw in go_mod.splitlines():
        line = raw.split("//")[0].strip()
        if line == "tool (":
            inside = True
        elif inside and line == ")":
            inside = False
        elif inside and line:
            found.append(line)
        elif match := re.fullmatch(r"tool\s+(\S+)", line):
            found.append(match.group(1))
    return found


def programs() -> list[Program]:
    """Every program, in the order in which they are built: the control plane first, it takes longest."""
    found = []
    for module in MODULE_ORDER:
        packages = tools((GOMODS / module / "go.mod").read_text())
        # A module without tools is itself the program.
        for package in packages or ["."]:
            name = module if package == "." else RENAMED.get(package, package.rsplit("/", 1)[1])
            found.append(Program(name, module, package))
    return found


def build_key() -> str:
    """16 hexadecimal digits that stand for everything the built programs depend on."""
    digest = hashlib.sha256(f"{LDFLAGS}\n{platform.machine()}\n".encode())
    for file in sorted(p for p in GOMODS.rglob("*") if p.suffix in (".mod", ".sum", ".go")):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(GOMODS).as_posix()} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def program_folder() -> Path:
    """Where the programs of this version belong, built or not."""
    return cache_folder() / "bin" / build_key()


def built_programs() -> Path:
    """The folder with all programs built. Raises DevClusterError if they are not."""
    folder = program_folder()
    if not (folder / COMPLETE).exists():
        missing = [p.name for p in programs() if not (folder / p.name).exists()]
        raise DevClusterError(
            f"the cluster's programs are not built ({', '.join(missing) or 'unfinished'} not in {folder}): "
            "run `sluice-dev build` once"
        )
    return folder
