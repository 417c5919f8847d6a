"""What the tests of a real local cluster share."""

import time
from collections.abc import Callable


def silent(step: str) -> None:
    """Steps are for people."""


def until(condition: Callable[[], bool], what: str, deadline_s: float = 30.0) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, f"no {what} within {deadline_s} s"
        time.sleep(0.01)
