"""`sluice lineage`: one id from the signals to the devices, and a clear word when a link does not hold."""

import json

from sluice_operator.kube.resources import MODEL_VERSION, TRAINING_RUN

PROMOTED = [
    {
        "name": "errorRate",
        "verdict": "equivalent",
        "effect": 0.001,
        "low": -0.004,
        "high": 0.011,
        "samples": 812,
        "baselineSamples": 2400,
    }
]


def record(world, name, outcome="Promoted", verdicts=PROMOTED, lineage=None):
    return {
        "modelVersion": name,
        "lineage": lineage or world.manifests[name][0].lineage,
        "outcome": outcome,
        "endedAt": "2026-11-21T09:40:00Z",
        "message": "",
        "verdicts": verdicts,
    }


def two_generations(world):
    """bot-1 from scratch; bot-2 fine-tuned from it, promoted and published."""
    world.version("bot-1", batches=0)
    world.version("bot-2", base="bot-1")
    world.pool("bot-2", history=[record(world, "bot-2")])
    world.publish("bot-2")


def line_of(output: str, kind: str) -> str:
    return next(line for line in output.splitlines() if line[1:].split()[1:2] == [kind])


def kinds(found):
    return [link["kind"] for link in found["links"]]


def link(found, kind):
    return next(link for link in found["links"] if link["kind"] == kind)


def test_a_published_version_is_told_from_signal_to_device_under_one_id(world):
    two_generations(world)
    result = world.run("lineage", "bot-2", "--device", str(world.receipt("bot-2")))
    assert result.exit_code == 0, result.output
    lineage = world.manifests["bot-2"][0].lineage
    assert f"lineage  {lineage}" in result.output
    assert "One lineage id joins 10 of 10 links." in result.output
    assert "12 batches" in line_of(result.output, "signal")
    assert "leadership ×2.5" in line_of(result.output, "signal")
    assert "4,800 rows (train 4,000, val 400, test 400)" in line_of(result.output, "dataset")
    assert "intent.accuracy 0.970; 1 gate " in line_of(result.output, "evaluation")
    assert "digest checked" in line_of(result.output, "dataset")
    assert "promoted" in line_of(result.output, "canary")
    assert "errorRate equivalent +0.1 %" in line_of(result.output, "canary")
    assert "bot-2 for 100 % of devices" in line_of(result.output, "release")
    assert "runs bot-2 Q8_0" in line_of(result.output, "device")
    assert len(result.output.strip().splitlines()) <= 16


def test_the_parent_is_named_by_its_version_and_its_own_lineage(world):
    two_generations(world)
    found = world.json("lineage", "bot-2")
    assert found["parent"] == {"lineage": world.manifests["bot-1"][0].lineage, "version": "bot-1"}
    assert world.manifests["bot-1"][0].lineage in world.run("lineage", "bot-2").output


def test_the_columns_are_aligned(world):
    two_generations(world)
    rows = [line for line in world.run("lineage", "bot-2").output.splitlines() if line[1:2] in "✓·!✗" and line[1:2]]
    assert len({row.index(row.split()[1]) for row in rows}) == 1
    assert len(rows) == 10


def test_json_has_every_link_with_its_place_and_digest(world):
    two_generations(world)
    found = world.json("lineage", "bot-2", "--device", str(world.receipt("bot-2")))
    assert found["ok"] is True
    assert kinds(found) == [
        "signal", "dataset", "base", "run", "manifest", "evaluation", "parity", "canary", "release", "device",
    ]  # fmt: skip
    lineage = world.manifests["bot-2"][0].lineage
    assert {part["lineage"] for part in found["links"] if "lineage" in part} == {lineage} == {found["lineage"]}
    assert link(found, "evaluation")["facts"]["metrics"] == {"intent.accuracy": 0.97}
    assert link(found, "evaluation")["digest"] == world.manifests["bot-2"][0].evaluation.digest
    assert link(found, "evaluation")["uri"].endswith("/eval/report.json")
    assert link(found, "release")["facts"]["tufVersion"] == 2


