"""The chain: links in the order a model lives through them, and whether all bear one lineage id. Pure."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sluice_operator.cli.lineage.evidence import Evidence


class LinkState(StrEnum):
    """How a link stands."""

    OK = "ok"
    """It is there, and what could be checked holds."""
    STOPPED = "stopped"
    """It is there, and it ended this model's way: a failed gate, a roll-back."""
    ABSENT = "absent"
    """It has not happened, or was not asked for."""
    BROKEN = "broken"
    """It bears another lineage id, its bytes were changed, or it is gone."""


@dataclass(frozen=True)
class Link:
    """One link."""

    kind: str
    name: str
    state: LinkState
    text: str
    """What matters about it, for people."""
    check: str = ""
    """What its place in the chain rests on, such as `digest checked`."""
    lineage: str | None = None
    uri: str | None = None
    digest: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def wire(self) -> dict[str, Any]:
        """As JSON data. `ok` is None for what has not happened."""
        absent = self.state is LinkState.ABSENT
        found: dict[str, Any] = {
            "kind": self.kind,
            "name": self.name,
            "state": self.state.value,
            "ok": None if absent else self.state is not LinkState.BROKEN,
            "text": self.text,
            "check": self.check or None,
            "lineage": self.lineage,
            "uri": self.uri,
            "digest": self.digest,
            "facts": self.facts,
        }
        return {key: value for key, value in found.items() if value is not None or key == "ok"}


@dataclass(frozen=True)
class Parent:
    """The version this one was fine-tuned from."""

    lineage: str
    version: str | None
    """Its ModelVersion, where the namespace still has it."""


@dataclass(frozen=True)
class Chain:
    """A model's whole life under one id."""

    name: str
    namespace: str
    model: str
    lineage: str | None
    parent: Parent | None
    links: tuple[Link, ...]

    @property
    def broken(self) -> tuple[Link, ...]:
        """The links that do not hold."""
        return tuple(link for link in self.links if link.state is LinkState.BROKEN)

    def wire(self) -> dict[str, Any]:
        """As JSON data."""
        parent = None if self.parent is None else {"lineage": self.parent.lineage, "version": self.parent.version}
        return {
            "lineage": self.lineage,
            "name": self.name,
            "namespace": self.namespace,
            "model": self.model,
            "ok": not self.broken,
            "parent": parent,
            "links": [link.wire() for link in self.links],
        }


LinkOf = Callable[[Evidence], list[Link]]


def chain(evidence: Evidence, kinds: tuple[LinkOf, ...]) -> Chain:
    """The chain that `evidence` tells."""
    manifest = evidence.manifest.value if evidence.manifest is not None else None
    parent = None
    if manifest is not None and manifest.base_lineage is not None:
        parent = Parent(manifest.base_lineage, evidence.versions.get(manifest.base_lineage))
    return Chain(
        name=evidence.name,
        namespace=evidence.namespace,
        model=evidence.model,
        lineage=evidence.lineage,
        parent=parent,
        links=tuple(link for kind in kinds for link in kind(evidence)),
    )
