"""Tokens of an OpenID Connect issuer (JWT, RFC 7519) in place of an API key.

A token is believed if one of the issuer's keys signed it with an algorithm on our list, it is for us, and its time has
come and not passed. Keys are read from a file or fetched from the issuer; they are kept within bounds of number, size
and age, and fetched anew when a token names one that is not known, but not more often than every half minute. Only
asymmetric algorithms are known here: `none`, and secrets that a public key could be taken for, are not in the list.
"""

import asyncio
import hashlib
import json
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from sluice_serving.gateway.tenants import TENANT_PATTERN

logger = logging.getLogger("sluice.gateway")

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
CURVES = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521", "EdDSA": "Ed25519"}
"""RFC 7518, 3.4; RFC 8037."""
MAX_TOKEN = 8192
MAX_KEYS = 64
MAX_KEYS_BYTES = 256 << 10
MIN_RSA_BITS = 2048
LEEWAY_SECONDS = 30
FETCH_SECONDS = 5.0
REFRESH_SECONDS = 300.0
UNKNOWN_KEY_SECONDS = 30.0
MAX_AGE_SECONDS = 86_400.0
"""Keys that could not be fetched anew for so long are no longer believed: the issuer may have withdrawn them."""
VERIFIED_ENTRIES = 4096
VERIFIED_SECONDS = 60.0
MAX_SUBJECT = 256


Keys = dict[tuple[str, str], jwt.PyJWK]
"""By id and algorithm: a key that does not name its algorithm serves for all that its type and curve allow."""


class TokenRefused(Exception):
    """The token is not believed. The text says why, without any of its content."""


@dataclass(frozen=True)
class JwtSettings:
    """Whose tokens are believed."""

    issuer: str
    audience: str
    keys_url: str | None = None
    keys_file: Path | None = None
    """Exactly one of both: a JSON Web Key Set (RFC 7517)."""
    algorithms: tuple[str, ...] = ("RS256", "ES256")
    tenant_claim: str = "tenant"
    tenant: str | None = None
    """All tokens are this tenant's; no claim is read."""


@dataclass(frozen=True)
class Identity:
    """What a token says."""

    tenant: str
    subject: str


class KeySet:
    """The issuer's keys by their ids."""

    def __init__(self, settings: JwtSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self.fetches: Counter[str] = Counter()
        self.generation = 0
        self.settings = settings
        self._clock = clock
        self._keys: Keys = {}
        self._loaded_at: float | None = None
        self._tried_at = float("-inf")
        self._turn = asyncio.Lock()

    def find(self, key_id: str, algorithm: str) -> jwt.PyJWK | None:
        """The key, if it is known and not too old."""
        if self._loaded_at is None or self._clock() - self._loaded_at > MAX_AGE_SECONDS:
            return None
        return self._keys.get((key_id, algorithm))

    async def find_or_fetch(self, key_id: str, algorithm: str) -> jwt.PyJWK | None:
        """The key; one that is not known may be new, and is looked for."""
        found = self.find(key_id, algorithm)
        if found is None and self._clock() - self._tried_at >= UNKNOWN_KEY_SECONDS:
            async with self._turn:
                if self._clock() - self._tried_at >= UNKNOWN_KEY_SECONDS:
                    await self.refresh()
            found = self.find(key_id, algorithm)
        return found

    async def refresh(self) -> None:
        """Read the keys anew. When that fails, those that are known stay."""
        self._tried_at = self._clock()
        try:
            keys = read_keys(await self._source(), self.settings.algorithms)
        except (OSError, ValueError, TimeoutError, aiohttp.ClientError) as error:
            self.fetches["failed"] += 1
            why = str(error) if isinstance(error, ValueError) else type(error).__name__
            logger.error("cannot read the keys of issuer %s: %s; keeping %d", self.settings.issuer, why,
                         len(self._keys))  # fmt: skip
            return
        self.fetches["ok"] += 1
        self._keys, self._loaded_at = keys, self._clock()
        self.generation += 1

    async def _source(self) -> bytes:
        if self.settings.keys_file is not None:
            return await asyncio.to_thread(_read_file, self.settings.keys_file)
        assert self.settings.keys_url is not None
        timeout = aiohttp.ClientTimeout(total=FETCH_SECONDS)
        async with (
            aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()) as session,
            session.get(self.settings.keys_url, allow_redirects=False) as response,
        ):
            if response.status != 200:
                raise ValueError(f"the issuer answered {response.status}")
            data = bytearray()
            async for chunk in response.content.iter_chunked(65_536):
                data += chunk
                if len(data) > MAX_KEYS_BYTES:
                    raise ValueError(f"the key set has more than {MAX_KEYS_BYTES} bytes")
            return bytes(data)

    async def run(self) -> None:
        """Keep the keys fresh, until cancelled. A file is looked at more often: reading it costs nothing."""
        while True:
            async with self._turn:
                await self.refresh()
            await asyncio.sleep(10.0 if self.settings.keys_file else REFRESH_SECONDS)


