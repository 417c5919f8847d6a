"""`sluice logs`: which pods there are, and what they say."""

import json

import pytest
from sluice_contracts.names import LABEL_POOL, LABEL_TRAINING_RUN
from sluice_operator.cli.errors import CliError
from sluice_operator.cli.logs import pods_of
from sluice_operator.cli.objects import run_of
from sluice_operator.cli.pods import MOST, pod_of, tags
from sluice_operator.cli.ray_logs import DASHBOARD_PORT, job_output
from sluice_operator.kube.resources import RAY_JOB, TRAINING_RUN

HEAD = "bot-9-head-x7f2q"
ENGINE = "support-1a2b3c4d-head-x7f2q"


def pool(world):
    """A pool with an engine and a gateway."""
    world.version("bot-1")
    world.pool("bot-1")
    label = {LABEL_POOL: "support"}
    world.cluster.pod("support-1a2b3c4d-head-x7f2q", "engine", role="head", **label)
    world.cluster.pod("support-gateway-abc", "gateway", **label)
    world.cluster.said = {
        "support-1a2b3c4d-head-x7f2q": ["one", "two", "three"],
        "support-gateway-abc": ["routes follow"],
    }


def pending(world, name="support-1a2b3c4d-worker-9s8d7", **status):
    made = world.cluster.pod(name, "engine", role="worker", **{LABEL_POOL: "support"})
    why = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes: no nvidia-l4"}
    made["status"] = {"phase": "Pending", "conditions": [why], **status}


def job(world, logs, status="RUNNING"):
    """A run whose job runs in Ray, and what Ray's job API says of its output, one answer after the other."""
    spec = {
        "model": "support-bot",
        "dataset": {"uri": "gs://sluice/distillation_dataset/d", "digest": "sha256:" + "a" * 64},
        "recipe": {"method": "scratch", "steps": 300},
    }
    world.cluster.put(TRAINING_RUN, "bot-9", spec, {"rayJob": "bot-9"})
    world.cluster.put(RAY_JOB, "bot-9", {}, {"jobId": "bot-9-abcde", "jobStatus": status})
    world.cluster.pod(HEAD, "trainer", role="head", **{LABEL_TRAINING_RUN: "bot-9"})
    world.cluster.said[HEAD] = ["ray runtime started"]
    answers = list(logs)
    page = lambda: json.dumps({"logs": answers.pop(0) if len(answers) > 1 else answers[0]}).encode()  # noqa: E731
    world.cluster.pages[HEAD, DASHBOARD_PORT, "api/jobs/bot-9-abcde/logs"] = page


def test_each_line_begins_with_what_tells_its_pod_apart(world):
    pool(world)
    result = world.run("logs", "ipool/support", "--tail", "2")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "1a2b3c4d-head-x7f2q  two",
        "1a2b3c4d-head-x7f2q  three",
        "gateway-abc  routes follow",
    ]


def test_one_part_alone_is_printed_as_it_is(world):
    pool(world)
    assert world.run("logs", "ipool/support", "--part", "gateway").stdout == "routes follow\n"
    assert world.run("logs", "ipool/support", "--pod", "support-gateway-abc").stdout == "routes follow\n"


def test_following_prints_what_each_pod_says_until_all_have_ended(world):
    pool(world)
    lines = world.run("logs", "ipool/support", "--follow").stdout.splitlines()
    assert sorted(lines) == [
        "1a2b3c4d-head-x7f2q  one",
        "1a2b3c4d-head-x7f2q  three",
        "1a2b3c4d-head-x7f2q  two",
        "gateway-abc  routes follow",
    ]
    engine = [line for line in lines if "head" in line]
    assert [line.split()[-1] for line in engine] == ["one", "two", "three"], "a pod's lines keep their order"


def test_a_pod_that_fails_while_it_is_followed_is_an_error(world):
    pool(world)

    def gone(*_, **__):
        raise CliError("cannot read the log of pod team/x: it is gone")
        yield

    world.cluster.pod_log = gone
    result = world.run("logs", "ipool/support", "--follow")
    assert result.exit_code == 1
    assert "it is gone" in result.stderr


