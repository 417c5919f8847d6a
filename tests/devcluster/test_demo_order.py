"""The demo's order, where its length depends on it: told with a story that only writes down what it is asked."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console
from sluice_devcluster.demo import play
from sluice_devcluster.demo.steps import Screen, StoryError


class Recorder:
    """A story in which every run ends as it should."""

    def __init__(self, refused: bool = True) -> None:
        self.asked: list[str] = []
        self.refused = refused
        self.screen = Screen(Console(file=io.StringIO()))
        self.world = SimpleNamespace(get=lambda kind, name: None)
        self.facts = SimpleNamespace(versions={"support-bot-v4": {}})

    def build_dataset(self, version: str, say: Any) -> str:
        return version

    def train(self, version: str, dataset: str) -> str:
        assert dataset == version
        self.asked.append(f"train {version}")
        return f"support-bot-{version}"

    def await_training(self, run: str, say: Any) -> dict[str, Any]:
        self.asked.append(f"await {run}")
        stalled = {"type": "Stalled", "status": "True" if self.refused else "False"}
        evaluated = {"type": "Evaluated", "status": "False", "message": "refused"}
        return {"metadata": {"name": run}, "status": {"conditions": [stalled, evaluated]}}

    def expect_trained(self, run: dict[str, Any]) -> str:
        return str(run["metadata"]["name"])

    def allow_publishing(self, version: str) -> None:
        self.asked.append(f"allow {version}")

    def roll_out(self, version: str, *_: Any, **__: Any) -> dict[str, Any]:
        self.asked.append(f"roll out {version}")
        return {"outcome": "RolledBack"}


def test_v3_and_v4_train_at_the_same_time() -> None:
    story = Recorder()
    v4 = play._bad_data(cast(Any, story))
    assert story.asked == ["train v3", "train v4", "await support-bot-v3"]
    play._waived(cast(Any, story), v4, Path("questions"), "key")
    assert story.asked[3:] == ["await support-bot-v4", "allow support-bot-v4", "roll out support-bot-v4"]
    assert story.facts.versions["support-bot-v4"] == {"canary": "rolled back"}


def test_a_v3_that_its_gate_lets_past_ends_the_demo() -> None:
    with pytest.raises(StoryError, match="the gate should have refused support-bot-v3"):
        play._bad_data(cast(Any, Recorder(refused=False)))
