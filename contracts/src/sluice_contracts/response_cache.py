"""InferencePool's kept answers: in each gateway's memory, and in a Redis that the gateways share."""

from typing import Annotated

from pydantic import Field

from sluice_contracts.base import Contract, Duration
from sluice_contracts.kubernetes import SecretKeyReference, cel


class CacheRedis(Contract):
    """A Redis through which the pool's gateways share what they keep. A slow or absent one fails no request: it is
    waited for as long as `timeoutMilliseconds`, and after a few failures not at all until it answers in time again."""

    secret_ref: SecretKeyReference
    """A URL: `rediss://:password@host:6379/0`, or `redis://` without TLS. Read anew for each connection."""
    ca_secret_ref: SecretKeyReference | None = None
    """The CA of the server's certificate, in PEM. None: the system's CAs are believed."""
    timeout_milliseconds: Annotated[int, Field(ge=1, le=1000)] = 30


class Cache(Contract):
    """Answers that each gateway keeps in memory for requests that come again word for word: embeddings, and answers
    asked for with temperature 0. Apart by tenant and by the model's digest; `Cache-Control: no-store` or `no-cache`
    goes round it."""

    model_config = cel(
        ("self.ttl.matches('[1-9]')", "gateway.cache.ttl must be above 0, such as 1h"),
        (
            "!has(self.redis) || self.maxEntries > 0",
            "gateway.cache.redis needs gateway.cache.maxEntries above 0: what is found in Redis is kept in memory too",
        ),
    )

    max_entries: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """0: nothing is kept."""
    max_megabytes: Annotated[int, Field(ge=1, le=4096)] = 64
    """Of the gateway's memory, in each replica."""
    ttl: Duration = "1h"
    redis: CacheRedis | None = None
    """None: gateways do not share what they keep."""
