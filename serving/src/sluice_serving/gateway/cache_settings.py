"""Where the Redis is that gateways share their kept answers through, from the environment."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sluice_contracts.base import seconds

from sluice_serving.gateway.redis_link import Address, read_address

LONGEST_TIMEOUT = 1.0


class WrongRedis(ValueError):
    """A variable is wrong; the message names it, and repeats no URL."""


@dataclass(frozen=True)
class RedisSettings:
    """The URL may hold a password, and is read anew from its file whenever a connection is made."""

    url: str = ""
    url_file: Path | None = None
    ca_file: Path | None = None
    """None: the system's CAs."""
    timeout: float = 0.03
    """Of a look-up, in seconds."""

    def address(self) -> Address:
        """Raises OSError, ValueError."""
        return read_address(self.url if self.url_file is None else self.url_file.read_text().strip())


def read_redis(env: Mapping[str, str]) -> RedisSettings | None:
    """None if no URL is given. Raises WrongRedis."""
    url, file = env.get("SLUICE_CACHE_REDIS_URL", ""), env.get("SLUICE_CACHE_REDIS_URL_FILE")
    if not url and not file:
        return None
    ca = env.get("SLUICE_CACHE_REDIS_CA_FILE")
    found = RedisSettings(
        url=url,
        url_file=Path(file) if file else None,
        ca_file=Path(ca) if ca else None,
        timeout=_timeout(env.get("SLUICE_CACHE_REDIS_TIMEOUT") or "30ms"),
    )
    name = "SLUICE_CACHE_REDIS_URL_FILE" if file else "SLUICE_CACHE_REDIS_URL"
    try:
        found.address()
    except OSError as error:
        raise WrongRedis(f"{name}: cannot read {file}: {error.strerror}") from None
    except ValueError as error:
        raise WrongRedis(f"{name}: {error}") from None
    return found


def _timeout(text: str) -> float:
    try:
        value = seconds(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= LONGEST_TIMEOUT:
        raise WrongRedis(f"SLUICE_CACHE_REDIS_TIMEOUT is {text!r}; expected 1ms to 1s, such as 30ms")
    return value
