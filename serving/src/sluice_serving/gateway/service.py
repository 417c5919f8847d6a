"""One request's way through the gateway: key, check, version, slot, engine, answer, record.

Written directly against ASGI: a client's leaving must be noticed at every step, in the queue as in the stream, and each
event must go out as it comes.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from sluice_contracts.analysis import CLIENT_CLOSED
from sluice_contracts.routing import Backend, RoutingTable
from starlette.types import Receive, Scope, Send

from sluice_serving.gateway.accounting import Accounting
from sluice_serving.gateway.admission import Lane, LaneClosed, Overloaded
from sluice_serving.gateway.answers import read_counts
from sluice_serving.gateway.asgi import (
    Disconnected,
    Receiving,
    header,
    read_body,
    send_body,
    send_start,
    until_disconnect,
)
from sluice_serving.gateway.cache import ResponseCache
from sluice_serving.gateway.cached_answer import Kept
from sluice_serving.gateway.completion import Completion, Kind, read_completion
from sluice_serving.gateway.drift.counting import DriftCounter
from sluice_serving.gateway.errors import ApiError, EngineFailed
from sluice_serving.gateway.events import BrokenStream, error_event, stream_reader
from sluice_serving.gateway.exchange import Exchange
from sluice_serving.gateway.fallback import FALLBACK_HEADER, Fallbacks
from sluice_serving.gateway.forgetting import Forgetting
from sluice_serving.gateway.holding import Holding
from sluice_serving.gateway.listening import Listener, listen
from sluice_serving.gateway.metrics import Gauges
from sluice_serving.gateway.mirror import Asked, Mirror
from sluice_serving.gateway.naming import for_client, for_engine
from sluice_serving.gateway.observations import Observations, Outcome
from sluice_serving.gateway.records import Interaction
from sluice_serving.gateway.shared_cache import SharedCache
from sluice_serving.gateway.tenants import Caller
from sluice_serving.gateway.tracing import UNTRACED, Tracer
from sluice_serving.gateway.upstream import (
    ATTEMPTS,
    RETRY_PAUSE_SECONDS,
    VERSIONS,
    RetryBudget,
    Upstream,
    chunks_of,
    read_answer,
)
from sluice_serving.gateway.wake import Asleep

logger = logging.getLogger("sluice.gateway")

MAX_SESSION_CHARACTERS = 256
UNAVAILABLE_RETRY_AFTER = 5.0
NO_EVIDENCE = frozenset({"client_error", "rejected", "cached"})
LAST_EVENT_SECONDS = 1.0
"""How long a client has to take the event that says why its stream ends."""


class Gateway:
    """The state that requests share, and the handler of those that an engine answers."""

    def __init__(
        self,
        *,
        accounting: Accounting,
        upstream: Upstream,
        request_timeout: float,
        probe_seconds: float = 15.0,
        judge_token_file: Path | None = None,
        drift: DriftCounter | None = None,
        shared_cache: SharedCache | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self.accounting = accounting
        self.keys = accounting.keys
        self.upstream = upstream
        self.drift = drift
        self.tracer = tracer
        self.interactions = accounting.interactions
        self.observations = Observations()
        self.mirror = Mirror(upstream, self.observations, judge_token_file)
        self.table: RoutingTable | None = None
        self.draining = False
        self.lanes: dict[str, Lane] = {}
        self.holding = Holding(upstream.look, self.lanes, probe_seconds)
        self.forgetting = Forgetting(accounting.interactions.database)
        self.cache = ResponseCache(generation=self.forgetting.generation, shared=shared_cache)
        self.fallbacks = Fallbacks(self.observations, self._from_version, self._charge)
        self._retry_budget = RetryBudget()
        self._receiving = Receiving()
        self._request_timeout = request_timeout

    def follow(self, table: RoutingTable) -> None:
        """Put a new routing table in force. Running requests go on with the version they have."""
        if table == self.table:
            return
        self.table = table
        self.observations.follow(table)
        names = {b.model_version for b in table.backends}
        for name in names - self.lanes.keys():
            self.lanes[name] = Lane(0, table.limits.queue)
        for name in self.lanes.keys() - names:
            self.lanes.pop(name).close()
        self.holding.follow(table)
        self.upstream.reconnecting.follow(table.backends)
        self.cache.follow(table.cache)
        self.fallbacks.follow(table)
        self.forgetting.watch(self.cache.on)
        weights = ", ".join(f"{b.model_version} {b.weight}%{'' if b.ready else ' (not ready)'}" for b in table.backends)
        logger.info("routing: %s (window %s)", weights or "no version", table.window or "-")

    @property
    def ready(self) -> bool:
        """Whether requests should be sent here."""
        return self.table is not None and len(self.keys) > 0 and not self.draining

    def gauges(self) -> Gauges:
        """The present, for /metrics."""
        return Gauges(
            in_flight={name: lane.in_flight for name, lane in self.lanes.items()},
            waiting={name: lane.waiting for name, lane in self.lanes.items()},
            weights={b.model_version: b.weight for b in self.table.backends} if self.table else {},
            interactions_waiting=self.interactions.waiting,
            interactions_dropped=self.interactions.dropped,
            ready=self.ready,
            cache=self.cache,
            forgetting=self.forgetting,
        )

    def forget(self, tenant: str) -> None:
        """Somebody of the tenant was forgotten, here or elsewhere: nothing of theirs may stay in memory."""
        self.cache.forget(tenant)
        self.accounting.contexts.forget_tenant(tenant)

    async def authenticate(self, scope: Scope) -> Caller:
        """Who asks. Raises ApiError 401."""
        return await self.accounting.authenticate(scope)

    async def complete(self, kind: Kind, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; stop all work for it when the client leaves."""
        exchange = Exchange(kind)
        with UNTRACED if self.tracer is None else self.tracer.following(exchange, scope):
            await self._complete(exchange, scope, receive, send)

    async def _complete(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            caller = await self.authenticate(scope)
            exchange.tenant = caller.tenant
            if exchange.trace is not None:
                exchange.trace.admit(caller.tenant)
            table = self._table()
            body = await read_body(scope, receive, table.limits.max_request_bytes, self._receiving)
            exchange.request_bytes = len(body)
            completion = read_completion(exchange.kind, body, table.model, table.limits)
            self._identify(exchange, caller, completion, scope, table)
            priced = all(b.price is not None for b in table.backends)
            exchange.visit = await self.accounting.begin(caller, completion, scope, send, priced=priced)
            completion, send = exchange.visit.completion, exchange.visit.send
            if self.drift is not None:
                send = self.drift.listen(exchange, body, send)
            cache_control, context = header(scope, b"cache-control"), exchange.visit.context
            exchange.lookup = self.cache.begin(exchange.tenant, completion, cache_control, context)
        except ApiError as error:
            await self._refuse(exchange, error, send)
            return
        except Disconnected:
            return
        answering = asyncio.create_task(self._answer(exchange, completion, send))
        leaving = asyncio.create_task(until_disconnect(receive))
        try:
            patience = self._request_timeout + self.holding.longest(table)
            await asyncio.wait({answering, leaving}, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                answering.cancel()
                await asyncio.gather(answering, return_exceptions=True)
                await self._give_up(exchange, send, left=leaving.done())
        finally:
            answering.cancel()
            leaving.cancel()
            self._record(exchange, table)
        if not answering.cancelled() and (failure := answering.exception()) is not None:
            logger.error("request %s: an error in the gateway itself", exchange.id, exc_info=failure,
                         extra=exchange.names())  # fmt: skip
            if exchange.started:
                raise failure  # the server then closes the connection, so that the client sees the answer is not whole
            refusal = ApiError(500, "The gateway failed; the error is in its log under this request's id.",
                               code="internal_error")  # fmt: skip
            await self._refuse(exchange, refusal, send)

    async def _give_up(self, exchange: Exchange, send: Send, *, left: bool) -> None:
        """The client left, or the request took longer than any may."""
        if left:
            exchange.outcome = Outcome(failed=False, label="client_closed", finish_reason=CLIENT_CLOSED)
            return
        exchange.outcome = Outcome(failed=exchange.backend is not None, ttft=exchange.ttft, label="timeout")
        late = ApiError(504, "The model did not answer in time.", code="timeout")
        if not exchange.started:
            await self._refuse(exchange, late, send)
        elif exchange.visit is not None and exchange.visit.completion.stream:
            with suppress(TimeoutError):  # of a client that does not read
                async with asyncio.timeout(LAST_EVENT_SECONDS):
                    await send_body(send, error_event(exchange.kind, late, exchange.events), more=False)

    def _table(self) -> RoutingTable:
        if self.table is None:
            raise ApiError(503, "The gateway has no routing table yet; try again shortly.", code="not_ready",
                           retry_after=UNAVAILABLE_RETRY_AFTER)  # fmt: skip
        return self.table

    def _identify(
        self, exchange: Exchange, caller: Caller, completion: Completion, scope: Scope, table: RoutingTable
    ) -> None:
        exchange.model = table.model
        exchange.headers = scope["headers"]
        session = header(scope, b"x-session-id")[:MAX_SESSION_CHARACTERS]
        name = caller.user or completion.user or session or None
        exchange.user = self.accounting.pseudonym(exchange.tenant, name)
        if table.sticky:
            exchange.person = f"{exchange.tenant}\0{name}" if name else caller.key_id

    async def _answer(self, exchange: Exchange, completion: Completion, send: Send) -> None:
        try:
            try:
                own, patience = self._from_some_version(exchange, completion, send), self.fallbacks.patience
                await (own if patience is None else self.fallbacks.impatiently(own, exchange, completion))
            except (Overloaded, Asleep, EngineFailed) as error:
                if exchange.started or not await self.fallbacks.answer(error, exchange, completion, send):
                    raise
        except Overloaded as error:
            self.observations.rejected[error.kind] += 1
            refusal = ApiError(429, f"Too many requests: {error.reason}. Retry after the time in Retry-After.",
                               code="overloaded", retry_after=error.retry_after)  # fmt: skip
            await self._refuse(exchange, refusal, send)
        except Asleep as error:
            self.observations.rejected["asleep"] += 1
            refusal = ApiError(503, "The model sleeps and is being woken. Retry after the time in Retry-After.",
                               code="waking", retry_after=error.retry_after)  # fmt: skip
            await self._refuse(exchange, refusal, send)
        except ApiError as error:
            await self._refuse(exchange, error, send)
        except EngineFailed as error:
            if exchange.started:
                failure = ApiError(502, "The model broke off in the middle of its answer.", code="engine_error")
                await send_body(send, error_event(completion.kind, failure, exchange.events), more=False)
            else:
                logger.warning("request %s: %s", exchange.id, error, extra=exchange.names())
                refusal = ApiError(503 if error.unavailable else 502, "The model could not answer; try again.",
                                   code="engine_error", retry_after=UNAVAILABLE_RETRY_AFTER)  # fmt: skip
                await self._refuse(exchange, refusal, send)

    async def _from_some_version(self, exchange: Exchange, completion: Completion, send: Send) -> None:
        """Try the person's version, then once another that takes traffic."""
        assert exchange.visit is not None
        tried: set[str] = set()
        failure = EngineFailed("no version is ready", retriable=True, unavailable=True)
        self._retry_budget.earn()
        for _ in range(3):  # two versions, and one change of the table
            table = self._table()
            backend = self.holding.choose([b for b in table.backends if b.model_version not in tried], exchange.person)
            if backend is None:
                break
            if exchange.lookup is not None and (kept := await exchange.lookup.find(backend)) is not None:
                await self._from_cache(exchange, backend, completion, kept, send)
                return
            lane = self.lanes[backend.model_version]
            came = time.monotonic()
            patience = self.holding.patience(backend, table)
            held = self.holding.held(backend)  # waiting for an engine to wake says nothing of the version
            try:
                caller = exchange.visit.caller
                with UNTRACED if exchange.trace is None else exchange.trace.waiting(backend, held=held):
                    taken = await lane.acquire(caller.key_id, patience, caller.priority)
            except LaneClosed:
                continue
            except Overloaded as error:
                if error.kind == "queue_timeout" and not held:
                    self.observations.waited(backend.model_version, table.window, time.monotonic() - came)
                raise self.holding.explained(error, backend) from None
            if not held:
                self.observations.waited(backend.model_version, table.window, time.monotonic() - came)
            exchange.backend = backend
            exchange.route = "failover" if tried else "split"
            exchange.outcome = None
            try:
                passing = exchange.lookup.copying(send) if exchange.lookup else send
                await self._from_version(exchange, backend, completion, passing, ATTEMPTS if not tried else 1)
                if exchange.lookup and (made := exchange.outcome) is not None:
                    exchange.lookup.keep(made.prompt_tokens, made.output_tokens, made.finish_reason)
                return
            except EngineFailed as error:
                label = "unavailable" if error.unavailable else "engine_error"
                exchange.outcome = exchange.failed(label, exchange.ttft)
                tried.add(backend.model_version)
                others = [b for b in self._table().backends if b.model_version not in tried]
                may_ask_another = error.retriable and not exchange.started and len(tried) < VERSIONS
                if not may_ask_another or self.holding.choose(others, exchange.person) is None:
                    raise
                # Another version answers instead, but this one is charged with the failure.
                self._charge(exchange, table)
                failure = error
            finally:
                served = exchange.outcome is not None and exchange.outcome.label == "ok"
                lane.release(taken, served=served)
                if served:
                    self.holding.answered(backend)
        raise failure

    def _charge(self, exchange: Exchange, table: RoutingTable) -> None:
        """Count a failure against the version that had the request, once; from here on it has none."""
        outcome, backend = exchange.outcome, exchange.backend
        if backend is not None and outcome is not None and outcome.failed and not exchange.counted:
            self.observations.record(backend.model_version, table.window, outcome, exchange.request_bytes)
        exchange.backend, exchange.outcome = None, None

    async def _from_version(
        self, exchange: Exchange, backend: Backend, completion: Completion, send: Send, attempts: int
    ) -> None:
        url = backend.url.rstrip("/") + completion.path
        table = self._table()
        mirrored = exchange.fallback is None and self.mirror.wants(table, backend, completion.path)
        model = exchange.answering
        trace = exchange.trace
        for left in reversed(range(attempts)):
            asked = time.monotonic()
            listener = listen(completion.path, completion.body, mirrored=mirrored, window=table.window)
            try:
                with UNTRACED if trace is None else trace.attempt(exchange, backend, model) as more:
                    async with self.upstream.ask(url, for_engine(completion.body, backend), exchange.id, more) as found:
                        if completion.stream:
                            chunks = chunks_of(found)
                            await self._pass_stream(exchange, backend, completion, chunks, asked, send, listener)
                        else:
                            body = for_client(await read_answer(found), model, backend)
                            await self._pass_whole(exchange, backend, completion, body, asked, send, listener)
                if listener is not None:
                    self._heard(exchange, backend, completion, listener)
                return
            except ApiError:
                # The engine found fault with the request: the client's doing, not the version's.
                exchange.outcome = Outcome(failed=False, label="client_error")
                raise
            except EngineFailed as error:
                if not error.retriable or exchange.started or not left or not self._retry_budget.spend():
                    raise
            self.observations.retries += 1
            await asyncio.sleep(RETRY_PAUSE_SECONDS)

    def _heard(self, exchange: Exchange, backend: Backend, completion: Completion, listener: Listener) -> None:
        """The client has its answer; what is left is for the analysis."""
        if exchange.outcome is not None:
            listener.note(exchange.outcome)
        if listener.mirrored:
            asked = Asked(completion.path, completion.body, backend, listener.heard, listener.window, exchange.trace)
            self.mirror.send(asked, self.table, self.lanes)

    async def _pass_whole(
        self,
        exchange: Exchange,
        backend: Backend,
        completion: Completion,
        body: bytes,
        asked: float,
        send: Send,
        listener: Listener | None,
    ) -> None:
        counts = read_counts(completion.kind, body)
        if listener is not None:
            listener.whole(body)
        exchange.outcome = Outcome(
            failed=False,
            latency=time.monotonic() - asked,
            prompt_tokens=counts.prompt_tokens,
            output_tokens=counts.output_tokens,
            finish_reason=counts.finish_reason,
        )
        exchange.started = True
        await send_start(send, 200, b"application/json", self._headers(exchange, backend, completion), len(body))
        await send_body(send, body, more=False)

    async def _pass_stream(
        self,
        exchange: Exchange,
        backend: Backend,
        completion: Completion,
        chunks: AsyncIterator[bytes],
        asked: float,
        send: Send,
        listener: Listener | None,
    ) -> None:
        reader = stream_reader(completion.kind, completion.usage_wanted)
        ttft: float | None = None
        try:
            async for chunk in chunks:
                events = list(reader.feed(chunk))
                if events:
                    if not exchange.started:
                        ttft = time.monotonic() - asked
                        exchange.outcome = Outcome(failed=True, ttft=ttft, label="broken_stream")
                        exchange.started = True
                        headers = self._headers(exchange, backend, completion)
                        await send_start(send, 200, b"text/event-stream", headers)
                    # What came together goes on together: under load that is fewer, larger writes.
                    await send_body(send, for_client(b"".join(events), exchange.answering, backend), more=True)
                    exchange.events = reader.events
                    if listener is not None:
                        for event in events:
                            listener.feed(event)
                if reader.error is not None or reader.finished:
                    break
        except BrokenStream as error:
            raise EngineFailed(str(error), retriable=False) from None
        if reader.error is not None or not reader.finished:
            raise EngineFailed("the engine's stream ended early", retriable=True)
        exchange.outcome = Outcome(
            failed=False,
            latency=time.monotonic() - asked,
            ttft=ttft,
            prompt_tokens=reader.prompt_tokens,
            output_tokens=reader.output_tokens if reader.output_tokens is not None else reader.tokens_seen,
            finish_reason=reader.finish_reason,
        )
        await send_body(send, b"", more=False)

    async def _from_cache(
        self, exchange: Exchange, backend: Backend, completion: Completion, kept: Kept, send: Send
    ) -> None:
        """Give the kept answer. It says nothing of how the version does today: it counts neither for nor against it."""
        exchange.backend, exchange.route, exchange.started = backend, "cache", True
        exchange.outcome = Outcome(
            failed=False,
            label="cached",
            prompt_tokens=kept.prompt_tokens,
            output_tokens=kept.output_tokens,
            finish_reason=kept.finish_reason,
        )
        await send_start(send, 200, kept.content_type, self._headers(exchange, backend, completion), len(kept.body))
        await send_body(send, kept.body, more=False)

    def _headers(self, exchange: Exchange, backend: Backend, completion: Completion) -> list[tuple[bytes, bytes]]:
        headers = [
            (b"x-sluice-version", backend.model_version.encode()),
            (b"x-sluice-lineage", backend.lineage.encode("latin-1", "replace")),
            *exchange.identity(),
        ]
        if exchange.fallback is not None:
            headers.append((FALLBACK_HEADER, b"model"))
        if exchange.lookup is not None:
            headers.append((b"x-sluice-cache", exchange.lookup.word.encode()))
        if completion.clamped is not None:
            headers.append((b"x-sluice-max-output-tokens", str(completion.clamped).encode()))
        return headers

    async def _refuse(self, exchange: Exchange, error: ApiError, send: Send) -> None:
        if exchange.outcome is None:
            label = "rejected" if error.status == 429 else "client_error" if error.status < 500 else "unavailable"
            exchange.outcome = Outcome(failed=False, label=label)
        exchange.started, exchange.refusal = True, error
        body = error.encoded()
        headers = [*error.headers(), *exchange.identity()]
        await send_start(send, error.status, b"application/json", headers, len(body))
        await send_body(send, body, more=False)

    def _record(self, exchange: Exchange, table: RoutingTable) -> None:
        outcome = exchange.outcome or Outcome(failed=True, label="internal_error")
        backend = exchange.backend
        if backend is not None and exchange.fallback is not None:
            self.observations.elsewhere(backend, outcome)
        elif backend is not None and not exchange.counted and outcome.label not in NO_EVIDENCE:
            self.observations.record(backend.model_version, table.window, outcome, exchange.request_bytes)
        assert exchange.visit is not None
        interaction = Interaction(
            id=exchange.id,
            time=datetime.now(UTC),
            tenant=exchange.tenant,
            user=exchange.user,
            model=exchange.answering,
            version=backend.model_version if backend else None,
            lineage=backend.lineage if backend else None,
            context_reference=exchange.visit.context,
            prompt_tokens=outcome.prompt_tokens,
            output_tokens=outcome.output_tokens,
            ttft=outcome.ttft,
            latency=time.monotonic() - exchange.began,
            finish_reason=outcome.finish_reason,
            route=exchange.route,
            outcome=outcome.label,
            cost=outcome.cost,
        )
        price = backend.price if backend else None
        self.accounting.end(exchange.visit, interaction, price, exchange.request_bytes, exchange.events)
        if exchange.hearing is not None:
            exchange.hearing.end(exchange, outcome)
