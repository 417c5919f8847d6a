"""What happens when no version of the pool can answer: another pool's model is asked, then a template speaks.

Nothing here is on the way of a request that is answered. The other model's engines are asked directly, once, within a
deadline of their own; what becomes of it is never charged to a version of this pool, never judged, mirrored or kept.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from sluice_contracts.fallback import Trouble
from sluice_contracts.routing import Backend, FallbackModelRoute, RoutingTable, TemplateRoute
from starlette.types import Send

from sluice_serving.gateway.admission import Lane, LaneClosed, Overloaded
from sluice_serving.gateway.asgi import send_body, send_start
from sluice_serving.gateway.budgets import budgets_of
from sluice_serving.gateway.completion import Completion
from sluice_serving.gateway.errors import ApiError, EngineFailed
from sluice_serving.gateway.exchange import Exchange
from sluice_serving.gateway.observations import Observations, Outcome
from sluice_serving.gateway.other_model import for_other_model
from sluice_serving.gateway.template_choice import choose_template, copies_wanted, templates_of
from sluice_serving.gateway.templates import template_answer, template_events
from sluice_serving.gateway.wake import Asleep

FALLBACK_HEADER = b"x-sluice-fallback"
"""On a request: `none` wants no fallback, `template` no other model. On an answer: `model` or `template`."""

Ask = Callable[[Exchange, Backend, Completion, Send, int], Awaitable[None]]
"""Asks a version's engine so many times at most, and passes its answer on."""
Charge = Callable[[Exchange, RoutingTable], None]
"""Counts a failure against the version that had the request."""


def trouble_of(error: Exception) -> Trouble:
    """Why the pool's own versions gave no answer."""
    match error:
        case Overloaded():
            return Trouble.OVERLOADED
        case Asleep():
            return Trouble.ASLEEP
        case _:
            return Trouble.FAILED


