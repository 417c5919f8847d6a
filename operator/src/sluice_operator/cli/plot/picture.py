"""What is in the picture of a rollout: plain numbers, before anything is drawn. Pure.

Two sources. The pool's status has the plan, the present verdicts and how the last rollouts ended: the weights stand
over the steps, and each metric has one interval for each rollout. A recording of `sluice rollout watch -o json` has
every look: the weights and each metric's interval stand over time.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sluice_contracts.base import Contract, Timestamp, parse_timestamp
from sluice_contracts.inference_pool import MetricName, MetricVerdict, RolloutOutcome, Verdict

from sluice_operator.cli.errors import CliError
from sluice_operator.cli.objects import Pool
from sluice_operator.cli.rollout_text import as_percent, effect_text, interval_text, step
from sluice_operator.cli.state import headline

LAST_SHARE = 0.04
"""Of a recording's time that is drawn after its last look, so that the weights it ended with can be seen."""
UNITS = ((3600, "hours"), (60, "minutes"), (1, "seconds"))
RECORDS = 6
"""Earlier rollouts drawn beside the present one."""


@dataclass(frozen=True)
class Level:
    """The candidate's share of the traffic over a stretch of the x axis."""

    begin: float
    end: float
    percent: float
    reached: bool
    """False: planned."""


@dataclass(frozen=True)
class Mark:
    """One verdict's numbers, in the unit that is shown."""

    x: float
    effect: float | None
    low: float | None
    """None: not bounded below."""
    high: float | None
    verdict: Verdict


@dataclass(frozen=True)
class Axis:
    """What stands below a panel."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    label: str


@dataclass(frozen=True)
class Metric:
    """One metric's panel."""

    name: str
    unit: str
    tolerance: float | None
    series: tuple[Mark, ...]
    joined: bool
    """The marks follow one another in one rollout, so that a band joins them; else each is a rollout of its own."""
    verdict: Verdict
    caption: str


@dataclass(frozen=True)
class Picture:
    """All panels."""

    title: str
    subtitle: str
    weights: tuple[Level, ...]
    weights_axis: Axis
    metrics: tuple[Metric, ...]
    metrics_axis: Axis


class Look(Contract):
    """One line of a recording: what a plot needs of it."""

    at: Timestamp
    candidate: str | None = None
    """The ModelVersion on trial."""
    weights: dict[str, int] = {}
    verdicts: list[MetricVerdict] = []


def picture(pool: Pool, looks: Sequence[Look], now: datetime) -> Picture:
    """The picture of a pool's rollout: over time if it was recorded, else over its steps. Raises CliError."""
    return _over_time(pool, looks) if looks else _over_steps(pool, now)


def _over_time(pool: Pool, looks: Sequence[Look]) -> Picture:
    """The last rollout of the recording, from its first look until a look without it, which shows how it ended."""
    last = next((i for i in reversed(range(len(looks))) if looks[i].candidate is not None), None)
    if last is None:
        raise CliError("the recording has no rollout in it: start `sluice rollout watch -o json` before, or during one")
    name = looks[last].candidate
    first = last
    while first > 0 and looks[first - 1].candidate == name:
        first -= 1
    mine = looks[first : last + 2]
    begin = parse_timestamp(mine[0].at)
    times = [(parse_timestamp(look.at) - begin).total_seconds() for look in mine]
    unit, word = next((u, w) for u, w in UNITS if times[-1] >= 3 * u or u == 1)
    xs = [t / unit for t in times]
    end = (xs[-1] or 1.0) * (1 + LAST_SHARE)
    shares = [float(look.weights.get(name or "", 0)) for look in mine]
    levels = _levels(xs, shares, end)
    axis = Axis(0, end, _round_ticks(end), f"{word} since {mine[0].at[:16].replace('T', ' ')} UTC")
    names = dict.fromkeys(v.name for look in mine for v in look.verdicts)
    judged = list(zip(xs, mine, strict=True))
    found = {name: [(x, v) for x, look in judged for v in look.verdicts if v.name is name] for name in names}
    metrics = tuple(_metric(pool, name, marks, True) for name, marks in found.items())
    turned = "" if mine[-1].candidate is not None else f"; ended with {shares[-1]:.0f} % of the traffic"
    title = f"{pool.name}: rollout of {name}"
    return Picture(title, f"{len(mine)} looks recorded{turned}", levels, axis, metrics, axis)


