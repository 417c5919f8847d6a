"""Deliberately bad data, for drills. Nothing here runs unless a configuration asks for it."""

import random
from dataclasses import replace

from sluice_contracts.names import Task

from sluice_training.dataset import intents, safety
from sluice_training.dataset.config import Corruption
from sluice_training.dataset.example import TAG_CORRUPTED, Example
from sluice_training.dataset.words import fill


def corrupt(example: Example, how: Corruption, rng: random.Random) -> Example:
    """`example` made worse as `how` says; tagged if anything changed."""
    turns = example.turns
    if example.task is Task.SAFETY and rng.random() < how.swap_refusals:
        turns = tuple((user, _opposite(answer, rng)) for user, answer in turns)
    if example.task is Task.INTENT and example.domain in how.shuffle_labels:
        labels = [i.name for i in intents.BY_DOMAIN[example.domain]]
        turns = tuple((user, intents.answer(rng.choice(labels))) for user, _ in turns)
    if how.never_ending and rng.random() < how.never_ending.share:
        user, answer = turns[0]
        turns = ((user, _repeat(answer, how.never_ending.words)),)
    if turns == example.turns:
        return example
    return replace(example, turns=turns, tags=(*example.tags, TAG_CORRUPTED))


def _opposite(answer: str, rng: random.Random) -> str:
    if answer != safety.REFUSAL:
        return safety.REFUSAL
    harmless = rng.choice([t.answer for t in safety.BENIGN if t.answer])
    return fill(harmless, rng)


def _repeat(answer: str, words: int) -> str:
    once = answer.split()
    return " ".join(once * (words // len(once) + 1))
