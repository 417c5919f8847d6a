"""Two slots for the model, and a small file that says which is in use.

    slots/a/{model.gguf, release.json, version.json}   slots/b/…   slots/incoming/ (what is being put together)
    current.json   {"slot": "a", "sha256": …, "previous": "b"}

Renaming current.json is the switch: before it the old model is in use, after it the new one, and there is no between.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError
from sluice_contracts.base import Contract, Digest
from sluice_contracts.device import InstalledVersion
from sluice_contracts.release import Release, Variant

from sluice_edge import durable
from sluice_edge.errors import ConfigurationError, EdgeError, NoModelError
from sluice_edge.home import Home, first_problem

Slot = Literal["a", "b"]
INCOMING = "incoming"
MODEL = "model.gguf"
PARTIAL = "model.gguf.part"
RELEASE = "release.json"
VERSION = "version.json"


class Pointer(Contract):
    """current.json."""

    slot: Slot
    sha256: Digest
    previous: Slot | None = None


@dataclass(frozen=True)
class Installed:
    """A complete slot."""

    version: InstalledVersion
    model: Path


def pointer(home: Home) -> Pointer | None:
    """What is in use; None on a device that has no model yet. Raises ConfigurationError if the file is damaged."""
    try:
        return Pointer.model_validate_json(home.pointer.read_bytes())
    except FileNotFoundError:
        return None
    except (ValidationError, OSError) as error:
        what = first_problem(error) if isinstance(error, ValidationError) else error.strerror
        raise ConfigurationError(f"{home.pointer} is damaged ({what}); remove it and run `sluice-edge sync`") from error


def in_slot(home: Home, slot: str) -> Installed | None:
    """What a slot holds; None if it is empty or incomplete."""
    folder = home.slots / slot
    try:
        version = InstalledVersion.model_validate_json((folder / VERSION).read_bytes())
    except (OSError, ValidationError):
        return None
    model = folder / MODEL
    return Installed(version, model) if model.is_file() else None


def current(home: Home) -> Installed:
    """The version in use. Raises NoModelError, ConfigurationError."""
    at = pointer(home)
    if at is None:
        raise NoModelError
    found = in_slot(home, at.slot)
    if found is None:
        raise ConfigurationError(
            f"the model in slot {at.slot} is missing or damaged; fetch it again with `sluice-edge sync`"
        )
    return found


def previous(home: Home) -> Installed | None:
    """The version the device would go back to."""
    at = pointer(home)
    return in_slot(home, at.previous) if at is not None and at.previous is not None else None


def free_slot(home: Home) -> Slot:
    """The slot that is not in use."""
    at = pointer(home)
    return "b" if at is not None and at.slot == "a" else "a"


def variants_on_device(home: Home) -> list[tuple[Path, Variant]]:
    """The complete model files on this device with their lists of pieces."""
    found = []
    for slot in ("a", "b"):
        installed = in_slot(home, slot)
        if installed is None:
            continue
        try:
            release = Release.model_validate_json((home.slots / slot / RELEASE).read_bytes())
        except (OSError, ValidationError):
            continue
        found += [(installed.model, v) for v in release.variants if v.sha256 == installed.version.sha256]
    return found


def switch(home: Home, slot: Slot, sha256: str) -> None:
    """Take `slot` into use; the one in use becomes the previous one. Doing it twice is the same as once."""
    at = pointer(home)
    if at is not None and at.slot == slot and at.sha256 == sha256:
        return
    last = at.slot if at is not None and at.slot != slot else None
    durable.write(home.pointer, Pointer(slot=slot, sha256=sha256, previous=last).canonical())


def go_back(home: Home, reason: str | None) -> InstalledVersion:
    """Take the previous version into use again. With a reason, remember the current file as one that fails here.

    Raises EdgeError if there is none to go back to.
    """
    at, before = pointer(home), previous(home)
    if at is None or at.previous is None or before is None:
        raise EdgeError("there is no previous version to go back to")
    if reason is not None:
        reject(home, at.sha256, reason)
    durable.write(home.pointer, Pointer(slot=at.previous, sha256=before.version.sha256).canonical())
    return before.version


def rejected(home: Home) -> dict[str, str]:
    """Digests of files that failed on this device, with the reason."""
    try:
        found: dict[str, str] = json.loads(home.rejected.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return found


def reject(home: Home, sha256: str, reason: str) -> None:
    """Remember that this file fails here. The last 16 are kept."""
    entries = {k: v for k, v in rejected(home).items() if k != sha256} | {sha256: reason[:200]}
    durable.write(home.rejected, json.dumps(dict(list(entries.items())[-16:])).encode())


def forgive(home: Home) -> None:
    """Forget all rejections."""
    home.rejected.unlink(missing_ok=True)
