"""InferencePool's `spec.gateway.drift`: what is counted a day of what people ask and are answered, and what the counts
are compared with. Counts only: no text, no user, no tenant is in any of them. docs/drift.md."""

from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from sluice_contracts.base import Contract
from sluice_contracts.kubernetes import ObjectName, cel

Day = Annotated[str, StringConstraints(pattern=r"^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])$", max_length=10)]
"""A day of UTC: `2026-11-21`."""
IntentName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-_a-z0-9]*[a-z0-9])?$", min_length=1, max_length=64)]
Phrase = Annotated[str, StringConstraints(pattern=r"^\S(.*\S)?$", min_length=2, max_length=64)]
OTHER, RARE, UNLABELLED = "other", "rare", "unlabelled"
"""Bins that every feature may have: none of the known values; small counts merged; the request does not say."""
REFUSAL_PHRASES = (
    "i can't help with",
    "i cannot help with",
    "i can't assist with",
    "i cannot assist with",
    "i'm unable to",
    "i am unable to",
    "i'm not able to",
    "i can't provide",
    "i cannot provide",
    "i can't answer",
    "i cannot answer",
    "i won't",
    "as an ai",
)
"""How English answers refuse; any of them within the answer's first 200 characters."""


class DriftIntent(Contract):
    """One thing people want."""

    model_config = cel(
        (
            f"!(self.name in ['{OTHER}', '{RARE}', '{UNLABELLED}'])",
            f"gateway.drift.intents: {OTHER}, {RARE} and {UNLABELLED} are names of the counts' own; choose another",
        )
    )

    name: IntentName
    phrases: Annotated[list[Phrase], Field(max_length=32)] = []
    """Whole words, in any case; a question with one of them has this intent, unless an earlier intent has it too."""

    @model_validator(mode="after")
    def _not_taken(self) -> Self:
        if self.name in {OTHER, RARE, UNLABELLED}:
            raise ValueError(f"{self.name} is a name of the counts' own")
        return self


class DriftReference(Contract):
    """What a day is compared with: the days before it, or a range that does not move."""

    model_config = cel(
        (
            "has(self.firstDay) == has(self.lastDay)",
            "gateway.drift.reference needs both firstDay and lastDay, or neither: then it is the days before",
        ),
        (
            "!has(self.firstDay) || !has(self.lastDay) || self.firstDay <= self.lastDay",
            "gateway.drift.reference.firstDay must not be after lastDay",
        ),
    )

    days: Annotated[int, Field(ge=1, le=180)] = 28
    """So many before the window; of no effect with firstDay and lastDay. Four whole weeks: weekdays weigh the same."""
    first_day: Day | None = None
    last_day: Day | None = None
    model_version: ObjectName | None = None
    """Only what this version answered. None: whatever version did."""

    @model_validator(mode="after")
    def _both_or_neither(self) -> Self:
        """As above, for a gateway that no API server stands before; so are the others below."""
        if (self.first_day is None) != (self.last_day is None):
            raise ValueError("firstDay and lastDay go together")
        if self.first_day is not None and self.last_day is not None and self.first_day > self.last_day:
            raise ValueError("firstDay must not be after lastDay")
        return self


class DriftThresholds(Contract):
    """From which population stability index on a feature has moved."""

    model_config = cel(
        ("self.moderate < self.major", "gateway.drift.thresholds.moderate must be below major, such as 0.1 and 0.25")
    )

    moderate: Annotated[float, Field(ge=0.001, le=10)] = 0.1
    major: Annotated[float, Field(ge=0.001, le=10)] = 0.25

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if self.moderate >= self.major:
            raise ValueError("moderate must be below major")
        return self


class Drift(Contract):
    """Daily counts of requests by intent, length, language, refusal and feedback, compared with former days."""

    model_config = cel(
        (
            "!has(self.intentField) || (has(self.intents) && size(self.intents) > 0)",
            "gateway.drift.intentField needs gateway.drift.intents: the names that are counted",
        ),
        (
            "self.retentionDays > self.reference.days + self.windowDays",
            "gateway.drift.retentionDays must be more than reference.days and windowDays together, so that the days "
            "to compare with are still there",
        ),
    )

    intents: Annotated[list[DriftIntent], Field(max_length=64, json_schema_extra={"x-list-map-keys": ["name"]})] = []
    """None: intents are not counted."""
    intent_field: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=64)] | None = None
    """Where an answer names the intent: a field of the JSON object it is, or a first line such as `intent: refund`."""
    refusal_phrases: Annotated[list[Phrase], Field(max_length=64)] = list(REFUSAL_PHRASES)
    sample_percent: Annotated[int, Field(ge=1, le=100)] = 100
    """Of the requests; the others are not looked at."""
    min_cell: Annotated[int, Field(ge=5, le=1000)] = 10
    """Smaller counts of a day are merged, and a day with fewer requests is not kept."""
    retention_days: Annotated[int, Field(ge=8, le=1100)] = 400
    reference: DriftReference = DriftReference()
    window_days: Annotated[int, Field(ge=1, le=28)] = 1
    """Days that are compared, together, with the reference. More where a day has few requests."""
    min_samples: Annotated[int, Field(ge=50, le=1_000_000)] = 500
    """With fewer on either side a feature is undecided."""
    thresholds: DriftThresholds = DriftThresholds()

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        if self.intent_field is not None and not self.intents:
            raise ValueError("intentField needs intents")
        if self.retention_days <= self.reference.days + self.window_days:
            raise ValueError("retentionDays must be more than reference.days and windowDays together")
        return self
