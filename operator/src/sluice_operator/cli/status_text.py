"""The three kinds on one screen, with the facts that matter. Pure."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rich.text import Text
from sluice_contracts.inference_pool import Verdict
from sluice_contracts.training_run import Progress, Stage

from sluice_operator.cli.objects import Pool, Run, Version
from sluice_operator.cli.rollout_text import STYLES, step, traffic
from sluice_operator.cli.state import headline, message
from sluice_operator.cli.text import WIDTH, Cell, age, aligned, short, span


@dataclass(frozen=True)
class Inventory:
    """The objects of one namespace, or of all."""

    namespace: str | None
    """None: all namespaces."""
    runs: Sequence[Run]
    versions: Sequence[Version]
    pools: Sequence[Pool]


def render(found: Inventory, now: datetime) -> list[Text]:
    """Three tables; a kind that has no objects says so in a line."""
    where = "in any namespace" if found.namespace is None else f"in namespace {found.namespace}"
    wide = found.namespace is None
    runs = [_cells(wide, run.namespace, _run(run, now)) for run in found.runs]
    versions = [_cells(wide, version.namespace, _version(version, now)) for version in found.versions]
    pools = [_cells(wide, pool.namespace, _pool(pool)) for pool in found.pools]
    return [
        *_table("TrainingRuns", where, wide, "name|model|state|step|loss|cost|gates|age", runs),
        Text(),
        *_table("ModelVersions", where, wide, "name|model|state|lineage|promoted in|published|age", versions),
        Text(),
        *_table("InferencePools", where, wide, "name|state|traffic|step|verdicts|replicas", pools),
        *_urls(found.pools),
        *_attention([*found.runs, *found.versions, *found.pools]),
    ]


def wire(found: Inventory) -> dict[str, Any]:
    """The same as JSON data."""
    return {
        "namespace": found.namespace,
        "trainingRuns": [
            {
                **_common(run),
                "progress": run.status.progress.wire() if run.status.progress else None,
                "cost": run.status.cost.wire() if run.status.cost else None,
                "gates": [g.wire() for g in run.status.gates],
                "modelVersion": run.status.model_version,
                "lineage": run.status.lineage,
            }
            for run in found.runs
        ],
        "modelVersions": [
            {
                **_common(version),
                "lineage": version.status.lineage,
                "promotion": version.status.promotion.wire() if version.status.promotion else None,
                "release": version.status.release.wire() if version.status.release else None,
            }
            for version in found.versions
        ],
        "inferencePools": [
            {
                **_common(pool),
                "wanted": pool.spec.model_version,
                "stable": pool.status.stable.model_version if pool.status.stable else None,
                "candidate": pool.status.candidate.model_version if pool.status.candidate else None,
                "weights": {w.model_version: w.percent for w in pool.status.weights},
                "step": pool.status.step,
                "verdicts": [v.wire() for v in pool.status.verdicts],
                "replicas": pool.status.replicas,
                "url": pool.status.url,
            }
            for pool in found.pools
        ],
    }


def _common(obj: Run | Version | Pool) -> dict[str, Any]:
    return {
        "namespace": obj.namespace,
        "name": obj.name,
        "model": obj.spec.model,
        "state": headline(obj).plain,
        "message": message(obj),
    }


def _run(run: Run, now: datetime) -> list[Cell]:
    status = run.status
    passed = sum(g.passed for g in status.gates)
    gates: Cell = "-"
    if status.gates:
        style = "green" if passed == len(status.gates) else "red"
        gates = Text(f"{passed} of {len(status.gates)} hold", style=style)
    loss = f"{status.progress.loss:.3f}" if status.progress and status.progress.loss is not None else "-"
    return [
        Text(run.name, style="bold"),
        run.spec.model,
        headline(run),
        _progress(status.progress),
        loss,
        f"{status.cost.total} {status.cost.currency}" if status.cost is not None else "-",
        gates,
        age(run.created, now),
    ]


def _progress(progress: Progress | None) -> str:
    if progress is None:
        return "-"
    if progress.stage is not Stage.TRAINING or not progress.total_steps:
        return progress.stage.value
    eta = f", {span(progress.eta_seconds)} left" if progress.eta_seconds is not None else ""
    return f"{progress.stage} {progress.step:,}/{progress.total_steps:,}{eta}"


def _version(version: Version, now: datetime) -> list[Cell]:
    status, publish = version.status, version.spec.publish
    published = "not asked for" if publish is None else f"to {publish.channel}: waiting"
    if status.release is not None:
        channel = publish.channel if publish is not None else "-"
        published = f"{status.release.percent} % of {channel}"
    return [
        Text(version.name, style="bold"),
        version.spec.model,
        headline(version),
        short(status.lineage),
        status.promotion.pool if status.promotion else "-",
        published,
        age(version.created, now),
    ]


def _pool(pool: Pool) -> list[Cell]:
    return [
        Text(pool.name, style="bold"),
        headline(pool),
        traffic(pool),
        step(pool),
        _verdicts(pool),
        str(pool.status.replicas),
    ]


def _verdicts(pool: Pool) -> Text:
    """How many metrics say what, the worst first: `rollout status` names them."""
    found = Counter(v.verdict for v in pool.status.verdicts if pool.status.candidate is not None)
    worst = [v for v in (Verdict.HARMFUL, Verdict.UNDECIDED, Verdict.EQUIVALENT) if found[v]]
    return Text(", ").join(Text(f"{found[v]} {v.value}", style=STYLES[v]) for v in worst) if worst else Text("-")


def _urls(pools: Sequence[Pool]) -> list[Text]:
    """Where the pools answer: too long for a column."""
    rows: list[list[Cell]] = [[Text(p.name, style="bold"), p.status.url] for p in pools if p.status.url]
    return [Text(), Text("Addresses", style="bold"), *aligned(rows, indent=1)] if rows else []


def _cells(wide: bool, namespace: str, cells: list[Cell]) -> list[Cell]:
    return [namespace, *cells] if wide else cells


def _table(title: str, where: str, wide: bool, heads: str, rows: list[list[Cell]]) -> list[Text]:
    if not rows:
        return [Text.assemble((title, "bold"), f"  none {where}")]
    head = [Text(word, style="dim") for word in (["namespace"] if wide else []) + heads.split("|")]
    return [Text.assemble((title, "bold"), f"  {len(rows)} {where}"), *aligned([head, *rows], indent=1)]


def _attention(objects: list[Run | Version | Pool]) -> list[Text]:
    """The objects that wait for a person, and what the operator says of them."""
    stuck = [(o, message(o)) for o in objects if headline(o).plain.startswith("Stalled")]
    if not stuck:
        return []
    rows: list[list[Cell]] = [[f"{o.resource.kind} {o.name}", Text(said or "-", style="red")] for o, said in stuck]
    return [
        Text(),
        Text("Needs a person (sluice explain KIND/NAME says more)", style="bold"),
        *aligned(rows, indent=1, width=WIDTH),
    ]
