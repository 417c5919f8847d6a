"""What every type that crosses a boundary shares: strictness, camelCase on the wire, bounded text, canonical bytes."""

import hashlib
import json
import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel

DIGEST_PATTERN = r"^sha256:[0-9a-f]{64}$"
URI_PATTERN = r"^(gs://[a-z0-9][a-z0-9._-]{1,221}[a-z0-9](/.*)?|file:///.+)$"
NAME_PATTERN = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
DURATION_PATTERN = r"^([0-9]{1,5}(ms|s|m|h|d))+$"
MONEY_PATTERN = r"^[0-9]{1,9}(\.[0-9]{1,2})?$"

Digest = Annotated[str, StringConstraints(pattern=DIGEST_PATTERN, max_length=71)]
"""The digest of some bytes: `sha256:` and 64 lower-case hexadecimal digits."""
Uri = Annotated[str, StringConstraints(pattern=URI_PATTERN, max_length=1024)]
"""Where an object or folder lies: `gs://bucket/path` or `file:///path`."""
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN, max_length=38)]
"""A name that may become part of a child's name: KubeRay allows 47 characters, and `-<digest8>` is appended."""
Duration = Annotated[str, StringConstraints(pattern=DURATION_PATTERN, max_length=16)]
"""A length of time as people write it: `30s`, `10m`, `1h30m`."""
Money = Annotated[str, StringConstraints(pattern=MONEY_PATTERN, max_length=12)]
"""An amount of money, as decimal text: floating point does not add cents."""
ShortText = Annotated[str, StringConstraints(max_length=256)]
Text = Annotated[str, StringConstraints(max_length=2048)]
Timestamp = Annotated[str, StringConstraints(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z$", max_length=27)]
"""A moment in UTC, RFC 3339 with a trailing Z."""
RelativePath = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*$", max_length=256)
]
"""A path below a known folder; no component starts with a dot, so none can climb out of it."""
Fraction = Annotated[float, Field(ge=0, le=1)]


class Contract(BaseModel):
    """Base of every contract: unknown fields are errors, names are camelCase on the wire, values are never coerced
    silently from another type beyond what JSON needs."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", ser_json_inf_nan="null", allow_inf_nan=False
    )

    def wire(self) -> dict[str, Any]:
        """The object as plain JSON data: camelCase names, absent fields left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    def canonical(self) -> bytes:
        """The bytes that are hashed and signed: see `canonical_json`."""
        return canonical_json(self.wire())

    def content_digest(self) -> str:
        """`sha256:…` of `canonical()`."""
        return sha256(self.canonical())


def canonical_json(value: Any) -> bytes:
    """`value` as JSON with sorted keys, no spaces and UTF-8 text: equal values give equal bytes.

    Raises ValueError for NaN and infinities, TypeError for what JSON cannot hold.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def sha256(data: bytes) -> str:
    """`sha256:` and the hexadecimal digest of `data`."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(duration: str) -> float:
    """The length of a `Duration` in seconds. Raises ValueError for anything else."""
    if not re.match(DURATION_PATTERN, duration):
        raise ValueError(f"{duration!r} is no duration; write it like 30s, 10m or 1h30m")
    return sum(int(n) * _UNITS[unit] for n, unit in re.findall(r"([0-9]+)(ms|s|m|h|d)", duration))


def parse_timestamp(text: str) -> datetime:
    """The moment a `Timestamp` names, with its time zone (UTC)."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def timestamp(moment: datetime) -> str:
    """`moment` as a `Timestamp`, to the second. `moment` must know its time zone."""
    if moment.tzinfo is None or moment.utcoffset() is None:
        raise ValueError("a timestamp needs a moment that knows its time zone")
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def later(moment: str, by: timedelta) -> str:
    """The `Timestamp` `by` after `moment`."""
    return timestamp(parse_timestamp(moment) + by)
