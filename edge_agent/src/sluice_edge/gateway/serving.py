"""serving.json: which engine answers now. Written by the supervisor, read by the gateway and the command line."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError
from sluice_contracts.base import Contract, Digest, ShortText

from sluice_edge import durable


class Serving(Contract):
    """The engine that gets the next request."""

    socket: Annotated[str, Field(max_length=107)]
    version: ShortText
    lineage: ShortText
    sha256: Digest
    port: Annotated[int, Field(ge=0, le=65_535)]
    """Where the gateway listens on 127.0.0.1."""


def read_serving(path: Path) -> Serving | None:
    """The engine in use, or None if none is."""
    try:
        return Serving.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def write_serving(path: Path, serving: Serving) -> None:
    """Point the gateway at an engine, at once."""
    durable.write(path, serving.canonical())
