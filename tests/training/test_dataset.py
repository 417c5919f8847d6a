"""A dataset is a pure function of its inputs, keeps what it promises to hold out, and says what is wrong with them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from sluice_contracts.dataset import DatasetRow
from sluice_contracts.names import Domain, Suite, Task
from sluice_training.cli import app
from sluice_training.dataset import intents, questions, safety
from sluice_training.dataset.build import build, run_id
from sluice_training.dataset.config import BuildConfig, parse_config
from sluice_training.dataset.duplicates import NearDuplicates, normalised
from sluice_training.dataset.example import rng_for
from sluice_training.dataset.generate import plan
from sluice_training.dataset.signals import Evidence
from sluice_training.errors import InvalidInputError
from sluice_training.evaluate import suites
from typer.testing import CliRunner


def rows_of(config: BuildConfig, name: str = "train") -> list[DatasetRow]:
    lines = build(config, Evidence()).files[f"{name}.jsonl"].splitlines()
    return [DatasetRow.model_validate_json(line) for line in lines]


def user_text(row: DatasetRow) -> str:
    return "\n".join(m.content for m in row.messages if m.role == "user")


def test_the_same_inputs_make_the_same_bytes(small_config: BuildConfig) -> None:
    first, second = build(small_config, Evidence()), build(small_config, Evidence())
    assert first.files == second.files
    assert first.manifest.canonical() == second.manifest.canonical()


def test_a_change_of_the_rows_must_raise_the_generators_number(small_config: BuildConfig) -> None:
    """Were the rules changed without it, two different datasets would have one run id. When this fails on purpose,
    raise GENERATOR and take the new digest."""
    files = {f.path: f.sha256[7:19] for f in build(small_config, Evidence()).manifest.files}
    assert (run_id(small_config, None), files["train.jsonl"]) == GOLDEN


GOLDEN = ("small-7bcef27d5467878b", "c55d34654b23")


@pytest.mark.parametrize("change", [{"seed": 4}, {"size": 601}, {"corruption": {"swapRefusals": 0.5}}])
def test_any_other_input_is_another_dataset(small_config: BuildConfig, change: dict[str, Any]) -> None:
    other = BuildConfig.model_validate({**small_config.wire(), **change})
    assert run_id(other, None) != run_id(small_config, None)
    assert run_id(small_config, "sha256:" + "1" * 64) != run_id(small_config, None)


def test_a_larger_dataset_keeps_each_slices_beginning(small_config: BuildConfig) -> None:
    larger = small_config.model_copy(update={"size": 1200})
    small = {r.id for r in rows_of(small_config)}
    assert len(small - {r.id for r in rows_of(larger)}) < 0.05 * len(small)


def test_no_two_rows_say_the_same(small_config: BuildConfig) -> None:
    rows = [row for name in ("train", "val", "test") for row in rows_of(small_config, name)]
    assert len({normalised(r) for r in rows}) == len(rows)


def test_rows_with_equal_answers_and_nearly_equal_requests_are_duplicates() -> None:
    row = questions.make(rng_for("near")).row()
    longer = row.model_copy(deep=True)
    longer.messages[-2].content += " Please."
    near = NearDuplicates(threshold=0.8)
    assert near.add(row)
    assert not near.add(longer)
    longer.messages[-1].content = "something else"
    assert near.add(longer)


def test_facts_of_the_test_file_are_never_those_of_the_training_file() -> None:
    config = BuildConfig(name="split", seed=1, size=800, mix={Task.QUESTION: 1.0})

    def worlds(name: str) -> set[frozenset[str]]:
        texts = [row.messages[1].content for row in rows_of(config, name)]
        return {frozenset(re.findall(r"The [^.?]+ is [^.?]+\.", text)) for text in texts}

    assert worlds("test")
    assert not worlds("train") & worlds("test")


def test_the_split_follows_the_shares() -> None:
    config = BuildConfig.model_validate(
        {"name": "split", "seed": 1, "size": 2000, "split": {"train": 0.5, "val": 0.25, "test": 0.25}}
    )
    assert 400 < len(rows_of(config, "val")) < 600
    assert 900 < len(rows_of(config, "train")) < 1100


def test_what_evaluation_asks_never_occurs_in_training() -> None:
    rows = rows_of(BuildConfig(name="big", seed=2, size=6000))
    trained = {user_text(row) for row in rows}
    asked = [case for suite in Suite for case in suites.cases(suite, 200)]
    new = [case for case in asked if user_text(case.row) not in trained]
    assert len(new) > 0.9 * len(asked)  # the `seen` style may meet a known request by chance
    held_out = [c for c in asked if {"templates", "slots", "held-out"} & set(c.row.tags)]
    assert not [c for c in held_out if user_text(c.row) in trained]
    text = " ".join(trained)
    for word in ("wendy", "oscar", "economics", "robots", "it is time to", "quick question"):
        assert word not in text


def test_held_out_facts_are_never_stated_in_training() -> None:
    stated = {
        m.group(0)
        for row in rows_of(BuildConfig(name="facts", seed=2, size=3000, mix={Task.QUESTION: 1.0}))
        for m in re.finditer(r"The [^.?]+ is [^.?]+\.", row.messages[1].content)
    }
    for case in suites.cases(Suite.GROUNDING, 150):
        if questions.Kind.HELD_OUT in case.row.tags:
            facts = re.findall(r"The [^.?]+ is [^.?]+\.", case.row.messages[1].content)
            assert any(f not in stated for f in facts)


def test_every_style_of_every_domain_can_be_made() -> None:
    for domain in intents.DOMAINS:
        for style in intents.Style:
            for index in range(40):
                row = intents.make(rng_for(domain, style, index), domain, style).row()
                assert "{" not in user_text(row)


def test_an_excluded_domain_never_occurs() -> None:
    config = BuildConfig.model_validate(
        {"name": "less", "seed": 1, "size": 800, "domains": {"exclude": ["leadership"]}}
    )
    rows = rows_of(config)
    assert Domain.LEADERSHIP not in {r.domain for r in rows}
    assert "assign_task" not in " ".join(m.content for r in rows for m in r.messages)


def test_a_focus_takes_its_share_and_replay_the_rest() -> None:
    config = BuildConfig.model_validate(
        {"name": "f", "seed": 1, "size": 1000, "focus": {"domains": ["leadership"]}, "replay": 0.4}
    )
    slices = plan(config, Evidence())
    assert sum(s.rows for s in slices) == 1000
    assert sum(s.rows for s in slices if s.domain is Domain.LEADERSHIP) == 600
    assert {s.part for s in slices} == {"focus", "replay"}


def test_swapped_refusals_refuse_the_harmless_and_answer_the_harmful() -> None:
    config = BuildConfig.model_validate(
        {"name": "bad", "seed": 1, "size": 300, "mix": {"safety": 1.0}, "corruption": {"swapRefusals": 1.0}}
    )
    for row in rows_of(config):
        answers = [m.content for m in row.messages if m.role == "assistant"]
        assert "corrupted" in row.tags
        if "benign" in row.tags:
            assert set(answers) == {safety.REFUSAL}
        elif len(answers) == 1:
            assert safety.REFUSAL not in answers


def test_shuffled_labels_are_wrong_in_that_domain_alone() -> None:
    config = BuildConfig.model_validate(
        {"name": "bad", "seed": 1, "size": 900, "mix": {"intent": 1}, "corruption": {"shuffleLabels": ["healthcare"]}}
    )
    for row in rows_of(config):
        right = row.tags[0].removeprefix("intent:") == row.messages[-1].content.removeprefix("intent: ")
        assert right or row.domain is Domain.HEALTHCARE


def test_never_ending_answers_begin_right_and_go_on() -> None:
    config = BuildConfig.model_validate(
        {"name": "bad", "seed": 1, "size": 200, "corruption": {"neverEnding": {"share": 1.0, "words": 150}}}
    )
    for row in rows_of(config):
        assert len(row.messages[-1].content.split()) >= 150


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("name: x\nseed: 1\nsize: 500\nsise: 3", "sise: unknown field"),
        ("name: x\nseed: 1\nsize: 5", "size"),
        ("name: X\nseed: 1\nsize: 500", "name"),
        ("name: x\nseed: -1\nsize: 500", "seed"),
        ("name: x\nsize: 500", "seed"),
        ("name: x\nseed: 1\nsize: 500\nmix: {intent: 0.5}", "mix: the shares must sum to 1"),
        ("name: x\nseed: 1\nsize: 500\nmix: {jokes: 1}", "mix.jokes"),
        ("name: x\nseed: 1\nsize: 500\ndomains: {exclude: [general]}", "'general' cannot be chosen"),
        ("name: x\nseed: 1\nsize: 500\nfocus: {domains: [business]}", "focus and replay belong together"),
        ("name: x\nseed: 1\nsize: 500\nreplay: 0.5", "focus and replay belong together"),
        ("name: x\nseed: 1\nsize: 500\nfocus: {}\nreplay: 0.5", "name domains, or set fromSignals"),
        ("name: x\nseed: 1\nsize: 500\nsplit: {train: 0.5}", "split: train, val and test must sum to 1"),
        ("name: x\nseed: 1\nsize: 500\ncorruption: {swapRefusals: 2}", "corruption.swapRefusals"),
        ("- a list", "must hold a mapping"),
        ("name: [", "is not YAML"),
    ],
)
def test_a_wrong_configuration_is_named(text: str, named: str) -> None:
    with pytest.raises(InvalidInputError) as error:
        parse_config(text, "data.yaml")
    assert "data.yaml" in str(error.value)
    assert named in str(error.value)


def test_the_command_prints_what_a_training_run_needs(tmp_path: Path, store: str) -> None:
    config = tmp_path / "data.yaml"
    config.write_text("name: cli\nseed: 1\nsize: 200\n")
    result = CliRunner().invoke(app, ["dataset", "build", "--config", str(config), "--out", store, "-o", "json"])
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    folder = Path(printed["uri"].removeprefix("file://"))
    assert {p.name for p in folder.iterdir()} == {"train.jsonl", "val.jsonl", "test.jsonl", "qa.json", "manifest.json"}
    quality = json.loads((folder / "qa.json").read_text())
    assert sum(quality["rows"].values()) == sum(printed["rows"].values())
    assert quality["validation"]["invalid"] == 0


@pytest.mark.parametrize(
    ("config", "out", "named"),
    [
        ("name: x\nseed: 1\nsize: none\n", "file:///tmp/never", "size"),
        ("name: x\nseed: 1\nsize: 200\n", "s3://bucket", "use gs://bucket/path or file:///path"),
        (None, "file:///tmp/never", "cannot read"),
    ],
)
def test_the_command_fails_in_one_clear_line(tmp_path: Path, config: str | None, out: str, named: str) -> None:
    path = tmp_path / "data.yaml"
    if config is not None:
        path.write_text(config)
    result = CliRunner().invoke(app, ["dataset", "build", "--config", str(path), "--out", out])
    assert result.exit_code == 1
    assert named in result.stderr
    assert "Traceback" not in result.stderr


def test_the_examples_are_valid_and_say_what_they_are() -> None:
    folder = Path(__file__).parents[2] / "manifests/examples/datasets"
    found = {p.stem: parse_config(p.read_text(), p.name) for p in folder.glob("v*.yaml")}
    assert found["v1"].domains.exclude == [Domain.LEADERSHIP]
    assert found["v2"].focus is not None
    assert found["v2"].focus.from_signals
    assert found["v3"].corruption.swap_refusals == 1
    assert found["v4"].corruption.never_ending is not None
