"""`python -m sluice_contracts.crd write|check [ROOT]`: the one place in contracts that touches files.

`write` puts the definitions into ROOT/crds/ and, wrapped for Helm, into the chart's templates; `check` exits 1 and
names each file that differs. ROOT is the repository, by default the current folder.
"""

import os
import sys
from pathlib import Path

from sluice_contracts.crd import KINDS, Kind, definition, yaml_text
from sluice_contracts.names import GROUP

USAGE = "usage: python -m sluice_contracts.crd write|check [ROOT]"
HEADER = "# Generated from contracts/ by `make crds`; do not edit.\n"


def files() -> dict[str, str]:
    """Every generated file: path below the repository's root, and text."""
    found = {}
    for kind in KINDS:
        found[f"crds/{GROUP}_{kind.plural}.yaml"] = HEADER + yaml_text(definition(kind))
        found[f"charts/sluice/templates/crd-{kind.plural}.yaml"] = HEADER + _chart_template(kind)
    return found


def _chart_template(kind: Kind) -> str:
    """The definition as a Helm template: Helm's own crds/ folder would never upgrade it, and `keep` leaves people's
    objects alone when the chart is uninstalled."""
    resource = definition(kind)
    resource["metadata"] |= {"annotations": {"helm.sh/resource-policy": "keep"}}
    text = yaml_text(resource)
    assert "{{" not in text, "Helm would take the schema for a template"
    return "{{- if .Values.crds.enabled }}\n" + text + "{{- end }}\n"


def main(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    if not arguments or arguments[0] not in {"write", "check"} or len(arguments) > 2:
        print(USAGE, file=sys.stderr)  # noqa: T201 - a command's own output
        return 2
    root = Path(arguments[1] if len(arguments) == 2 else ".")
    wanted = files()
    stale = [p for p, text in wanted.items() if not (root / p).is_file() or (root / p).read_text() != text]
    if arguments[0] == "check":
        for path in stale:
            print(f"{path} differs from contracts/: run `make crds` and commit it", file=sys.stderr)  # noqa: T201
        return 1 if stale else 0
    for path in stale:
        _write(root / path, wanted[path])
        print(f"wrote {path}")  # noqa: T201
    return 0


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
