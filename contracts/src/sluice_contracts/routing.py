"""The routing table: what the operator tells a pool's gateways, through one ConfigMap."""

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from sluice_contracts.adapters import EngineModel
from sluice_contracts.base import Contract, Digest, Name, ShortText
from sluice_contracts.fallback import MAX_TEMPLATES, Endpoint, HeaderMatch, TemplateName, TemplateVersion, Trouble
from sluice_contracts.kubernetes import ObjectName

ROUTES_KEY = "routes.json"
"""Key of the ConfigMap."""


class Price(Contract):
    """What a version's work costs, in one currency. A request costs the sum of its parts."""

    prompt_token: Annotated[float, Field(ge=0)] = 0
    output_token: Annotated[float, Field(ge=0)] = 0
    slot_second: Annotated[float, Field(ge=0)] = 0
    """One second of one of the engine's places for requests: its machine's price shared among them."""


class Backend(Contract):
    """One version and where its engine answers."""

    model_version: ObjectName
    lineage: ShortText
    manifest_digest: Digest
    url: Annotated[str, StringConstraints(pattern=r"^https?://[^ ]+$", max_length=512)]
    """Base URL of the engine's OpenAI API, without `/v1`."""
    engine_model: EngineModel | None = None
    """What the engine calls the version where that is not the pool's model: an adapter beside its base. Two versions
    may then have one URL."""
    weight: Annotated[int, Field(ge=0, le=100)]
    replicas: Annotated[int, Field(ge=1, le=1000)] = 1
    ready: bool = True
    may_sleep: bool = False
    """Its last engine goes when nobody asks: the gateway looks before it sends people, and holds them meanwhile."""
    price: Price | None = None
    """None: nobody has said what the work costs."""


class JudgeRoute(Contract):
    """Who scores mirrored answers instead of the gateway itself: exactly one of both."""

    entry_point: ShortText | None = None
    """Name in the entry point group `sluice.judges` of a package in the gateway's image."""
    url: Annotated[str, StringConstraints(pattern=r"^https?://[^ ]+$", max_length=512)] | None = None
    timeout_seconds: Annotated[float, Field(gt=0)] = 10

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.entry_point is None) == (self.url is None):
            raise ValueError("a judge has an entryPoint or a url, not both")
        return self


class MirrorRoute(Contract):
    """Copies of some of stable's requests go to the candidate, and as many to stable again; the answers are scored."""

    percent: Annotated[int, Field(ge=1, le=100)]
    candidate: ObjectName
    max_in_flight: Annotated[int, Field(ge=1)] = 2
    timeout_seconds: Annotated[float, Field(gt=0)] = 60
    judge: JudgeRoute | None = None


class RoutingLimits(Contract):
    """The pool's limits, in the gateway's units."""

    max_output_tokens: Annotated[int, Field(ge=1)] = 1024
    output_token_policy: Literal["clamp", "refuse"] = "clamp"
    in_flight_per_replica: Annotated[int, Field(ge=1)] = 3
    queue: Annotated[int, Field(ge=0)] = 64
    queue_timeout_seconds: Annotated[float, Field(gt=0)] = 20
    max_request_bytes: Annotated[int, Field(ge=1024)] = 1_048_576


class Waking(Contract):
    """How long requests are held for an engine that sleeps."""

    timeout_seconds: Annotated[float, Field(ge=0, le=86_400)] = 240
    """0: none is held."""
    cold_start_seconds: Annotated[float, Field(gt=0, le=86_400)] = 120
    """What waking is believed to take, until the gateway has seen it."""


class CacheRoute(Contract):
    """Bounds of the answers a gateway keeps for requests that come again."""

    max_entries: Annotated[int, Field(ge=1)]
    max_bytes: Annotated[int, Field(ge=1)] = 64 << 20
    ttl_seconds: Annotated[float, Field(gt=0)] = 3600


class FallbackModelRoute(Contract):
    """Another pool's stable version, which is asked when no version of this one can answer."""

    pool: ObjectName
    model: Name
    """What that pool's clients call its model, and answers that come from there."""
    backend: Backend
    """Its weight says nothing."""
    when: Annotated[list[Trouble], Field(min_length=1, max_length=3)] = [Trouble.FAILED]
    timeout_seconds: Annotated[float, Field(gt=0)] = 60
    patience_seconds: Annotated[float, Field(gt=0)] | None = None
    """How long the pool's own versions may take to begin an answer."""
    max_in_flight: Annotated[int, Field(ge=1)] = 2
    max_output_tokens: Annotated[int, Field(ge=1)] = 1024
    """The other pool's limit: an answer from there keeps to both."""


class TemplateRoute(Contract):
    """An answer that is always the same, and the requests it is for. Empty lists: all of them."""

    name: TemplateName
    version: TemplateVersion
    endpoints: Annotated[list[Endpoint], Field(max_length=3)] = []
    tenants: Annotated[list[Annotated[str, StringConstraints(max_length=253)]], Field(max_length=64)] = []
    headers: Annotated[list[HeaderMatch], Field(max_length=4)] = []
    kind: Literal["text", "json"] = "text"
    """What a request must want to get it."""
    body: Annotated[str, StringConstraints(max_length=16_384)]
    """The words, or the document as JSON text."""


class RoutingTable(Contract):
    """Backends and their weights. Weights sum to 100 unless there is no backend."""

    schema_version: Literal[1] = 1
    pool: ObjectName
    namespace: ShortText
    model: Name
    window: Annotated[str, StringConstraints(max_length=128)] = ""
    """Names the analysis window. When it changes, the gateway starts its counters anew for every version."""
    sticky: bool = True
    limits: RoutingLimits = RoutingLimits()
    waking: Waking = Waking()
    backends: Annotated[list[Backend], Field(max_length=3)] = []
    fallback_template: Annotated[str, StringConstraints(max_length=2048)] | None = None
    """For requests that want words and have no template of their own."""
    fallback_model: FallbackModelRoute | None = None
    templates: Annotated[list[TemplateRoute], Field(max_length=MAX_TEMPLATES)] | None = None
    """In the order in which they are tried. None rather than empty: gateways of before this field read such a table."""
    mirror: MirrorRoute | None = None
    cache: CacheRoute | None = None

    @model_validator(mode="after")
    def _weights_sum_to_100(self) -> Self:
        if self.backends and sum(b.weight for b in self.backends) != 100:
            raise ValueError("the backends' weights must sum to 100")
        return self
