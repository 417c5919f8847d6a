"""Intent examples: a request in one of five domains, answered with the name of what the person wants.

Held out for evaluation: a fifth of the verb-object pairs, three sentence frames, and some slot words.
"""

import random
from dataclasses import dataclass
from enum import StrEnum

from sluice_contracts.names import Domain, Task

from sluice_training.dataset.example import Example, bucket
from sluice_training.dataset.words import fill, slots_of, with_typos

SYSTEM = "Name the intent."
TYPO_SHARE = 0.2


@dataclass(frozen=True)
class Intent:
    """One thing people ask for, and how they say it."""

    name: str
    domain: Domain
    verbs: tuple[str, ...]
    objects: tuple[str, ...]

    def held_out(self, verb: int, thing: int) -> bool:
        """Whether this pair of verb and object is kept for evaluation."""
        return (3 * verb + thing + bucket(5, "intent", self.name)) % 5 == 0


def _intents(domain: Domain, table: dict[str, tuple[str, str]]) -> tuple[Intent, ...]:
    return tuple(
        Intent(name, domain, tuple(verbs.split(" | ")), tuple(things.split(" | ")))
        for name, (verbs, things) in table.items()
    )


INTENTS: tuple[Intent, ...] = (
    *_intents(
        Domain.HEALTHCARE,
        {
            "book_appointment": (
                "book | schedule | arrange | set up | make",
                "an appointment with doctor {person} | a visit with doctor {person} | a check up on {day}"
                " | an appointment for {day}",
            ),
            "cancel_appointment": (
                "cancel | call off | drop | delete",
                "my appointment with doctor {person} | my visit with doctor {person} | the check up on {day}"
                " | my appointment on {day}",
            ),
            "move_appointment": (
                "move | change | shift | delay",
                "my appointment to {day} | my visit with doctor {person} to {day} | the check up to {day}"
                " | my appointment with doctor {person}",
            ),
            "refill_medicine": (
                "refill | renew | order more of | get more of",
                "my medicine | my pills | the prescription from doctor {person} | my prescription before {day}",
            ),
            "report_symptom": (
                "report | tell the nurse about | describe | mention",
                "a fever since {day} | a bad headache | some pain since {day} | a sore throat",
            ),
            "get_test_results": (
                "see | check | get | look at",
                "my test results | my blood test results from {day} | the scan results from doctor {person}"
                " | the lab results",
            ),
        },
    ),
    *_intents(
        Domain.BUSINESS,
        {
            "send_invoice": (
                "send | issue | email | forward",
                "an invoice to {person} | the invoice for the {team} team | a bill to {person} | the bill for {day}",
            ),
            "pay_invoice": (
                "pay | settle | clear | transfer money for",
                "the invoice from {person} | the bill from {person} | the open invoice by {day}"
                " | the bill for the {team} team",
            ),
            "book_room": (
                "book | reserve | get | hold",
                "a meeting room for {day} | a room for the {team} team | the large room on {day} | a conference room",
            ),
            "track_order": (
                "track | find | locate | follow",
                "my order | the package from {person} | the delivery due on {day} | the shipment for the {team} team",
            ),
            "return_item": (
                "return | send back | give back | ship back",
                "the broken printer | a wrong item | the item from {day} | this product to {person}",
            ),
            "sales_report": (
                "show | pull | prepare | open",
                "the sales report | the sales numbers for {day} | the revenue report for the {team} team"
                " | the revenue numbers",
            ),
        },
    ),
    *_intents(
        Domain.EDUCATION,
        {
            "enroll_course": (
                "enroll in | sign up for | join | register for",
                "the {subject} course | a {subject} class | the {subject} course with {person}"
                " | the {subject} class on {day}",
            ),
            "leave_course": (
                "leave | quit | withdraw from | drop",
                "the {subject} course | my {subject} class | the {subject} course with {person}"
                " | the {subject} class on {day}",
            ),
            "explain_topic": (
                "explain | teach me | help me understand | clarify",
                "the {subject} lesson | this {subject} idea | the main {subject} concept | the {subject} chapter",
            ),
            "make_quiz": (
                "make | create | write | build",
                "a {subject} quiz | a practice test for {subject} | a short {subject} quiz for {day}"
                " | some {subject} practice questions",
            ),
            "check_grade": (
                "check | see | show | look up",
                "my {subject} grade | my score in {subject} | the grade from {person} | my grades for {subject}",
            ),
            "submit_homework": (
                "submit | hand in | turn in | upload",
                "my {subject} homework | the {subject} assignment | my homework for {person}"
                " | the assignment due on {day}",
            ),
        },
    ),
    *_intents(
        Domain.CREATIVE,
        {
            "write_poem": (
                "write | compose | create | make",
                "a poem about {topic} | a short poem on {topic} | a rhyme about {topic} | some verses for {person}",
            ),
            "write_story": (
                "write | tell | create | make up",
                "a story about {topic} | a short story on {topic} | a tale about {topic}"
                " | a bedtime story for {person}",
            ),
            "draw_picture": (
                "draw | paint | sketch | design",
                "a picture of {topic} | an image of {topic} | a portrait of {person} | a poster about {topic}",
            ),
            "write_song": (
                "write | compose | sing | produce",
                "a song about {topic} | a melody for {person} | the lyrics on {topic} | a tune about {topic}",
            ),
            "suggest_title": (
                "suggest | give me | find | propose",
                "a title for my book about {topic} | a name for my story on {topic} | a good title"
                " | a catchy title about {topic}",
            ),
            "edit_text": (
                "edit | fix | improve | correct",
                "my text about {topic} | the grammar in my essay | this paragraph on {topic} | my draft for {person}",
            ),
        },
    ),
    *_intents(
        Domain.LEADERSHIP,
        {
            "plan_meeting": (
                "plan | organize | call | set up",
                "a meeting with the {team} team | a team meeting on {day} | a weekly meeting"
                " | a meeting with {person} on {day}",
            ),
            "give_feedback": (
                "give | share | write | offer",
                "feedback to {person} | some honest feedback for {person} | feedback for the {team} team"
                " | a review of {person}",
            ),
            "assign_task": (
                "assign | hand | delegate | give",
                "a task to {person} | the task to the {team} team | this work to {person}"
                " | the job to {person} by {day}",
            ),
            "set_goal": (
                "set | define | choose | write down",
                "a goal for the {team} team | a new goal for {person} | our goals for {day} | the team targets",
            ),
            "praise_team": (
                "praise | thank | celebrate | congratulate",
                "the {team} team | {person} for the good work | the {team} team on {day} | my team for the win",
            ),
            "solve_conflict": (
                "solve | settle | calm | mediate",
                "the conflict with {person} | a dispute in the {team} team | the argument from {day}"
                " | the fight with {person}",
            ),
        },
    ),
)
BY_DOMAIN: dict[Domain, tuple[Intent, ...]] = {
    domain: tuple(i for i in INTENTS if i.domain is domain) for domain in Domain if domain is not Domain.GENERAL
}
DOMAINS: tuple[Domain, ...] = tuple(BY_DOMAIN)

