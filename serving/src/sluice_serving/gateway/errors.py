"""Errors in the shape that OpenAI's clients understand."""

import json
import math
from typing import Any

LONGEST_PAUSE = 60.0
"""OpenAI's clients wait as long as Retry-After says up to here; longer ones they ignore, and ask again in a second."""


class ApiError(Exception):
    """What a client gets instead of an answer."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
        allow: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after = retry_after
        self.allow = allow

    @property
    def type(self) -> str:
        """The API's own classes of errors."""
        if self.status == 401:
            return "authentication_error"
        if self.status == 429:
            return "rate_limit_error"
        return "invalid_request_error" if self.status < 500 else "server_error"

    def body(self) -> dict[str, Any]:
        """The JSON object of the response."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def encoded(self) -> bytes:
        """`body` as bytes."""
        return json.dumps(self.body()).encode()

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Headers beyond the content's type and length."""
        headers = []
        if self.retry_after is not None:
            headers.append((b"retry-after", str(max(1, math.ceil(self.retry_after))).encode()))
        if self.status == 504 or (self.retry_after is not None and self.retry_after > LONGEST_PAUSE):
            headers.append((b"x-should-retry", b"false"))
        if self.allow is not None:
            headers.append((b"allow", self.allow.encode()))
        if self.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        return headers


class EngineFailed(Exception):
    """A version did not do its part: it could not be reached, answered 5xx, or broke off.

    `retriable` where another replica may do better: not after a deadline, which is used up. An answer has no other
    effect than being read, so as long as the client has seen nothing of it, asking again is safe.
    `unavailable` where nothing ran at all.
    """

    def __init__(self, reason: str, *, retriable: bool, unavailable: bool = False) -> None:
        super().__init__(reason)
        self.retriable = retriable
        self.unavailable = unavailable
