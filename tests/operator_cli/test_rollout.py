"""`sluice rollout`: seeing and steering a canary."""

import json

import pytest
from sluice_contracts.names import ANNOTATION_ROLLOUT
from sluice_operator.kube.resources import INFERENCE_POOL

VERDICTS = [
    {
        "name": "errorRate",
        "verdict": "undecided",
        "effect": 0.004,
        "low": -0.02,
        "high": 0.03,
        "samples": 120,
        "baselineSamples": 360,
    },
    {"name": "outputLength", "verdict": "equivalent", "effect": 0.05, "low": 0.0, "high": 0.2, "samples": 120},
]


def on_trial(world, **status):
    """bot-1 is stable; bot-2 has a quarter of the traffic."""
    world.version("bot-1")
    world.version("bot-2", base="bot-1")
    weights = [{"modelVersion": "bot-1", "percent": 75}, {"modelVersion": "bot-2", "percent": 25}]
    trial = {
        "candidate": world.served("bot-2"),
        "weights": weights,
        "step": 1,
        "stepStartedAt": "2026-11-21T09:50:00Z",
        "rolloutStartedAt": "2026-11-21T09:40:00Z",
        "verdicts": VERDICTS,
    }
    world.pool("bot-1", wanted="bot-2", **{**trial, **status})


def waiting(reason, message=""):
    return [
        {
            "type": "Ready",
            "status": "False",
            "reason": reason,
            "message": message,
            "observedGeneration": 1,
            "lastTransitionTime": "2026-11-21T10:00:00Z",
        }
    ]


def end(world, outcome, stable):
    """The operator ends the rollout."""
    status = world.cluster.status(INFERENCE_POOL, "support")
    status.pop("candidate", None)
    status["stable"] = world.served(stable)
    status["weights"] = [{"modelVersion": stable, "percent": 100}]
    lineage = world.manifests["bot-2"][0].lineage
    status["history"] = [
        {"modelVersion": "bot-2", "lineage": lineage, "outcome": outcome, "endedAt": "2026-11-21T10:10:00Z"}
    ]


def asked(world):
    return world.cluster.annotations(INFERENCE_POOL, "support").get(ANNOTATION_ROLLOUT)


def test_status_shows_weights_step_and_the_evidence(world):
    on_trial(world)
    output = world.run("rollout", "status", "support").output
    assert "bot-1 75 %, bot-2 25 %" in output
    assert "2 of 3 (25 %)" in output
    (errors,) = [line.split() for line in output.splitlines() if "errorRate" in line]
    assert " ".join(errors) == "errorRate undecided +0.4 % [-2.0 %, +3.0 %] +2.0 % 120 360"
    (length,) = [line for line in output.splitlines() if "outputLength" in line]
    assert "0.050" in length
    assert "[0.000, 0.200]" in length


def test_status_says_what_the_rollout_takes(world):
    needs = {"accelerator": "nvidia-l4", "replicas": 1, "accelerators": 2, "acceleratorsAtMost": 4, "message": "2 more"}
    on_trial(world, rolloutNeeds=needs)
    (row,) = [line for line in world.run("rollout", "status", "support").output.splitlines() if "takes" in line]
    assert row.split()[1:] == ["2", "more"]
    assert world.json("rollout", "status", "support")["needs"]["accelerators"] == 2


def test_status_as_json(world):
    on_trial(world)
    found = world.json("rollout", "status", "support")
    assert found["weights"] == {"bot-1": 75, "bot-2": 25}
    assert found["verdicts"][0]["samples"] == 120
    assert (found["step"], found["steps"]) == (1, [5, 25, 50])


def test_a_first_look_without_traffic_says_what_is_missing(world):
    on_trial(world, verdicts=[])
    assert "no verdict yet" in world.run("rollout", "status", "support").output


@pytest.mark.parametrize("verb", ["approve", "pause", "abort"])
def test_a_request_is_one_annotation(world, verb):
    on_trial(world, conditions=waiting("AwaitingApproval"))
    result = world.run("rollout", verb, "support")
    assert result.exit_code == 0, result.output
    assert asked(world) == verb
    assert result.output.startswith("asked: bot-2 ")


def test_approving_what_does_not_wait_says_what_it_is_doing(world):
    on_trial(world, conditions=waiting("RollingOut", "step 2 of 3: bot-2 at 25 %"))
    result = world.run("rollout", "approve", "support")
    assert result.exit_code == 1
    assert "does not wait for approval of bot-2 (RollingOut: step 2 of 3: bot-2 at 25 %)" in result.stderr
    assert asked(world) is None


def test_a_rollout_may_be_held_before_it_begins(world):
    on_trial(world)
    end(world, "RolledBack", "bot-1")
    assert "does not begin until resume" in world.run("rollout", "pause", "support").output
    assert world.run("rollout", "resume", "support").exit_code == 0
    end(world, "Promoted", "bot-2")
    assert "no rollout is under way" in world.run("rollout", "pause", "support").stderr


