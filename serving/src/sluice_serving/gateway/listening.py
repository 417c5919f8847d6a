"""Hearing an answer out, where it is checked against a schema or asked for again. Most answers pass unheard."""

import json

from sluice_serving.gateway.observations import Outcome
from sluice_serving.gateway.transcript import Transcript
from sluice_serving.gateway.validity import Expectation, expectation, holds

CHAT = "/v1/chat/completions"
"""The endpoint whose requests can ask for tools and JSON in the terms of `validity`."""


class Listener:
    """Hears one answer."""

    def __init__(self, expected: Expectation | None, mirrored: bool, window: str) -> None:
        self.heard = Transcript()
        self.mirrored = mirrored
        self.window = window
        self._expected = expected

    def feed(self, event: bytes) -> None:
        """One event of a stream."""
        self.heard.feed(event)

    def whole(self, body: bytes) -> None:
        """An answer in one piece."""
        self.heard = Transcript.of(json.loads(body))

    def note(self, outcome: Outcome) -> None:
        """Write into the outcome whether the answer has the shape that was asked for."""
        if self._expected is not None:
            outcome.schema_owed = True
            outcome.schema_valid = holds(self._expected, self.heard)


def listen(path: str, body: bytes, *, mirrored: bool, window: str) -> Listener | None:
    """What hears the answer to this request; None if nobody needs to."""
    expected = expectation(body) if path == CHAT else None
    return Listener(expected, mirrored, window) if expected is not None or mirrored else None
