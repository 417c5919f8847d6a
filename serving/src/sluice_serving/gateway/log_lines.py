"""The gateway's log: one JSON object a line, and nothing in it of what users say.

Messages are written here and hold no content. What others write is not known to: the message of an exception often
quotes what it choked on (`invalid literal for int(): '...'`). So of an exception the log has its type and where it was
raised; and the message only of an OSError, which is the system's own.
"""

import asyncio
import json
import logging
import time
from traceback import FrameSummary, extract_tb
from typing import Any

logger = logging.getLogger("sluice.gateway")

NAMES = ("request_id", "trace_id")
"""What a line may be found by: given as `extra`."""
MAX_CHAIN = 8


class JsonLines(logging.Formatter):
    """`time`, `level`, `message`; `error` where there is one; `request_id` and `trace_id` where they are known."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        line |= {name: value for name in NAMES if isinstance(value := getattr(record, name, None), str)}
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = described(record.exc_info[1])
        return json.dumps(line)


def log_loop_error(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """For `loop.set_exception_handler`: asyncio's own prints the task, and with it its exception's message."""
    error = context.get("exception")
    logger.error("asyncio: %s", context.get("message") or "an error", exc_info=error)


def described(error: BaseException) -> str:
    """Type and place of an error and of those that it came from, the last first."""
    parts: list[str] = []
    found: BaseException | None = error
    while found is not None and len(parts) < MAX_CHAIN:
        parts.append(_one(found))
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)
    return "\nfrom ".join(parts)


def _one(error: BaseException) -> str:
    name = type(error).__qualname__
    if isinstance(error, OSError) and error.strerror:
        name += f": {error.strerror}"
    return "\n".join([name, *(_place(frame) for frame in reversed(extract_tb(error.__traceback__)))])


def _place(frame: FrameSummary) -> str:
    return f"  at {frame.filename}:{frame.lineno} in {frame.name}"
