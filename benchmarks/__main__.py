"""`python -m benchmarks [NAME …]`: every script in turn, each in a process of its own."""

import subprocess
import sys
import time
from pathlib import Path

LIMIT_S = 1200
FOLDER = Path(__file__).parent


def scripts() -> list[str]:
    """The names of the scripts in this folder: the modules and packages that can be run."""
    guard = 'if __name__ == "__main__":'
    modules = {p.stem for p in FOLDER.glob("*.py") if p.name != Path(__file__).name and guard in p.read_text()}
    return sorted(modules | {p.parent.name for p in FOLDER.glob("*/__main__.py")})


def main() -> int:
    """Run those that were asked for, or all. The exit code tells whether each succeeded."""
    known, wanted = scripts(), sys.argv[1:]
    unknown = [name for name in wanted if name not in known]
    if unknown:
        print(f"error: no benchmark is named {', '.join(unknown)}; there are: {', '.join(known)}", file=sys.stderr)
        return 2
    failed = []
    for name in wanted or known:
        print(f"== {name}", flush=True)
        began = time.monotonic()
        try:
            done = subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], cwd=FOLDER.parent, timeout=LIMIT_S)
            good = done.returncode == 0
        except subprocess.TimeoutExpired:
            print(f"{name} was stopped after {LIMIT_S} s", file=sys.stderr)
            good = False
        failed += [] if good else [name]
        print(f"== {name}: {'done' if good else 'FAILED'} in {time.monotonic() - began:.0f} s\n", flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
