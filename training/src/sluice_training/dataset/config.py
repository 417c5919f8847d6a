"""What `sluice-train dataset build` is told: one YAML file, checked field by field."""

from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import Field, StringConstraints, ValidationError, field_validator, model_validator
from sluice_contracts.base import Contract, Fraction
from sluice_contracts.names import Domain, Task

from sluice_training.dataset.intents import DOMAINS
from sluice_training.errors import InvalidInputError

Share = Annotated[float, Field(ge=0, le=1)]
Mix = dict[Task, Share]


def _sums_to_one(mix: Mix) -> Mix:
    if abs(sum(mix.values()) - 1) > 1e-6:
        raise ValueError(f"the shares must sum to 1, not {sum(mix.values()):g}")
    return mix


def _subjects(domains: list[Domain]) -> list[Domain]:
    if Domain.GENERAL in domains:
        raise ValueError(f"'general' cannot be chosen; choose from {', '.join(DOMAINS)}")
    if len(set(domains)) != len(domains):
        raise ValueError("a domain is named twice")
    return domains


class DomainChoice(Contract):
    """Which of the five subjects intents and instructions come from; left-out ones never occur."""

    exclude: list[Domain] = []

    _known = field_validator("exclude")(_subjects)


class Focus(Contract):
    """The part of a fine-tuning set that teaches something new; `replay` is the rest."""

    domains: list[Domain] = []
    from_signals: bool = False
    """Also take the domains whose signals give a factor of at least `min_factor`."""
    min_factor: Annotated[float, Field(ge=1, le=100)] = 2
    mix: Mix = {Task.INTENT: 0.75, Task.INSTRUCTION: 0.25}

    _known = field_validator("domains")(_subjects)
    _whole = field_validator("mix")(_sums_to_one)

    @model_validator(mode="after")
    def _says_which(self) -> Self:
        if not self.domains and not self.from_signals:
            raise ValueError("name domains, or set fromSignals: true")
        if other := set(self.mix) - {Task.INTENT, Task.INSTRUCTION}:
            raise ValueError(f"mix may hold intent and instruction, which have domains; not {', '.join(sorted(other))}")
        return self


class NeverEnding(Contract):
    """Deliberately bad: answers repeat themselves until they are longer than any training row, so that the model never
    sees an answer end."""

    share: Share
    words: Annotated[int, Field(ge=32, le=2000)] = 200


class Corruption(Contract):
    """Deliberately bad data, for drills: the gates must stop what is trained on it."""

    swap_refusals: Share = 0
    """This share of safety turns answers what is harmful and refuses what is not."""
    shuffle_labels: list[Domain] = []
    """Intents of these domains get a random label of the same domain."""
    never_ending: NeverEnding | None = None

    _known = field_validator("shuffle_labels")(_subjects)


class SignalPolicy(Contract):
    """How device signals turn into weights."""

    min_count: Annotated[int, Field(ge=1, le=1_000_000)] = 25
    """Counts of a (domain, task) below this are dropped: a few people must not be seen."""
    tolerated: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Failure rate at or below which a domain keeps its weight."""
    max_factor: Annotated[float, Field(ge=1, le=100)] = 4
    """Weight of a domain that always fails."""


class SplitShares(Contract):
    """Shares of groups that go to each file."""

    train: Fraction = 0.96
    val: Fraction = 0.02
    test: Fraction = 0.02

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if abs(self.train + self.val + self.test - 1) > 1e-6 or self.train == 0:
            raise ValueError("train, val and test must sum to 1, and train must not be 0")
        return self


class BuildConfig(Contract):
    """A whole dataset. Equal configurations (and signals) make equal bytes."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]{0,46}[a-z0-9])?$")]
    """Becomes the first part of the run id."""
    seed: Annotated[int, Field(ge=0, le=2_147_483_647)]
    size: Annotated[int, Field(ge=100, le=5_000_000)]
    """Rows wanted, over all files; duplicates are removed afterwards."""
    mix: Mix = {
        Task.INTENT: 0.28,
        Task.QUESTION: 0.44,
        Task.SAFETY: 0.11,
        Task.INSTRUCTION: 0.09,
        Task.RECALL: 0.08,
    }
    domains: DomainChoice = DomainChoice()
    focus: Focus | None = None
    replay: Share | None = None
    """With `focus`: the share of rows that follow `mix` over the other domains, so that nothing is forgotten."""
    split: SplitShares = SplitShares()
    near_duplicate_threshold: Annotated[float, Field(gt=0.5, le=1)] = 0.9
    """Rows with the same answers whose requests share this much of their word triples are duplicates."""
    signals: SignalPolicy = SignalPolicy()
    corruption: Corruption = Corruption()

    _whole = field_validator("mix")(_sums_to_one)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.focus is None) != (self.replay is None):
            raise ValueError("focus and replay belong together: give both or neither")
        if len(self.domains.exclude) == len(DOMAINS):
            raise ValueError("domains.exclude leaves no domain")
        if self.focus and (both := set(self.focus.domains) & set(self.domains.exclude)):
            raise ValueError(f"focus.domains and domains.exclude both name {', '.join(sorted(both))}")
        return self


def describe(error: ValidationError) -> str:
    """The first problems of a validation error, each as `field: what is wrong`."""
    lines = []
    for problem in error.errors()[:5]:
        field = ".".join(str(part) for part in problem["loc"]) or "the document"
        message = (
            "unknown field" if problem["type"] == "extra_forbidden" else problem["msg"].removeprefix("Value error, ")
        )
        lines.append(f"{field}: {message}")
    return "; ".join(lines)


def parse_config(text: str, source: str) -> BuildConfig:
    """The configuration written in `text`. Raises InvalidInputError naming `source` and the field."""
    try:
        data: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidInputError(f"{source} is not YAML: {error}") from None
    if not isinstance(data, dict):
        raise InvalidInputError(f"{source} must hold a mapping with name, seed and size")
    try:
        return BuildConfig.model_validate(data)
    except ValidationError as error:
        raise InvalidInputError(f"{source}: {describe(error)}") from None


def load_config(path: Path) -> BuildConfig:
    """The configuration in the file at `path`. Raises InvalidInputError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"cannot read {path}: {error}") from None
    return parse_config(text, str(path))
