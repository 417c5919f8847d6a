"""docs/errors.md and docs/operator.md list exactly what the code can emit: reasons by reading the source, metrics
by their registry."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from sluice_contracts.inference_pool import RolloutOutcome
from sluice_contracts.names import ANNOTATION_LINEAGE, ANNOTATION_ROLLOUT, FINALIZER_IN_USE, RolloutRequest
from sluice_operator.cli.advice import BY_REASON
from sluice_operator.engine.metrics import Metrics

REPOSITORY = Path(__file__).parents[2]
SOURCE = REPOSITORY / "operator/src/sluice_operator"
DOCUMENT = "\n".join((REPOSITORY / "docs" / name).read_text() for name in ("operator.md", "errors.md"))
REASON = re.compile(r"[A-Z][a-z]+(?:[A-Z][a-z]+)*")
PLACES = ("artifacts.py", "verification.py", "kinds.py", "engine", "inference_pool", "model_version", "training_run")
"""Where conditions and events are decided."""
NO_REASONS = {"True", "False", "Unknown", "Ready", "Complete", "Failed"}
"""Words of Kubernetes' own conditions."""


def trees() -> Iterator[ast.Module]:
    for place in PLACES:
        path = SOURCE / place
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path] if path.exists() else []:
            yield ast.parse(file.read_text())


def constants() -> dict[str, str]:
    """Reasons that have a name: `REJECTED = "ApplyRejected"`."""
    return {
        target.id: node.value.value
        for tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for target in node.targets
        if isinstance(target, ast.Name) and REASON.fullmatch(node.value.value)
    }


def is_call(node: ast.AST, *names: str) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in names


def storage_reasons() -> set[str]:
    """What reading a document from storage can end with: others put their own word before it."""
    tree = ast.parse((SOURCE / "artifacts.py").read_text())
    load = next(n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name == "Artifacts")
    found = {n.args[0].value for n in ast.walk(load) if is_call(n, "Problem") and isinstance(n.args[0], ast.Constant)}
    return found - {"ArtifactChanged", "ArtifactMissing"}


def reasons_in_source() -> set[str]:
    """Every CamelCase word in a place where a reason can stand: an argument, a tuple that is returned or handed on, a
    choice, a constant."""
    found = set(constants().values())
    for tree in trees():
        parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                found |= put_together(node)
            if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
                continue
            above = parents[node]
            argument = isinstance(above, ast.Call) and not is_call(above, "get", "TypeVar", "NewType", "getLogger")
            handed = isinstance(above, ast.Tuple) and isinstance(parents[above], ast.Return | ast.keyword | ast.IfExp)
            if REASON.fullmatch(node.value) and (argument or handed or isinstance(above, ast.IfExp)):
                found.add(node.value)
    return found - NO_REASONS


def put_together(node: ast.JoinedStr) -> set[str]:
    """The reasons that `f"Dataset{problem.reason}"` can be."""
    match node.values:
        case [ast.Constant(value=str(head)), ast.FormattedValue(value=tail)] if ast.unparse(tail).endswith(".reason"):
            return {f"{head}{reason}" for reason in storage_reasons()}
    return set()


def events_in_source() -> dict[str, str]:
    """What `Event(…)` and `_event(…)` are given, with its type; and how a rollout ends, which is told in one place."""
    named = constants()
    found = {outcome.value: "Warning" for outcome in RolloutOutcome}
    for tree in trees():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or not is_call(node, "Event", "_event") or not node.args:
                continue
            first = node.args[0]
            reason = first.value if isinstance(first, ast.Constant) else named.get(ast.unparse(first))
            if reason is not None:
                given = [ast.unparse(value) for value in [*node.args[2:], *(k.value for k in node.keywords)]]
                warns = any(text in {"True", "EventType.WARNING"} for text in given)
                found[str(reason)] = "Warning" if warns else "Normal"
    return found


def section(title: str) -> str:
    level = next(line for line in DOCUMENT.splitlines() if line.lstrip("#").strip() == title)
    marks = level.partition(" ")[0]
    after = DOCUMENT.split(f"{level}\n", 1)[1]
    return re.split(rf"^#{{1,{len(marks)}}} ", after, maxsplit=1, flags=re.M)[0]


def first_cells(text: str) -> list[str]:
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [row[0].removeprefix("| ") for row in rows if not row[0].startswith("| ---")]


def listed(title: str) -> list[str]:
    """The words in backquotes of the first column."""
    return [word for cell in first_cells(section(title)) for word in re.findall(r"`([^`]+)`", cell)]


def test_each_reason_stands_in_the_tables_once_and_no_other():
    conditions = listed("Conditions")
    emitted = reasons_in_source()
    assert emitted, "the scan found nothing"
    assert sorted(set(conditions)) == sorted(conditions), "a reason is listed twice"
    missing = emitted - set(conditions) - set(listed("Events"))
    assert not missing, f"docs/errors.md does not list {sorted(missing)} (or NO_REASONS here lacks a foreign word)"
    extra = set(conditions) - emitted
    assert not extra, f"docs/errors.md lists {sorted(extra)}, which nothing emits"


def test_each_event_is_listed_and_no_other():
    rows = [line.split(" | ") for line in section("Events").splitlines() if line.startswith("| `")]
    assert {row[0].strip("| `"): row[2] for row in rows} == events_in_source()


def test_each_metric_is_listed_with_its_type():
    rows = [line.split(" | ") for line in section("Metrics").splitlines() if line.startswith("| `")]
    found = {row[0].strip("| `"): row[1] for row in rows}
    families = list(Metrics().registry.collect())
    expected = {f.name + ("_total" if f.type == "counter" else ""): f.type for f in families}
    assert found == expected


def test_the_verbs_and_names_are_those_of_the_code():
    text = section("Steering a rollout")
    verbs = [line.split(" | ") for line in text.splitlines() if "sluice rollout " in line and line.startswith("| ")]
    words = {row[1].strip("`") for row in verbs if row[1].startswith("`")}
    assert words == {request.value for request in RolloutRequest}
    for name in (ANNOTATION_ROLLOUT, ANNOTATION_LINEAGE, FINALIZER_IN_USE):
        assert f"`{name}`" in text


def test_every_remedy_is_for_a_reason_that_exists():
    assert set(BY_REASON) <= reasons_in_source()


def test_every_row_is_whole():
    """As many cells as its table's head, and only the labels of a metric may be empty."""
    width = 0
    for line in DOCUMENT.splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split("|")] if line.startswith("|") else []
        width = width if cells and width else len(cells)
        assert len(cells) == width, line
        assert all(cells) or line.startswith("| `sluice_operator_"), line
        width = width if cells else 0
