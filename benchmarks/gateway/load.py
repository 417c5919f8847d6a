"""Sending requests when they are due, or as fast as they are answered, with little work of our own for each.

Open-loop: a request has its moment whether or not others have been answered, and its latency counts from that moment
(no coordinated omission: what waits because the server stalls is measured as waiting). Connections are kept and made as
they are needed.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import takewhile
from typing import cast

from sluice_serving.load.schedule import moments

CONNECTIONS = 4096
"""At most so many; a request that finds none free counts as failed."""
REQUEST_SECONDS = 30.0


@dataclass(slots=True)
class Answer:
    """One request's fate. Times in seconds of the monotonic clock; 0 where it did not come to that."""

    due: float
    sent: float = 0.0
    first: float = 0.0
    """First byte of the answer."""
    done: float = 0.0
    status: int = 0
    events: int = 0

    @property
    def latency(self) -> float:
        """From when it was due to its last byte."""
        return self.done - self.due


class Connection(asyncio.Protocol):
    """One kept connection, with one request at a time."""

    def __init__(self, pool: "Client") -> None:
        self.pool = pool
        self.transport: asyncio.Transport | None = None
        self.answer: Answer | None = None
        self.head = b""
        self.left = -1
        self.tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep what requests go to."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it

    def connection_lost(self, exc: Exception | None) -> None:
        """What was asked is lost with it."""
        self.transport = None
        if self.answer is not None:
            self._finish(0)

    def ask(self, request: bytes, answer: Answer) -> None:
        """Send a request."""
        assert self.transport is not None
        self.answer, self.head, self.left, self.tail = answer, b"", -1, b""
        answer.sent = time.monotonic()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Read just enough to know the status, the number of events and the end."""
        answer = self.answer
        if answer is None:
            return
        if not answer.first:
            answer.first = time.monotonic()
        if self.left == -1:
            self.head += data
            head, found, data = self.head.partition(b"\r\n\r\n")
            if not found:
                return
            answer.status = int(head[9:12])
            lowered = head.lower()
            chunked = b"transfer-encoding: chunked" in lowered
            self.left = -2 if chunked else int(lowered.partition(b"content-length:")[2].partition(b"\r\n")[0])
        if self.left == -2:
            data = self.tail + data
            answer.events += data.count(b"\n\n")
            self.tail = data[-6:].replace(b"\n\n", b"\n-")
            if data.endswith(b"\r\n0\r\n\r\n"):
                self._finish(answer.status)
        else:
            self.left -= len(data)
            if self.left <= 0:
                self._finish(answer.status)

    def _finish(self, status: int) -> None:
        assert self.answer is not None
        self.answer.status, self.answer.done = status, time.monotonic()
        self.answer = None
        self.pool.finished(self)


@dataclass
class Client:
    """All connections to one server."""

    port: int
    again: Callable[[Connection], None] | None = None
    """What a connection does as soon as it is free; None: it waits for work."""
    idle: list[Connection] = field(default_factory=list)
    made: int = 0
    outstanding: int = 0

    async def connect(self) -> Connection:
        """A new connection."""
        self.made += 1
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: Connection(self), "127.0.0.1", self.port
        )
        return connection

    def finished(self, connection: Connection) -> None:
        """An answer is complete, or lost with its connection."""
        self.outstanding -= 1
        if connection.transport is None or connection.transport.is_closing():
            self.made -= 1
        elif self.again is not None:
            self.again(connection)
        else:
            self.idle.append(connection)

    async def send(self, request: bytes, answer: Answer) -> None:
        """Send on a free connection, or on a new one."""
        self.outstanding += 1
        while self.idle:
            connection = self.idle.pop()
            if connection.transport is not None and not connection.transport.is_closing():
                connection.ask(request, answer)
                return
            self.made -= 1
        try:
            if self.made >= CONNECTIONS:
                raise OSError("too many connections")
            connection = await asyncio.wait_for(self.connect(), REQUEST_SECONDS)
        except OSError:  # among them TimeoutError
            self.outstanding -= 1
            answer.done = time.monotonic()
            return
        connection.ask(request, answer)

    async def drained(self, seconds: float) -> None:
        """Wait until all is answered, so long at most."""
        until = time.monotonic() + seconds
        while self.outstanding and time.monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    def close(self) -> None:
        """Close what waits."""
        for connection in self.idle:
            if connection.transport is not None:
                connection.transport.close()


def arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """When requests are due: Poisson, `rate` a second, in seconds from the start."""
    return list(takewhile(lambda at: at < seconds, moments(rate, "poisson", seed)))


async def open_loop(port: int, request: bytes, due: Iterable[float]) -> list[Answer]:
    """Send at the moments; returns what came of each. A thread keeps the time: the loop's timers know milliseconds."""
    client, answers, loop = Client(port), [], asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    def send(answer: Answer) -> None:
        answers.append(answer)
        task = loop.create_task(client.send(request, answer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def keep_time() -> None:
        begin = time.monotonic() + 0.05
        for moment in due:
            pause = begin + moment - time.monotonic()
            if pause > 0:
                time.sleep(pause)
            loop.call_soon_threadsafe(send, Answer(begin + moment))

    keeper = threading.Thread(target=keep_time)
    keeper.start()
    await asyncio.to_thread(keeper.join)
    await client.drained(REQUEST_SECONDS)
    client.close()
    return answers


async def closed_loop(port: int, request: bytes, connections: int, seconds: float) -> list[Answer]:
    """Keep so many requests under way for so long; returns those that were answered."""
    answers: list[Answer] = []
    until = time.monotonic() + seconds

    def again(connection: Connection) -> None:
        now = time.monotonic()
        if now >= until:
            client.idle.append(connection)
            return
        answer = Answer(now)
        answers.append(answer)
        client.outstanding += 1
        connection.ask(request, answer)

    client = Client(port, again)
    for _ in range(connections):
        again(await client.connect())
    await asyncio.sleep(max(0.0, until - time.monotonic()))
    await client.drained(REQUEST_SECONDS)
    client.close()
    return answers
