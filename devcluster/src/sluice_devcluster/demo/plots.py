"""The demo report's pictures, as inline SVG: loss curves, the canaries, quantisation against full precision."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

matplotlib.use("svg")

INK, STABLE, CANDIDATE, GOOD, BAD = "#1f2933", "#5b7083", "#0b7285", "#2b8a3e", "#c92a2a"
VERDICT_COLOURS = {"harmful": BAD, "equivalent": GOOD, "undecided": STABLE}


def _svg(figure: Figure) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def _figure(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = [figure.add_subplot(1, columns, i + 1) for i in range(columns)]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(colors=INK, labelsize=8)
        axis.grid(alpha=0.2)
    return figure, axes


def loss_curves(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Training loss against step, one line a run. Loss is the mean cross-entropy of answer tokens, in nats."""
    figure, (axis,) = _figure(7, 2.8)
    for name, points in histories.items():
        xs = [p["step"] for p in points if p.get("loss") is not None]
        ys = [p["loss"] for p in points if p.get("loss") is not None]
        if xs:
            axis.plot(xs, ys, label=name, linewidth=1.4)
    axis.set_xlabel("step", fontsize=8)
    axis.set_ylabel("loss (nats per answer token)", fontsize=8)
    axis.set_yscale("log")
    if histories:
        axis.legend(fontsize=8, frameon=False)
    return _svg(figure)


def canary(version: str, samples: Sequence[Mapping[str, Any]], tolerances: Mapping[str, float]) -> str:
    """One rollout: the candidate's share of traffic, and each metric's effect with its anytime-valid interval against
    its tolerance, over the seconds since the version was asked for."""
    judged = [s for s in samples if s.get("verdicts")]
    names = sorted({v["name"] for s in judged for v in s["verdicts"]})
    figure, axes = _figure(3.1 * (1 + len(names)), 2.5, 1 + len(names))
    shares = [next((w["percent"] for w in s.get("weights", []) if w["modelVersion"] == version), 0) for s in samples]
    axes[0].step([s["t"] for s in samples], shares, where="post", color=CANDIDATE, linewidth=1.6)
    axes[0].set_ylim(-2, 102)
    axes[0].set_title("candidate's traffic, %", fontsize=9, color=INK)
    axes[0].set_xlabel("seconds", fontsize=8)
    for axis, name in zip(axes[1:], names, strict=True):
        points = [(s["t"], v) for s in judged for v in s["verdicts"] if v["name"] == name]
        known = [(t, v) for t, v in points if v.get("effect") is not None]
        axis.plot([t for t, _ in known], [v["effect"] for _, v in known], color=INK, linewidth=1)
        banded = [(t, v) for t, v in known if v.get("low") is not None and v.get("high") is not None]
        axis.fill_between(
            [t for t, _ in banded],
            [v["low"] for _, v in banded],
            [v["high"] for _, v in banded],
            color=CANDIDATE,
            alpha=0.15,
            linewidth=0,
        )
        for t, v in known[-1:]:
            axis.plot([t], [v["effect"]], "o", color=VERDICT_COLOURS[v["verdict"]], markersize=6)
        last = points[-1][1]
        if name in tolerances:
            axis.axhline(tolerances[name], color=BAD, linewidth=0.8, linestyle="--")
            lows = [v["low"] for _, v in banded] + [v["effect"] for _, v in known]
            span = max(tolerances[name] * 3, *(abs(x) for x in lows), 0.01) if lows else tolerances[name] * 3
            axis.set_ylim(-span, span * 1.2)
        axis.set_title(f"{name}: {last['verdict']}", fontsize=9, color=VERDICT_COLOURS[last["verdict"]])
        axis.set_xlabel("seconds", fontsize=8)
    return _svg(figure)


def quantisation(parity: Mapping[str, Mapping[str, Any]]) -> str:
    """File size against divergence from the full-precision parent, one point a file of each version."""
    figure, (axis,) = _figure(4.5, 2.8)
    for name, report in parity.items():
        results = report["results"]
        axis.plot(
            [r["size"] / 1e6 for r in results],
            [max(r["meanKld"], 1e-7) for r in results],
            "o-",
            label=name,
            linewidth=1,
        )
        for r in results:
            axis.annotate(
                r["quantization"],
                (r["size"] / 1e6, max(r["meanKld"], 1e-7)),
                textcoords="offset points",
                xytext=(5, 4),
                fontsize=7,
            )
    axis.set_yscale("log")
    axis.set_xlabel("size, MB", fontsize=8)
    axis.set_ylabel("mean KL divergence, nats", fontsize=8)
    axis.legend(fontsize=8, frameon=False)
    return _svg(figure)
