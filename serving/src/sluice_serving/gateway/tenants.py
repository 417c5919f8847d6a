"""Who may ask, what they may spend, and what is kept of them: the format of a tenant's file. Pure.

A tenant's file is JSON, or just a key: see docs/gateway-data.md. Everything in it is checked here, with the field's
name in the error and never its value, since the file comes from a Secret.
"""

import hashlib
import re
from dataclasses import dataclass, field
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, ValidationError, field_validator, model_validator
from sluice_contracts.base import DIGEST_PATTERN, Contract, Digest, Money, Timestamp, parse_timestamp, sha256

MAX_FILE_BYTES = 1 << 20
"""A Secret holds no more."""
NORMAL_PRIORITY = 5
TENANT_PATTERN = re.compile(r"[A-Za-z0-9][-._A-Za-z0-9]{0,252}")
"""The names a Secret's keys can have, less those that start with a dot."""

Window = Literal["minute", "hour", "day", "month"]
Priority = Annotated[int, Field(ge=0, le=9)]
Count = Annotated[int, Field(ge=1, le=10**15)]


class TenantFileError(ValueError):
    """A tenant's file is wrong. The message names the field and what is wrong, never what it holds."""


class Budget(Contract):
    """What may be spent in each window of time. Windows begin at whole minutes, hours, days and months of UTC."""

    window: Window
    requests: Count | None = None
    tokens: Count | None = None
    """Of prompts and answers together."""
    money: Money | None = None
    """By the pool's prices."""

    @model_validator(mode="after")
    def _limits_something(self) -> Self:
        if self.requests is None and self.tokens is None and self.money is None:
            raise ValueError("a budget needs requests, tokens or money")
        return self


Budgets = Annotated[list[Budget], Field(max_length=8)]


class KeyEntry(Contract):
    """One API key of a tenant."""

    id: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-._a-z0-9]*[a-z0-9])?$", max_length=64)]
    """Names the key in logs and records; not secret."""
    digest: Digest
    """SHA-256 of the key. Keys are long and random, so a slow hash would add nothing."""
    priority: Priority | None = None
    """Higher goes first where requests wait. The tenant's where absent."""
    admin: bool = False
    """May export and delete what is kept of the tenant's users."""
    expires: Timestamp | None = None
    budgets: Budgets = []

    @field_validator("expires")
    @classmethod
    def _is_a_day(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                parse_timestamp(value)
            except ValueError:
                raise ValueError("no day or no time of day is called that") from None
        return value


class TenantFile(Contract):
    """One tenant."""

    keys: Annotated[list[KeyEntry], Field(max_length=100)] = []
    """Several at once, so that a new one can be handed out before the old one goes. None: tokens of the pool's
    issuer only."""
    priority: Priority = NORMAL_PRIORITY
    budgets: Budgets = []
    """Of all keys and tokens together."""
    contexts: bool = False
    """Whether a record per user may be kept and added to requests."""
    keep_content: bool = False
    """Whether what is asked and answered is kept. Off unless the tenant says so."""

    @model_validator(mode="after")
    def _keys_differ(self) -> Self:
        if len({k.id for k in self.keys}) < len(self.keys):
            raise ValueError("two keys have the same id")
        if len({k.digest for k in self.keys}) < len(self.keys):
            raise ValueError("two keys have the same digest")
        return self


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request, as far as its key or token shows."""

    tenant: str
    key_id: str
    """`tenant/id` of the key, or `tenant/@` and the start of a pseudonym for a token's subject; fit for logs."""
    priority: int = NORMAL_PRIORITY
    """0 to 9; higher goes first."""
    admin: bool = False
    policy: TenantFile = field(default_factory=TenantFile)
    budgets: tuple[Budget, ...] = ()
    """The key's own; the tenant's are in `policy`."""
    user: str | None = None
    """A token's subject. Such a caller acts for nobody else."""


def read_tenant(name: str, data: bytes, *, plain_keys: bool = True) -> tuple[TenantFile, bool]:
    """The tenant in a file's bytes, and whether its key lay there in plain text. Raises TenantFileError."""
    if not TENANT_PATTERN.fullmatch(name):
        raise TenantFileError("the file's name is no tenant's name: use letters, digits, '-', '_' and '.'")
    if len(data) > MAX_FILE_BYTES:
        raise TenantFileError(f"the file has more than {MAX_FILE_BYTES} bytes")
    try:
        text = data.decode().strip()
    except UnicodeDecodeError:
        raise TenantFileError("the file is not UTF-8 text") from None
    if not text:
        raise TenantFileError("the file is empty; the tenant has no access")
    if text.startswith("{"):
        return _from_json(text), False
    hashed = re.fullmatch(DIGEST_PATTERN, text) is not None
    if not hashed and not plain_keys:
        raise TenantFileError("the key is in plain text, which the pool refuses; store its sha256: digest instead")
    digest = text if hashed else "sha256:" + hashlib.sha256(text.encode()).hexdigest()
    return TenantFile(keys=[KeyEntry(id="key", digest=digest)]), not hashed


def _from_json(text: str) -> TenantFile:
    try:
        return TenantFile.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise TenantFileError(f"{where}: {first['msg'].removeprefix('Value error, ')}{more}") from None


def key_digest(key: str) -> str:
    """What is stored of a key."""
    return sha256(key.encode())
