"""What Argo CD's health script makes of our conditions, in Lua 5.1, which Argo CD's interpreter speaks."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from lupa import lua51
from sluice_contracts.names import GROUP
from sluice_operator.conditions import ConditionSet
from sluice_operator.kube.resources import OWN

from tests.operator.conftest import NOW

FILE = Path(__file__).parents[2] / "manifests" / "argocd" / "health.yaml"
SCRIPTS: dict[str, str] = yaml.safe_load(FILE.read_text())["data"]
PREFIX = f"resource.customizations.health.{GROUP}_"


def health(kind: str, obj: dict[str, Any]) -> tuple[str, str]:
    """Runs the script as Argo CD does: `obj` is a global, the result is returned. No library is at hand but the few
    that Argo CD opens."""
    lua = lua51.LuaRuntime(unpack_returned_tuples=True, register_eval=False)
    lua.execute("io, os, debug, require, dofile, loadfile, package = nil")
    lua.globals().obj = _table(lua, obj)
    found = lua.execute(SCRIPTS[PREFIX + kind])
    return found.status, found.message


def _table(lua: Any, value: Any) -> Any:
    if isinstance(value, dict):
        return lua.table_from({k: _table(lua, v) for k, v in value.items()})
    if isinstance(value, list):
        return lua.table_from([_table(lua, v) for v in value])
    return value


def seen(manner: str, *, generation: int = 3, observed: int = 3, **metadata: Any) -> dict[str, Any]:
    """An object of which the operator has said one of its four words."""
    conditions = ConditionSet([], observed, NOW)
    getattr(conditions, manner)("Because", "of this")
    return {
        "metadata": {"name": "x", "generation": generation, **metadata},
        "status": {"observedGeneration": observed, "conditions": [c.wire() for c in conditions.list()]},
    }


def test_there_is_one_for_each_kind_and_all_are_alike() -> None:
    assert set(SCRIPTS) == {PREFIX + resource.kind for resource in OWN}
    assert len(set(SCRIPTS.values())) == 1


@pytest.mark.parametrize("kind", [resource.kind for resource in OWN])
@pytest.mark.parametrize(
    ("obj", "status", "message"),
    [
        (seen("ready"), "Healthy", "of this"),
        (seen("reconciling"), "Progressing", "of this"),
        (seen("stalled"), "Degraded", "of this"),
        (seen("waiting"), "Suspended", "of this"),
        (seen("ready", generation=4), "Progressing", "waiting for the operator"),
        (seen("stalled", generation=4), "Progressing", "waiting for the operator"),
        (seen("ready", deletionTimestamp="2026-11-21T12:00:00Z"), "Progressing", "being deleted"),
        (seen("reconciling", deletionTimestamp="2026-11-21T12:00:00Z"), "Progressing", "of this"),
        ({"metadata": {"generation": 1}}, "Progressing", "waiting for the operator"),
        ({"metadata": {"generation": 1}, "status": {}}, "Progressing", "waiting for the operator"),
        (
            {"metadata": {"generation": 1}, "status": {"observedGeneration": 1, "conditions": []}},
            "Progressing",
            "waiting for the operator",
        ),
    ],
)
def test_argo_cd_says_what_the_conditions_mean(kind: str, obj: dict[str, Any], status: str, message: str) -> None:
    assert health(kind, obj) == (status, message)


def test_a_condition_without_words_shows_its_reason() -> None:
    obj = seen("reconciling")
    for condition in obj["status"]["conditions"]:
        condition.pop("message", None)
    assert health("TrainingRun", obj) == ("Progressing", "Because")


def test_publishing_beside_ready_is_progress() -> None:
    obj = seen("ready")
    for condition in obj["status"]["conditions"]:
        if condition["type"] == "Reconciling":
            condition.update(status="True", message="a Job signs")
    assert health("ModelVersion", obj) == ("Progressing", "a Job signs")
