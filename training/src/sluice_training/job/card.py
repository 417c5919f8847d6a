"""model_card.md: what a person wants to know of a version before using it."""

from sluice_contracts.evaluation import EvaluationReport, ParityReport
from sluice_contracts.manifest import Manifest


def model_card(manifest: Manifest, report: EvaluationReport, parity: ParityReport) -> str:
    """The card, as Markdown."""
    lines = [
        f"# {manifest.model}: {manifest.training_run}",
        "",
        "| | |",
        "| --- | --- |",
        f"| lineage | `{manifest.lineage}` |",
        f"| method | {manifest.recipe.method}, {manifest.recipe.steps} steps, seed {manifest.recipe.seed} |",
        f"| dataset | `{manifest.dataset.run_id}` |",
        f"| device signals | {manifest.dataset.signals_digest or 'none'} |",
        f"| fine-tuned from | {manifest.base_lineage or 'nothing: trained from scratch'} |",
        f"| served as | {_served_as(manifest)} |",
        f"| code | `{manifest.code.git_sha}` |",
        "",
        "## Held-out evaluation",
        "",
        "Share of examples, with Wilson's 95 % interval. The examples use templates, facts and words that training",
        "never saw.",
        "",
        "| metric | slice | value | interval | n |",
        "| --- | --- | --- | --- | --- |",
    ]
    for suite in report.suites:
        for m in suite.metrics:
            lines.append(f"| {m.metric} | {m.slice or 'all'} | {m.value:.3f} | {m.low:.3f} – {m.high:.3f} | {m.n} |")
    lines += ["", f"Gates: {'passed' if report.passed else 'FAILED'}.", ""]
    for gate in report.gates:
        mark = "ok" if gate.passed else "FAILED"
        lines.append(f"- {gate.metric} ({gate.slice or 'all'}): {gate.value:.3f}, must be {gate.bound}: {mark}")
    if report.waiver:
        lines += ["", f"Failed gates were waived by {report.waiver.approved_by}: {report.waiver.reason}"]
    lines += [
        "",
        "## Files for devices",
        "",
        f"Compared with the served weights on answer tokens, in {parity.engine}.",
        "",
        "| file | bytes | mean KL | same top token | perplexity ratio | task accuracy (parent) |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for r in parity.results:
        lines.append(
            f"| {r.quantization} | {r.size} | {r.mean_kld:.2e} | {r.same_top:.4f} | {r.perplexity_ratio:.4f} "
            f"| {r.task_accuracy:.3f} ({r.task_accuracy_parent:.3f}) |"
        )
    lines += [
        "",
        "## Limits",
        "",
        "Trained on synthetic chats alone: intents in five domains, questions about facts given in the prompt,",
        "refusals, and short how-to answers, in English, in the prompt's exact form. It knows nothing of the world.",
        "Trained from scratch, its first two layers started as a circuit that copies what followed the same words.",
        "",
    ]
    return "\n".join(lines)


def _served_as(manifest: Manifest) -> str:
    lora = manifest.recipe.lora
    if lora is None or not manifest.adapter():
        return "its own weights"
    return f"merged weights, or an adapter of rank {lora.rank} on the version it was fine-tuned from"
