"""Answers kept for requests that come again, word for word. In this process's memory, bounded in number and in bytes;
behind it, where the pool has one, a Redis that its gateways share.

Only what must come out the same twice is kept: embeddings, and answers asked for with temperature 0. The key covers
everything the answer depends on: the tenant (nobody is ever answered from another tenant's words), the model's files by
their digest, the endpoint, and the request as the engine would get it, in one spelling. It also covers what makes an
answer private or forgotten: the user's context, by its reference, and the tenant's generation (`forgetting`).
"""

import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

from sluice_contracts.routing import Backend, CacheRoute
from starlette.types import Message, Send

from sluice_serving.gateway.cached_answer import Kept
from sluice_serving.gateway.completion import Completion
from sluice_serving.gateway.shared_cache import SharedCache

FINISHED = frozenset({"stop", "length", "tool_calls"})
"""Ends of an answer that is whole. Aborted and failed ones are never kept."""
LARGEST = 8
"""One answer may take this part of the bound at most: an eighth."""


@dataclass(frozen=True)
class Wish:
    """What the client's Cache-Control says of this request."""

    read: bool = True
    write: bool = True


def read_wish(cache_control: str) -> Wish:
    """`no-cache` asks for a fresh answer (that is then kept), `no-store` for one that leaves no trace here."""
    words = {word.strip().partition("=")[0].lower() for word in cache_control.split(",")}
    return Wish(read=not words & {"no-cache", "no-store"}, write="no-store" not in words)


@dataclass(frozen=True)
class Whose:
    """Whom an answer is for."""

    tenant: str
    context: str = ""
    """The tag of the user's context that was added: such an answer is this user's alone, and this version's."""
    generation: str = ""
    """The tenant's: a new one with each user who is forgotten."""


def question_digest(completion: Completion) -> bytes:
    """32 bytes. Two questions share them only if the order of the request's fields differs, and nothing else. Within a
    field order counts: engines write JSON in the order of the schema's properties, and templates tools in theirs."""
    request = json.loads(completion.body)
    canonical = json.dumps({name: request[name] for name in sorted(request)}, separators=(",", ":"), ensure_ascii=False)
    # Whether the client wants token counts changes what it gets, and not what the engine gets.
    return _digest(completion.path.encode(), b"usage" if completion.usage_wanted else b"", canonical.encode())


def cache_key(whose: Whose, manifest_digest: str, question: bytes) -> bytes:
    """32 bytes. What a version's answer to a question is kept under."""
    return _digest(
        whose.tenant.encode(), whose.context.encode(), whose.generation.encode(), manifest_digest.encode(), question
    )


def _digest(*parts: bytes) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()


@dataclass(frozen=True, slots=True)
class Entry:
    """What the table holds."""

    made: float
    tenant: str
    answer: Kept


