"""Drawing a rollout's picture as SVG 1.1: a panel for the weights and one for each metric. Pure.

A verdict is told by shape and word as well as by colour. https://www.w3.org/TR/SVG11/
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from xml.sax.saxutils import escape

from sluice_contracts.inference_pool import Verdict

from sluice_operator.cli.plot.picture import Axis, Mark, Metric, Picture, ticks

COLUMNS = 3
WIDTH, HEIGHT = 330, 250
"""Of a panel with its margins."""
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 44, 46
HEAD = 62
INK, FAINT, GRID, TRAFFIC, LIMIT = "#1f2933", "#5b7083", "#dfe4ea", "#0b7285", "#c92a2a"
COLOURS = {Verdict.HARMFUL: "#c92a2a", Verdict.EQUIVALENT: "#2b8a3e", Verdict.UNDECIDED: "#8a6d00"}
FONT = "font-family=\"system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif\""
TITLE_CHARACTERS = 46
Scale = Callable[[float], float]


@dataclass(frozen=True)
class Frame:
    """A panel's place, and how its numbers become points."""

    left: float
    top: float
    x: Scale
    y: Scale

    @property
    def right(self) -> float:
        """Where the plot area ends."""
        return self.left + WIDTH - LEFT - RIGHT

    @property
    def bottom(self) -> float:
        """The same, below."""
        return self.top + HEIGHT - TOP - BOTTOM


def draw(picture: Picture) -> str:
    """The SVG document."""
    panels = 1 + len(picture.metrics)
    columns = min(COLUMNS, panels)
    rows = -(-panels // columns)
    width, height = columns * WIDTH + 20, HEAD + rows * HEIGHT + 10
    body = [
        _text(20, 28, picture.title, size=17, weight="bold"),
        _text(20, 48, picture.subtitle, size=12, colour=FAINT),
        *_weights(picture, _place(0, columns)),
    ]
    for number, metric in enumerate(picture.metrics, 1):
        body += _metric(metric, picture.metrics_axis, _place(number, columns))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" role="img" {FONT}>',
            f"<title>{escape(picture.title)}</title>",
            f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
            *body,
            "</svg>\n",
        ]
    )


def bounds(metric: Metric) -> tuple[float, float]:
    """The y axis of a metric: zero, the tolerance and the effects are on it; a wide interval is cut off rather than
    making everything else flat."""
    effects = [m.effect for m in metric.series if m.effect is not None]
    reach = max([2.5 * (metric.tolerance or 0.0), *(1.4 * abs(e) for e in effects)])
    reach = reach or 1.0
    lows = [m.low for m in metric.series if m.low is not None]
    highs = [m.high for m in metric.series if m.high is not None]
    open_above = any(m.effect is not None and m.high is None for m in metric.series)
    open_below = any(m.effect is not None and m.low is None for m in metric.series)
    high = reach if open_above else min(reach, max([metric.tolerance or 0.0, *effects, *highs, 0.0]) * 1.15)
    low = -reach if open_below else max(-reach, min([0.0, *effects, *lows]) * 1.15)
    return (low, high) if high > low else (low, low + 1.0)


def _place(number: int, columns: int) -> tuple[float, float]:
    return 10 + (number % columns) * WIDTH + LEFT, HEAD + (number // columns) * HEIGHT + TOP


def _frame(place: tuple[float, float], axis: Axis, low: float, high: float) -> Frame:
    left, top = place
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x(value: float) -> float:
        return left + width * (value - axis.low) / (axis.high - axis.low)

    def y(value: float) -> float:
        inside = min(max(value, low), high)
        return top + height * (high - inside) / (high - low)

    return Frame(left, top, x, y)


def _weights(picture: Picture, place: tuple[float, float]) -> list[str]:
    axis = picture.weights_axis
    frame = _frame(place, axis, 0, 100)
    found = [*_caption(frame, "candidate's traffic", "", INK), *_axes(frame, axis, [0, 25, 50, 75, 100], "%")]
    for level in picture.weights:
        x, y = frame.x(level.begin), frame.y(level.percent)
        fill, edge = (TRAFFIC, TRAFFIC) if level.reached else ("none", FAINT)
        dashes = "" if level.reached else ' stroke-dasharray="4 3"'
        opacity = ' fill-opacity="0.25"' if level.reached else ""
        found.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{frame.x(level.end) - x:.1f}" height="{frame.bottom - y:.1f}" '
            f'fill="{fill}"{opacity} stroke="none"/>'
        )
        found.append(_line(x, y, frame.x(level.end), y, edge, 2, dashes))
    if axis.label == "step":
        planned = any(not level.reached for level in picture.weights)
        note = "filled: reached; dashed: planned" if planned else "all steps were taken"
        found.append(_text(frame.left, frame.top - 8, note, size=10, colour=FAINT))
    return found


