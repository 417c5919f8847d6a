"""What is counted of one request: one bin of each feature. Pure; the text is looked at and forgotten.

Every bin is one of a closed list, so that no text can get into the counts. Where a device's agent has a word for the
same (contracts' `Domain`, `Task`, `Outcome`, feedback -1, 0 and 1, and the lengths of answers in tokens, whose buckets
here are parts of the device's), the word is the same."""

import json
import re
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sluice_contracts.drift import OTHER, UNLABELLED, Drift
from sluice_contracts.names import Domain, Task

from sluice_serving.gateway.drift.language import language
from sluice_serving.gateway.parameters import Kind
from sluice_serving.gateway.transcript import Transcript

PROMPT_EDGES = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
ANSWER_EDGES = (8, 16, 32, 64, 128, 256, 512, 1024, 2048)
"""Tokens. 16, 64 and 256 are also the edges of a device's signals."""
MAX_BODY = 65_536
"""Bytes of a request, and of an answer, that are looked at; longer ones are counted by their length only."""
OPENING = 200
"""Characters of an answer in which a phrase is a refusal."""
MAX_LOOKED_AT = 4000
"""Characters of a question in which phrases of intents are looked for: its first and its last 2,000."""
FEATURES = (
    "intent", "domain", "task", "language", "prompt_length", "answer_length", "refusal", "feedback", "outcome",
)  # fmt: skip
"""All that are counted; the last two are told to the gateway afterwards."""


@dataclass(frozen=True)
class Heard:
    """What is left of one request and its answer until it has been counted."""

    kind: Kind
    stream: bool
    request: bytes | None
    """The body as it came; None: too long to be looked at."""
    answer: bytes | None
    """As it went out; None: too long to be looked at."""
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    finish_reason: str | None = None


class Reader:
    """Reads requests by one pool's settings."""

    def __init__(self, settings: Drift) -> None:
        self._names = {intent.name for intent in settings.intents}
        self._phrases = [(i.name, _any_of(i.phrases)) for i in settings.intents if i.phrases]
        self._refusals = _any_of(settings.refusal_phrases)
        field = settings.intent_field
        self._field = field
        self._line = re.compile(rf"\s*{re.escape(field)}\s*:\s*(\S+)\s*(?:\n|$)", re.IGNORECASE) if field else None

    def bins(self, heard: Heard) -> dict[str, str]:
        """A bin of each feature that can be told."""
        found = {}
        if heard.prompt_tokens is not None:
            found["prompt_length"] = length(heard.prompt_tokens, PROMPT_EDGES)
        if heard.output_tokens is not None:
            found["answer_length"] = length(heard.output_tokens, ANSWER_EDGES)
        enough = MAX_BODY if self._field else OPENING
        answer = None if heard.answer is None else read_answer(heard.kind, heard.stream, heard.answer, enough)
        if heard.finish_reason == "content_filter":
            found["refusal"] = "refused"
        elif answer is not None:
            found["refusal"] = "refused" if answer.refused or self._refuses(answer.text) else "answered"
        request = _object(heard.request)
        if request is None:
            return found
        labels = request.get("metadata")
        labels = labels if isinstance(labels, dict) else {}
        asked = question(request)
        found["language"] = language(asked)
        found["domain"] = _label(labels.get("domain"), Domain)
        found["task"] = _label(labels.get("task"), Task)
        if self._names:
            found["intent"] = self._intent(labels.get("intent"), asked, answer)
        return found

    def _intent(self, label: object, asked: str, answer: "Answer | None") -> str:
        """What the application says, else the answer, else the first intent whose phrase the question has."""
        if label is not None:
            return label if isinstance(label, str) and label in self._names else OTHER
        if self._field is not None:
            named = self._named(answer.text) if answer is not None else None
            return named if named in self._names else OTHER
        text = asked if len(asked) <= MAX_LOOKED_AT else f"{asked[: MAX_LOOKED_AT // 2]} {asked[-MAX_LOOKED_AT // 2 :]}"
        text = _plain(text)
        return next((name for name, phrases in self._phrases if phrases and phrases.search(text)), OTHER)

    def _named(self, text: str) -> str | None:
        content = _object(text.encode("utf-8", "replace"))
        if content is not None:
            value = content.get(self._field or "")
            return value if isinstance(value, str) else None
        found = self._line.match(text) if self._line else None
        return found[1] if found else None

    def _refuses(self, text: str) -> bool:
        return self._refusals is not None and self._refusals.search(_plain(text[:OPENING])) is not None


def length(tokens: int, edges: tuple[int, ...]) -> str:
    """`under-64`, `over-8192`: the least edge above, in the words of the device's signals."""
    place = bisect_right(edges, tokens)
    return f"under-{edges[place]}" if place < len(edges) else f"over-{edges[-1]}"


@dataclass(frozen=True)
class Answer:
    """The first choice of an answer."""

    text: str
    refused: bool


def read_answer(kind: Kind, stream: bool, body: bytes, enough: int = MAX_BODY) -> Answer | None:
    """What was said, of a stream at least `enough` characters; None where it cannot be read."""
    if kind == "responses":
        return _response(stream, body)
    if not stream:
        transcript = Transcript.of(_object(body))
    else:
        transcript = Transcript()
        for event in body.split(b"\n\n"):
            transcript.feed(event)
            if (begun := transcript.first) is not None and len(begun.text) >= enough:
                break
    said = transcript.first
    return None if said is None else Answer(said.text, said.refused)


def _response(stream: bool, body: bytes) -> Answer | None:
    if stream:  # the last event holds the whole response
        lines = (line[5:] for line in reversed(body.split(b"\n")) if line.startswith(b"data:"))
        response = next((r for line in lines if (r := (_object(line) or {}).get("response"))), None)
    else:
        response = _object(body)
    items = response.get("output") if isinstance(response, dict) else None
    if not isinstance(items, list):
        return None
    contents = [item.get("content") for item in items if isinstance(item, dict)]
    parts = [p for c in contents if isinstance(c, list) for p in c if isinstance(p, dict)]
    text = "\n".join(str(p.get("text") or "") for p in parts if p.get("type") == "output_text")
    return Answer(text, any(p.get("type") == "refusal" for p in parts))


def question(request: dict[str, Any]) -> str:
    """What the user said last: the last user message's text, or the prompt. Empty where there is none."""
    asked = request.get("messages", request.get("input", request.get("prompt")))
    if isinstance(asked, list):
        turns = [m for m in asked if isinstance(m, dict) and m.get("role") == "user"]
        texts = [one for one in asked if isinstance(one, str)]
        asked = turns[-1].get("content") if turns else texts[0] if texts else ""
    if isinstance(asked, list):
        asked = "\n".join(str(p.get("text") or "") for p in asked if isinstance(p, dict))
    return asked if isinstance(asked, str) else ""


def _label(value: object, known: Iterable[str]) -> str:
    if value is None:
        return UNLABELLED
    return value if isinstance(value, str) and value in set(known) else OTHER


def _plain(text: str) -> str:
    """In small letters, with one kind of apostrophe and single spaces."""
    return " ".join(text.casefold().replace("\u2019", "'").split())


def _any_of(phrases: list[str]) -> re.Pattern[str] | None:
    """Finds any of the phrases as whole words. Phrases are text, not expressions: none can take long."""
    if not phrases:
        return None
    return re.compile(r"(?<!\w)(?:" + "|".join(re.escape(_plain(phrase)) for phrase in phrases) + r")(?!\w)")


def _object(data: bytes | None) -> dict[str, Any] | None:
    if data is None:
        return None
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