def _read_file(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(MAX_KEYS_BYTES + 1)
    if len(data) > MAX_KEYS_BYTES:
        raise ValueError(f"the key set has more than {MAX_KEYS_BYTES} bytes")
    return data


def read_keys(data: bytes, algorithms: tuple[str, ...]) -> Keys:
    """The keys of a key set that can sign with one of `algorithms`. Raises ValueError."""
    try:
        entries = json.loads(data)["keys"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError("it is no JSON Web Key Set") from None
    if not isinstance(entries, list) or len(entries) > MAX_KEYS:
        raise ValueError(f"it is no list of at most {MAX_KEYS} keys")
    found: Keys = {}
    for entry in entries:
        for algorithm in algorithms:
            key = _usable(entry, algorithm)
            if key is not None:
                found[entry["kid"], algorithm] = key
    if not found:
        raise ValueError(f"none of its {len(entries)} keys has an id and is for {', '.join(algorithms)}")
    return found


def _usable(entry: Any, algorithm: str) -> jwt.PyJWK | None:
    """The key for that algorithm, unless it is for something else, too short, or private."""
    if not isinstance(entry, dict) or not isinstance(entry.get("kid"), str) or "d" in entry:
        return None
    if entry.get("use", "sig") != "sig" or entry.get("alg", algorithm) != algorithm:
        return None
    curve = CURVES.get(algorithm)
    kind = "OKP" if algorithm == "EdDSA" else "EC" if curve else "RSA"
    if entry.get("kty") != kind or entry.get("crv") != curve:
        return None
    try:
        key = jwt.PyJWK(entry, algorithm=algorithm)
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        return None
    if isinstance(key.key, RSAPublicKey) and key.key.key_size < MIN_RSA_BITS:
        return None
    return key


class TokenVerifier:
    """Believes tokens, and remembers for a minute which it has believed."""

    def __init__(self, settings: JwtSettings, keys: KeySet | None = None, clock: Callable[[], float] = time.time):
        self.settings = settings
        self.keys = keys or KeySet(settings)
        self._clock = clock
        self._verified: OrderedDict[bytes, tuple[float, int, Identity]] = OrderedDict()

    async def verify(self, token: str) -> Identity:
        """Who the token is for. Raises TokenRefused."""
        if len(token) > MAX_TOKEN:
            raise TokenRefused(f"the token is longer than {MAX_TOKEN} characters")
        name = hashlib.sha256(token.encode()).digest()
        known = self._verified.get(name)
        if known is not None and self._clock() < known[0] and known[1] == self.keys.generation:
            self._verified.move_to_end(name)
            return known[2]
        claims = await self._claims(token)
        identity = self._identity(claims)
        until = min(self._clock() + VERIFIED_SECONDS, float(claims["exp"]))
        self._verified[name] = until, self.keys.generation, identity
        while len(self._verified) > VERIFIED_ENTRIES:
            self._verified.popitem(last=False)
        return identity

    async def _claims(self, token: str) -> dict[str, Any]:
        try:
            head = jwt.get_unverified_header(token)
        except jwt.PyJWTError:
            raise TokenRefused("the token cannot be read") from None
        algorithm, key_id = head.get("alg"), head.get("kid")
        if algorithm not in self.settings.algorithms:
            raise TokenRefused("the token's algorithm is not allowed")
        if not isinstance(key_id, str):
            raise TokenRefused("the token names no key")
        key = await self.keys.find_or_fetch(key_id, algorithm)
        if key is None:
            raise TokenRefused("the token's key is not known")
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                issuer=self.settings.issuer,
                audience=self.settings.audience,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.ExpiredSignatureError:
            raise TokenRefused("the token has expired") from None
        except jwt.PyJWTError as error:
            raise TokenRefused(f"the token is not valid ({type(error).__name__})") from None
        return claims

    def _identity(self, claims: dict[str, Any]) -> Identity:
        subject = claims["sub"]
        if not isinstance(subject, str) or not 0 < len(subject) <= MAX_SUBJECT or not subject.isprintable():
            raise TokenRefused(f"the token's subject is not text of 1 to {MAX_SUBJECT} printable characters")
        tenant = self.settings.tenant or claims.get(self.settings.tenant_claim)
        if not isinstance(tenant, str) or not TENANT_PATTERN.fullmatch(tenant):
            raise TokenRefused(f"the token's claim {self.settings.tenant_claim} names no tenant")
        return Identity(tenant, subject)


def looks_like_token(credential: str) -> bool:
    """Whether it has a token's form: three parts, the first of them JSON in base64."""
    return credential.startswith("eyJ") and credential.count(".") == 2
