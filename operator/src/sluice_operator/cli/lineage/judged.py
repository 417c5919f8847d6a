"""The links of how a model was judged: evaluation, parity, canary. Pure."""

from sluice_contracts.evaluation import EvaluationReport
from sluice_contracts.inference_pool import MetricVerdict, RolloutOutcome, RolloutRecord
from sluice_contracts.training_run import GateResult

from sluice_operator.cli.lineage.chain import Link, LinkState
from sluice_operator.cli.lineage.evidence import Evidence
from sluice_operator.cli.lineage.made import CHECKED, differs
from sluice_operator.cli.objects import Pool
from sluice_operator.cli.rollout_text import effect_text
from sluice_operator.cli.text import counted, moment


def evaluation(evidence: Evidence) -> list[Link]:
    """The report the gate judged by."""
    document = evidence.report
    if document is None:
        return [Link("evaluation", "-", LinkState.ABSENT, "no report yet")]
    report = document.value
    if report is None:
        return [Link("evaluation", "-", LinkState.BROKEN, document.problem, uri=document.uri, digest=document.digest)]
    problem = differs(evidence, report.lineage, "the report")
    values = {m.metric: m.value for suite in report.suites for m in suite.metrics if m.slice is None}
    facts = {
        "passed": report.passed,
        "metrics": values,
        "gates": [g.wire() for g in report.gates],
        "waiver": report.waiver.wire() if report.waiver else None,
    }
    state = LinkState.OK if report.passed or report.waiver else LinkState.STOPPED
    name = "passed" if report.passed else "waived" if report.waiver else "failed"
    failed = [g for g in report.gates if not g.passed]
    if report.passed:
        text = ", ".join(f"{metric} {values[metric]:.3f}" for metric in _headlines(report, values))
        text += f"; {counted(len(report.gates), 'gate')}"
    else:
        text = ", ".join(_gate(g) for g in failed)
        if report.waiver:
            text += f"; {report.waiver.approved_by}: {report.waiver.reason}"
    return [
        Link(
            "evaluation",
            name,
            LinkState.BROKEN if problem else state,
            problem or text,
            check=CHECKED if document.digest else "not yet bound by a manifest",
            lineage=report.lineage,
            uri=document.uri,
            digest=document.digest,
            facts=facts,
        )
    ]


def _headlines(report: EvaluationReport, values: dict[str, float]) -> list[str]:
    """The metrics to show: those that were gated, else each suite's first."""
    gated = dict.fromkeys(g.metric for g in report.gates if g.slice is None and g.metric in values)
    firsts = [suite.metrics[0].metric for suite in report.suites if suite.metrics and suite.metrics[0].metric in values]
    return (list(gated) or firsts)[:4]


def parity(evidence: Evidence) -> list[Link]:
    """Whether the quantised files are as good as their parent."""
    document = evidence.parity
    if document is None:
        return [Link("parity", "-", LinkState.ABSENT, "no quantised file was compared yet")]
    report = document.value
    if report is None:
        return [Link("parity", "-", LinkState.BROKEN, document.problem, uri=document.uri, digest=document.digest)]
    problem = differs(evidence, report.lineage, "the parity report")
    state = LinkState.OK if report.passed else LinkState.STOPPED
    text = ", ".join(f"{r.quantization} KLD {r.mean_kld:.4f} top {r.same_top:.3f}" for r in report.results)
    return [
        Link(
            "parity",
            "passed" if report.passed else "failed",
            LinkState.BROKEN if problem else state,
            problem or text,
            check=CHECKED if document.digest else "not yet bound by a manifest",
            lineage=report.lineage,
            uri=document.uri,
            digest=document.digest,
            facts={"engine": report.engine, "results": [r.wire() for r in report.results]},
        )
    ]


def canary(evidence: Evidence) -> list[Link]:
    """How the version did on live traffic, in each pool that tried it."""
    if evidence.version is None:
        return [Link("canary", "-", LinkState.ABSENT, "there is no version to try")]
    links = [link for pool in evidence.pools if (link := _canary(evidence, pool, evidence.version.name))]
    return links or [Link("canary", "-", LinkState.ABSENT, "in no pool's rollout so far")]


def _canary(evidence: Evidence, pool: Pool, version: str) -> Link | None:
    status = pool.status
    record = next((r for r in reversed(status.history) if r.model_version == version), None)
    if status.candidate is not None and status.candidate.model_version == version:
        share = next((w.percent for w in status.weights if w.model_version == version), 0)
        text = f"under way at {share} %: {_verdicts(status.verdicts)}"
        return _canary_link(evidence, pool, LinkState.OK, "on trial", text, status.candidate.lineage, status.verdicts)
    if record is not None:
        good = record.outcome is RolloutOutcome.PROMOTED
        state = LinkState.OK if good else LinkState.STOPPED
        name = _OUTCOMES[record.outcome]
        text = f"{moment(record.ended_at)}: {_deciding(record)}"
        return _canary_link(evidence, pool, state, name, text, record.lineage, record.verdicts)
    if status.stable is not None and status.stable.model_version == version:
        text = "the pool's first version: there was no stable one to compare with"
        return _canary_link(evidence, pool, LinkState.OK, "stable", text, status.stable.lineage, [])
    return None


_OUTCOMES = {
    RolloutOutcome.PROMOTED: "promoted",
    RolloutOutcome.ROLLED_BACK: "rolled back",
    RolloutOutcome.ABORTED: "aborted",
    RolloutOutcome.SUPERSEDED: "superseded",
}


def _canary_link(
    evidence: Evidence,
    pool: Pool,
    state: LinkState,
    name: str,
    text: str,
    lineage: str,
    verdicts: list[MetricVerdict],
) -> Link:
    problem = differs(evidence, lineage, f"{pool}'s record")
    return Link(
        "canary",
        name,
        LinkState.BROKEN if problem else state,
        problem or text,
        check=f"same id in pool {pool.name}" if not problem else "",
        lineage=lineage,
        facts={"pool": pool.name, "outcome": name, "verdicts": [v.wire() for v in verdicts]},
    )


def _deciding(record: RolloutRecord) -> str:
    """The verdicts that mattered: the harmful ones of a roll-back, all of a promotion."""
    harmful = [v for v in record.verdicts if v.verdict == "harmful"]
    return _verdicts(harmful or record.verdicts) if record.verdicts else record.message or "no verdicts kept"


def _verdicts(verdicts: list[MetricVerdict]) -> str:
    return ", ".join(f"{v.name} {v.verdict} {effect_text(v.name, v.effect)}" for v in verdicts) or "no verdict yet"


def _gate(gate: GateResult) -> str:
    where = f"[{gate.slice}]" if gate.slice else ""
    return f"{gate.metric}{where} {gate.value:.3f} (needs {gate.bound})"
