"""`sluice rollout plot`: what is in the picture, and how it is drawn."""

import json
import os
import xml.etree.ElementTree as ElementTree

import pytest
from sluice_contracts.inference_pool import MetricVerdict, Verdict
from sluice_operator.cli.errors import CliError
from sluice_operator.cli.objects import pool_of
from sluice_operator.cli.plot.picture import Look, picture, ticks
from sluice_operator.cli.plot.svg import bounds, draw
from sluice_operator.cli.text import now_utc
from sluice_operator.kube.resources import INFERENCE_POOL

SVG = "{http://www.w3.org/2000/svg}"


def verdict(name="errorRate", outcome="undecided", effect=0.004, low=-0.02, high=0.03, n=120, **more):
    found = {"name": name, "verdict": outcome, "effect": effect, "low": low, "high": high, "samples": n, **more}
    return {key: value for key, value in found.items() if value is not None}


def record(name, outcome, verdicts, at="2026-11-20T10:00:00Z"):
    return {"modelVersion": name, "lineage": "x", "outcome": outcome, "endedAt": at, "verdicts": verdicts}


def on_trial(world, **status):
    world.version("bot-1")
    world.version("bot-2", base="bot-1")
    weights = [{"modelVersion": "bot-1", "percent": 75}, {"modelVersion": "bot-2", "percent": 25}]
    found = {"candidate": world.served("bot-2"), "weights": weights, "step": 1, "verdicts": [verdict()]}
    world.pool("bot-1", wanted="bot-2", **{**found, **status})


def pool(world):
    return pool_of(world.cluster.get(INFERENCE_POOL, "team", "support"))


def look(minute, share, *verdicts, candidate="bot-2"):
    return Look(
        at=f"2026-11-21T10:{minute:02}:00Z",
        candidate=candidate,
        weights={"bot-1": 100 - share, "bot-2": share},
        verdicts=[MetricVerdict.model_validate(v) for v in verdicts],
    )


def texts(svg):
    return [element.text for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


# -- what is in it ----------------------------------------------------------------------------------------------------


def test_the_weights_stand_over_the_steps_reached_and_planned(world):
    on_trial(world)
    drawn = picture(pool(world), [], now_utc())
    assert [(level.percent, level.reached) for level in drawn.weights] == [
        (5, True),
        (25, True),
        (50, False),
        (100, False),
    ]
    assert drawn.subtitle.startswith("step 2 of 3 (25 %)")


def test_a_metric_has_one_interval_for_each_rollout_and_its_tolerance(world):
    harmful = verdict(outcome="harmful", effect=0.1, low=0.06, high=0.16)
    on_trial(world, history=[record("bot-0", "RolledBack", [harmful])])
    drawn = picture(pool(world), [], now_utc())
    (metric,) = drawn.metrics
    assert (metric.name, metric.unit, metric.tolerance) == ("errorRate", "%", 2.0)
    assert [(m.effect, m.verdict) for m in metric.series] == [
        (10.0, Verdict.HARMFUL),
        (0.4, Verdict.UNDECIDED),
    ]
    assert [label for _, label in drawn.metrics_axis.ticks] == ["bot-0\nRolledBack", "bot-2\nnow"]
    assert metric.caption == "+0.4 % [-2.0 %, +3.0 %]  n = 120"


def test_after_a_promotion_all_steps_are_reached(world):
    on_trial(world, candidate=None, step=None, history=[record("bot-2", "Promoted", [verdict()])])
    assert all(level.reached for level in picture(pool(world), [], now_utc()).weights)


def test_after_a_roll_back_none_is_claimed(world):
    on_trial(world, candidate=None, step=None, history=[record("bot-2", "RolledBack", [verdict()])])
    assert not any(level.reached for level in picture(pool(world), [], now_utc()).weights)


def test_nothing_judged_yet_is_said_with_what_to_do(world, tmp_path):
    world.version("bot-1")
    world.pool("bot-1")
    result = world.run("rollout", "plot", "support", "--file", str(tmp_path / "x.svg"))
    assert result.exit_code == 1
    assert "nothing to plot: no rollout of InferencePool support has been judged yet" in result.stderr


def test_a_recording_stands_over_time_and_shows_how_it_ended(world):
    on_trial(world)
    looks = [
        look(0, 0, candidate="bot-0"),
        look(5, 5),
        look(10, 5, verdict()),
        look(20, 25, verdict(outcome="equivalent", low=-0.01, high=0.01)),
        look(30, 100, candidate=None),
    ]
    drawn = picture(pool(world), looks, now_utc())
    assert [(level.begin, level.percent) for level in drawn.weights] == [(0.0, 5.0), (15.0, 25.0), (25.0, 100.0)]
    assert drawn.weights[-1].end > 25, "what it ended with can be seen"
    (metric,) = drawn.metrics
    assert metric.joined
    assert [(m.x, m.low) for m in metric.series] == [(5.0, -2.0), (15.0, -1.0)]
    assert "4 looks recorded; ended with 100 % of the traffic" in drawn.subtitle


def test_a_recording_without_a_rollout_is_refused(world):
    on_trial(world)
    with pytest.raises(CliError, match="no rollout in it"):
        picture(pool(world), [look(0, 0, candidate=None)], now_utc())


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (-2, 3, [-2, 0, 2]), (0, 260, [0, 100, 200])],
)
def test_ticks_are_round_numbers(low, high, expected):
    assert ticks(low, high, 4 if high != 1 else 5) == expected


