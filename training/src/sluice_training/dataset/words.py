"""The words that fill the templates. Some of each pool never occur in training: evaluation uses them."""

import random
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Pool:
    """Words of one kind: those that training may use, and those kept for evaluation."""

    seen: tuple[str, ...]
    held_out: tuple[str, ...] = ()


def _pool(seen: str, held_out: str = "") -> Pool:
    return Pool(tuple(seen.split()), tuple(held_out.split()))


PEOPLE = _pool(
    "anna ben carl dana eric fay gina hugo iris jack kate liam maya noah olga paul rosa sam tina victor",
    "wendy oscar lena felix",
)
DAYS = _pool("monday tuesday wednesday thursday friday", "saturday sunday")
SUBJECTS = _pool("math physics history biology chemistry music geography latin", "art economics")
TOPICS = _pool("rain winter love space trees cats dragons rivers", "robots mountains")
TEAMS = _pool("sales design support finance research marketing", "legal")
COMPLAINTS = Pool(
    (
        "a cold",
        "a fever",
        "a headache",
        "a cough",
        "a cramp",
        "a sore throat",
        "a small cut",
        "a bee sting",
        "back pain",
        "neck pain",
        "knee pain",
        "dry skin",
    )
)

SLOTS: dict[str, Pool] = {
    "person": PEOPLE,
    "day": DAYS,
    "subject": SUBJECTS,
    "topic": TOPICS,
    "team": TEAMS,
    "complaint": COMPLAINTS,
}

TIMES = _pool("six seven eight nine ten eleven noon").seen
NUMBERS = _pool("two three four five twelve twenty thirty forty fifty sixty").seen
COLORS = _pool("red blue green white black yellow pink brown").seen
PLACES = _pool("clinic library bank school studio museum office pharmacy gym lab").seen
ITEMS = _pool("lamp desk book pen chair bag clock phone").seen
CODES = PLACES + ITEMS + COLORS + NUMBERS + DAYS.seen + DAYS.held_out + TIMES + SUBJECTS.seen + TOPICS.seen + TEAMS.seen
"""A wide pool of values: with few values a small model memorises pairs instead of reading the facts."""

_SLOT = re.compile(r"\{([a-z]+)\}")


def fill(template: str, rng: random.Random, *, held_out: bool = False) -> str:
    """`template` with each `{slot}` replaced by a word of its pool; equal slots get independent words.

    `held_out` takes words that training never sees, for pools that have some.
    """

    def choose(match: re.Match[str]) -> str:
        pool = SLOTS[match.group(1)]
        return rng.choice(pool.held_out if held_out and pool.held_out else pool.seen)

    return _SLOT.sub(choose, template)


def slots_of(template: str) -> tuple[str, ...]:
    """Names of the slots in `template`, in order."""
    return tuple(_SLOT.findall(template))


def with_typos(text: str, rng: random.Random) -> str:
    """`text` with one or two letters swapped, lost or doubled, each inside a word of at least four letters."""
    words = text.split(" ")
    for _ in range(rng.choice((1, 1, 2))):
        long = [i for i, word in enumerate(words) if len(word) > 3 and word.isalpha()]
        if not long:
            break
        i = rng.choice(long)
        word = words[i]
        at = rng.randrange(1, len(word) - 1)
        kind = rng.choice(("swap", "lose", "double"))
        if kind == "swap":
            words[i] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        elif kind == "lose":
            words[i] = word[:at] + word[at + 1 :]
        else:
            words[i] = word[:at] + word[at] + word[at:]
    return " ".join(words)