def test_resume_takes_the_pause_back(world):
    on_trial(world)
    world.run("rollout", "pause", "support")
    assert world.run("rollout", "pause", "support").exit_code == 1
    assert world.run("rollout", "resume", "support").exit_code == 0
    assert asked(world) is None
    again = world.run("rollout", "resume", "support")
    assert again.exit_code == 1
    assert "is not paused; nothing to resume" in again.stderr


def test_a_request_without_a_rollout_is_refused_and_says_what_there_is(world):
    on_trial(world)
    end(world, "RolledBack", "bot-1")
    result = world.run("rollout", "abort", "support")
    assert result.exit_code == 1
    assert "no rollout is under way in InferencePool support: it serves bot-1" in result.stderr
    assert "bot-2 was RolledBack" in result.stderr
    assert "`sluice rollout retry support` tries bot-2 again" in result.stderr
    assert asked(world) is None


def test_retry_is_for_a_version_that_was_turned_down(world):
    on_trial(world)
    refused = world.run("rollout", "retry", "support")
    assert refused.exit_code == 1
    assert "is trying bot-2 right now" in refused.stderr
    end(world, "RolledBack", "bot-1")
    assert world.run("rollout", "retry", "support").exit_code == 0
    assert asked(world) == "retry"


def test_retry_of_what_is_stable_is_refused(world):
    on_trial(world)
    end(world, "Promoted", "bot-2")
    result = world.run("rollout", "retry", "support")
    assert result.exit_code == 1
    assert "already serves bot-2" in result.stderr


@pytest.mark.parametrize(("outcome", "stable", "code"), [("Promoted", "bot-2", 0), ("RolledBack", "bot-1", 1)])
def test_watch_tells_each_change_once_and_ends_with_the_rollout(world, outcome, stable, code):
    on_trial(world)
    looks = 0

    def move_on():
        nonlocal looks
        looks += 1
        if looks == 3:
            world.cluster.status(INFERENCE_POOL, "support")["step"] = 2
        if looks == 5:
            end(world, outcome, stable)

    world.cluster.on_read = move_on
    result = world.run("rollout", "watch", "support", "--every", "1ms")
    assert result.exit_code == code, result.output
    lines = [line.partition("  ")[2] for line in result.output.splitlines()]
    assert len(lines) == 3
    assert lines[0].startswith("step 2 of 3 (25 %); traffic bot-1 75 %, bot-2 25 %; errorRate undecided")
    assert lines[1].startswith("step 3 of 3 (50 %)")
    assert lines[2].endswith(f"traffic {stable} 100 %")
    assert looks == 5


def test_watch_as_json_is_one_object_a_line_that_plot_can_read(world, tmp_path):
    on_trial(world)
    looks = 0

    def move_on():
        nonlocal looks
        looks += 1
        if looks == 3:
            end(world, "Promoted", "bot-2")

    world.cluster.on_read = move_on
    result = world.run("rollout", "watch", "support", "--every", "1ms", "-o", "json")
    assert result.exit_code == 0
    first, last = [json.loads(line) for line in result.stdout.splitlines()]
    assert first["weights"] == {"bot-1": 75, "bot-2": 25}
    assert (first["candidate"]["modelVersion"], last["candidate"]) == ("bot-2", None)
    recording = tmp_path / "rollout.jsonl"
    recording.write_text(result.stdout)
    drawn = world.run("rollout", "plot", "support", "--from", str(recording), "--file", str(tmp_path / "r.svg"))
    assert drawn.exit_code == 0, drawn.output
    assert "2 looks recorded; ended with 100 % of the traffic" in (tmp_path / "r.svg").read_text()


@pytest.mark.parametrize(("verb", "value"), [("pause", "pause"), ("abort", "abort")])
def test_what_was_asked_can_be_had_as_json(world, verb, value):
    on_trial(world)
    found = world.json("rollout", verb, "support")
    assert (found["pool"], found["annotation"]) == ("support", {ANNOTATION_ROLLOUT: value})
    assert asked(world) == value


def test_watch_gives_up_in_time(world):
    on_trial(world)
    result = world.run("rollout", "watch", "support", "--every", "1ms", "--timeout", "10ms")
    assert result.exit_code == 1
    assert "has not ended within --timeout 10ms; it goes on without this watch" in result.stderr


def test_a_wrong_duration_names_the_option(world):
    on_trial(world)
    result = world.run("rollout", "watch", "support", "--every", "soon")
    assert result.exit_code == 1
    assert "--every: 'soon' is no duration; write it like 30s" in result.stderr


def test_an_unknown_pool_suggests_the_nearest(world):
    on_trial(world)
    result = world.run("rollout", "status", "suport")
    assert result.exit_code == 1
    assert "did you mean 'support'?" in result.stderr
