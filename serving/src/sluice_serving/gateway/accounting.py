"""What surrounds a request's answer: who asks, whether they may still spend, what is added for their user, and what is
kept of it afterwards. Nothing here waits for a disk; a database is waited for a quarter of a second at most, and only
by tenants that keep user contexts.
"""

import json
import logging
import time
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from sluice_contracts.routing import Price
from starlette.types import Message, Scope, Send

from sluice_serving.gateway.asgi import header
from sluice_serving.gateway.budgets import BudgetLedger
from sluice_serving.gateway.completion import Completion
from sluice_serving.gateway.contexts import ContextStore, with_context
from sluice_serving.gateway.costs import request_cost
from sluice_serving.gateway.database import DatabaseDown
from sluice_serving.gateway.errors import ApiError
from sluice_serving.gateway.interactions import InteractionLog
from sluice_serving.gateway.jwt import TokenRefused, TokenVerifier, looks_like_token
from sluice_serving.gateway.keys import KeyStore
from sluice_serving.gateway.records import Content, Interaction, pseudonym
from sluice_serving.gateway.tenants import Caller
from sluice_serving.gateway.transcript import Transcript

logger = logging.getLogger("sluice.gateway")

CONTEXT_HEADER = b"x-sluice-context"
RECORD_HEADER = b"x-sluice-record"
MAX_CONTENT = 65_536
"""Characters kept of a question, and of an answer."""
MAX_ANSWER_BYTES = 1 << 20
BYTES_PER_TOKEN = 4
NOT_SERVED = frozenset({"rejected", "unavailable"})
"""Outcomes of requests that were turned away: they cost nothing."""
FREE = frozenset({"client_error", "cached"})
"""Outcomes that count as a request and take no tokens of a budget: no engine worked."""


@dataclass
class Visit:
    """One request, as far as accounting goes."""

    caller: Caller
    completion: Completion
    """With the user's context, if there is one."""
    send: Send
    recorded: bool = True
    context: str | None = None
    """The tag of the context that was added."""
    looked: tuple[float, float, str] | None = None
    """When the look-up of a context began and ended (`time.monotonic`), and what came of it."""
    asked: bytes = b""
    """The request's body without context, where content is kept."""
    answer: bytearray | None = None
    """The answer as it went out, where content is kept."""


