"""docs/drift.md says what the code does: every setting, feature, language, metric, table and error."""

import re
from pathlib import Path
from typing import Any

import yaml
from sluice_contracts.drift import OTHER, RARE, UNLABELLED, Drift
from sluice_contracts.gateway import Gateway
from sluice_serving.gateway.database import SCHEMA, open_database
from sluice_serving.gateway.drift import language
from sluice_serving.gateway.drift.counting import DriftCounter
from sluice_serving.gateway.drift.features import ANSWER_EDGES, FEATURES, PROMPT_EDGES

REPOSITORY = Path(__file__).parents[3]
DOCUMENT = (REPOSITORY / "docs/drift.md").read_text()


def missing(names: Any) -> set[str]:
    found = set(names)
    assert found
    return {name for name in found if f"`{name}`" not in DOCUMENT}


def test_the_example_is_one() -> None:
    (example,) = re.findall(r"```yaml\ngateway:\n(.*?)```", DOCUMENT, re.DOTALL)
    gateway = Gateway.model_validate({"auth": {"secretRef": {"name": "keys"}}} | yaml.safe_load(example))
    assert gateway.drift is not None
    assert [i.name for i in gateway.drift.intents] == ["refund", "track_order"]


def test_every_setting_has_its_row_with_its_default() -> None:
    table = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", DOCUMENT.split("## Settings")[1], re.MULTILINE))
    fields = {f.alias: f for f in Drift.model_fields.values()}
    assert table.keys() >= fields.keys()
    for name, field in fields.items():
        if isinstance(field.default, int):
            assert int(table[str(name)]) == field.default, name


def test_features_and_their_bins() -> None:
    assert missing(FEATURES) == set()
    assert (
        missing([OTHER, RARE, UNLABELLED, "refused", "answered", "1", "0", "-1", "success", "partial", "failure"])
        == set()
    )
    for edges in (PROMPT_EDGES, ANSWER_EDGES):
        assert missing([f"under-{edges[0]}", f"under-{edges[-1]}", f"over-{edges[-1]}"]) == set()
    known = {one for _, one, _ in language._SCRIPTS if one} | {
        one for words in language._WORDS.values() for one in words
    }
    und = {f"und-{script}" for script, one, _ in language._SCRIPTS if one is None}
    assert missing(known | und | {language.UNDETERMINED}) == set()


def test_metrics_tables_and_errors(tmp_path: Path) -> None:
    counter = DriftCounter(Drift(), open_database(f"sqlite:///{tmp_path}/x.db"))
    emitted = {m.name + ("_total" if m.type == "counter" else ""): m.type for m in counter.collect()}
    assert dict(re.findall(r"^\| `(sluice_\w+)` \| (\w+) \|", DOCUMENT, re.MULTILINE)) == emitted
    assert missing(t for t in SCHEMA if re.fullmatch("ai_drift(_running)?", t)) == set()
    sources = REPOSITORY / "serving/src/sluice_serving/gateway"
    assert missing(re.findall(r'code="([a-z_]+)"', (sources / "feedback.py").read_text())) == set()
    assert missing(re.findall(r'skipped\["([a-z_]+)"\]', (sources / "drift/counting.py").read_text())) == set()
