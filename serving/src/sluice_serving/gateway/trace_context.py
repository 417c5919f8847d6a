"""W3C Trace Context (Level 1, www.w3.org/TR/trace-context-1): who a request's caller says it belongs to. Pure.

The headers come from clients, so what is not exactly as the standard has it counts as not sent.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

TRACEPARENT = b"traceparent"
TRACESTATE = b"tracestate"
SAMPLED = 0x01

_PARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_MEMBER = re.compile(
    r"(?:[a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13})="
    r"[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)
MAX_MEMBERS = 32
MAX_STATE = 512
"""Characters of tracestate that everyone must be able to pass on; longer ones are dropped rather than cut."""
MAX_PARENT = 128


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A span of somebody else's. Ids are lower-case hexadecimal, of 32 and 16 digits."""

    trace_id: str
    span_id: str
    sampled: bool
    state: str = ""


def read_context(headers: Iterable[tuple[bytes, bytes]]) -> TraceContext | None:
    """The caller's context; None if there is none, or it is malformed or sent twice. A tracestate that is malformed is
    left out, and the traceparent holds without it."""
    parents, states = [], []
    for name, value in headers:
        if name == TRACEPARENT:
            parents.append(value)
        elif name == TRACESTATE:
            states.append(value)
    if len(parents) != 1 or len(parents[0]) > MAX_PARENT:
        return None
    found = _PARENT.fullmatch(parents[0].strip(b" \t"))
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if version == b"ff" or (version == b"00" and more is not None):
        return None  # ff is forbidden; what follows the flags belongs to later versions
    if trace_id == b"0" * 32 or span_id == b"0" * 16:
        return None
    return TraceContext(trace_id.decode(), span_id.decode(), bool(int(flags, 16) & SAMPLED), read_state(states))


def read_state(headers: Iterable[bytes]) -> str:
    """The list in the tracestate headers, joined; empty if any of it is malformed or it is too long."""
    members = [m.strip(" \t") for m in b",".join(headers).decode("latin-1").split(",")]
    members = [m for m in members if m]
    keys = {m.partition("=")[0] for m in members}
    if len(members) > MAX_MEMBERS or len(keys) < len(members):
        return ""
    if not all(_MEMBER.fullmatch(m) for m in members):
        return ""
    state = ",".join(members)
    return state if len(state) <= MAX_STATE else ""


def traceparent(trace_id: str, span_id: str, *, sampled: bool) -> str:
    """The header that tells the next one along whose child it is."""
    return f"00-{trace_id}-{span_id}-{'01' if sampled else '00'}"
