"""The REST interface to what is kept of users: contexts for their tenant's keys, records for the tenant's admin keys.

POST   /v1/contexts                {user, content}    201, ETag
GET    /v1/contexts/<user>                            200, ETag
PUT    /v1/contexts/<user>         {content}          200, ETag; needs If-Match
DELETE /v1/contexts/<user>                            204; If-Match if given
GET    /v1/users/<user>/records                       200, JSON lines; the last says `end`
DELETE /v1/users/<user>/records                       200, counts
"""

import json
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

from pydantic import Field
from sluice_contracts.base import Contract
from starlette.types import Receive, Scope, Send

from sluice_serving.gateway.accounting import Accounting
from sluice_serving.gateway.asgi import Disconnected, header, read_body, send_body, send_start
from sluice_serving.gateway.bodies import parsed
from sluice_serving.gateway.contexts import MAX_CHARACTERS, Conflict, Context, TooMany
from sluice_serving.gateway.database import Database, DatabaseDown, DataRefused
from sluice_serving.gateway.errors import ApiError
from sluice_serving.gateway.forgetting import Forgetting
from sluice_serving.gateway.records import export, forget
from sluice_serving.gateway.tenants import Caller

logger = logging.getLogger("sluice.gateway")

CONTEXTS = "/v1/contexts"
USERS = "/v1/users/"
RECORDS = "/records"
MAX_BODY = 65_536
MAX_USER = 256
DOWN_RETRY_AFTER = 5.0


def serves(path: str) -> bool:
    """Whether the path is this interface's."""
    return path == CONTEXTS or path.startswith((CONTEXTS + "/", USERS))


class Written(Contract):
    """Body of PUT."""

    content: str = Field(min_length=1, max_length=MAX_CHARACTERS)


class Created(Written):
    """Body of POST."""

    user: str = Field(min_length=1, max_length=MAX_USER)