class Fallbacks:
    """The fallbacks of the routing table in force."""

    def __init__(self, observations: Observations, ask: Ask, charge: Charge) -> None:
        self._observations = observations
        self._ask = ask
        self._charge = charge
        self._table: RoutingTable | None = None
        self._lane = Lane(0, 0)
        self._templates: list[TemplateRoute] = []
        self.patience: float | None = None
        """Seconds that the pool's own versions may take to begin an answer; None: as long as any request may."""

    def follow(self, table: RoutingTable) -> None:
        """Take a new table's fallbacks. What is being asked goes on."""
        self._table = table
        self._templates = templates_of(table)
        model = table.fallback_model
        self.patience = model.patience_seconds if model and Trouble.FAILED in model.when else None
        self._lane.resize(model.max_in_flight if model else 0, table.limits.queue if model else 0)

    async def impatiently(
        self, answering: Coroutine[Any, Any, None], exchange: Exchange, completion: Completion
    ) -> None:
        """Let the pool's own versions answer, and give them up if they have not begun by the end of the patience and
        another model could. Raises what they raise, and EngineFailed then."""
        task = asyncio.create_task(answering)
        try:
            await asyncio.wait({task}, timeout=self.patience)
            if task.done() or exchange.started or not self._could_ask(exchange, completion):
                await task
                return
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        if exchange.backend is not None:
            exchange.outcome = exchange.failed("timeout")
        raise EngineFailed("no version began its answer in time", retriable=False)

    def _could_ask(self, exchange: Exchange, completion: Completion) -> bool:
        table = self._table
        model = table.fallback_model if table is not None else None
        if table is None or model is None or not model.backend.ready or _wish(exchange):
            return False
        return _for_model(model, table, exchange, completion) is not None

    async def answer(self, error: Exception, exchange: Exchange, completion: Completion, send: Send) -> bool:
        """Answer in the place of the pool's versions, after `error`. False if nothing fits: nothing was sent then.
        Raises EngineFailed where the other model broke off in the middle of its answer."""
        table, trouble = self._table, trouble_of(error)
        wish = _wish(exchange)
        if table is None or wish not in {b"", b"template"}:  # a misspelt refusal must not pass for consent
            return False
        model = table.fallback_model
        if model is not None and trouble in model.when and not wish:
            result = await self._from_model(model, table, exchange, completion, send)
            self._observations.fallback_model[result] += 1
            if result == "answered":
                self._observations.fallbacks["model", model.backend.model_version] += 1
                return True
        # Overload passes by itself: Retry-After says when.
        return trouble is not Trouble.OVERLOADED and await self._from_template(table, exchange, completion, send)

    async def _from_model(
        self, model: FallbackModelRoute, table: RoutingTable, exchange: Exchange, completion: Completion, send: Send
    ) -> str:
        """`answered`, or why there is no answer; the exchange is then as it was."""
        asked = _for_model(model, table, exchange, completion)
        if asked is None:
            return "unfit"
        if not model.backend.ready:
            return "not_ready"
        before = exchange.backend, exchange.outcome, exchange.route, exchange.lookup
        self._charge(exchange, table)
        try:
            async with asyncio.timeout(model.timeout_seconds):
                await self._through_lane(model, exchange, asked, send)
            return "answered"
        except (Overloaded, LaneClosed):
            result = "no_room"
        except ApiError:  # what the pool's own model takes, such as tools or a long prompt, this one need not take
            result = "refused"
        except EngineFailed as error:
            result = await self._broken(exchange, error)
        except TimeoutError:
            result = await self._broken(exchange, EngineFailed("the fallback took too long", retriable=False))
        exchange.backend, exchange.outcome, exchange.route, exchange.lookup = before
        exchange.fallback, exchange.counted = None, True
        return result

    async def _through_lane(self, model: FallbackModelRoute, exchange: Exchange, asked: Completion, send: Send) -> None:
        assert exchange.visit is not None
        caller = exchange.visit.caller
        taken = await self._lane.acquire(caller.key_id, model.timeout_seconds, caller.priority)
        served = False
        exchange.backend, exchange.fallback, exchange.route, exchange.lookup = model.backend, model, "model", None
        try:
            await self._ask(exchange, model.backend, asked, send, 1)
            served = True
        finally:
            self._lane.release(taken, served=served)

    async def _broken(self, exchange: Exchange, error: EngineFailed) -> str:
        if exchange.started:
            self._observations.fallback_model["broken"] += 1
            exchange.outcome = exchange.failed("engine_error", exchange.ttft)
            raise error
        return "failed"

    async def _from_template(self, table: RoutingTable, exchange: Exchange, completion: Completion, send: Send) -> bool:
        """Answer with the first template that fits, marked as what it is."""
        if not self._templates:
            return False
        request = json.loads(completion.body)
        chosen = choose_template(self._templates, completion.kind, exchange.tenant, exchange.headers, request)
        if chosen is None:
            return False
        make = template_events if completion.stream else template_answer
        copies = copies_wanted(completion.kind, request)
        body = make(completion.kind, exchange.id, int(time.time()), table.model, chosen.body, copies)
        if body is None:
            return False
        self._charge(exchange, table)
        name = f"{chosen.name}@{chosen.version}"
        exchange.route, exchange.started = f"template:{name}", True
        exchange.outcome = Outcome(failed=False, label="template")
        self._observations.fallbacks["template", name] += 1
        kind = b"text/event-stream" if completion.stream else b"application/json"
        headers = [(FALLBACK_HEADER, b"template"), (b"x-sluice-template", name.encode()), *exchange.identity()]
        await send_start(send, 200, kind, headers, len(body))
        await send_body(send, body, more=False)
        return True


def _wish(exchange: Exchange) -> bytes:
    """What the client said of fallbacks; empty if nothing."""
    return next((value for name, value in exchange.headers if name == FALLBACK_HEADER), b"")


def _for_model(
    model: FallbackModelRoute, table: RoutingTable, exchange: Exchange, completion: Completion
) -> Completion | None:
    """The request as the other model is asked; None if it may not be, or nobody knows what its payer would owe."""
    assert exchange.visit is not None
    budgets = budgets_of(exchange.visit.caller)
    if model.backend.price is None and any(budget.money is not None for _, budget in budgets):
        return None
    return for_other_model(completion, model, table.limits)