def test_json_is_one_object_a_line(world):
    pool(world)
    lines = world.run("logs", "ipool/support", "--part", "gateway", "-o", "json").stdout.splitlines()
    assert [json.loads(line) for line in lines] == [{"pod": "support-gateway-abc", "line": "routes follow"}]


def test_a_pod_that_has_not_started_is_told_on_stderr_and_not_read(world):
    pool(world)
    pending(world)
    result = world.run("logs", "ipool/support")
    assert "support-1a2b3c4d-worker-9s8d7 has not started: Unschedulable: 0/3 nodes: no nvidia-l4" in result.stderr
    assert "worker" not in result.stdout


def test_the_list_says_which_pods_there_are(world):
    pool(world)
    pending(world)
    output = world.run("logs", "ipool/support", "--list").output
    (row,) = [line.split() for line in output.splitlines() if line.startswith("support-1a2b3c4d-worker")]
    assert row[1:4] == ["engine", "worker", "Unschedulable"]
    found = world.json("logs", "ipool/support", "--list")["pods"]
    assert [(p["name"], p["part"], p["ready"]) for p in found] == [
        ("support-1a2b3c4d-head-x7f2q", "engine", True),
        ("support-1a2b3c4d-worker-9s8d7", "engine", False),
        ("support-gateway-abc", "gateway", True),
    ]


def test_an_object_without_pods_points_to_explain(world):
    world.version("bot-1")
    result = world.run("logs", "mver/bot-1")
    assert result.exit_code == 1
    assert "ModelVersion bot-1 has no pods now" in result.stderr
    assert "sluice explain mver/bot-1 -n team" in result.stderr


def test_an_unknown_pod_lists_those_there_are(world):
    pool(world)
    result = world.run("logs", "ipool/support", "--pod", "x")
    assert result.exit_code == 1
    assert "no pod of name x; there are: support-1a2b3c4d-head-x7f2q (engine head)" in result.stderr


def test_too_many_pods_must_be_chosen_from(world):
    pool(world)
    for number in range(MOST):
        world.cluster.pod(f"support-gateway-{number}", "gateway", **{LABEL_POOL: "support"})
    result = world.run("logs", "ipool/support")
    assert result.exit_code == 1
    assert "choose with --part or --pod" in result.stderr
    assert world.run("logs", "ipool/support", "--list").exit_code == 0


def test_a_run_says_what_its_job_says(world):
    job(world, ["step 1\nstep 2\nstep 3\n"])
    result = world.run("logs", "trun/bot-9", "--tail", "2")
    assert result.stdout.splitlines() == ["step 2", "step 3"]


def test_a_job_is_followed_to_its_end_without_repeating_a_line(world):
    job(world, ["step 1\nst", "step 1\nstep 2\n", "step 1\nstep 2\nstep 3"])
    run = run_of(world.cluster.get(TRAINING_RUN, "team", "bot-9"))
    reads = 0

    def move_on():
        nonlocal reads
        reads += 1
        if reads > 4:
            world.cluster.status(RAY_JOB, "bot-9")["jobStatus"] = "SUCCEEDED"

    world.cluster.on_read = move_on
    lines = job_output(world.cluster, run, pods_of(world.cluster, run), tail=9, follow=True, interval=0.001)
    assert lines is not None
    assert [line.text for line in lines] == ["step 1", "step 2", "step 3"]


def test_where_ray_does_not_answer_the_containers_are_read(world):
    job(world, [""])
    world.cluster.pages.clear()
    result = world.run("logs", "trun/bot-9")
    assert result.stdout == "ray runtime started\n"
    assert "Ray's job API does not answer" in result.stderr


def test_the_containers_of_a_run_can_be_asked_for(world):
    job(world, ["step 1\n"])
    assert world.run("logs", "trun/bot-9", "--containers").stdout == "ray runtime started\n"


