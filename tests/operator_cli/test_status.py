"""`sluice status` and `sluice explain`: how things are, and what to do."""

import json

import pytest
from sluice_contracts.names import LABEL_TRAINING_RUN
from sluice_operator.cli.errors import CliError
from sluice_operator.kube.resources import INFERENCE_POOL, MODEL_VERSION, TRAINING_RUN


def state(type_, status, reason, message=""):
    return {
        "type": type_,
        "status": status,
        "reason": reason,
        "message": message,
        "observedGeneration": 1,
        "lastTransitionTime": "2026-11-21T10:00:00Z",
    }


def training(world, name="bot-9", step=120):
    """A run in the middle of its steps."""
    spec = {
        "model": "support-bot",
        "dataset": {"uri": "gs://sluice/distillation_dataset/d", "digest": "sha256:" + "a" * 64},
        "recipe": {"method": "scratch", "steps": 300},
    }
    progress = {"stage": "training", "step": step, "totalSteps": 300, "loss": 1.2345, "etaSeconds": 75}
    conditions = [
        state("Ready", "False", "Running", "RayJob bot-9 is running"),
        state("Reconciling", "True", "Running", "RayJob bot-9 is running"),
        state("Stalled", "False", "Running"),
    ]
    cost = {"total": "0.80", "currency": "USD", "perWorkerHour": "0.7", "asOf": "2026-11-21T09:00:00Z"}
    world.cluster.put(TRAINING_RUN, name, spec, {"progress": progress, "conditions": conditions, "cost": cost})


def event(kind, name, reason, message, at, **more):
    return {
        "involvedObject": {"kind": kind, "name": name},
        "type": "Normal",
        "reason": reason,
        "message": message,
        "lastTimestamp": at,
        **more,
    }


def row_of(output, name):
    return next(line for line in output.splitlines() if line.split()[:1] == [name])


def test_one_screen_shows_the_three_kinds(world):
    world.version("bot-1")
    world.version("bot-3", passed=False)
    training(world)
    world.pool("bot-1", replicas=2, url="http://support-gateway.team")
    world.publish("bot-1", percent=25)
    output = world.run("status").output
    assert "TrainingRuns  3 in namespace team" in output
    assert "training 120/300, 1 min 15 s left" in row_of(output, "bot-9")
    assert "1.234  0.80 USD" in row_of(output, "bot-9")
    assert "Stalled (GateFailed)" in row_of(output, "bot-3")
    assert "0 of 1 hold" in row_of(output, "bot-3")
    versions = output[output.index("ModelVersions") :]
    assert "25 % of stable" in row_of(versions, "bot-1")
    assert "bot-1 100 %" in row_of(output, "support")
    assert row_of(output[output.index("Addresses") :], "support").split() == ["support", "http://support-gateway.team"]


def test_status_of_a_rollout_fits_a_screen(world):
    world.version("support-bot-1")
    world.version("support-bot-2", base="support-bot-1")
    verdicts = [
        {"name": "errorRate", "verdict": "undecided"},
        {"name": "ttftP95", "verdict": "harmful"},
        {"name": "outputLength", "verdict": "undecided"},
    ]
    weights = [{"modelVersion": f"support-bot-{i}", "percent": p} for i, p in ((1, 75), (2, 25))]
    candidate = world.served("support-bot-2")
    world.pool("support-bot-1", "support-bot-2", candidate=candidate, weights=weights, step=1, verdicts=verdicts)
    output = world.run("status").output
    assert "1 harmful, 2 undecided" in row_of(output[output.index("InferencePools") :], "support")
    assert max(map(len, output.splitlines())) <= 120


def test_what_waits_for_a_person_is_called_out(world):
    world.version("bot-3", passed=False)
    output = world.run("status").output
    assert output.rstrip().endswith("TrainingRun bot-3  intent.accuracy 0.610, n=400, misses >= 0.9")


def test_an_empty_namespace_says_so(world):
    output = world.run("status", "-n", "elsewhere").output
    assert "TrainingRuns  none in namespace elsewhere" in output
    assert "InferencePools  none in namespace elsewhere" in output


def test_all_namespaces_adds_a_column(world):
    world.version("bot-1")
    output = world.run("status", "-A").output
    assert "ModelVersions  1 in any namespace" in output
    assert "team" in row_of(output, "team")
    assert world.json("status", "-A")["namespace"] is None


def test_json_has_the_facts_unformatted(world):
    training(world)
    (run,) = world.json("status")["trainingRuns"]
    assert (run["name"], run["state"], run["progress"]["loss"]) == ("bot-9", "Running", 1.2345)


def test_an_object_that_no_operator_has_seen_is_told_apart(world):
    training(world)
    world.cluster.objects[TRAINING_RUN, "team", "bot-9"]["status"] = {}
    assert "no operator has looked at it" in row_of(world.run("status").output, "bot-9")
    world.version("bot-1")
    world.cluster.objects[MODEL_VERSION, "team", "bot-1"]["metadata"]["generation"] = 2
    output = world.run("status").output
    assert "the operator has not looked yet" in row_of(output[output.index("ModelVersions") :], "bot-1")


def test_an_object_of_another_version_of_sluice_names_the_field(world):
    training(world)
    world.cluster.status(TRAINING_RUN, "bot-9")["newThing"] = 1
    result = world.run("status")
    assert result.exit_code == 1
    assert "cannot read TrainingRun bot-9: newThing" in result.stderr
    assert "different versions" in result.stderr