def _metric(metric: Metric, axis: Axis, place: tuple[float, float]) -> list[str]:
    low, high = bounds(metric)
    frame = _frame(place, axis, low, high)
    colour = COLOURS[metric.verdict]
    found = [
        *_caption(frame, metric.name, metric.caption, INK, metric.verdict.value, colour),
        *_axes(frame, axis, ticks(low, high, 4), metric.unit),
        _line(frame.left, frame.y(0), frame.right, frame.y(0), FAINT, 1),
    ]
    found += _band(metric.series, frame) if metric.joined else _bars(metric.series, frame)
    if metric.tolerance is not None:
        y = frame.y(metric.tolerance)
        found.append(_line(frame.left, y, frame.right, y, LIMIT, 1.2, ' stroke-dasharray="6 4"'))
        found.append(
            _text(frame.right, y - 4, f"tolerance {metric.tolerance:g}{metric.unit and ' %'}", 9, LIMIT, "end")
        )
    return found


def _band(series: Sequence[Mark], frame: Frame) -> list[str]:
    """Intervals of one rollout, joined; the effect as a line; the last verdict as a shape."""
    known = [m for m in series if m.effect is not None]
    if not known:
        return []
    floor, roof = frame.bottom, frame.top
    upper = [(frame.x(m.x), frame.y(m.high) if m.high is not None else roof) for m in known]
    lower = [(frame.x(m.x), frame.y(m.low) if m.low is not None else floor) for m in known]
    outline = " ".join(f"{x:.1f},{y:.1f}" for x, y in [*upper, *reversed(lower)])
    line = " ".join(f"{frame.x(m.x):.1f},{frame.y(m.effect or 0.0):.1f}" for m in known)
    colour = COLOURS[known[-1].verdict]
    changes = [m for before, m in pairwise(known) if before.verdict is not m.verdict]
    return [
        f'<polygon points="{outline}" fill="{colour}" fill-opacity="0.15" stroke="none"/>',
        f'<polyline points="{line}" fill="none" stroke="{INK}" stroke-width="1.4"/>',
        *(_shape(m, frame) for m in dict.fromkeys([*changes, known[-1]])),
    ]


def _bars(series: Sequence[Mark], frame: Frame) -> list[str]:
    """One interval a rollout, side by side."""
    found = []
    half = min(16.0, 0.3 * (frame.x(1) - frame.x(0)))
    for mark in series:
        if mark.effect is None:
            continue
        x, colour = frame.x(mark.x), COLOURS[mark.verdict]
        top = frame.y(mark.high) if mark.high is not None else frame.top
        end = frame.y(mark.low) if mark.low is not None else frame.bottom
        found.append(
            f'<rect x="{x - half:.1f}" y="{top:.1f}" width="{2 * half:.1f}" height="{max(1.0, end - top):.1f}" '
            f'fill="{colour}" fill-opacity="0.2" stroke="none"/>'
        )
        found.append(_shape(mark, frame))
    return found


def _shape(mark: Mark, frame: Frame) -> str:
    """Harmful: a cross. Equivalent: a disc. Undecided: a ring."""
    x, y, colour = frame.x(mark.x), frame.y(mark.effect or 0.0), COLOURS[mark.verdict]
    if mark.verdict is Verdict.HARMFUL:
        path = f"M{x - 5:.1f} {y - 5:.1f} l10 10 m0 -10 l-10 10"
        return f'<path d="{path}" stroke="{colour}" stroke-width="2.4" fill="none"/>'
    fill = colour if mark.verdict is Verdict.EQUIVALENT else "#ffffff"
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{fill}" stroke="{colour}" stroke-width="2"/>'


def _caption(frame: Frame, name: str, text: str, colour: str, verdict: str = "", verdict_colour: str = "") -> list[str]:
    found = [_text(frame.left, frame.top - 24, name, 13, colour, weight="bold")]
    if verdict:
        found.append(_text(frame.right, frame.top - 24, verdict, 12, verdict_colour, "end", "bold"))
    if text:
        found.append(_text(frame.left, frame.top - 8, text[:TITLE_CHARACTERS], 10, FAINT))
    return found


def _axes(frame: Frame, axis: Axis, heights: Sequence[float], unit: str) -> list[str]:
    found = []
    for height in heights:
        y = frame.y(height)
        found.append(_line(frame.left, y, frame.right, y, GRID, 1))
        label = f"{height:g}{' %' if unit else ''}"
        found.append(_text(frame.left - 6, y + 3.5, label, 10, FAINT, "end"))
    for x, label in axis.ticks:
        for row, part in enumerate(label.split("\n")):
            found.append(_text(frame.x(x), frame.bottom + 14 + 12 * row, _fitting(part, axis), 10, FAINT, "middle"))
    if axis.label:
        found.append(_text((frame.left + frame.right) / 2, frame.bottom + 30, axis.label, 10, FAINT, "middle"))
    found.append(_line(frame.left, frame.bottom, frame.right, frame.bottom, INK, 1))
    return found


def _fitting(label: str, axis: Axis) -> str:
    """A tick's label, its beginning cut off where its neighbours would touch it: versions differ at their end."""
    room = max(6, int((WIDTH - LEFT - RIGHT) / max(1, len(axis.ticks)) / 5.6))
    return label if len(label) <= room else "…" + label[len(label) - room + 1 :]


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float, more: str = "") -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
        f'stroke-width="{width:g}"{more}/>'
    )


def _text(
    x: float, y: float, text: str, size: float, colour: str = INK, anchor: str = "start", weight: str = "normal"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" fill="{colour}" text-anchor="{anchor}" '
        f'font-weight="{weight}">{escape(text)}</text>'
    )
