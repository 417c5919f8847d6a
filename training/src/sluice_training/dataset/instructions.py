"""Short how-to questions of each domain and their answers.

Held out for evaluation: a fifth of each question's fillings, and two sentence frames.
"""

import random

from sluice_contracts.names import Domain, Task

from sluice_training.dataset.example import Example, bucket
from sluice_training.dataset.words import fill, slots_of

SYSTEM = "You are a helpful assistant."
MAX_TURNS = 3

QUESTIONS: dict[Domain, tuple[tuple[str, str], ...]] = {
    Domain.HEALTHCARE: (
        (
            "how can i treat {complaint}?",
            "For {complaint}, rest well and drink plenty of water. Call the clinic if it gets worse.",
        ),
        (
            "how do i prepare for a visit with doctor {person}?",
            "Write down your symptoms before you see doctor {person}. Bring your list of medicines.",
        ),
    ),
    Domain.BUSINESS: (
        (
            "how do i pitch to the {team} team?",
            "Keep the pitch to the {team} team short. Start with the problem and end with the price.",
        ),
        (
            "how do i write an email to {person}?",
            "Start with a clear subject for {person}. Keep the message short and end with one request.",
        ),
    ),
    Domain.EDUCATION: (
        (
            "how do i learn {subject}?",
            "Practice {subject} every day in small steps. Test yourself at the end of each week.",
        ),
        (
            "how can i teach {subject} to {person}?",
            "Begin with a simple {subject} example. Then let {person} explain it back to you.",
        ),
    ),
    Domain.CREATIVE: (
        (
            "how do i start a story about {topic}?",
            "Open with a strong image of {topic}. Then give your hero a clear wish.",
        ),
        ("how do i paint {topic}?", "Sketch the shape of {topic} first. Add color from light to dark."),
    ),
    Domain.LEADERSHIP: (
        (
            "how do i motivate the {team} team?",
            "Give the {team} team a clear goal. Praise small wins each week.",
        ),
        ("how do i coach {person}?", "Listen to {person} first and ask open questions. Agree on one next step."),
    ),
}
FRAMES = (
    "{question}",
    "please tell me, {question}",
    "hi, {question}",
    "i have a question, {question}",
    "hello, {question}",
    "tell me, {question}",
    "one question, {question}",
    "can you tell me, {question}",
)
HELD_OUT_FRAMES = ("quick question, {question}", "please help, {question}")


def _turn(
    rng: random.Random, domain: Domain, *, held_out: bool = False, held_out_frame: bool = False
) -> tuple[str, str]:
    while True:
        template, reply = rng.choice(QUESTIONS[domain])
        words = {name: fill(f"{{{name}}}", rng) for name in slots_of(template)}
        if (bucket(5, "instruction", template, *words.values()) == 0) == held_out:
            break
    text = rng.choice(HELD_OUT_FRAMES if held_out_frame else FRAMES).replace("{question}", template.format(**words))
    return text, reply.format(**words)


def make(rng: random.Random, domain: Domain) -> Example:
    """One training example: one to three questions of `domain`."""
    return _example(domain, tuple(_turn(rng, domain) for _ in range(rng.randint(1, MAX_TURNS))))


def make_test(rng: random.Random, domain: Domain, *, held_out_frame: bool) -> Example:
    """One evaluation example: a held-out filling in a known frame, or a known filling in a held-out frame."""
    return _example(domain, (_turn(rng, domain, held_out=not held_out_frame, held_out_frame=held_out_frame),))


def _example(domain: Domain, turns: tuple[tuple[str, str], ...]) -> Example:
    return Example(domain, Task.INSTRUCTION, SYSTEM, turns, group="|".join(user for user, _ in turns))
