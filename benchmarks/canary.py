"""How often a canary that is looked at after every request cries wolf, and how soon it catches a version that is bad.

Simulated requests of two versions, three of stable to one of the candidate, as at a step of 25 %. The same rollouts are
judged by our own `sluice_operator.analysis` and by the rules of other systems: a fixed threshold on each interval's
figure with a number of failures that are borne, as Argo Rollouts and Flagger have it, and Wald's SPRT, which is told
both rates. An alarm at any look ends a rollout: that is what makes looking often dangerous.

Sluice's verdict is asked for at every look at which it can be one of harm at all: the e-process is the least over all
possible rates, so it can only be large where the stake at one certain rate is, and that is computed for all rollouts at
once. Everything that decides is the product's own code.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import expm1, log, log1p
from pathlib import Path
from statistics import NormalDist

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from sluice_contracts.analysis import LATENCY_EDGES, REQUEST_BYTES_EDGES, TOKEN_EDGES, Shape, VersionCounts
from sluice_contracts.inference_pool import MetricName, RolloutMetric, Verdict
from sluice_operator.analysis import judge
from sluice_operator.analysis.e_process import Stream, bets, log_evidence
from sluice_operator.analysis.quantiles import Survival, log_evidence_above
from sluice_operator.analysis.shapes import log_evidence_apart
from sluice_operator.analysis.strata import log_harm

from benchmarks.record import RESULTS, Report

mpl.use("Agg")
from matplotlib import pyplot as plt

ALPHA = 0.05
BOUND = log(1 / ALPHA)
SEED = 20_261_121
RATIO = 3
"""Stable's requests for one of the candidate's."""
INTERVAL = 200
"""Candidate's requests in an interval of the fixed-threshold rules."""
GOOD, BAD = 0.01, 0.02
NOTHING = 1e-9
"""A tolerance of nothing: is the candidate worse at all?"""
SIGMA, MEDIAN = 0.4, 0.15
"""Times to the first token: log-normal."""
P95 = 0.95
Ints = NDArray[np.int64]
RULES = ("Sluice", "Argo failureLimit 0", "Argo failureLimit 3", "Flagger threshold 5")
STRIKES = dict(zip(RULES[1:], (1, 4, 5), strict=True))


@dataclass(frozen=True)
class Rollouts:
    """Running totals of errors of many rollouts at their looks: (rollout, look)."""

    k: Ints
    n: Ints
    """The candidate's requests at each look."""
    stable_k: Ints
    stable_n: Ints


def looked_at_after_every_request(rng: np.random.Generator, rollouts: int, requests: int, rate: float) -> Rollouts:
    """A/A: every fourth request is the candidate's."""
    mine = np.arange(requests) % (RATIO + 1) == RATIO
    failed = rng.random((rollouts, requests)) < rate
    return Rollouts(
        np.cumsum(failed & mine, axis=1), np.cumsum(mine), np.cumsum(failed & ~mine, axis=1), np.cumsum(~mine)
    )


def looked_at_every(
    rng: np.random.Generator, step: int, rollouts: int, limit: int, rates: tuple[float, float], ratio: int = RATIO
) -> Rollouts:
    """A look after every `step` requests of the candidate, up to `limit`; rates of stable and candidate."""
    looks = limit // step
    n = step * np.arange(1, looks + 1)
    return Rollouts(
        np.cumsum(rng.binomial(step, rates[1], (rollouts, looks)), axis=1),
        n,
        np.cumsum(rng.binomial(step * ratio, rates[0], (rollouts, looks)), axis=1),
        n * ratio,
    )


def sluice(found: Rollouts, at_rate: float) -> Ints:
    """The first look at which the error rate is harmful, for each rollout; -1 for none."""
    hopeful = possible(found, at_rate)
    first = np.full(len(found.k), -1)
    for i in range(len(found.k)):
        for look in np.flatnonzero(hopeful[i]):
            mine = Stream(int(found.k[i, look]), int(found.n[look]))
            theirs = Stream(int(found.stable_k[i, look]), int(found.stable_n[look]))
            if log_evidence(mine, theirs, NOTHING, minority_up=True, enough=BOUND) >= BOUND:
                first[i] = look
                break
    return first