FRAMES = (
    "{request}",
    "please {request}",
    "can you {request}?",
    "i want to {request}",
    "i need to {request}",
    "could you please {request}?",
    "help me {request}",
    "i would like to {request}",
    "hi, {request}",
    "{request} now please",
    "is it possible to {request}?",
    "let us {request}",
)
HELD_OUT_FRAMES = ("hello, i am trying to {request}", "would you {request} for me?", "it is time to {request}")


class Style(StrEnum):
    """How an intent example relates to what training saw."""

    TRAINING = "training"
    SEEN = "seen"
    TEMPLATES = "templates"
    """Verb-object pairs and sentence frames that training never saw."""
    SLOTS = "slots"
    """Slot words that training never saw."""
    TYPOS = "typos"


def answer(intent: str) -> str:
    """What the assistant should say."""
    return f"intent: {intent}"


def make(rng: random.Random, domain: Domain, style: Style = Style.TRAINING) -> Example:
    """One request of `domain`."""
    intent = rng.choice(BY_DOMAIN[domain])
    held_out = style is Style.TEMPLATES
    pairs = [
        (v, o)
        for v in range(len(intent.verbs))
        for o in range(len(intent.objects))
        if intent.held_out(v, o) == held_out and (style is not Style.SLOTS or slots_of(intent.objects[o]))
    ]
    verb, thing = rng.choice(pairs)
    template = f"{intent.verbs[verb]} {intent.objects[thing]}"
    request = fill(template, rng, held_out=style is Style.SLOTS)
    text = rng.choice(HELD_OUT_FRAMES if held_out else FRAMES).replace("{request}", request)
    if style is Style.TYPOS or (style is Style.TRAINING and rng.random() < TYPO_SHARE):
        text = with_typos(text, rng)
    return Example(
        domain=domain,
        task=Task.INTENT,
        system=SYSTEM,
        turns=((text, answer(intent.name)),),
        group=f"{intent.name}|{request}",
        tags=(f"intent:{intent.name}", style.value) if style is not Style.TRAINING else (f"intent:{intent.name}",),
    )