# -- how it is drawn --------------------------------------------------------------------------------------------------


def test_every_panel_names_its_metric_its_verdict_and_its_tolerance(world):
    length = verdict("outputLength", "equivalent", 0.05, 0.0, 0.2)
    on_trial(world, verdicts=[verdict(), length])
    found = texts(draw(picture(pool(world), [], now_utc())))
    for expected in ("errorRate", "undecided", "tolerance 2 %", "outputLength", "equivalent", "tolerance 0.3"):
        assert expected in found
    assert "candidate's traffic" in found


def test_a_verdict_is_told_by_its_shape_too(world):
    shapes = {}
    for outcome in Verdict:
        on_trial(world, verdicts=[verdict(outcome=outcome.value)])
        root = ElementTree.fromstring(draw(picture(pool(world), [], now_utc())))
        circle = root.find(f"{SVG}circle")
        shapes[outcome] = circle.get("fill") if circle is not None else root.find(f"{SVG}path") is not None
    assert len(set(shapes.values())) == 3


def test_an_open_end_reaches_the_edge_and_a_wide_one_is_cut_off(world):
    on_trial(world, verdicts=[verdict(high=None), verdict("ttftP95", effect=0.1, low=-0.9, high=40.0)])
    errors, latency = picture(pool(world), [], now_utc()).metrics
    assert bounds(errors)[1] == pytest.approx(5.0), "two and a half times the tolerance"
    low, high = bounds(latency)
    assert high == pytest.approx(125.0)
    assert low == pytest.approx(-103.5)
    top = min(
        float(r.get("y", "0"))
        for r in ElementTree.fromstring(draw(picture(pool(world), [], now_utc()))).iter(f"{SVG}rect")
    )
    assert top >= 0, "nothing is drawn above the picture"


def test_a_metric_without_data_has_an_empty_panel(world):
    on_trial(world, verdicts=[verdict(effect=None, low=None, high=None, n=0)])
    assert "no data" in texts(draw(picture(pool(world), [], now_utc())))


def test_names_cannot_break_the_document(world):
    on_trial(world, verdicts=[verdict()])
    drawn = picture(pool(world), [], now_utc())
    from dataclasses import replace

    assert "<&>" in texts(draw(replace(drawn, title="<&>")))


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        ("{}\n", "line 1 is no look at a rollout"),
        ('{"pool": "other"}\n', "is a recording of pool other, not of support"),
    ],
)
def test_what_is_no_recording_is_said_so(world, tmp_path, content, said):
    on_trial(world)
    recording = tmp_path / "r.jsonl"
    recording.write_text(content)
    result = world.run("rollout", "plot", "support", "--from", str(recording), "--file", str(tmp_path / "x.svg"))
    assert result.exit_code == 1
    assert said in result.stderr
    assert not (tmp_path / "x.svg").exists()


@pytest.mark.parametrize(
    ("file", "said"),
    [("x.jpg", "must end in .svg or .png"), ("x.png", "a PNG needs rsvg-convert"), ("no/x.svg", "cannot write")],
)
def test_a_file_that_cannot_be_written_is_said_so(world, tmp_path, monkeypatch, file, said):
    on_trial(world)
    monkeypatch.setenv("PATH", str(tmp_path))
    result = world.run("rollout", "plot", "support", "--file", str(tmp_path / file))
    assert result.exit_code == 1
    assert said in result.stderr


def program(folder, text):
    path = folder / "rsvg-convert"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_a_png_is_made_by_the_converter(world, tmp_path, monkeypatch):
    on_trial(world)
    program(tmp_path, 'for last; do :; done; cat > "$last"')
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    file = tmp_path / "x.png"
    found = world.json("rollout", "plot", "support", "--file", str(file))
    assert found["file"] == str(file)
    assert file.read_text().startswith("<svg")


def test_a_converter_that_fails_is_named(world, tmp_path, monkeypatch):
    on_trial(world)
    program(tmp_path, "echo no fonts >&2; exit 3")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    result = world.run("rollout", "plot", "support", "--file", str(tmp_path / "x.png"))
    assert result.exit_code == 1
    assert "rsvg-convert could not make" in result.stderr
    assert "no fonts" in result.stderr


def test_the_recording_is_what_watch_prints(world):
    on_trial(world)
    line = world.json("rollout", "status", "support")
    assert set(Look.model_json_schema()["properties"]) - {"at"} <= json.loads(json.dumps(line)).keys()