class ResponseCache:
    """The least recently used answer goes first; one that is too old goes when it is met."""

    def __init__(
        self,
        now: Callable[[], float] = time.monotonic,
        *,
        generation: Callable[[str], str | None] = lambda tenant: "",
        shared: SharedCache | None = None,
    ) -> None:
        self.generation = generation
        """The tenant's present one; None while nobody can tell."""
        self.shared = shared
        """The second level."""
        self._now = now
        self._rules: CacheRoute | None = None
        self._kept: OrderedDict[bytes, Entry] = OrderedDict()
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self.bypassed = 0
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def on(self) -> bool:
        """Whether anything is kept at all."""
        return self._rules is not None

    def follow(self, rules: CacheRoute | None) -> None:
        """Put new bounds in force; what does not fit them any more goes at once."""
        self._rules = rules
        if rules is None:
            self._kept.clear()
            self.bytes = 0
        else:
            self._shrink(rules)

    def get(self, key: bytes) -> Kept | None:
        """The answer kept in memory under `key`, if it is not too old."""
        found = self._kept.get(key)
        if found is None or self._rules is None:
            return None
        if self._now() - found.made > self._rules.ttl_seconds:
            self._drop(key)
            return None
        self._kept.move_to_end(key)
        return found.answer

    async def find(self, key: bytes, tenant: str) -> Kept | None:
        """The answer kept on either level, counted as a hit, or None, counted as a miss."""
        found = self.get(key)
        if found is None and self.shared is not None and self._rules is not None:
            from_others = await self.shared.get(key, self._rules.ttl_seconds)
            if from_others is not None:
                found, age = from_others
                self._remember(key, found, tenant, age)
        if found is None:
            self.misses += 1
        else:
            self.hits += 1
        return found

    def put(self, key: bytes, answer: Kept, tenant: str = "") -> None:
        """Keep a whole answer, unless it alone is larger than an eighth of the bound."""
        if self._remember(key, answer, tenant, 0.0) and self.shared is not None and self._rules is not None:
            self.shared.put(key, answer, self._rules.ttl_seconds)

    def _remember(self, key: bytes, answer: Kept, tenant: str, age: float) -> bool:
        rules = self._rules
        if rules is None or answer.finish_reason not in {None, *FINISHED} or answer.size > rules.max_bytes // LARGEST:
            return False
        if key in self._kept:
            self._drop(key)
        self._kept[key] = Entry(self._now() - age, tenant, answer)
        self.bytes += answer.size
        self._shrink(rules)
        return True

    def forget(self, tenant: str) -> None:
        """Somebody of the tenant was forgotten: its answers cannot be found any more, and need not stay in memory."""
        for key in [key for key, entry in self._kept.items() if entry.tenant == tenant]:
            self._drop(key)

    def _shrink(self, rules: CacheRoute) -> None:
        while self._kept and (len(self._kept) > rules.max_entries or self.bytes > rules.max_bytes):
            self._drop(next(iter(self._kept)))
            self.evicted += 1

    def _drop(self, key: bytes) -> None:
        self.bytes -= self._kept.pop(key).answer.size

    def begin(self, tenant: str, completion: Completion, cache_control: str, context: str | None) -> "Lookup | None":
        """What to do with this request. `context` is the tag of the context that was added. None: nothing is kept, or
        nothing of its kind."""
        if self._rules is None or not completion.repeatable:
            return None
        wish, largest = read_wish(cache_control), self._rules.max_bytes // LARGEST
        return Lookup(self, Whose(tenant, context or ""), completion, wish, largest)


class Lookup:
    """One request's dealings with the cache."""

    def __init__(
        self, cache: ResponseCache, whose: Whose, completion: Completion, wish: Wish, largest: int
    ) -> None:  # fmt: skip
        self.word = "miss" if wish.read else "bypass"
        """What the client is told: hit, miss or bypass."""
        self._cache = cache
        self._whose = whose
        self._question = question_digest(completion)
        self._stream = completion.stream
        self._wish = wish
        self._largest = largest
        self._key: bytes | None = None
        self._copy = bytearray()

    async def find(self, backend: Backend) -> Kept | None:
        """The answer of this version's files, if it is kept and may be given."""
        generation = self._cache.generation(self._whose.tenant)  # now: a request may have waited since it came
        self._key = None
        if generation is not None:
            whose = replace(self._whose, generation=generation)
            self._key = cache_key(whose, backend.manifest_digest, self._question)
        if self._key is None or not self._wish.read:
            self.word = "bypass"
            self._cache.bypassed += 1
            return None
        found = await self._cache.find(self._key, self._whose.tenant)
        self.word = "hit" if found else "miss"
        return found

    def copying(self, send: Send) -> Send:
        """`send`, with a copy kept of what goes out through it."""
        if not self._wish.write:
            return send
        self._copy.clear()

        async def copying(message: Message) -> None:
            if message["type"] == "http.response.body" and len(self._copy) <= self._largest:
                self._copy.extend(message.get("body", b""))
            await send(message)

        return copying

    def keep(self, prompt_tokens: int | None, output_tokens: int | None, finish_reason: str | None) -> None:
        """The answer that went out is whole: the next one may have it."""
        if self._wish.write and self._key is not None:
            kind = b"text/event-stream" if self._stream else b"application/json"
            answer = Kept(bytes(self._copy), kind, prompt_tokens, output_tokens, finish_reason)
            self._cache.put(self._key, answer, self._whose.tenant)
