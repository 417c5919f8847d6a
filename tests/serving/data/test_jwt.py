"""Tokens: believed only from our issuer's keys, for us, in time, with an algorithm we allow."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jwt as pyjwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from sluice_devcluster.ports import free_port
from sluice_serving.gateway import jwt as tokens
from sluice_serving.gateway.jwt import Identity, JwtSettings, KeySet, TokenRefused, TokenVerifier, read_keys
from sluice_serving.gateway.settings import SettingsError, read_settings

ISSUER, AUDIENCE = "https://issuer.example", "sluice"
P256 = ec.generate_private_key(ec.SECP256R1())
STRANGER = ec.generate_private_key(ec.SECP256R1())
RSA = rsa.generate_private_key(65537, 2048)
ED = ed25519.Ed25519PrivateKey.generate()


def jwk(key: Any, kid: str, **more: Any) -> dict[str, Any]:
    algorithms = pyjwt.get_algorithm_by_name
    name = (
        "ES256"
        if isinstance(key, ec.EllipticCurvePrivateKey)
        else "RS256"
        if isinstance(key, rsa.RSAPrivateKey)
        else "EdDSA"
    )
    return algorithms(name).to_jwk(key.public_key(), as_dict=True) | {"kid": kid} | more


def key_set(*entries: dict[str, Any]) -> bytes:
    return json.dumps({"keys": list(entries)}).encode()


def token(key: Any = P256, algorithm: str = "ES256", kid: str | None = "p", **claims: Any) -> str:
    whole = {"iss": ISSUER, "aud": AUDIENCE, "sub": "jane", "tenant": "acme", "exp": time.time() + 600} | claims
    return pyjwt.encode(
        {k: v for k, v in whole.items() if v is not None}, key, algorithm, {"kid": kid} if kid else None
    )


def verifier(tmp_path: Path, *entries: dict[str, Any], **more: Any) -> TokenVerifier:
    path = tmp_path / "jwks.json"
    path.write_bytes(key_set(*(entries or [jwk(P256, "p")])))
    return TokenVerifier(JwtSettings(ISSUER, AUDIENCE, keys_file=path, **more))


async def test_a_token_of_the_issuer_says_who_asks(tmp_path: Path) -> None:
    believing = verifier(tmp_path)
    assert await believing.verify(token()) == Identity("acme", "jane")
    assert await believing.verify(token(aud=["other", AUDIENCE])) == Identity("acme", "jane")
    fixed = verifier(tmp_path, tenant="only")
    assert await fixed.verify(token(tenant=None)) == Identity("only", "jane")
    claimed = verifier(tmp_path, tenant_claim="https://acme.example/org")
    assert await claimed.verify(token(**{"https://acme.example/org": "blue"})) == Identity("blue", "jane")


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ({"key": STRANGER}, "InvalidSignatureError"),
        ({"exp": time.time() - 120}, "expired"),
        ({"exp": None}, "MissingRequiredClaimError"),
        ({"nbf": time.time() + 3600}, "ImmatureSignatureError"),
        ({"iss": "https://evil.example"}, "InvalidIssuerError"),
        ({"aud": "somebody-else"}, "InvalidAudienceError"),
        ({"aud": None}, "MissingRequiredClaimError"),
        ({"sub": None}, "MissingRequiredClaimError"),
        ({"sub": "x" * 257}, "subject"),
        ({"sub": "a\nb"}, "subject"),
        ({"tenant": None}, "names no tenant"),
        ({"tenant": "../etc"}, "names no tenant"),
        ({"tenant": ["acme"]}, "names no tenant"),
        ({"kid": None}, "names no key"),
        ({"kid": "other"}, "key is not known"),
        ({"key": RSA, "algorithm": "RS256"}, "key is not known"),
        ({"key": RSA, "algorithm": "RS512"}, "algorithm is not allowed"),
        ({"key": "a" * 64, "algorithm": "HS256"}, "algorithm is not allowed"),
        ({"pad": "x" * 9000}, "longer than"),
    ],
)
async def test_what_is_not_right_is_refused_by_name(tmp_path: Path, bad: dict[str, Any], why: str) -> None:
    with pytest.raises(TokenRefused, match=why):
        await verifier(tmp_path).verify(token(**bad))


async def test_neither_no_signature_nor_a_public_key_as_a_secret_is_believed(tmp_path: Path) -> None:
    def part(content: Any) -> str:
        return base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=").decode()

    body = part({"iss": ISSUER, "aud": AUDIENCE, "sub": "jane", "tenant": "acme", "exp": time.time() + 600})
    none = f"{part({'alg': 'none', 'kid': 'p'})}.{body}."
    head = part({"alg": "HS256", "kid": "p"})
    public = P256.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )  # fmt: skip
    mac = base64.urlsafe_b64encode(hmac.new(public, f"{head}.{body}".encode(), hashlib.sha256).digest()).rstrip(b"=")
    believing = verifier(tmp_path)
    for forged in (none, f"{head}.{body}.{mac.decode()}", "eyJ.x.y", "..", f"{token()[:-4]}AAAA"):
        with pytest.raises(TokenRefused):
            await believing.verify(forged)


def test_only_public_signing_keys_of_allowed_kinds_are_taken() -> None:
    small = jwk(rsa.generate_private_key(65537, 1024), "small")
    secret = {"kty": "oct", "kid": "secret", "k": "AAAA"}
    private = jwk(P256, "private") | {"d": "AAAA"}
    bad = [small, secret, private, jwk(P256, "enc", use="enc"), {"kty": "EC", "kid": "broken"}, "text",
           jwk(ED, "ed"), jwk(P256, "wrong-alg", alg="RS256")]  # fmt: skip
    good = read_keys(key_set(*bad, jwk(RSA, "r"), jwk(P256, "p")), ("RS256", "RS512", "ES256"))
    assert sorted(good) == [("p", "ES256"), ("r", "RS256"), ("r", "RS512")]
    assert list(read_keys(key_set(jwk(ED, "ed")), ("EdDSA",))) == [("ed", "EdDSA")]
    for content, why in (
        (key_set(*bad), "none of its 8 keys"),
        (b"[]", "no JSON Web Key Set"),
        (b"{", "no JSON Web Key Set"),
        (key_set(*[jwk(P256, "p")] * 65), "at most 64"),
    ):
        with pytest.raises(ValueError, match=why):
            read_keys(content, ("RS256", "ES256"))


class Issuer:
    """An HTTP server with a key set."""

    def __init__(self) -> None:
        self.content = key_set(jwk(P256, "p"))
        self.status = 200
        self.asked = 0
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/keys"

    async def serve(self, _: web.Request) -> web.Response:
        self.asked += 1
        headers = {"location": self.url} if self.status == 302 else {}
        return web.Response(body=self.content, status=self.status, headers=headers)


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    server = Issuer()
    app = web.Application()
    app.router.add_get("/keys", server.serve)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", server.port).start()
    yield server
    await runner.cleanup()


async def test_new_keys_are_fetched_when_a_token_names_one_but_not_at_everyones_wish(issuer: Issuer) -> None:
    now = [0.0]
    keys = KeySet(JwtSettings(ISSUER, AUDIENCE, keys_url=issuer.url), clock=lambda: now[0])
    believing = TokenVerifier(keys.settings, keys)
    await believing.verify(token())
    assert issuer.asked == 1
    for i in range(5):
        with pytest.raises(TokenRefused):
            await believing.verify(token(kid=f"made-up-{i}"))
    assert issuer.asked == 1
    now[0] += tokens.UNKNOWN_KEY_SECONDS
    issuer.content = key_set(jwk(STRANGER, "new"))
    assert await believing.verify(token(STRANGER, kid="new")) == Identity("acme", "jane")
    assert issuer.asked == 2
    with pytest.raises(TokenRefused):  # withdrawn, though it was believed a moment ago
        await believing.verify(token())


async def test_keys_outlive_an_outage_for_a_day_and_bad_answers_change_nothing(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    keys = KeySet(JwtSettings(ISSUER, AUDIENCE, keys_url=issuer.url), clock=lambda: now[0])
    await keys.refresh()
    assert keys.find("p", "ES256")
    good = issuer.content
    for issuer.status, issuer.content in ((500, b""), (302, b""), (200, b"<html>"), (200, good + b" " * (300 << 10))):
        await keys.refresh()
        assert keys.find("p", "ES256")
    assert keys.fetches == {"ok": 1, "failed": 4}
    now[0] += tokens.MAX_AGE_SECONDS + 1
    assert keys.find("p", "ES256") is None


async def test_what_was_verified_is_remembered_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "VERIFIED_ENTRIES", 2)
    believing = verifier(tmp_path)
    checked: list[str] = []
    real = pyjwt.decode
    monkeypatch.setattr(pyjwt, "decode", lambda t, *a, **k: (checked.append(t), real(t, *a, **k))[1])
    first, second, third = (token(n=i) for i in range(3))
    for t in (first, first, second, third, first):
        await believing.verify(t)
    assert checked == [first, second, third, first]
    assert len(believing._verified) == 2


BASE = {"SLUICE_ROUTES_FILE": "/r", "SLUICE_KEYS_DIR": "/k"}
JWT = {"SLUICE_JWT_ISSUER": ISSUER, "SLUICE_JWT_AUDIENCE": AUDIENCE, "SLUICE_JWT_KEYS_URL": "https://issuer.example/k"}


def test_settings_name_the_issuer() -> None:
    found = read_settings(BASE | JWT | {"SLUICE_JWT_ALGORITHMS": "ES256, EdDSA"}).jwt
    assert found is not None
    assert (found.issuer, found.algorithms, found.tenant_claim) == (ISSUER, ("ES256", "EdDSA"), "tenant")
    assert read_settings(BASE).jwt is None


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"SLUICE_JWT_ISSUER": ""}, "SLUICE_JWT_ISSUER is not"),
        ({"SLUICE_JWT_AUDIENCE": ""}, "SLUICE_JWT_AUDIENCE is not set"),
        ({"SLUICE_JWT_KEYS_FILE": "/f"}, "exactly one of SLUICE_JWT_KEYS_URL"),
        ({"SLUICE_JWT_KEYS_URL": ""}, "exactly one of SLUICE_JWT_KEYS_URL"),
        ({"SLUICE_JWT_KEYS_URL": "http://issuer.example/k"}, "must start with https"),
        ({"SLUICE_JWT_ALGORITHMS": "HS256"}, "SLUICE_JWT_ALGORITHMS has 'HS256'"),
        ({"SLUICE_JWT_ALGORITHMS": "none"}, "SLUICE_JWT_ALGORITHMS has 'none'"),
    ],
)
def test_wrong_settings_of_the_issuer_are_named(changes: dict[str, str], names: str) -> None:
    with pytest.raises(SettingsError, match=names):
        read_settings(BASE | JWT | changes)
