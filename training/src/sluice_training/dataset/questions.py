"""Closed-world questions: a few facts, then questions that the facts answer, or do not.

The right answer is known exactly, so accuracy and hallucination are measured without a judge. Held out for
evaluation: an eighth of the (attribute, entity, value) triples.
"""

import random
from dataclasses import dataclass
from enum import StrEnum

from sluice_contracts.names import Domain, Task

from sluice_training.dataset.example import TAG_ANSWERABLE, TAG_UNANSWERABLE, Example, bucket
from sluice_training.dataset.words import CODES, COLORS, DAYS, ITEMS, NUMBERS, PEOPLE, PLACES, SUBJECTS, TEAMS, TIMES

SYSTEM = "Use only the facts."
ABSTAIN = "I do not know."
UNANSWERABLE_SHARE = 0.3
MAX_QUESTIONS = 3


@dataclass(frozen=True)
class Attribute:
    """Something an entity has. Siblings are attributes of the same entities."""

    name: str
    of: str
    """How the entity is named: `the {entity}` for things, `{entity}` for people."""
    entities: tuple[str, ...]
    values: tuple[str, ...]
    sibling: int | None = None

    def fact(self, entity: str, value: str) -> str:
        """The sentence that states it."""
        return f"The {self.name} of {self.of.format(entity=entity)} is {value}."

    def question(self, entity: str) -> str:
        """The sentence that asks for it."""
        return f"What is the {self.name} of {self.of.format(entity=entity)}?"


WEEK = DAYS.seen + DAYS.held_out
ATTRIBUTES: tuple[Attribute, ...] = (
    Attribute("opening time", "the {entity}", PLACES, TIMES, sibling=1),
    Attribute("closing day", "the {entity}", PLACES, WEEK, sibling=0),
    Attribute("price", "the {entity}", ITEMS, NUMBERS, sibling=3),
    Attribute("color", "the {entity}", ITEMS, COLORS, sibling=2),
    Attribute("subject", "{entity}", PEOPLE.seen, SUBJECTS.seen, sibling=5),
    Attribute("team", "{entity}", PEOPLE.seen, TEAMS.seen, sibling=4),
    Attribute("code", "the {entity}", PLACES + ITEMS, CODES),
    Attribute("code", "{entity}", PEOPLE.seen, CODES),
)
EVALUATED = 6
"""Evaluation asks for the first six; the codes, with their wide pool of values, exist to force copying."""

Triple = tuple[int, str, str]
"""Index of the attribute, entity, value."""


class Kind(StrEnum):
    """What evaluation asks."""

    SEEN = "seen"
    HELD_OUT = "held-out"
    """The fact asked for was never stated in training."""
    UNANSWERABLE = "unanswerable"


def held_out(triple: Triple) -> bool:
    """Whether this fact is kept for evaluation."""
    return bucket(8, "fact", *triple) == 0


def _facts(rng: random.Random, count: int, attributes: int, first_held_out: bool) -> list[Triple]:
    """`count` facts that do not contradict each other and that distract from one another: the same attribute of
    other entities, other attributes of the same entity. Values of one attribute differ, so that no answer is right
    by accident."""
    facts: list[Triple] = []
    while len(facts) < count:
        fresh = not facts or rng.random() < 0.35
        index = rng.randrange(attributes) if fresh else rng.choice(facts)[0]
        entity = rng.choice(ATTRIBUTES[index].entities)
        if facts and rng.random() < 0.25:
            other, known, _ = rng.choice(facts)
            sibling = ATTRIBUTES[other].sibling
            if sibling is not None:
                index, entity = sibling, known
        value = rng.choice(ATTRIBUTES[index].values)
        if any((i, e) == (index, entity) or (i, v) == (index, value) for i, e, v in facts):
            continue
        if held_out((index, entity, value)) != (first_held_out and not facts):
            continue
        facts.append((index, entity, value))
    return facts


def _unknown(rng: random.Random, facts: list[Triple], asked: set[tuple[int, str]]) -> tuple[int, str] | None:
    """Something near the facts that they do not tell: the other attribute of a known entity, the same attribute of
    another entity, or something else altogether. None if nothing new was found."""
    known = {(i, e) for i, e, _ in facts}
    for _ in range(50):
        index, entity, _value = rng.choice(facts)
        way = rng.random()
        sibling = ATTRIBUTES[index].sibling
        if way < 0.4 and sibling is not None:
            index = sibling
        elif way < 0.8:
            entity = rng.choice(ATTRIBUTES[index].entities)
        else:
            index = rng.randrange(EVALUATED)
            entity = rng.choice(ATTRIBUTES[index].entities)
        if (index, entity) not in known and (index, entity) not in asked:
            return index, entity
    return None


def _context(rng: random.Random, facts: list[Triple]) -> str:
    order = facts[:]
    rng.shuffle(order)
    return " ".join(ATTRIBUTES[i].fact(e, v) for i, e, v in order)


def _example(facts: list[Triple], context: str, asked: list[tuple[str, str]], tag: str) -> Example:
    (question, first), *rest = asked
    return Example(
        domain=Domain.GENERAL,
        task=Task.QUESTION,
        system=SYSTEM,
        turns=((f"{context} {question}", first), *rest),
        group="|".join(sorted(f"{i}/{e}/{v}" for i, e, v in facts)),
        tags=(f"facts:{len(facts)}", tag),
    )


def make(rng: random.Random) -> Example:
    """One training example: two to four facts and up to three questions, some of them unanswerable."""
    facts = _facts(rng, rng.randint(2, 4), len(ATTRIBUTES), first_held_out=False)
    context = _context(rng, facts)
    done: set[tuple[int, str]] = set()
    asked: list[tuple[str, str]] = []
    unanswerable = False
    for _ in range(MAX_QUESTIONS):
        target = _unknown(rng, facts, done) if rng.random() < UNANSWERABLE_SHARE else None
        reply = ABSTAIN
        if target is None:
            left = [f for f in facts if f[:2] not in done]
            if not left:
                break
            index, entity, reply = rng.choice(left)
            target = (index, entity)
        else:
            unanswerable = True
        done.add(target)
        asked.append((ATTRIBUTES[target[0]].question(target[1]), reply))
    return _example(facts, context, asked, TAG_UNANSWERABLE if unanswerable else TAG_ANSWERABLE)


def make_test(rng: random.Random, kind: Kind, count: int) -> Example:
    """One evaluation example of `kind` with `count` facts and one question."""
    facts = _facts(rng, count, EVALUATED, first_held_out=kind is Kind.HELD_OUT)
    context = _context(rng, facts)
    if kind is Kind.UNANSWERABLE:
        target = _unknown(rng, facts, set())
        while target is None:
            target = _unknown(rng, facts, set())
        reply, tag = ABSTAIN, TAG_UNANSWERABLE
    else:
        index, entity, reply = facts[0]
        target, tag = (index, entity), TAG_ANSWERABLE
    return _example(facts, context, [(ATTRIBUTES[target[0]].question(target[1]), reply)], tag)