class DataApi:
    """Handles what `serves` says. Raises ApiError before it has answered."""

    def __init__(self, accounting: Accounting, database: Database, forgetting: Forgetting) -> None:
        self._accounting = accounting
        self._forgetting = forgetting
        self._contexts = accounting.contexts
        self._database = database

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller = await self._accounting.authenticate(scope)
        self._accounting.check_users()
        path: str = scope["path"]
        try:
            if path.startswith(USERS):
                await self._records(caller, path, scope["method"], send)
            else:
                await self._context(caller, path.removeprefix(CONTEXTS).removeprefix("/"), scope, receive, send)
        except DatabaseDown:
            raise ApiError(503, "The database cannot be reached now; try again.", code="database_unavailable",
                           retry_after=DOWN_RETRY_AFTER) from None  # fmt: skip
        except DataRefused:
            raise ApiError(400, "The database cannot store this text.", code="invalid_value") from None
        except Disconnected:
            return

    async def _context(self, caller: Caller, user: str, scope: Scope, receive: Receive, send: Send) -> None:
        if not caller.policy.contexts:
            raise ApiError(403, "User contexts are not switched on for this tenant: set `contexts` in its file.",
                           code="contexts_disabled")  # fmt: skip
        method = scope["method"]
        if not user:
            _allow(method, "POST")
            body = parsed(Created, await read_body(scope, receive, MAX_BODY))
            await self._create(self._who(caller, body.user), body, caller, send)
            return
        _allow(method, "GET", "PUT", "DELETE")
        who = self._who(caller, user)
        tag = header(scope, b"if-match").strip('"') or None
        if method == "GET":
            await _answer(send, await self._contexts.read(caller.tenant, who))
        elif method == "DELETE":
            await self._delete(caller, who, tag, send)
        else:
            if tag is None:
                raise ApiError(428, "Send If-Match with the ETag of the version you mean to replace.",
                               code="precondition_required")  # fmt: skip
            written = parsed(Written, await read_body(scope, receive, MAX_BODY))
            try:
                await _answer(send, await self._contexts.update(caller.tenant, who, written.content, tag))
            except Conflict:
                raise _stale() from None

    async def _create(self, who: str, body: Created, caller: Caller, send: Send) -> None:
        try:
            made = await self._contexts.create(caller.tenant, who, body.content)
        except Conflict:
            raise ApiError(409, "This user has a context already: replace it with PUT.", code="exists") from None
        except TooMany:
            raise ApiError(507, "The tenant has as many contexts as it may have.", code="too_many") from None
        await _answer(send, made, status=201)

    async def _delete(self, caller: Caller, who: str, tag: str | None, send: Send) -> None:
        try:
            if not await self._contexts.delete(caller.tenant, who, tag):
                raise _absent()
        except Conflict:
            raise _stale() from None
        await send_start(send, 204, b"application/json", [], 0)
        await send_body(send, b"", more=False)

    def _who(self, caller: Caller, user: str) -> str:
        """The user's pseudonym. A token's bearer has only their own."""
        if len(user) > MAX_USER or not user.isprintable():
            raise ApiError(400, f"user must be text of 1 to {MAX_USER} printable characters.", param="user",
                           code="invalid_value")  # fmt: skip
        if caller.user is not None and caller.user != user:
            raise ApiError(403, "A token gives access to its own subject only.", code="forbidden")
        return self._accounting.pseudonym(caller.tenant, user) or ""

    async def _records(self, caller: Caller, path: str, method: str, send: Send) -> None:
        user = path.removeprefix(USERS)
        if not user.endswith(RECORDS) or user == RECORDS:
            raise ApiError(404, f"Unknown request URL: {method} {path[:128]}.", code="unknown_url")
        _allow(method, "GET", "DELETE")
        if not caller.admin:
            raise ApiError(403, "This takes a key with `admin`.", code="forbidden")
        who = self._who(caller, user.removesuffix(RECORDS))
        if method == "DELETE":
            deleted = await forget(self._database, caller.tenant, who, datetime.now(UTC))
            self._forgetting.forgot()
            self._contexts.forget(caller.tenant, who)
            logger.info("%s deleted the records of a user: %d interactions", caller.key_id, deleted["interactions"])
            await _send(send, 200, {"deleted": deleted})
            return
        logger.info("%s exports the records of a user", caller.key_id)
        lines = export_lines(self._database, caller.tenant, who, await self._contexts.read(caller.tenant, who))
        await send_start(send, 200, b"application/x-ndjson", [])
        async for line in lines:
            await send_body(send, line, more=True)
        await send_body(send, b"", more=False)


async def export_lines(database: Database, tenant: str, user: str, context: Context | None) -> AsyncIterator[bytes]:
    """All that is kept of a user, one JSON object a line. The last line tells a whole export from one cut off."""
    if context is not None:
        yield _line({"kind": "context", **_wire(context)})
    count = 0
    async for row in export(database, tenant, user):
        count += 1
        yield _line({"kind": "interaction", **row, "time": row["time"].isoformat()})
    yield _line({"kind": "end", "interactions": count})


def _line(content: dict[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode() + b"\n"


def _wire(context: Context) -> dict[str, Any]:
    return {
        "reference": context.reference,
        "version": context.version,
        "content": context.content,
        "created": context.created.isoformat(),
        "updated": context.updated.isoformat(),
    }


def _allow(method: str, *allowed: str) -> None:
    if method not in allowed:
        raise ApiError(405, f"Not allowed to {method} here; use {' or '.join(allowed)}.", code="method_not_allowed",
                       allow=", ".join(allowed))  # fmt: skip


def _stale() -> ApiError:
    return ApiError(412, "The context has changed since: read it again.", code="precondition_failed")


def _absent() -> ApiError:
    return ApiError(404, "This user has no context.", code="not_found")


async def _answer(send: Send, context: Context | None, status: int = 200) -> None:
    if context is None:
        raise _absent()
    await _send(send, status, _wire(context), [(b"etag", f'"{context.tag}"'.encode())])


async def _send(send: Send, status: int, content: object, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    body = json.dumps(content, ensure_ascii=False).encode()
    await send_start(send, status, b"application/json", [*(headers or []), (b"cache-control", b"no-store")], len(body))
    await send_body(send, body, more=False)