class Accounting:
    """What requests share of this."""

    def __init__(
        self,
        *,
        keys: KeyStore,
        interactions: InteractionLog,
        budgets: BudgetLedger,
        contexts: ContextStore,
        pseudonym_key: bytes | None,
        sees_all: bool = True,
        tokens: TokenVerifier | None = None,
    ) -> None:
        self.keys = keys
        self.interactions = interactions
        self.budgets = budgets
        self.contexts = contexts
        self.tokens = tokens
        self.unrecorded = 0
        """Requests whose client wanted no record."""
        self.refused: Counter[str] = Counter()
        """Requests that were not believed, by what they showed."""
        self._pseudonym_key = pseudonym_key
        self._sees_all = sees_all

    @property
    def knows_users(self) -> bool:
        """Whether a user has the same pseudonym tomorrow, and the same records at every gateway."""
        return self._pseudonym_key is not None and self._sees_all

    def check_users(self) -> None:
        """Raises ApiError 503 that says what is missing for users to be known."""
        self.check_shared()
        if self._pseudonym_key is None:
            raise ApiError(503, "The gateway has no key for pseudonyms, so it would not know a user again: set "
                           "SLUICE_PSEUDONYM_KEY_FILE, or the pool's gateway.interactions.pseudonymKeySecretRef.",
                           code="no_pseudonym_key")  # fmt: skip

    def check_shared(self) -> None:
        """Raises ApiError 503 unless the records of all requests are at hand."""
        if not self._sees_all:
            raise ApiError(503, "The pool has several gateways and no shared database, so each knows only what it was "
                           "told itself: set gateway.interactions.databaseSecretRef.",
                           code="no_shared_database")  # fmt: skip

    def pseudonym(self, tenant: str, user: str | None) -> str | None:
        """The user's name in records. Without a key of its own it follows from the API keys, and changes with them."""
        return pseudonym(self._pseudonym_key or self.keys.fingerprint(), tenant, user)

    async def authenticate(self, scope: Scope) -> Caller:
        """Who asks. Raises ApiError 401."""
        scheme, _, credential = header(scope, b"authorization").partition(" ")
        credential = credential.strip()
        if scheme.lower() != "bearer" or not credential:
            self.refused["nothing"] += 1
            raise ApiError(401, "You didn't provide an API key: send it as `Authorization: Bearer <key>`.",
                           code="missing_api_key")  # fmt: skip
        caller = self.keys.authenticate(credential)
        if caller is not None:
            return caller
        if self.tokens is not None and looks_like_token(credential):
            return await self._from_token(self.tokens, credential)
        self.refused["key"] += 1
        raise ApiError(401, "Incorrect API key provided.", code="invalid_api_key")

    async def _from_token(self, tokens: TokenVerifier, credential: str) -> Caller:
        try:
            identity = await tokens.verify(credential)
        except TokenRefused as error:
            self.refused["token"] += 1
            raise ApiError(401, f"Incorrect token provided: {error}.", code="invalid_token") from None
        policy = self.keys.tenants.get(identity.tenant)
        if policy is None:
            self.refused["token"] += 1
            raise ApiError(401, "Incorrect token provided: its tenant is not known here.", code="invalid_token")
        return Caller(
            tenant=identity.tenant,
            # Each subject waits in a line of its own.
            key_id=f"{identity.tenant}/@{(self.pseudonym(identity.tenant, identity.subject) or '')[:12]}",
            priority=policy.priority,
            policy=policy,
            user=identity.subject,
        )

    async def begin(
        self, caller: Caller, completion: Completion, scope: Scope, send: Send, *, priced: bool
    ) -> Visit:  # fmt: skip
        """Let the request in. Raises ApiError 400 for wrong headers, 429 for a spent budget."""
        visit = Visit(caller, completion, send, recorded=_wanted(scope, RECORD_HEADER, "none"))
        with_user = _wanted(scope, CONTEXT_HEADER, "none")
        self.budgets.admit(caller, priced=priced)
        headers: list[tuple[bytes, bytes]] = []
        user = caller.user or completion.user
        if caller.policy.contexts and user is not None and with_user and completion.kind == "chat" and self.knows_users:
            headers.append((CONTEXT_HEADER, await self._add_context(visit, user)))
        if caller.policy.keep_content and visit.recorded:
            visit.asked, visit.answer = completion.body, bytearray()
        if headers or visit.answer is not None:
            visit.send = _noting(send, headers, visit.answer)
        return visit

    async def _add_context(self, visit: Visit, user: str) -> bytes:
        """Put the user's context into the request. Returns what the header says of it."""
        began = time.monotonic()
        try:
            found = await self.contexts.find(visit.caller.tenant, self.pseudonym(visit.caller.tenant, user) or "")
        except DatabaseDown:
            visit.looked = (began, time.monotonic(), "unavailable")
            return b"unavailable"
        visit.looked = (began, time.monotonic(), "none" if found is None else "found")
        if found is None:
            return b"none"
        visit.completion = replace(visit.completion, body=with_context(visit.completion.body, found.content))
        visit.context = found.tag
        return found.tag.encode()

    def end(
        self, visit: Visit, interaction: Interaction, price: Price | None, request_bytes: int, events: int
    ) -> None:  # fmt: skip
        """Charge what the request took, and keep its record. `events` is how many the client got."""
        if interaction.outcome in NOT_SERVED:
            self.budgets.give_back(visit.caller)
        elif interaction.version is not None and interaction.outcome not in FREE:
            self._charge(visit.caller, interaction, price, request_bytes, events)
        if not visit.recorded:
            self.unrecorded += 1
            return
        content = None
        if visit.answer is not None:
            content = Content(question(visit.asked), answer_text(visit.completion, bytes(visit.answer)))
        self.interactions.add(interaction, content)

    def _charge(
        self, caller: Caller, interaction: Interaction, price: Price | None, request_bytes: int, events: int
    ) -> None:  # fmt: skip
        """By the engine's counts. Where it gave none, as when the client left early, by what can be told without: an
        event is a token, and four bytes of a request are one. Leaving just before the end must not be free."""
        prompt = request_bytes // BYTES_PER_TOKEN if interaction.prompt_tokens is None else interaction.prompt_tokens
        output = events if interaction.output_tokens is None else interaction.output_tokens
        cost = interaction.cost
        if cost is None:
            cost = request_cost(price, interaction.latency, prompt, output)
        self.budgets.charge(caller, prompt + output, cost)


def _wanted(scope: Scope, name: bytes, refusal: str) -> bool:
    """Whether the client left the header out. A misspelt refusal must not pass for consent."""
    value = header(scope, name)
    if value not in {"", refusal}:
        raise ApiError(400, f"The header {name.decode()} takes '{refusal}' or nothing.", code="invalid_header")
    return not value


def _noting(send: Send, headers: list[tuple[bytes, bytes]], answer: bytearray | None) -> Send:
    """`send` with more headers, and a copy of what goes out."""

    async def noting(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *headers]
        elif answer is not None and len(answer) < MAX_ANSWER_BYTES:
            answer.extend(message.get("body", b""))
        await send(message)

    return noting


def question(body: bytes) -> str:
    """What was asked: the messages, prompt or input, as JSON."""
    request = json.loads(body)
    asked = next((request[name] for name in ("messages", "prompt", "input") if name in request), None)
    return json.dumps(asked, ensure_ascii=False)[:MAX_CONTENT]


def answer_text(completion: Completion, body: bytes) -> str:
    """What was answered: the choices' texts. Empty for numbers, and for what cannot be read."""
    if completion.kind == "responses":
        return _response_text(completion.stream, body)[:MAX_CONTENT]
    transcript = Transcript()
    if completion.stream:
        for event in body.split(b"\n\n"):
            transcript.feed(event)
    else:
        transcript = Transcript.of(_json(body))
    return "\n\n".join(said.as_text() for _, said in sorted(transcript.choices.items()))[:MAX_CONTENT]


def _response_text(stream: bool, body: bytes) -> str:
    if not stream:
        return _output_text(_json(body))
    texts = []
    for event in body.split(b"\n"):
        content = _json(event.removeprefix(b"data:")) if event.startswith(b"data:") else None
        if isinstance(content, dict) and content.get("type") == "response.output_text.delta":
            texts.append(str(content.get("delta") or ""))
    return "".join(texts)


def _output_text(response: Any) -> str:
    items = response.get("output") if isinstance(response, dict) else None
    parts = [p for i in items or [] if isinstance(i, dict) for p in i.get("content") or [] if isinstance(p, dict)]
    return "\n\n".join(str(p["text"]) for p in parts if p.get("type") == "output_text" and "text" in p)


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None