def test_a_run_and_a_pool_lead_to_the_same_chain(world):
    two_generations(world)
    told = [world.json("lineage", target) for target in ("bot-2", "trun/bot-2", "ipool/support", "support")]
    assert all(found == told[0] for found in told)


def test_a_deleted_run_is_told_by_the_manifest(world):
    two_generations(world)
    del world.cluster.objects[TRAINING_RUN, "team", "bot-2"]
    result = world.run("lineage", "bot-2")
    assert result.exit_code == 0
    assert "the object is deleted" in line_of(result.output, "run")
    assert "git 0123456789" in line_of(result.output, "run")


def test_what_has_not_happened_is_not_an_error(world):
    world.version("bot-1", batches=0)
    result = world.run("lineage", "bot-1")
    assert result.exit_code == 0
    assert "trained from scratch" in line_of(result.output, "base")
    assert "in no pool's rollout so far" in line_of(result.output, "canary")
    assert "holds no releases yet" in line_of(result.output, "release")
    assert "sluice-edge status -o json" in line_of(result.output, "device")
    assert "none for: signal, base, canary, release, device" in result.output


def test_a_changed_report_breaks_the_chain(world):
    two_generations(world)
    world.damage(world.manifests["bot-2"][0].evaluation.uri)
    result = world.run("lineage", "bot-2")
    assert result.exit_code == 1
    assert line_of(result.output, "evaluation").startswith(" ✗")
    assert "was changed after it was recorded" in line_of(result.output, "evaluation")
    assert "The chain is broken at: evaluation." in result.output


def test_a_changed_manifest_leaves_nothing_to_follow(world):
    two_generations(world)
    world.damage(world.manifests["bot-2"][1])
    result = world.run("lineage", "bot-2")
    assert result.exit_code == 1
    assert line_of(result.output, "manifest").startswith(" ✗")


def test_a_dataset_that_is_gone_breaks_the_chain(world):
    two_generations(world)
    uri = world.manifests["bot-2"][0].dataset.uri
    (world.folder / uri.removeprefix(f"file://{world.folder}/") / "manifest.json").unlink()
    result = world.run("lineage", "bot-2")
    assert result.exit_code == 1
    assert "is gone" in line_of(result.output, "dataset")


def test_a_status_with_another_lineage_is_marked(world):
    two_generations(world)
    other = "f" * 64
    world.cluster.status(TRAINING_RUN, "bot-2")["lineage"] = other
    result = world.run("lineage", "bot-2")
    assert result.exit_code == 1
    assert "has lineage ffffffffffff, not" in line_of(result.output, "run")
    found = json.loads(world.run("lineage", "bot-2", "-o", "json").stdout)
    assert (found["ok"], link(found, "run")["ok"], link(found, "run")["lineage"]) == (False, False, other)


def test_a_canary_of_another_lineage_is_marked(world):
    two_generations(world)
    world.pool("bot-2", history=[record(world, "bot-2", lineage="e" * 64)])
    result = world.run("lineage", "bot-2")
    assert result.exit_code == 1
    assert "has lineage eeeeeeeeeeee" in line_of(result.output, "canary")


def test_a_device_that_runs_something_else_is_marked(world):
    two_generations(world)
    receipts = [world.receipt("bot-2", "new.json"), world.receipt("bot-1", "old.json")]
    result = world.run("lineage", "bot-2", "--device", str(receipts[0]), "--device", str(receipts[1]))
    assert result.exit_code == 1
    rows = [line for line in result.output.splitlines() if ".json" in line]
    assert rows[0].startswith(" ✓")
    assert rows[1].startswith(" ✗")
    assert "it runs bot-1, which has lineage" in rows[1]


