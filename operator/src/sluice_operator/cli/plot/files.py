"""Reading a recording, and writing a picture. All the I/O of a plot."""

import json
import shutil
import subprocess
from pathlib import Path

from pydantic import ValidationError

from sluice_operator.cli.errors import CliError
from sluice_operator.cli.plot.picture import Look

CONVERTER = "rsvg-convert"
CONVERT_SECONDS = 30
LINES = 200_000


def read_recording(path: Path, pool: str) -> list[Look]:
    """The looks that `sluice rollout watch POOL -o json` wrote. Raises CliError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()[-LINES:]
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(f"cannot read the recording {path}: {error}") from None
    looks = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
            if found["pool"] != pool:
                raise CliError(f"{path} is a recording of pool {found['pool']}, not of {pool}: give that name")
            candidate = (found.get("candidate") or {}).get("modelVersion")
            looks.append(
                Look(at=found["at"], candidate=candidate, weights=found["weights"], verdicts=found["verdicts"])
            )
        except (ValueError, KeyError, TypeError, AttributeError, ValidationError):
            raise CliError(
                f"{path} line {number} is no look at a rollout; record one with "
                f"`sluice rollout watch {pool} -o json > FILE`"
            ) from None
    if not looks:
        raise CliError(f"the recording {path} is empty; record with `sluice rollout watch {pool} -o json > FILE`")
    return looks


def write_picture(svg: str, file: Path) -> None:
    """Write the drawing as its name's ending says. Raises CliError."""
    kind = file.suffix.lower()
    if kind not in {".svg", ".png"}:
        raise CliError(f"--file {file}: the name must end in .svg or .png")
    program = shutil.which(CONVERTER) if kind == ".png" else None
    if kind == ".png" and program is None:
        raise CliError(
            f"a PNG needs {CONVERTER} (Debian: librsvg2-bin), which is not on PATH; "
            f"install it, or write {file.with_suffix('.svg')}"
        )
    try:
        if program is None:
            file.write_text(svg, encoding="utf-8")
            return
        command = [program, "--zoom", "2", "--format", "png", "--output", str(file)]
        subprocess.run(command, input=svg.encode(), capture_output=True, check=True, timeout=CONVERT_SECONDS)
    except OSError as error:
        raise CliError(f"cannot write {file}: {error.strerror}") from None
    except subprocess.SubprocessError as error:
        said = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip()
        raise CliError(f"{CONVERTER} could not make {file} ({said or error}); write .svg instead") from None
