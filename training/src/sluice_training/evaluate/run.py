"""Asking a model all held-out questions and counting."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sluice_contracts.evaluation import MetricValue, SampleOutcome, SuiteResult
from sluice_contracts.names import Domain, Suite

from sluice_training.evaluate import suites
from sluice_training.evaluate.statistics import wilson
from sluice_training.evaluate.suites import TestCase
from sluice_training.model.chat import ChatTokenizer
from sluice_training.model.generate import greedy
from sluice_training.model.llama import Llama

MAX_TOKENS = 48
"""Longer than any right answer: what goes on after this is wrong anyway."""


@dataclass(frozen=True)
class Evaluated:
    """Results of all suites, each answer's outcome among them."""

    suites: list[SuiteResult]
    samples: list[SampleOutcome]
    answers: dict[str, str]
    """Case id to what the model said."""

    def samples_file(self) -> bytes:
        """samples.jsonl."""
        return b"".join(sample.canonical() + b"\n" for sample in self.samples)


def evaluate(
    model: Llama,
    tokenizer: ChatTokenizer,
    wanted: Sequence[Suite],
    examples: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluated:
    """Run the suites, `examples` cases each, greedily. `on_progress` is told (done, total)."""
    tests = [case for suite in wanted for case in suites.cases(suite, examples)]
    prompts = [tokenizer.prompt(case.row.messages[:-1]) for case in tests]
    report = None if on_progress is None else lambda done: on_progress(done, len(tests))
    said = [tokenizer.decode(ids) for ids in greedy(model, prompts, tokenizer.end, MAX_TOKENS, report)]
    samples = [
        SampleOutcome(id=case.id, suite=case.suite, domain=case.row.domain, outcomes=case.outcomes(answer))
        for case, answer in zip(tests, said, strict=True)
    ]
    answers = {case.id: answer for case, answer in zip(tests, said, strict=True)}
    results = [summarise(suite, tests, samples) for suite in wanted]
    return Evaluated(results, samples, answers)


def summarise(suite: Suite, tests: Sequence[TestCase], samples: Sequence[SampleOutcome]) -> SuiteResult:
    """The suite's metrics over all its examples and over each domain, where it has several."""
    own = [case for case in tests if case.suite is suite]
    outcomes = [s for s in samples if s.suite is suite]
    domains = suites.slices(own)
    metrics: list[MetricValue] = []
    for name in suites.METRICS[suite]:
        metric = f"{suite}.{name}"
        for domain in [None, *(domains if len(domains) > 1 else [])]:
            values = [s.outcomes[metric] for s in outcomes if metric in s.outcomes and domain in (None, s.domain)]
            metrics.append(_metric(metric, domain, values))
    return SuiteResult(suite=suite, digest=suites.digest(own), n=len(own), metrics=metrics)


def _metric(name: str, domain: Domain | None, values: list[bool]) -> MetricValue:
    n, hits = len(values), sum(values)
    low, high = wilson(hits, n)
    return MetricValue(metric=name, slice=domain, value=hits / n if n else 0.0, low=low, high=high, n=n)
