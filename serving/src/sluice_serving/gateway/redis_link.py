"""Connections to a Redis: opened ahead of the requests that use them, each command on a free one. redis-py's wrapper.

Only its connections are used, not its client and pool: those connect, retry and wait within a request, and keep
statistics that cost more than the command. Error texts may repeat the address or the password: only classes are kept.
"""

import asyncio
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from redis.asyncio.connection import Connection, SSLConnection
from redis.exceptions import ResponseError

DEFAULT_PORT = 6379


class RedisDown(Exception):
    """The server cannot be used now. The text is the client's class of error."""


class RedisRefused(Exception):
    """The server works, and does not do this. The text is its class of error."""


@dataclass(frozen=True)
class Address:
    """Where a Redis is, and how to come in."""

    host: str
    port: int
    tls: bool
    username: str | None
    password: str | None
    database: int


def read_address(url: str) -> Address:
    """`redis[s]://[[user]:password@]host[:port][/number]`. Raises ValueError that does not repeat what it was given."""
    try:
        parts = urlsplit(url)
        port = parts.port or DEFAULT_PORT
    except ValueError:
        raise ValueError("it is no URL; write it like rediss://:password@host:6379/0") from None
    if parts.scheme not in {"redis", "rediss"}:
        raise ValueError("it must start with redis:// or rediss:// (with TLS)")
    if not parts.hostname:
        raise ValueError("it names no host; write it like rediss://:password@host:6379/0")
    if parts.query or parts.fragment:
        raise ValueError("it must end with the database's number: settings after ? are not taken")
    database = parts.path.strip("/") or "0"
    if not database.isdecimal():
        raise ValueError("its path must be the database's number, such as /0")
    return Address(
        host=parts.hostname,
        port=port,
        tls=parts.scheme == "rediss",
        username=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
        database=int(database),
    )


class RedisLink:
    """A few connections to one server. One that failed, or whose caller gave up, connects anew when it is next used.
    Nothing here has a deadline; callers do."""

    def __init__(self, address: Address, ca_file: Path | None, connections: int) -> None:
        self._address = address
        self._ca_file = ca_file
        self._count = connections
        self._free: asyncio.LifoQueue[Connection] = asyncio.LifoQueue()
        self._all: list[Connection] = []
        self._closed = False

    async def open(self) -> None:
        """Connect, with password. Raises RedisDown."""
        address = self._address
        try:
            context = await asyncio.to_thread(_context, self._ca_file) if address.tls else None
        except (OSError, ssl.SSLError) as error:
            raise RedisDown(f"the CA's file: {type(error).__name__}") from None
        for _ in range(self._count):
            connection = (SSLConnection if address.tls else Connection)(
                host=address.host,
                port=address.port,
                username=address.username,
                password=address.password,
                db=address.database,
                driver_info=None,
            )
            if isinstance(connection, SSLConnection):
                connection.ssl_context.context = context  # it would read the system's CAs anew for each connection
            self._all.append(connection)
        connecting = (c.connect() for c in self._all)  # type: ignore[no-untyped-call]
        for failure in await asyncio.gather(*connecting, return_exceptions=True):
            if isinstance(failure, BaseException):
                raise RedisDown(_class(failure))
        for connection in self._all:
            self._free.put_nowait(connection)

    async def ping(self) -> None:
        """Raises RedisDown, RedisRefused."""
        await self._ask([("PING",)])

    async def read(self, name: bytes, most: int) -> bytes:
        """The value, or its first `most` bytes: whoever may write there decides how long it is. Empty if there is
        none. Raises RedisDown, RedisRefused."""
        (value,) = await self._ask([("GETRANGE", name, 0, most - 1)])
        if not isinstance(value, bytes):
            raise RedisRefused(type(value).__name__)
        return value

    async def write(self, values: Sequence[tuple[bytes, bytes, float]]) -> None:
        """Store values under names, each for so many seconds. Raises RedisDown, RedisRefused."""
        await self._ask([("SET", name, value, "PX", max(1, int(1000 * ttl))) for name, value, ttl in values])

    async def _ask(self, commands: Sequence[tuple[bytes | str | int, ...]]) -> list[object]:
        connection = await self._free.get()
        refusal: ResponseError | None = None
        replies: list[object] = []
        whole = False
        try:
            if self._closed:
                raise RedisDown("closed")
            await connection.send_packed_command(connection.pack_commands(commands))
            for _ in commands:
                try:
                    replies.append(await connection.read_response(disable_decoding=True, disconnect_on_error=False))
                except ResponseError as error:
                    refusal = error
            whole = True
        except RedisDown:
            raise
        except Exception as error:  # also what the client's parser makes of bytes that are no protocol
            raise RedisDown(_class(error)) from None
        finally:
            self._free.put_nowait(connection)
            if not whole or self._closed:
                # Half an answer may be left on it.
                await connection.disconnect(nowait=True)
        if refusal is not None:
            raise RedisRefused(type(refusal).__name__)
        return replies

    async def close(self) -> None:
        """Close everything; what waits for an answer fails."""
        self._closed = True
        for connection in self._all:
            await connection.disconnect(nowait=True)


def _class(error: BaseException) -> str:
    """What went wrong, in a word that says nothing of where: `ConnectionError`'s is in what led to it."""
    reason = error.__cause__ or error.__context__
    return type(reason if isinstance(reason, OSError) else error).__name__


def _context(ca_file: Path | None) -> ssl.SSLContext:
    """Trusts that CA alone, or the system's. Reads files."""
    context = ssl.create_default_context(cafile=ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
