"""What an answer said, put together from its events or taken from its whole body, up to a bound. Pure.

Kept only for answers that are checked or mirrored, and no longer than that takes; never logged.
"""

import json
from dataclasses import dataclass, field
from typing import Any

MAX_CHARACTERS = 65_536
"""Of one answer, all choices together. A longer one is not checked and not mirrored."""
MAX_CHOICES = 16
MAX_CALLS = 64


@dataclass
class Call:
    """A tool that the model wants called."""

    name: str = ""
    arguments: str = ""


@dataclass
class Said:
    """One choice of an answer."""

    text: str = ""
    refused: bool = False
    finish_reason: str | None = None
    calls: dict[int, Call] = field(default_factory=dict)

    def as_text(self) -> str:
        """Words and calls in one text, calls with their arguments in a canonical form where they are JSON."""
        return "\n".join([self.text, *(f"{c.name}({_canonical(c.arguments)})" for c in self.calls.values())]).strip()


class Transcript:
    """The choices of one answer by their index."""

    def __init__(self) -> None:
        self.choices: dict[int, Said] = {}
        self.overflowed = False
        """The answer was longer than what is kept, or not of a known form."""
        self._characters = 0

    @classmethod
    def of(cls, answer: Any) -> "Transcript":
        """From a whole answer's JSON."""
        found = cls()
        found._take(answer, "message")
        return found

    def feed(self, event: bytes) -> None:
        """Add one server-sent event."""
        if self.overflowed or not event.startswith(b"data:") or event.startswith(b"data: [DONE]"):
            return
        try:
            self._take(json.loads(event[5:]), "delta")
        except (ValueError, RecursionError):
            self.overflowed = True

    @property
    def first(self) -> Said | None:
        """The first choice; None if there is none, or not all of it is known."""
        return None if self.overflowed else self.choices.get(0)

    def _take(self, content: Any, part: str) -> None:
        choices = content.get("choices") if isinstance(content, dict) else None
        for position, choice in enumerate(choices if isinstance(choices, list) else []):
            if not isinstance(choice, dict):
                self.overflowed = True
                return
            index = choice.get("index", position)
            if not isinstance(index, int) or (index not in self.choices and len(self.choices) >= MAX_CHOICES):
                self.overflowed = True
                return
            said = self.choices.setdefault(index, Said())
            reason = choice.get("finish_reason")
            said.finish_reason = reason if isinstance(reason, str) else said.finish_reason
            said.text += self._kept(choice.get("text"))
            message = choice.get(part)
            if isinstance(message, dict):
                said.text += self._kept(message.get("content"))
                said.refused = said.refused or bool(message.get("refusal"))
                self._calls(said, message.get("tool_calls"))

    def _calls(self, said: Said, calls: Any) -> None:
        for position, part in enumerate(calls if isinstance(calls, list) else []):
            index = part.get("index", position) if isinstance(part, dict) else None
            function = part.get("function") if isinstance(part, dict) else None
            if not isinstance(index, int) or not isinstance(function, dict):
                self.overflowed = True
                return
            if index not in said.calls and len(said.calls) >= MAX_CALLS:
                self.overflowed = True
                return
            call = said.calls.setdefault(index, Call())
            call.name += self._kept(function.get("name"))
            call.arguments += self._kept(function.get("arguments"))

    def _kept(self, text: Any) -> str:
        if not isinstance(text, str):
            return ""
        self._characters += len(text)
        if self._characters > MAX_CHARACTERS:
            self.overflowed = True
        return "" if self.overflowed else text


def _canonical(arguments: str) -> str:
    try:
        return json.dumps(json.loads(arguments), sort_keys=True, ensure_ascii=False)
    except (ValueError, RecursionError):
        return arguments
