"""What has moved, by how much, and since when: from kept counts to something to read. Pure."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from sluice_contracts.drift import Drift

from sluice_serving.gateway.drift.cells import Cell, History, Window, day_before, windows
from sluice_serving.gateway.drift.features import FEATURES
from sluice_serving.gateway.drift.psi import Comparison, Level, compare

TREND_DAYS = 14
SINCE_DAYS = 90
"""How far back the beginning of a drift is looked for."""
SHOWN, WORTH_SHOWING = 3, 0.05
"""Bins in the table: so many at most, each with so much of the PSI at least."""
SHIFTED = frozenset({Level.MODERATE, Level.MAJOR})
BLOCKS = "▁▂▃▄▅▆▇█"
HEADINGS = ("VERSION", "FEATURE", "PSI", "CHANCE", "LEVEL", "SINCE", f"LAST {TREND_DAYS} DAYS", "MOVED MOST")


@dataclass(frozen=True)
class Finding:
    """One feature of one version."""

    version: str
    feature: str
    comparison: Comparison
    since: str | None = None
    """The first day of the unbroken run of days at which it had moved; undecided days break no run."""
    trend: tuple[float | None, ...] = ()
    """PSI at each of the last days, oldest first; None where undecided."""


@dataclass(frozen=True)
class Report:
    """Of one pool."""

    pool: str
    last_day: str | None
    """The last day that is over and has counts; None: none has."""
    window: Window | None = None
    reference: Window | None = None
    findings: tuple[Finding, ...] = ()


def needed_from(last: str, settings: Drift, trend: int) -> str:
    """The first day whose counts a report that ends with `last` needs, so many days of trend included."""
    return day_before(last, trend + settings.window_days + settings.reference.days)


def spared(settings: Drift) -> tuple[str, str] | None:
    """The days of a fixed reference, which are kept however old."""
    fixed = settings.reference
    return (fixed.first_day, fixed.last_day) if fixed.first_day and fixed.last_day else None


def make_report(
    pool: str, cells: Iterable[Cell], settings: Drift, *, last: str | None = None, trend: int = SINCE_DAYS
) -> Report:
    """The report of the day `last`, or of the last that has counts. `trend` 0 leaves out what came before."""
    history = History.of(cells)
    found = [day for day in history.days() if last is None or day <= last]
    if not found:
        return Report(pool, None)
    end = last or found[-1]
    now, reference = windows(end, None, settings.window_days, settings.reference)
    findings = []
    for version in history.versions(now):
        for feature in FEATURES:
            if feature in history.by_feature:
                at = _compare(history, feature, version, end, settings)
                if at.n:
                    findings.append(_finding(history, feature, version, end, at, settings, trend))
    return Report(pool, end, now, reference, tuple(findings))


def _compare(history: History, feature: str, version: str, day: str, settings: Drift) -> Comparison:
    now, reference = windows(day, version, settings.window_days, settings.reference)
    return compare(
        history.sample(feature, reference), history.sample(feature, now), settings.thresholds, settings.min_samples
    )


def _finding(
    history: History, feature: str, version: str, end: str, at: Comparison, settings: Drift, trend: int
) -> Finding:
    values, since = [at.psi], end if at.level in SHIFTED else None
    running = since is not None
    for back in range(1, trend):
        if not running and back >= TREND_DAYS:
            break
        day = day_before(end, back)
        then = _compare(history, feature, version, day, settings)
        if back < TREND_DAYS:
            values.append(then.psi)
        if then.level is Level.STABLE:
            running = False
        elif running and then.level in SHIFTED:
            since = day
    return Finding(version, feature, at, since, tuple(reversed(values)))


def as_json(report: Report, settings: Drift) -> dict[str, Any]:
    """For programs: everything, names in camelCase as elsewhere on the wire."""
    return {
        "pool": report.pool,
        "window": None if report.window is None else {"first": report.window.first, "last": report.window.last},
        "reference": None
        if report.reference is None
        else {
            "first": report.reference.first,
            "last": report.reference.last,
            "modelVersion": report.reference.version,
        },
        "thresholds": settings.thresholds.wire(),
        "minSamples": settings.min_samples,
        "findings": [
            {
                "version": one.version,
                "feature": one.feature,
                "level": one.comparison.level.value,
                "psi": _rounded(one.comparison.psi),
                "chance": _rounded(one.comparison.chance),
                "since": one.since,
                "requests": round(one.comparison.n),
                "referenceRequests": round(one.comparison.reference_n),
                "trend": [_rounded(value) for value in one.trend],
                "bins": [{k: _rounded(v) for k, v in asdict(moved).items()} for moved in one.comparison.moved],
            }
            for one in report.findings
        ],
    }


def _rounded(value: Any) -> Any:
    return round(value, 6) if isinstance(value, float) else value


def as_text(report: Report, settings: Drift) -> str:
    """For people: what has moved first."""
    if report.window is None or report.reference is None:
        return f"{report.pool}: no day with counts yet; a day is shown once it is over\n"
    rows: list[tuple[str, ...]] = [HEADINGS]
    order = [Level.MAJOR, Level.MODERATE, Level.STABLE, Level.UNDECIDED]
    for one in sorted(report.findings, key=lambda f: (order.index(f.comparison.level), f.version)):
        rows.append(_row(one, settings))
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADINGS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([_summary(report, settings), "", *lines]) + "\n"


def _summary(report: Report, settings: Drift) -> str:
    assert report.window is not None
    assert report.reference is not None
    shifted = [f for f in report.findings if f.comparison.level in SHIFTED]
    decided = [f for f in report.findings if f.comparison.level is not Level.UNDECIDED]
    limits = settings.thresholds
    what = f"{len(shifted)} of {len(decided)} features moved" if decided else "too few requests to tell"
    undecided = len(report.findings) - len(decided)
    if decided and undecided:
        what += f", {undecided} undecided"
    return (
        f"{report.pool}: {_span(report.window)} against {_span(report.reference)}"
        f"{'' if report.reference.version is None else f' of {report.reference.version}'}: {what}\n"
        f"moderate from {limits.moderate:g}, major from {limits.major:g}; "
        f"undecided under {settings.min_samples} requests; "
        "chance: what 1 in 100 days reaches where nothing changed"
    )


def _span(window: Window) -> str:
    return window.last if window.first == window.last else f"{window.first} to {window.last}"


def _row(one: Finding, settings: Drift) -> tuple[str, ...]:
    at = one.comparison
    if at.psi is None or at.chance is None:
        counted = f"{at.n:.0f} requests, {at.reference_n:.0f} in the reference"
        return one.version, one.feature, "-", "-", at.level.value, "", _blocks(one.trend, settings), counted
    large = [m for m in at.moved[:SHOWN] if m.part >= WORTH_SHOWING * at.psi]
    moved = [f"{m.bin} {_percent(m.reference)} -> {_percent(m.now)}" for m in large]
    psi, chance = f"{at.psi:.3f}", f"{at.chance:.3f}"
    trend = _blocks(one.trend, settings)
    told = ", ".join(moved) if at.level in SHIFTED else ""
    return one.version, one.feature, psi, chance, at.level.value, one.since or "", trend, told


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.1 or share == 0 else f"{share:.1%}"


def _blocks(values: Iterable[float | None], settings: Drift) -> str:
    """One block a day: the highest from `major` on, a dot where undecided."""
    highest = settings.thresholds.major
    return "".join(
        "." if value is None else BLOCKS[min(len(BLOCKS) - 1, int(value / highest * (len(BLOCKS) - 1)))]
        for value in values
    )
