"""How often a canary that is looked at every interval cries wolf, and how soon it catches a version that is bad.

Simulated requests fail independently with known probabilities; our own `sluice_operator.analysis.judge` sees their
counts after every interval, as in a rollout, and so do the rules that other systems use. An alarm at any look ends the
rollout: that is what makes looking often dangerous.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from math import log, sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from sluice_contracts.analysis import VersionCounts
from sluice_contracts.inference_pool import MetricName, RolloutMetric, Verdict
from sluice_operator.analysis import judge

from benchmarks.record import Report

CONFIDENCE = 0.95
Z = NormalDist().inv_cdf(CONFIDENCE)
SEED = 20_261_121
NOTHING = 1e-9
"""The smallest tolerance: is the candidate worse at all?"""
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Look:
    """What is known at one look: all requests so far, and those of the last interval."""

    errors: int
    requests: int
    stable_errors: int
    stable_requests: int
    interval_errors: int
    interval_requests: int


Rule = Callable[[Look, float], bool]
"""Whether the look alarms, given the tolerance."""


def sluice(look: Look, tolerance: float) -> bool:
    """Our verdict."""
    metric = RolloutMetric(name=MetricName.ERROR_RATE, tolerance=tolerance)
    stable = VersionCounts(requests=look.stable_requests, errors=look.stable_errors)
    candidate = VersionCounts(requests=look.requests, errors=look.errors)
    return judge([metric], stable, candidate, CONFIDENCE)[0].verdict is Verdict.HARMFUL


def threshold(look: Look, tolerance: float) -> bool:
    """The usual rule of rollout controllers: the last interval's error rate is above a fixed bound."""
    bound = look.stable_errors / look.stable_requests + tolerance
    return look.interval_errors / look.interval_requests > bound


def z_test(look: Look, tolerance: float) -> bool:
    """The textbook test of two proportions, one-sided at 5 %, made for one look and used at each."""
    a, b = look.errors / look.requests, look.stable_errors / look.stable_requests
    spread = sqrt(a * (1 - a) / look.requests + b * (1 - b) / look.stable_requests)
    return spread > 0 and look.errors >= 5 and (a - b - tolerance) / spread > Z


RULES: dict[str, Rule] = {"Sluice": sluice, "fixed threshold": threshold, "z-test at every look": z_test}
STRIKES = "threshold, 5 strikes"
SHOWN = (*RULES, STRIKES, "z-test, one look")


def alarms(
    rng: np.random.Generator, rollouts: int, looks: int, per_look: int, rates: tuple[float, float], tolerance: float
) -> dict[str, float]:
    """The share of rollouts in which each rule alarms at one of the looks, and the z-test at the last one only.

    Stable answers three times as many requests as the candidate: a rollout's step at 25 %.
    """
    counts = {name: 0 for name in SHOWN}
    for _ in range(rollouts):
        mine = rng.binomial(per_look, rates[1], looks)
        theirs = rng.binomial(3 * per_look, rates[0], looks)
        story = list(_looks(mine, theirs, per_look))
        for name, rule in RULES.items():
            counts[name] += any(rule(look, tolerance) for look in story)
        counts[STRIKES] += sum(threshold(look, tolerance) for look in story) >= 5
        counts["z-test, one look"] += z_test(story[-1], tolerance)
    return {name: n / rollouts for name, n in counts.items()}


def _looks(mine: Counts, theirs: Counts, per_look: int) -> list[Look]:
    errors, stable = np.cumsum(mine), np.cumsum(theirs)
    return [
        Look(int(errors[i]), per_look * (i + 1), int(stable[i]), 3 * per_look * (i + 1), int(mine[i]), per_look)
        for i in range(len(mine))
    ]