def test_explain_says_why_and_what_to_do(world):
    world.version("bot-3", passed=False)
    world.cluster.happened = [
        event("TrainingRun", "bot-3", "AttemptStarted", "created RayJob bot-3", "2026-11-21T09:00:00Z"),
        event("TrainingRun", "bot-3", "GateFailed", "intent.accuracy", "2026-11-21T09:03:00Z", type="Warning", count=3),
        event("TrainingRun", "other", "Unrelated", "not ours", "2026-11-21T09:03:00Z"),
    ]
    output = world.run("explain", "TrainingRun/bot-3").output
    assert output.splitlines()[0] == "TrainingRun bot-3 in namespace team: Stalled (GateFailed)"
    assert "intent.accuracy 0.610, n=400, misses >= 0.9" in output
    assert "1. Look at what failed: sluice lineage bot-3 -n team" in output
    assert "evaluation.waiver {reason, approvedBy}" in output
    assert "Unrelated" not in output
    events = output[output.index("Last events") :]
    assert events.index("GateFailed") < events.index("AttemptStarted")
    assert "(×3)" in output


def test_explain_says_which_pods_do_not_run_and_why(world):
    training(world)
    pod = world.cluster.pod("bot-9-head-x", "trainer", role="head", **{LABEL_TRAINING_RUN: "bot-9"})
    pod["status"]["conditions"] = []
    pod["status"]["containerStatuses"][0]["state"] = {"waiting": {"reason": "ImagePullBackOff", "message": "no image"}}
    world.cluster.pod("bot-9-worker-y", "trainer", role="worker", **{LABEL_TRAINING_RUN: "bot-9"})
    output = world.run("explain", "trun/bot-9").output
    assert "bot-9-head-x  trainer head  ImagePullBackOff\n   no image\n" in output
    assert "bot-9-worker-y" not in output, "it runs"
    (found,) = world.json("explain", "trun/bot-9")["pods"]
    assert (found["name"], found["message"]) == ("bot-9-head-x", "no image")


def test_whoever_may_not_list_pods_still_gets_the_rest(world):
    training(world)

    def forbidden(namespace, selector):
        raise CliError(f"no access: you may not list pods in namespace {namespace}")

    world.cluster.pods = forbidden
    result = world.run("explain", "trun/bot-9")
    assert result.exit_code == 0
    assert "TrainingRun bot-9 in namespace team: Running" in result.stdout
    assert "you may not list pods" in result.stderr


def test_long_messages_are_folded_under_their_own_column(world):
    training(world)
    long = "the bucket does not answer " * 12
    world.cluster.status(TRAINING_RUN, "bot-9")["conditions"].append(state("Evaluated", "False", "Waiting", long))
    lines = world.run("explain", "trun/bot-9").output.splitlines()
    (at,) = [i for i, line in enumerate(lines) if line.strip().startswith("Evaluated")]
    assert max(map(len, lines)) <= 110
    column = lines[at].index("the bucket")
    assert lines[at + 1].startswith(" " * column)
    assert lines[at + 1][column] != " "


def test_explain_of_what_is_ready_gives_no_advice(world):
    world.version("bot-1")
    output = world.run("explain", "mver/bot-1").output
    assert output.startswith("ModelVersion bot-1 in namespace team: Ready")
    assert "What to do" not in output


@pytest.mark.parametrize("kind", ["TrainingRun", "trainingruns", "trun", "run", "trainingruns.sluice.dev"])
def test_a_kind_may_be_written_in_any_of_its_names(world, kind):
    world.version("bot-1")
    assert world.json("explain", f"{kind}/bot-1")["kind"] == "TrainingRun"


def test_explain_without_an_operator_points_to_it(world):
    training(world)
    world.cluster.objects[TRAINING_RUN, "team", "bot-9"]["status"] = {}
    assert "kubectl get pods -A -l app.kubernetes.io/name=sluice-operator" in world.run("explain", "trun/bot-9").output


def test_every_piece_of_advice_can_be_written_out(world):
    from sluice_operator.cli.advice import BY_REASON

    world.version("bot-1")
    world.pool("bot-1")
    for reason in BY_REASON:
        for resource, name in ((TRAINING_RUN, "bot-1"), (INFERENCE_POOL, "support")):
            world.cluster.status(resource, name)["conditions"] = [
                state("Ready", "False", reason, "why"),
                state("Stalled", "True", reason, "why"),
            ]
            found = json.loads(world.run("explain", f"{resource.kind}/{name}", "-o", "json").stdout)
            assert found["advice"]
            assert not any("{name}" in line or "{namespace}" in line for line in found["advice"])


def test_an_unknown_kind_lists_the_kinds(world):
    result = world.run("explain", "deployment/x")
    assert result.exit_code == 1
    assert "there is no kind 'deployment'; the kinds are TrainingRun (trun), ModelVersion (mver)" in result.stderr


def test_an_unknown_name_in_an_empty_namespace_points_to_the_others(world):
    result = world.run("explain", "trun/bot-1", "-n", "elsewhere")
    assert result.exit_code == 1
    assert "there is no TrainingRun 'bot-1' in namespace elsewhere, nor any other" in result.stderr
    assert "sluice status -A" in result.stderr