def possible(found: Rollouts, rate: float) -> NDArray[np.bool_]:
    """Where the stake, were both versions' rate `rate`, is large enough: nowhere else can the least stake be."""
    large = np.zeros(found.k.shape, dtype=bool)
    for rows in np.array_split(np.arange(len(found.k)), max(1, found.k.size // 2_000_000)):
        stake = np.zeros((len(rows), found.k.shape[1]))
        for bet in bets(True):
            part = (
                bet.log_share - found.n * log1p(rate * expm1(bet.up)) - found.stable_n * log1p(rate * expm1(-bet.low))
            )
            stake += np.exp(np.minimum(part + found.k[rows] * bet.up - found.stable_k[rows] * bet.low, 50))
        large[rows] = stake >= np.exp(BOUND) * (1 - 1e-6)
    return large


def fixed_threshold(per_interval: NDArray[np.bool_], strikes: int) -> Ints:
    """The first interval with which `strikes` have failed their check; -1 for none."""
    out = np.cumsum(per_interval, axis=1) >= strikes
    return np.where(out.any(axis=1), out.argmax(axis=1), -1)


def sprt(found: Rollouts, null: tuple[float, float], rates: tuple[float, float], alpha: float, miss: float) -> Ints:
    """Wald's sequential probability ratio test of `null` against `rates` (both of stable, candidate): the look at
    which it ends, as look + 1 for an alarm and -(look + 1) for an acquittal; 0 if it does not."""
    ratio = 0.0
    for k, n, good, bad in (
        (found.stable_k, found.stable_n, null[0], rates[0]),
        (found.k, found.n, null[1], rates[1]),
    ):
        ratio = ratio + k * log(bad / good) + (n - k) * log((1 - bad) / (1 - good))
    up, down = ratio >= log((1 - miss) / alpha), ratio <= log(miss / (1 - alpha))
    ended = up | down
    at = ended.argmax(axis=1)
    sign = np.where(up[np.arange(len(at)), at], 1, -1)
    return np.where(ended.any(axis=1), sign * (at + 1), 0)


def samples(first: Ints, n: Ints) -> Ints:
    """The candidate's requests until the end; all of them where there was none."""
    return np.where(first >= 0, n[np.maximum(first, 0)], n[-1])


# -- times to the first token -----------------------------------------------------------------------------------------


def buckets(rng: np.random.Generator, shape: tuple[int, ...], slowness: float = 1.0) -> Ints:
    """Times to the first token, as buckets of the product's histogram."""
    seconds = rng.lognormal(log(MEDIAN * slowness), SIGMA, shape)
    return np.searchsorted(LATENCY_EDGES, seconds).astype(np.int16)


def survival(values: Ints) -> Survival:
    """The product's view of these buckets."""
    return Survival(np.bincount(values, minlength=len(LATENCY_EDGES) + 1).tolist())


def slow(mine: Ints, theirs: Ints, tolerance: float) -> bool:
    """Whether the candidate's p95 is harmful, on its own at level ALPHA."""
    return log_evidence_above(survival(mine), survival(theirs), 1 + tolerance, P95, futile=BOUND) >= BOUND


def ttft_false_alarms(rng: np.random.Generator, rollouts: int, requests: int) -> float:
    """A/A, looked at after every request. At the true quantile both versions' shares above it are known to be equal, so
    the stake there shows where an alarm is possible; the product then judges the histograms."""
    alarms = 0
    chunk = 500
    mine_at = np.arange(requests) % (RATIO + 1) == RATIO
    edge = int(np.searchsorted(LATENCY_EDGES, MEDIAN * np.exp(SIGMA * 1.6449)))
    for begin in range(0, rollouts, chunk):
        values = buckets(rng, (min(chunk, rollouts - begin), requests))
        place = _smoothed_place(edge)
        part = np.clip((values - edge).astype(float), -1, 1)
        above = np.where(part > 0, 1.0, np.where(part == 0, 1 - place, 0.0))
        k, stable_k = np.cumsum(above * mine_at, axis=1), np.cumsum(above * ~mine_at, axis=1)
        n, stable_n = np.cumsum(mine_at), np.cumsum(~mine_at)
        rate = 1 - P95
        stake = np.zeros(values.shape)
        for bet in bets(True):
            fixed = bet.log_share - n * log1p(rate * expm1(bet.up)) - stable_n * log1p(rate * expm1(-bet.low))
            stake += np.exp(np.minimum(fixed + k * bet.up - stable_k * bet.low, 50))
        maybe = stake >= np.exp(BOUND) * 0.98
        for i in np.flatnonzero(maybe.any(axis=1)):
            for t in np.flatnonzero(maybe[i]):
                seen = values[i, : t + 1]
                if slow(seen[mine_at[: t + 1]], seen[~mine_at[: t + 1]], NOTHING):
                    alarms += 1
                    break
    return alarms / rollouts


def _smoothed_place(edge: int) -> float:
    """Where inside bucket `edge` the 95th percentile of the smoothed distribution lies, as a share of the bucket."""
    normal = NormalDist(log(MEDIAN), SIGMA)
    below, above = normal.cdf(log(LATENCY_EDGES[edge - 1])), normal.cdf(log(LATENCY_EDGES[edge]))
    return (P95 - below) / (above - below)


def length_false_alarms(rng: np.random.Generator, rollouts: int, looks: int) -> float:
    """A/A for the distance of output lengths, looked at after every 40 requests, 10 of them the candidate's."""
    alarms = 0
    for _ in range(rollouts):
        tokens = np.searchsorted(TOKEN_EDGES, np.maximum(1, rng.exponential(80, (looks, 10 * (RATIO + 1)))))
        for look in range(1, looks + 1):
            mine, theirs = (
                np.bincount(part.ravel(), minlength=len(TOKEN_EDGES) + 1).tolist()
                for part in (tokens[:look, :10], tokens[:look, 10:])
            )
            evidence = log_evidence_apart(mine, theirs, NOTHING)
            if log_harm(evidence, [evidence], 0.0) >= BOUND:
                alarms += 1
                break
    return alarms / rollouts


def ttft_rollouts(
    rng: np.random.Generator, rollouts: int, intervals: int, slowness: float, tolerance: float
) -> dict[str, Ints]:
    """The interval at which each rule stops, by rule; -1 for none."""
    first = np.full(rollouts, -1)
    failed = np.zeros((rollouts, intervals), dtype=bool)
    for i in range(rollouts):
        mine = buckets(rng, (intervals, INTERVAL), slowness)
        theirs = buckets(rng, (intervals, INTERVAL * RATIO))
        for look in range(intervals):
            high, base = (survival(values[look]).quantile(P95) for values in (mine, theirs))
            failed[i, look] = (LATENCY_EDGES[1] / LATENCY_EDGES[0]) ** (high - base) > 1 + tolerance
            if first[i] < 0 and slow(mine[: look + 1].ravel(), theirs[: look + 1].ravel(), tolerance):
                first[i] = look
    return {"Sluice": first, **{name: fixed_threshold(failed, strikes) for name, strikes in STRIKES.items()}}


# -- a shift of traffic -----------------------------------------------------------------------------------------------


def shifting(rng: np.random.Generator) -> Iterator[tuple[VersionCounts, VersionCounts, bool]]:
    """One rollout of equal versions through 5, 25 and 50 % while requests grow long: long ones take three times as long
    to the first token and are answered at three times the length. At each look all counts so far, and whether the last
    interval's p95 was above stable's by a tenth or more."""
    candidate, stable = (
        VersionCounts(by_length=[Shape() for _ in range(len(REQUEST_BYTES_EDGES) + 1)]) for _ in range(2)
    )
    for percent, long in zip((5, 5, 25, 25, 50, 50), (0.01, 0.02, 0.1, 0.2, 0.4, 0.5), strict=True):
        high = []
        for version, n in ((candidate, percent * 20), (stable, (100 - percent) * 20)):
            is_long = rng.random(n) < long
            factor = np.where(is_long, 3.0, 1.0)
            seconds = rng.lognormal(log(MEDIAN), SIGMA, n) * factor
            tokens = np.maximum(1, rng.exponential(60, n) * factor)
            high.append(np.quantile(seconds, P95))
            version.requests += n
            for second, token, bucket in zip(seconds, tokens, is_long * 2, strict=True):
                for shape in (version, version.by_length[int(bucket)]):
                    shape.ttft.observe(LATENCY_EDGES, float(second))
                    shape.output_tokens.observe(TOKEN_EDGES, float(token))
        yield stable, candidate, bool(high[0] > 1.1 * high[1])


def shift_alarms(rng: np.random.Generator, rollouts: int) -> dict[str, float]:
    """The share of rollouts that each rule stops, though nothing is wrong. `pooled` is Sluice without its buckets."""
    metrics = [
        RolloutMetric(name=MetricName.TTFT_P95, tolerance=0.1),
        RolloutMetric(name=MetricName.OUTPUT_LENGTH, tolerance=0.05),
    ]
    stopped = dict.fromkeys((*RULES, "pooled"), 0)
    for _ in range(rollouts):
        failures, ours, pooled = 0, False, False
        for stable, candidate, failed in shifting(rng):
            failures += failed
            harmful = judge(metrics, stable, candidate, 1 - ALPHA)
            ours = ours or any(v.verdict is Verdict.HARMFUL for v in harmful)
        flat = [v.model_copy(update={"by_length": []}) for v in (stable, candidate)]
        pooled = any(v.verdict is Verdict.HARMFUL for v in judge(metrics, *flat, 1 - ALPHA))
        stopped["Sluice"] += ours
        stopped["pooled"] += pooled
        for name, strikes in STRIKES.items():
            stopped[name] += failures >= strikes
    return {name: n / rollouts for name, n in stopped.items()}


# -- tables and the plot ----------------------------------------------------------------------------------------------


def error_rate_rollouts(
    rng: np.random.Generator, rollouts: int, limit: int, rates: tuple[float, float]
) -> dict[str, tuple[Ints, Ints]]:
    """For each rule the first look that alarms and the candidate's requests at each look. The fixed threshold lies half
    way between the good rate and the bad one, and is looked at every INTERVAL; Sluice at every tenth request."""
    story = looked_at_every(rng, 10, rollouts, limit, rates)
    at = sum(a * w for a, w in zip(rates, (RATIO, 1), strict=True)) / (RATIO + 1)
    per = INTERVAL // 10
    ends = story.k[:, per - 1 :: per]
    failed = np.diff(ends, axis=1, prepend=0) > INTERVAL * (GOOD + BAD) / 2
    n = story.n[per - 1 :: per]
    return {
        "Sluice": (sluice(story, at), story.n),
        **{name: (fixed_threshold(failed, strikes), n) for name, strikes in STRIKES.items()},
    }


def compare_rules(rng: np.random.Generator, options: argparse.Namespace) -> dict[str, dict[str, tuple[Ints, Ints]]]:
    """The table of all rules on the same rollouts. Returns the error-rate rollouts for the plot."""
    table = Report(
        "canary",
        "Rollouts stopped, by rule, on the same simulated rollouts",
        ["rollouts", "worse?", *RULES, "Sluice median"],
        packages=["numpy", "sluice-operator"],
    )

    def add(name: str, worse: str, shares: dict[str, float], median: float | None, **more: object) -> None:
        table.add(rollouts=name, median=median)
        table.rows[-1].update({"worse?": worse, "Sluice median": median, **shares, **more})

    began = time.monotonic()
    every = looked_at_after_every_request(rng, options.rollouts, options.requests, GOOD)
    share = float(np.mean(sluice(every, GOOD) >= 0))
    add(f"errors 1 % and 1 %, a look after each of {options.requests:,}", "no", {"Sluice": share}, None,
        simulated=options.rollouts)  # fmt: skip
    share = ttft_false_alarms(rng, options.rollouts, options.requests)
    add(f"TTFT equal, a look after each of {options.requests:,}", "no", {"Sluice": share}, None,
        simulated=options.rollouts)  # fmt: skip
    share = length_false_alarms(rng, options.lengths, 50)
    add("output lengths equal, 50 looks at 2,000", "no", {"Sluice": share}, None, simulated=options.lengths)
    print(f"after every request: {time.monotonic() - began:.0f} s", flush=True)
    stories = {}
    for name, worse, rates in (
        ("errors 1 % and 1 %", "no", (GOOD, GOOD)),
        ("errors 1 % and 2 %", "yes", (GOOD, BAD)),
    ):
        stories[name] = error_rate_rollouts(rng, options.compared, options.limit, rates)
        shares = {rule: float(np.mean(first >= 0)) for rule, (first, _) in stories[name].items()}
        median = float(np.median(samples(*stories[name]["Sluice"]))) if worse == "yes" else None
        add(name, worse, shares, median, simulated=options.compared, limit=options.limit)
    print(f"error rates: {time.monotonic() - began:.0f} s", flush=True)
    intervals = options.slow // INTERVAL
    for name, worse, slowness in (("TTFT p95 equal", "no", 1.0), ("TTFT p95 20 % higher", "yes", 1.2)):
        found = ttft_rollouts(rng, options.latencies, intervals, slowness, 0.1)
        shares = {rule: float(np.mean(first >= 0)) for rule, first in found.items()}
        n = INTERVAL * np.arange(1, intervals + 1)
        add(name, worse, shares, float(np.median(samples(found["Sluice"], n))) if worse == "yes" else None,
            simulated=options.latencies, tolerance=0.1)  # fmt: skip
    print(f"latencies: {time.monotonic() - began:.0f} s", flush=True)
    shares = shift_alarms(rng, options.shifts)
    add("equal, requests grow long as the share grows", "no", shares, None, simulated=options.shifts)
    table.add(rollouts="no data")
    table.rows[-1].update({"worse?": "?", "Sluice": without_data()})
    table.notes = [
        "Sluice median: the candidate's requests until harm is known, rollouts without an alarm counted whole",
        f"errors and TTFT: {RATIO} requests of stable to one of the candidate; the fixed rules look every {INTERVAL} "
        "of the candidate's, Sluice as often (TTFT), every ten (errors) or after each; "
        f"up to {options.limit:,} (errors) or {options.slow:,} (TTFT)",
        "fixed rules: errors above 1.5 %, half way between right and wrong, which only who knows both can choose; the "
        "look's p95 more than 10 % above stable's. failureLimit: failed looks that are borne; threshold: that end it",
        "Sluice: errors worse at all; TTFT worse by more than 10 %; each alone at 5 %",
        f"requests grow long: Sluice without its buckets of like requests would stop {shares['pooled']:.0%}",
    ]
    table.finish()
    return stories


def without_data() -> str:
    """The verdict on nothing, and on nothing from one side."""
    metrics = [RolloutMetric(name=name, tolerance=0.1) for name in MetricName]
    some = VersionCounts(requests=1000, finish_reasons={"stop": 1000})
    found = {
        v.verdict.value
        for stable, candidate in ((VersionCounts(), VersionCounts()), (some, VersionCounts()), (VersionCounts(), some))
        for v in judge(metrics, stable, candidate, 1 - ALPHA)
    }
    return " or ".join(sorted(found))


WALD: tuple[tuple[int, tuple[float, float], int, int], ...] = (
    (1, (GOOD, BAD), 10, 6000),
    (3, (GOOD, BAD), 10, 4000),
    (9, (GOOD, BAD), 10, 3000),
    (3, (0.01, 0.015), 20, 16_000),
    (3, (0.1, 0.12), 20, 10_000),
    (3, (0.001, 0.02), 2, 1000),
    (3, (0.001, 1.0 - 1e-9), 1, 100),
)
"""Requests of stable for one of the candidate, their rates, candidate's requests between looks and in all."""


def compare_with_wald(rng: np.random.Generator, options: argparse.Namespace) -> None:
    """What not knowing the rates costs: at the doubled rate that most of the stake is on, and elsewhere."""
    report = Report(
        "canary_wald",
        "A higher error rate: candidate's requests until it is known, against Wald's SPRT",
        [
            *("rule", "rates", "stable : candidate", "false alarms", "found"),
            *("mean", "median", "mean ratio", "median ratio"),
        ],
        packages=["numpy", "sluice-operator"],
    )
    for ratio, (good, bad), step, limit in WALD:
        same = looked_at_every(rng, step, options.wald, limit, (good, good), ratio)
        worse = looked_at_every(rng, step, options.wald, limit, (good, bad), ratio)
        middle = (ratio * good + bad) / (ratio + 1)
        alarm = float(np.mean(sluice(same, good) >= 0))
        first = sluice(worse, middle)
        ours = samples(first, worse.n)
        power = float(np.mean(first >= 0))
        about = {"rates": f"{good:.3g} and {bad:.3g}", "stable : candidate": f"{ratio} : 1"}

        def add(
            rule: str, alarms: float, found: float, needed: Ints, about: dict[str, str] = about, ours: Ints = ours
        ) -> None:
            report.add(rule=rule, found=found, mean=float(needed.mean()), median=float(np.median(needed)))
            report.rows[-1].update(
                {
                    **about,
                    "false alarms": alarms,
                    "mean ratio": float(ours.mean() / needed.mean()),
                    "median ratio": float(np.median(ours) / np.median(needed)),
                }
            )

        add("Sluice", alarm, power, ours)
        both, one = (middle, middle), (good, good)
        cases: list[tuple[str, tuple[float, float], float, float]] = [
            ("SPRT, both streams, set to 5 % and 10 %", both, ALPHA, 0.1),
            ("SPRT, both streams, set to what Sluice reached", both, max(alarm, 1e-4), max(1 - power, 1e-3)),
            ("SPRT, stable's rate known too, 5 % and 10 %", one, ALPHA, 0.1),
        ]
        for name, null, alpha, miss in cases:
            ends = {kind: sprt(s, null, (good, bad), alpha, miss) for kind, s in (("same", same), ("worse", worse))}
            needed = np.where(ends["worse"] != 0, worse.n[np.abs(ends["worse"]) - 1], worse.n[-1])
            add(name, float(np.mean(ends["same"] > 0)), float(np.mean(ends["worse"] > 0)), needed)
    report.notes = [
        "ratio: Sluice's requests over the rule's. All rules look as often, every tenth request of the candidate at "
        "0.01 and 0.02, on the same rollouts, and are cut off at the same number",
        "both streams: the SPRT is told both rates, and tests them against the nearest equal ones; stable's rate "
        "known: against that rate for both, so that stable's requests say nothing. Sluice is told no rate at all",
    ]
    report.finish()


def plot(stories: dict[str, dict[str, tuple[Ints, Ints]]]) -> Path:
    """How the share of stopped rollouts grows, by rule: left where nothing is wrong, right where something is."""
    figure, panels = plt.subplots(1, len(stories), figsize=(10, 4), sharey=True, layout="constrained")
    for panel, (name, rules) in zip(panels, stories.items(), strict=True):
        for rule, (first, n) in rules.items():
            stopped = np.bincount(first[first >= 0], minlength=len(n)).cumsum() / len(first)
            panel.plot(n, 100 * stopped, label=rule, linewidth=2.5 if rule == "Sluice" else 1.2)
        panel.axhline(100 * ALPHA, color="grey", linewidth=0.8, linestyle=":")
        panel.set(title=name, xlabel="candidate's requests", ylim=(0, 100))
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("rollouts stopped, %")
    panels[-1].legend(loc="lower right", frameon=False)
    path = RESULTS / "canary.svg"
    figure.savefig(path)
    figure.savefig(path.with_suffix(".png"), dpi=150)
    plt.close(figure)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    whole: Callable[[str], int] = int
    parser.add_argument("--rollouts", type=whole, default=10_000, help="A/A rollouts looked at after every request")
    parser.add_argument("--requests", type=whole, default=4000, help="requests of both versions in each of them")
    parser.add_argument("--compared", type=whole, default=2000, help="rollouts judged by all rules, errors")
    parser.add_argument("--limit", type=whole, default=4000, help="candidate's requests in each of them")
    parser.add_argument("--latencies", type=whole, default=200, help="rollouts judged by all rules, TTFT")
    parser.add_argument("--slow", type=whole, default=6000, help="candidate's requests in each of them")
    parser.add_argument("--lengths", type=whole, default=500, help="A/A rollouts for output lengths")
    parser.add_argument("--shifts", type=whole, default=40, help="rollouts with a shift of traffic")
    parser.add_argument("--wald", type=whole, default=2000, help="rollouts beside Wald's SPRT, each")
    options = parser.parse_args()
    rng = np.random.default_rng(SEED)
    RESULTS.mkdir(exist_ok=True)
    stories = compare_rules(rng, options)
    print(f"plotted in {plot(stories).relative_to(RESULTS.parents[1])} and .png", flush=True)
    compare_with_wald(rng, options)


if __name__ == "__main__":
    main()