def until_caught(rng: np.random.Generator, rollouts: int, rates: tuple[float, float], limit: int) -> dict[str, Counts]:
    """Candidate's requests until its harm is known, a rollout; `limit` where it never was. A look every 10 requests."""
    step, looks = 10, limit // 10
    found: dict[str, list[int]] = {"Sluice, tolerance 2 points": [], "Sluice, any harm": [], "Wald's SPRT": []}
    for _ in range(rollouts):
        story = _looks(rng.binomial(step, rates[1], looks), rng.binomial(3 * step, rates[0], looks), step)
        found["Sluice, tolerance 2 points"].append(_first(story, lambda look: sluice(look, 0.02), limit))
        found["Sluice, any harm"].append(_first(story, lambda look: sluice(look, NOTHING), limit))
        found["Wald's SPRT"].append(_first(story, lambda look: sprt(look, rates), limit))
    return {name: np.array(values) for name, values in found.items()}


def sprt(look: Look, rates: tuple[float, float], miss: float = 0.05) -> bool:
    """Wald's sequential probability ratio test. It is told both rates, which no canary knows; nothing needs fewer
    requests at equal error rates (Wald and Wolfowitz, 1948)."""
    good, bad = rates
    fine = look.requests - look.errors
    ratio = look.errors * log(bad / good) + fine * log((1 - bad) / (1 - good))
    return ratio >= log((1 - miss) / (1 - CONFIDENCE))


def _first(story: list[Look], alarm: Callable[[Look], bool], limit: int) -> int:
    return next((look.requests for look in story if alarm(look)), limit)


def fixed_sample_size(rates: tuple[float, float], power: float = 0.95) -> int:
    """Candidate's requests that the z-test with one look needs to find this difference with this power, with three
    times as many of stable."""
    good, bad = rates
    variance = bad * (1 - bad) + good * (1 - good) / 3
    return round((Z + NormalDist().inv_cdf(power)) ** 2 * variance / (bad - good) ** 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rollouts", type=int, default=800, help="simulated rollouts a row")
    parser.add_argument("--looks", type=int, default=60, help="looks a rollout")
    parser.add_argument("--requests", type=int, default=50, help="candidate's requests between two looks")
    options = parser.parse_args()
    rng = np.random.default_rng(SEED)

    wolf = Report(
        "canary_false_alarms",
        f"False alarms: share of {options.rollouts} rollouts stopped for no reason, {options.looks} looks each",
        ["situation", *SHOWN],
        packages=["numpy", "sluice-operator"],
    )
    cases = [
        ("same version twice, 2 % errors; worse by 2 points?", (0.02, 0.02), 0.02),
        ("same version twice, 2 % errors; worse at all?", (0.02, 0.02), NOTHING),
        ("worse by just the tolerance, 2 % -> 4 %; by more?", (0.02, 0.04), 0.02),
    ]
    for situation, rates, tolerance in cases:
        shares = alarms(rng, options.rollouts, options.looks, options.requests, rates, tolerance)
        wolf.add(situation=situation, stable=rates[0], candidate=rates[1], tolerance=tolerance)
        wolf.rows[-1].update(shares)
    wolf.notes = [
        f"{options.requests} requests of the candidate and {3 * options.requests} of stable between looks",
        "0.05 is allowed; Sluice stays far below, which costs it requests (the second table)",
        "fixed threshold: the last interval's rate above stable's plus the tolerance, at one strike or at five in all",
    ]
    wolf.finish()

    rates = (0.01, 0.05)
    catch = Report(
        "canary_samples",
        "Catching a version whose errors rise from 1 % to 5 %: candidate's requests until it is known",
        ["rule", "median", "90 % within", "never"],
        packages=["numpy", "sluice-operator"],
    )
    limit = 4000
    for rule, needed in until_caught(rng, max(1, options.rollouts // 4), rates, limit).items():
        catch.add(rule=rule, median=int(np.median(needed)), never=float(np.mean(needed >= limit)))
        catch.rows[-1]["90 % within"] = int(np.quantile(needed, 0.9))
    size = fixed_sample_size(rates)
    catch.add(rule="z-test, one look (95 % power)", median=size, never=0.05)
    catch.rows[-1]["90 % within"] = size
    catch.notes = [
        "Wald's SPRT is told both rates; Sluice knows neither and estimates stable's from live traffic beside it",
        "the z-test may look once, at a number of requests fixed beforehand: a bad version is served until then",
    ]
    catch.finish()


if __name__ == "__main__":
    main()