def test_an_id_that_does_not_follow_from_its_inputs_is_marked(world):
    world.recipe = world.recipe.model_copy(update={"seed": 8})
    made = world.version("bot-1")
    _, uri, _ = world.manifests["bot-1"]
    forged = made.model_copy(update={"recipe": world.recipe.model_copy(update={"seed": 9})})
    digest = world._write(uri, forged)
    world.cluster.objects[MODEL_VERSION, "team", "bot-1"]["spec"]["manifest"]["digest"] = digest
    result = world.run("lineage", "bot-1")
    assert result.exit_code == 1
    assert "its data, base, recipe and code make lineage" in line_of(result.output, "manifest")


def test_a_refused_version_ends_at_its_gate(world):
    world.version("bot-1", batches=0)
    world.version("bot-3", base="bot-1", passed=False)
    result = world.run("lineage", "bot-3")
    assert result.exit_code == 0, result.output
    assert line_of(result.output, "evaluation").startswith(" !")
    assert "intent.accuracy 0.610 (needs >= 0.9)" in line_of(result.output, "evaluation")
    assert "there is no version to publish" in line_of(result.output, "release")


def test_a_rolled_back_version_shows_the_harmful_metric(world):
    world.version("bot-1", batches=0)
    world.version("bot-4", base="bot-1")
    harmful = {**PROMOTED[0], "verdict": "harmful", "effect": 0.2}
    fine = {**PROMOTED[0], "name": "ttftP95"}
    world.pool("bot-1", wanted="bot-4", history=[record(world, "bot-4", "RolledBack", [fine, harmful])])
    line = line_of(world.run("lineage", "bot-4").output, "canary")
    assert line.startswith(" !")
    assert "rolled back" in line
    assert "errorRate harmful +20.0 %" in line
    assert "ttftP95" not in line


def test_an_older_version_is_read_from_the_metadata_that_published_it(world):
    two_generations(world)
    world.version("bot-5", base="bot-2")
    world.publish("bot-5", percent=25)
    old, new = world.run("lineage", "bot-2"), world.run("lineage", "bot-5")
    assert (old.exit_code, new.exit_code) == (0, 0)
    assert "bot-2 for 100 % of devices, targets version 2 (now 3)" in line_of(old.output, "release")
    assert "bot-5 for 25 % of devices, targets version 3" in line_of(new.output, "release")


def test_a_tampered_release_is_marked(world):
    two_generations(world)
    (target,) = (world.folder / "releases/targets/stable").iterdir()
    world.damage(f"file://{target}")
    result = world.run("lineage", "bot-2")
    assert result.exit_code == 1
    assert "was changed after it was recorded" in line_of(result.output, "release")


def test_the_operators_own_releases_are_the_default(world, monkeypatch):
    two_generations(world)
    monkeypatch.delenv("SLUICE_RELEASES_URI")
    assert "pass --releases URI" in line_of(world.run("lineage", "bot-2").output, "release")
    world.cluster.environment = {"SLUICE_RELEASES_URI": world.releases}
    assert line_of(world.run("lineage", "bot-2").output, "release").startswith(" ✓")


def test_an_unknown_name_lists_the_ones_that_exist(world):
    two_generations(world)
    result = world.run("lineage", "bot-22")
    assert result.exit_code == 1
    assert "there is no ModelVersion or TrainingRun or InferencePool 'bot-22' in namespace team" in result.stderr
    assert "There are: bot-1, bot-2, support" in result.stderr
    assert result.stdout == ""


def test_a_receipt_that_is_none_is_refused_with_the_way_to_make_one(world):
    two_generations(world)
    (world.folder / "note.json").write_text('{"hello": 1}')
    result = world.run("lineage", "bot-2", "--device", str(world.folder / "note.json"))
    assert result.exit_code == 1
    assert "is no receipt: model" in result.stderr
    assert "sluice-edge status -o json" in result.stderr
    missing = world.run("lineage", "bot-2", "--device", "/nowhere.json")
    assert missing.exit_code == 1
    assert "cannot read --device /nowhere.json: No such file" in missing.stderr
