"""What is known of one request while it is answered."""

import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from sluice_contracts.routing import Backend, FallbackModelRoute

from sluice_serving.gateway.accounting import Visit
from sluice_serving.gateway.cache import Lookup
from sluice_serving.gateway.completion import Kind
from sluice_serving.gateway.drift.counting import Hearing
from sluice_serving.gateway.errors import ApiError
from sluice_serving.gateway.observations import Outcome
from sluice_serving.gateway.tracing import Trace


@dataclass
class Exchange:
    """What is known of one request so far."""

    kind: Kind
    id: str = field(default_factory=lambda: secrets.token_hex(16))
    began: float = field(default_factory=time.monotonic)
    tenant: str = ""
    model: str = ""
    """The pool's, once the request has named it."""
    visit: Visit | None = None
    """Key, budgets and record; None until the request is let in."""
    user: str | None = None
    person: str | None = None
    headers: Iterable[tuple[bytes, bytes]] = ()
    """The request's, as they came."""
    lookup: Lookup | None = None
    """None: its answer is not one to keep."""
    backend: Backend | None = None
    request_bytes: int = 0
    fallback: FallbackModelRoute | None = None
    """Another pool's model, while it is what answers; `backend` is then that pool's."""
    counted: bool = False
    """Whether `backend` has been charged with its failure already."""
    route: str = "none"
    outcome: Outcome | None = None
    started: bool = False
    """Whether response headers are out."""
    events: int = 0
    """Events that the client has got."""
    hearing: Hearing | None = None
    """None: it is not counted for drift."""
    refusal: ApiError | None = None
    """What the client was told instead of an answer."""
    trace: Trace | None = None
    """None: this gateway traces nothing."""

    @property
    def answering(self) -> str:
        """The name of the model that answers: the pool's, or the other one's."""
        return self.model if self.fallback is None else self.fallback.model

    @property
    def ttft(self) -> float | None:
        """Seconds to the first event, where one was sent."""
        return self.outcome.ttft if self.outcome else None

    def failed(self, label: str, ttft: float | None = None) -> Outcome:
        """The outcome of a version that did not do its part."""
        return Outcome(failed=True, ttft=ttft, label=label if ttft is None else "broken_stream")

    def names(self) -> dict[str, str]:
        """What a line of the log is to be found by."""
        found = {"request_id": self.id}
        if self.trace is not None and self.trace.id:
            found["trace_id"] = self.trace.id
        return found

    def identity(self) -> list[tuple[bytes, bytes]]:
        """The header by which a client can name the request to whoever looks after the gateway."""
        return [(b"x-request-id", self.id.encode())]