def engine(world, status="HEALTHY", message="", replicas=("a1",)):
    """What Ray 2.60 says of a Serve application, and of what its replica printed (as recorded, cut to what is read)."""
    pool(world)
    found = {"status": status, "message": message, "replicas": [{"actor_id": actor} for actor in replicas]}
    pages = world.cluster.pages
    body = {"applications": {"llm": {"status": "RUNNING", "deployments": {"LLM": found}}}}
    pages[ENGINE, DASHBOARD_PORT, "api/serve/applications/"] = lambda: json.dumps(body).encode()
    said = b":job_id:02000000\n:actor_name:ServeReplica:llm:LLM\nINFO loading\n\x1b[36mINFO\x1b[39m ready\n"
    for kind in ("file", "stream"):
        page = f"api/v0/logs/{kind}?actor_id=a1&suffix=err&lines=50"
        pages[ENGINE, DASHBOARD_PORT, page] = lambda: said


@pytest.mark.parametrize("options", [(), ("--follow",)])
def test_an_engine_says_what_its_replicas_say(world, options):
    engine(world)
    lines = world.run("logs", "ipool/support", *options).stdout.splitlines()
    assert [line for line in lines if "head" in line] == [
        "1a2b3c4d-head-x7f2q  INFO loading",
        "1a2b3c4d-head-x7f2q  INFO ready",
    ]
    assert "gateway-abc  routes follow" in lines


def test_an_engine_that_cannot_start_says_why(world):
    engine(world, "DEPLOY_FAILED", "failed 3 times:\n\x1b[36mRuntimeError\x1b[39m: no such file", replicas=())
    assert world.run("logs", "ipool/support", "--part", "engine").stdout.splitlines() == [
        "LLM DEPLOY_FAILED:",
        "failed 3 times:",
        "RuntimeError: no such file",
    ]


def test_where_the_engines_ray_does_not_answer_its_container_is_read(world):
    pool(world)
    result = world.run("logs", "ipool/support", "--part", "engine")
    assert result.stdout.splitlines() == ["one", "two", "three"]
    assert f"Ray does not answer in {ENGINE}" in result.stderr
    engine(world)
    assert world.run("logs", "ipool/support", "--part", "engine", "--containers").stdout.startswith("one\n")


def waiting(reason, message="", **last):
    state = {"name": "main", "restartCount": 4, "state": {"waiting": {"reason": reason, "message": message}}}
    return {"containerStatuses": [{**state, "lastState": last}]}


@pytest.mark.parametrize(
    ("status", "state", "why"),
    [
        (waiting("ImagePullBackOff", "no such image"), "ImagePullBackOff", "no such image"),
        (
            waiting("CrashLoopBackOff", terminated={"exitCode": 3, "reason": "Error"}),
            "CrashLoopBackOff",
            "last ended with exit code 3 (Error)",
        ),
        (
            {
                "containerStatuses": [
                    {"name": "main", "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}
                ]
            },
            "OOMKilled",
            "exit code 137",
        ),
        ({"phase": "Failed", "message": "node was preempted"}, "Failed", "node was preempted"),
        ({"phase": "Running", "containerStatuses": [{"name": "main", "state": {"running": {}}}]}, "Running", ""),
    ],
)
def test_a_pods_state_is_the_most_telling_word(world, status, state, why):
    made = world.cluster.pod("x", "engine")
    made["status"] = status
    found = pod_of(made)
    assert (found.state, found.why) == (state, why)


def test_tags_keep_what_differs(world):
    made = [pod_of(world.cluster.pod(name, "engine")) for name in ("a-b-head-1", "a-b-worker-2", "a-b")]
    assert tags(made) == {"a-b-head-1": "b-head-1", "a-b-worker-2": "b-worker-2", "a-b": "b"}
    assert tags(made[:1]) == {"a-b-head-1": "a-b-head-1"}
