"""Recall of keys and values from a list: practice in copying from the context, which small models learn slowly."""

import random

from sluice_contracts.names import Domain, Task

from sluice_training.dataset.example import Example
from sluice_training.dataset.words import CODES, PEOPLE

SYSTEM = "Recall."
WORDS = tuple(sorted({*CODES, *PEOPLE.seen}))


def make(rng: random.Random) -> Example:
    """Two to six pairs, then each key once in another order."""
    count = rng.randint(2, 6)
    keys = rng.sample(WORDS, count)
    pairs = [(key, rng.choice(WORDS)) for key in keys]
    stated = ", ".join(f"{key} is {value}" for key, value in pairs)
    rng.shuffle(pairs)
    (first, value), *rest = pairs
    turns = ((f"{stated}. {first}?", value), *((f"{key}?", v) for key, v in rest))
    return Example(Domain.GENERAL, Task.RECALL, SYSTEM, turns, group=stated)
