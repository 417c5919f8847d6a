"""A small dataset, a small job, and a model that has learned next to nothing: enough to show how the stages behave."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sluice_contracts.base import sha256
from sluice_contracts.job import JobConfig
from sluice_contracts.lineage import SCRATCH, LineageInputs, lineage_id
from sluice_contracts.names import Domain, Task
from sluice_contracts.signal import SignalBatch
from sluice_contracts.training_run import ManifestReference, TrainingRunSpec
from sluice_training.dataset.build import Written, build, write
from sluice_training.dataset.config import BuildConfig
from sluice_training.dataset.signals import Evidence
from sluice_training.export import parity
from sluice_training.model import circuit, files
from sluice_training.model.chat import ChatTokenizer
from sluice_training.model.llama import Llama, tiny

torch.set_num_threads(1)  # tests run on two workers: two threads each wait for each other, most of the time


@pytest.fixture(scope="session")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A storage URI for what tests only read."""
    return f"file://{tmp_path_factory.mktemp('store')}"


@pytest.fixture
def store(tmp_path: Path) -> str:
    """A storage URI of the test's own."""
    return f"file://{tmp_path}/store"


@pytest.fixture(scope="session")
def small_config() -> BuildConfig:
    return BuildConfig(name="small", seed=3, size=600)


@pytest.fixture(scope="session")
def small_dataset(shared_store: str, small_config: BuildConfig) -> Written:
    return write(build(small_config, Evidence()), shared_store)


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory, small_config: BuildConfig) -> Path:
    """A model folder: first weights, a real tokenizer."""
    rows = [json.loads(line) for line in build(small_config, Evidence()).files["train.jsonl"].splitlines()]
    tokenizer = ChatTokenizer.train(m["content"] for row in rows for m in row["messages"])
    model = Llama(tiny(tokenizer.size))
    circuit.initialise(model, seed=5)
    folder = tmp_path_factory.mktemp("untrained")
    files.save(model, tokenizer, folder)
    return folder


@pytest.fixture(autouse=True, scope="module")
def few_parity_cases() -> Iterator[None]:
    """A model that learned nothing answers at length: a few cases show as much as many."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(parity, "CASES_PER_SUITE", 4)
        patched.setattr(parity, "POSITIONS", 80)
        yield


JobMaker = Callable[..., JobConfig]


@pytest.fixture
def make_job(small_dataset: Written, store: str) -> JobMaker:
    """Makes jobs that write below the test's own store."""
    return job_maker(small_dataset, store)


@pytest.fixture(scope="session")
def make_shared_job(small_dataset: Written, shared_store: str) -> JobMaker:
    """Makes jobs that write below the shared store."""
    return job_maker(small_dataset, shared_store)


def job_maker(small_dataset: Written, store: str) -> JobMaker:
    """Makes jobs of a few steps; keyword arguments change parts of the spec, `version` is the one to fine-tune."""

    def make(
        version: ManifestReference | None = None, baseline: ManifestReference | None = None, **changes: Any
    ) -> JobConfig:
        spec: dict[str, Any] = {
            "model": "bot",
            "dataset": {"uri": small_dataset.uri, "digest": small_dataset.digest},
            "recipe": {"method": "scratch", "steps": 6, "batchSize": 4, "sequenceLength": 96},
            "hardware": {"resources": {"cpu": "1"}},
            "checkpoint": {"everySteps": 3, "keep": 2},
            "evaluation": {"suites": ["intent", "grounding"], "examples": 20},
            "export": {
                "quantizations": ["Q8_0"],
                "parity": {"maxMeanKld": 1, "minSameTop": 0.5, "maxPerplexityRatio": 1.5},
            },
        }
        for key, value in changes.items():
            spec[key] = {**spec.get(key, {}), **value} if isinstance(value, dict) else value
        parsed = TrainingRunSpec.model_validate(spec)
        lineage = lineage_id(
            LineageInputs(
                dataset_run_id=small_dataset.run_id,
                base_digest=version.digest if version else SCRATCH,
                recipe_digest=sha256(parsed.recipe.canonical()),
                git_sha="0" * 40,
            )
        )
        return JobConfig(
            name="run",
            namespace="team",
            lineage=lineage,
            git_sha="0" * 40,
            run_uri=f"{store}/runs/{lineage}/0123456789abcdef",
            base_manifest=version,
            baseline_manifest=baseline,
            spec=parsed,
        )

    return make


def signal_batch(
    number: int, *cells: tuple[Domain, str, int], task: Task = Task.INTENT, feedback: int = 0
) -> SignalBatch:
    """A batch with (domain, outcome, count) cells."""
    return SignalBatch.model_validate(
        {
            "batchId": f"{number:032x}",
            "model": "support-bot",
            "day": "2026-11-21",
            "consent": "improve-models",
            "cells": [
                {
                    "lineage": "a" * 64,
                    "domain": domain,
                    "task": task,
                    "outcome": outcome,
                    "feedback": feedback,
                    "latency": "under-1s",
                    "tokens": "under-16",
                    "count": count,
                }
                for domain, outcome, count in cells
            ],
        }
    )


@pytest.fixture
def make_batch() -> Callable[..., SignalBatch]:
    return signal_batch
