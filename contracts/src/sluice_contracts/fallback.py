"""InferencePool's `gateway.fallback`: who answers when no version of the pool can, and in which words."""

from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field, StringConstraints

from sluice_contracts.base import Contract, Duration
from sluice_contracts.kubernetes import ObjectName, cel

MAX_TEMPLATES = 16
TemplateName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
TemplateVersion = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9]([-._A-Za-z0-9]*[A-Za-z0-9])?$", max_length=32)
]
TemplateText = Annotated[str, StringConstraints(min_length=1, max_length=2048)]
TenantName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][-._A-Za-z0-9]*$", max_length=253)]
Document = Annotated[
    dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True, "x-opaque": True})
]
"""A JSON object of any shape."""
MAX_DOCUMENT = 8192
"""Bytes of a document. The schema cannot bound what it does not describe, so the operator does."""
DEFAULT_TEMPLATE = "default"
"""The name of `fallback.template`."""


class Trouble(StrEnum):
    """Why a request got no answer from the pool's own versions."""

    FAILED = "failed"
    """No version is ready, or those that were asked failed before the first byte."""
    OVERLOADED = "overloaded"
    """Its version's queue is full, or it has waited there for too long."""
    ASLEEP = "asleep"
    """Its engine sleeps and will not wake in time."""


class Endpoint(StrEnum):
    """The API's endpoints that answer with words."""

    CHAT = "chat"
    """/v1/chat/completions"""
    TEXT = "text"
    """/v1/completions"""
    RESPONSES = "responses"
    """/v1/responses"""


class FallbackModel(Contract):
    """Another pool of the same namespace, most often of a smaller model. Its stable version's engines are asked
    directly, once, and never its own fallback: two pools may name each other."""

    model_config = cel(
        ("self.timeout.matches('[1-9]')", "gateway.fallback.model.timeout must be above 0, such as 60s"),
        (
            "!has(self.patience) || (self.patience.matches('[1-9]') && self.when.exists(w, w == 'failed'))",
            "gateway.fallback.model.patience must be above 0, such as 20s, and needs failed in when: what has not "
            "begun by then counts as failed",
        ),
    )

    pool: ObjectName
    when: Annotated[list[Trouble], Field(min_length=1, max_length=3)] = [Trouble.FAILED]
    """After which troubles. Overload and sleep are answered by `Retry-After` unless they are named here."""
    timeout: Duration = "60s"
    """For the whole answer, the wait for a place included; within the time that any request may take."""
    patience: Duration | None = None
    """How long the pool's own versions may take to begin an answer. Then it counts as failed. None: as long as any
    request may take."""
    max_in_flight: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Requests that each gateway has under way there at once. None: as many as one of its engines works on."""


class HeaderMatch(Contract):
    """A header of the request, and exactly this value."""

    model_config = cel(
        (
            "!(self.name in ['authorization', 'cookie'])",
            "gateway.fallback.templates: a match on authorization or cookie would put a secret into the spec; match on "
            "tenants instead",
        )
    )

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=64)]
    """In lower case."""
    value: Annotated[str, StringConstraints(min_length=1, max_length=256)]


class TemplateMatch(Contract):
    """The requests that a template is for: all that is named must hold, and what is not named does not matter."""

    endpoints: Annotated[list[Endpoint], Field(max_length=3)] = []
    tenants: Annotated[list[TenantName], Field(max_length=64)] = []
    headers: Annotated[list[HeaderMatch], Field(max_length=4, json_schema_extra={"x-list-map-keys": ["name"]})] = []


class Template(Contract):
    """An answer that is always the same. It is given with status 200 and marked as what it is."""

    model_config = cel(
        (
            "has(self.text) != has(self.document)",
            "gateway.fallback.templates: each needs exactly one of text (for requests that want words) and document "
            "(for requests that want JSON)",
        ),
        (
            f"self.name != '{DEFAULT_TEMPLATE}'",
            f"gateway.fallback.templates: the name {DEFAULT_TEMPLATE} is that of gateway.fallback.template",
        ),
    )

    name: TemplateName
    version: TemplateVersion
    """To be raised with every change of its words: answers, records and metrics name it."""
    match: TemplateMatch = TemplateMatch()
    text: TemplateText | None = None
    """For requests that want words."""
    document: Document | None = None
    """For requests that want JSON: given where it has the shape that the request asks for. At most 8 KiB."""


class Fallback(Contract):
    """What happens when no version of the pool can answer: first the model, then the first template that fits."""

    model: FallbackModel | None = None
    templates: Annotated[
        list[Template], Field(max_length=MAX_TEMPLATES, json_schema_extra={"x-list-map-keys": ["name"]})
    ] = []
    template: Annotated[str, StringConstraints(max_length=2048)] | None = None
    """For requests that want words and have no template of their own. Its version is a digest of its text."""
