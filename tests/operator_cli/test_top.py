"""`sluice top`: what trains, and who answers how much."""

import json

import pytest
from sluice_contracts.analysis import LATENCY_EDGES, AnalysisSnapshot, Histogram, VersionCounts
from sluice_contracts.names import LABEL_POOL
from sluice_operator.children.boundaries import INTERNAL_PORT
from sluice_operator.cli.rates import Traffic, quantile, rates
from sluice_operator.cli.terminal import out
from sluice_operator.kube.resources import TRAINING_RUN

SINCE = "2026-11-21T09:00:00Z"
GATEWAY = "support-gateway-abc"


def counted(requests, errors=0, ttft=(), tokens=0):
    found = VersionCounts(requests=requests, errors=errors)
    for value in ttft:
        found.ttft.observe(LATENCY_EDGES, value)
    found.output_tokens = found.output_tokens.plus(
        Histogram(counts=[0] * len(found.output_tokens.counts), total=tokens)
    )
    return found


def snapshot(instance="a", window="w", since=SINCE, **versions):
    names = {name.replace("_", "-"): counts for name, counts in versions.items()}
    return AnalysisSnapshot(instance=instance, window=window, since=since, versions=names)


def at(seconds, *snapshots):
    return Traffic(seconds, {s.instance: s for s in snapshots})


def run(world, name="bot-9", **status):
    progress = {"stage": "training", "step": 120, "totalSteps": 300, "loss": 1.2345, "tokensPerSecond": 5123.4}
    spec = {
        "model": "support-bot",
        "dataset": {"uri": "gs://sluice/distillation_dataset/d", "digest": "sha256:" + "a" * 64},
        "recipe": {"method": "scratch", "steps": 300},
    }
    said = {"type": "Ready", "status": "False", "reason": "Running", "lastTransitionTime": SINCE}
    cost = {"total": "1.20", "currency": "USD", "perWorkerHour": "0.7", "asOf": SINCE}
    found = {"progress": {**progress, "etaSeconds": 75}, "conditions": [said], "cost": cost, **status}
    world.cluster.put(TRAINING_RUN, name, spec, found)


def serving(world, *answers):
    """The pool `support` with one gateway, which gives one answer after the other."""
    world.version("bot-1")
    world.pool("bot-1")
    world.cluster.pod(GATEWAY, "gateway", **{LABEL_POOL: "support"})
    left = list(answers)
    world.cluster.pages[GATEWAY, INTERNAL_PORT, "analysis"] = lambda: left.pop(0).canonical()


def row(output, name):
    return next(line.split() for line in output.splitlines() if line.split()[:1] == [name])


def test_a_rate_is_what_was_counted_between_two_looks():
    before = at(10.0, snapshot(bot_1=counted(100, 4, [0.01] * 50, 1000)))
    after = at(14.0, snapshot(bot_1=counted(140, 6, [0.01] * 50 + [0.3] * 10, 1800)))
    rate = rates(before, after)["bot-1"]
    assert (rate.requests, rate.errors, rate.tokens) == (10.0, 0.05, 200.0)
    assert rate.ttft_p95 is not None
    assert 0.3 <= rate.ttft_p95 < 0.3 * 1.25, "only the first tokens between the looks count"


def test_gateways_add_up():
    before = at(0.0, snapshot("a", bot_1=counted(10)), snapshot("b", bot_1=counted(20)))
    after = at(2.0, snapshot("a", bot_1=counted(14)), snapshot("b", bot_1=counted(26)))
    assert rates(before, after)["bot-1"].requests == 5.0


@pytest.mark.parametrize(
    "later",
    [
        snapshot("new", bot_1=counted(3)),
        snapshot("a", window="next", bot_1=counted(3)),
        snapshot("a", since="2026-11-21T09:30:00Z", bot_1=counted(3)),
    ],
)
def test_counts_that_began_anew_give_no_rate(later):
    assert rates(at(0.0, snapshot("a", bot_1=counted(10))), at(2.0, later)) == {}


def test_the_first_look_gives_no_rate():
    look = at(5.0, snapshot(bot_1=counted(10)))
    assert rates(look, look) == {}


def test_a_quantile_is_the_edge_of_its_bucket():
    assert quantile([10, 80, 10, 0], (1.0, 2.0, 4.0), 0.95) == 4.0
    assert quantile([10, 86, 4, 0], (1.0, 2.0, 4.0), 0.95) == 2.0
    assert quantile([0, 0, 0, 0], (1.0, 2.0, 4.0), 0.95) is None
    assert quantile([0, 0, 0, 9], (1.0, 2.0, 4.0), 0.95) is None, "beyond the last edge nothing is known"


def test_one_table_shows_what_trains_and_who_answers(world):
    run(world)
    run(world, name="bot-8", finishedAt="2026-11-21T09:00:00Z")
    serving(world, snapshot(bot_1=counted(0)), snapshot(bot_1=counted(600)))
    result = world.run("top", "--every", "1ms")
    assert result.exit_code == 0, result.output
    assert " ".join(row(result.output, "bot-9")) == "bot-9 Running training 120/300 5,123 1.234 1 min 15 s 1.20 USD"
    assert "bot-8" not in result.output, "what has ended does not run"
    cells = row(result.output, "support")
    assert cells[2:5] == ["bot-1", "100", "%"]
    assert float(cells[5].replace(",", "")) > 0
    assert all(len(line) <= 120 for line in result.output.splitlines())


def test_json_has_numbers(world):
    run(world)
    serving(world, snapshot(bot_1=counted(0)), snapshot(bot_1=counted(600, 60)))
    found = world.json("top", "--every", "1ms")
    assert found["trainingRuns"][0]["progress"]["tokensPerSecond"] == 5123.4
    assert found["trainingRuns"][0]["cost"]["total"] == "1.20"
    (version,) = found["inferencePools"][0]["versions"]
    assert (version["modelVersion"], version["percent"], version["errorRate"]) == ("bot-1", 100, 0.1)
    assert version["requestsPerSecond"] > 0


def test_gateways_that_cannot_be_reached_leave_the_rates_out_and_say_why(world):
    serving(world)
    world.cluster.pages.clear()
    result = world.run("top", "--every", "1ms")
    assert result.exit_code == 0
    assert row(result.output, "support")[5:] == ["-", "-", "-", "-"]
    assert "no request rates of support: cannot reach port 8081 of pod team/support-gateway-abc" in result.output
    assert json.loads(world.run("top", "--every", "1ms", "-o", "json").stdout)["inferencePools"][0]["problem"]


def test_progress_that_stands_still_is_shown_with_its_age(world):
    stale = {"stage": "training", "step": 3, "totalSteps": 9, "updatedAt": "2026-11-20T09:00:00Z"}
    run(world, progress=stale)
    assert "training (" in world.run("top").output


def test_nothing_to_see_takes_no_time(world):
    result = world.run("top", "--every", "10m")
    assert result.output.split() == ["Training", "nothing", "Serving", "nothing"]


def test_on_a_terminal_it_refreshes_until_its_end(world, monkeypatch):
    run(world)
    looks = 0

    def move_on():
        nonlocal looks
        looks += 1

    world.cluster.on_read = move_on
    monkeypatch.setattr(out, "_force_terminal", True)
    result = world.run("top", "--every", "1ms", "--for", "30ms")
    assert result.exit_code == 0
    assert looks >= 6, "three looks at least, each at runs and pools"
