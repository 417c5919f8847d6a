"""How a kept answer lies in a Redis that others may read and write: under a name that tells nothing, encrypted, and
bound to its request. Pure.

Both the name and the key of the encryption are keyed hashes of the cache's own key, so each answer has a key of its
own: who holds the gateways' secret and a copy of Redis still has to know the very request to read its answer. A value
that was made, changed or moved to another name by someone else does not open.
"""

import hmac
import secrets
import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sluice_serving.gateway.cached_answer import Kept

PREFIX = b"sluice:cache:"
"""What all names begin with, for Redis' access lists."""
LABEL = b"sluice response cache, format 1\0"
"""Names and keys follow from it: gateways of another format do not meet these values."""
NONCE_BYTES = 12
TAG_BYTES = 16
HEAD = struct.Struct(">QqqBB")
"""Made (milliseconds since 1970), prompt and output tokens (-1: not known), kind, length of the finish reason."""
KINDS = (b"application/json", b"text/event-stream")
OVERHEAD = NONCE_BYTES + TAG_BYTES + HEAD.size + 255
"""A sealed value is larger than its answer by this much at most."""


class NotOurs(Exception):
    """The value was not made by a gateway with this secret for this name."""


class Sealer:
    """Names and seals answers with a secret that the pool's gateways share."""

    def __init__(self, secret: bytes, pool: str) -> None:
        self._root = hmac.digest(secret, LABEL + pool.encode(), "sha256")

    def name(self, key: bytes) -> bytes:
        """Where the answer for the cache's `key` lies."""
        return PREFIX + hmac.digest(self._root, b"name" + key, "sha256").hex().encode()

    def seal(self, key: bytes, answer: Kept, made: float) -> bytes:
        """The value to store. `made`: seconds since 1970."""
        reason = (answer.finish_reason or "").encode()[:255]
        head = HEAD.pack(
            int(made * 1000),
            -1 if answer.prompt_tokens is None else answer.prompt_tokens,
            -1 if answer.output_tokens is None else answer.output_tokens,
            KINDS.index(answer.content_type),
            len(reason),
        )
        nonce = secrets.token_bytes(NONCE_BYTES)
        return nonce + self._cipher(key).encrypt(nonce, head + reason + answer.body, None)

    def open(self, key: bytes, value: bytes) -> tuple[Kept, float]:
        """The answer, and when it was made. Raises NotOurs."""
        if len(value) < NONCE_BYTES + TAG_BYTES + HEAD.size:
            raise NotOurs
        try:
            plain = self._cipher(key).decrypt(value[:NONCE_BYTES], value[NONCE_BYTES:], None)
        except InvalidTag:
            raise NotOurs from None
        made, prompt, output, kind, length = HEAD.unpack_from(plain)
        start = HEAD.size + length
        reason = plain[HEAD.size : start].decode()
        answer = Kept(
            body=plain[start:],
            content_type=KINDS[kind],
            prompt_tokens=None if prompt < 0 else prompt,
            output_tokens=None if output < 0 else output,
            finish_reason=reason or None,
        )
        return answer, made / 1000

    def _cipher(self, key: bytes) -> AESGCM:
        return AESGCM(hmac.digest(self._root, b"value" + key, "sha256"))