def _over_steps(pool: Pool, now: datetime) -> Picture:
    """What the status says: the plan and how far it came; each metric's last interval of the last rollouts."""
    status, steps = pool.status, pool.spec.rollout.steps
    judged = [r for r in status.history if r.verdicts][-RECORDS:]
    columns = [(f"{r.model_version}\n{r.outcome.value}", r.verdicts) for r in judged]
    if status.candidate is not None and status.verdicts:
        columns.append((f"{status.candidate.model_version}\nnow", status.verdicts))
    if not columns and status.candidate is None:
        raise CliError(
            f"nothing to plot: no rollout of {pool} has been judged yet; set spec.modelVersion to a new version to "
            "begin one, and record it with `sluice rollout watch -o json`"
        )
    names = dict.fromkeys(v.name for _, verdicts in columns for v in verdicts)
    found = {
        name: [(i + 0.5, v) for i, (_, verdicts) in enumerate(columns) for v in verdicts if v.name is name]
        for name in names
    }
    places = [*(str(i + 1) for i in range(len(steps))), "stable"]
    return Picture(
        f"{pool.name}: {headline(pool).plain}, {pool.spec.model_version} wanted",
        f"{_progress(pool)}; as of {now:%Y-%m-%d %H:%M} UTC",
        tuple(Level(i, i + 1, percent, i < _reached(pool)) for i, percent in enumerate([*steps, 100])),
        Axis(0, len(places), tuple((i + 0.5, name) for i, name in enumerate(places)), "step"),
        tuple(_metric(pool, name, marks, False) for name, marks in found.items()),
        Axis(0, max(1, len(columns)), tuple((i + 0.5, name) for i, (name, _) in enumerate(columns)), ""),
    )


def _reached(pool: Pool) -> int:
    """How many of the steps, and being stable after them, the last rollout is known to have reached. How far one came
    that was refused, the status does not say."""
    status = pool.status
    if status.candidate is not None:
        return 0 if status.step is None else status.step + 1
    promoted = bool(status.history) and status.history[-1].outcome is RolloutOutcome.PROMOTED
    return len(pool.spec.rollout.steps) + 1 if promoted else 0


def _progress(pool: Pool) -> str:
    if pool.status.candidate is not None:
        return f"step {step(pool)}"
    return f"{pool.status.stable.model_version if pool.status.stable else 'nothing'} serves"


def _metric(pool: Pool, name: MetricName, found: Iterable[tuple[float, MetricVerdict]], joined: bool) -> Metric:
    marks = list(found)
    last = marks[-1][1]
    scale = 100.0 if as_percent(name) else 1.0
    tolerance = next((m.tolerance * scale for m in pool.spec.rollout.metrics if m.name is name), None)
    caption = (
        f"{effect_text(name, last.effect)} {interval_text(last)}  n = {last.samples:,}"
        if last.effect is not None
        else "no data"
    )
    series = tuple(
        Mark(x, _scaled(v.effect, scale), _scaled(v.low, scale), _scaled(v.high, scale), v.verdict) for x, v in marks
    )
    title = f"{name.value} (dry run)" if last.dry_run else name.value
    return Metric(title, "%" if scale == 100 else "", tolerance, series, joined, last.verdict, caption)


def _scaled(value: float | None, scale: float) -> float | None:
    return None if value is None else value * scale


def _levels(xs: Sequence[float], shares: Sequence[float], end: float) -> tuple[Level, ...]:
    """Stretches of equal weight; each share holds until the next look."""
    found: list[Level] = []
    for x, share, after in zip(xs, shares, [*xs[1:], end], strict=True):
        if found and found[-1].percent == share:
            found[-1] = Level(found[-1].begin, after, share, True)
        else:
            found.append(Level(x, after, share, True))
    return tuple(found)


def _round_ticks(end: float) -> tuple[tuple[float, str], ...]:
    return tuple((x, f"{x:g}") for x in ticks(0, end, 5))


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) between `low` and `high`, `about` so many."""
    rough = (high - low) / max(1, about)
    power = 10.0 ** _exponent(rough)
    distance = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)
    first = -(-low // distance)
    found = []
    while (x := round(first * distance, 10)) <= high + distance * 1e-9:
        found.append(x + 0.0)
        first += 1
    return found


def _exponent(value: float) -> int:
    """The power of ten at or below a positive value."""
    return int(f"{value:e}".partition("e")[2])
