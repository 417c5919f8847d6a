"""Who gets which version. Pure.

Weighted rendezvous hashing: the version with the highest weight / -ln(hash) wins (Schindelhauer and Schomaker, Weighted
Distributed Hash Tables, 2005). Each person's hash for a version is fixed, so as a version's weight grows people only
ever move towards it, each at most once; another candidate meets other people first; and the order of the table plays
no part.
"""

import hashlib
import math
import random
from collections.abc import Sequence

from sluice_contracts.routing import Backend


def unit(person: str, version: str) -> float:
    """A number in (0, 1) that depends on both texts alone."""
    digest = hashlib.blake2b(f"{person}\0{version}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest) + 0.5) / 2**64


def choose(backends: Sequence[Backend], person: str | None) -> Backend | None:
    """The version for `person`, or one at random by weight for None. None if no ready version has any weight."""
    eligible = [b for b in backends if b.ready and b.weight > 0]
    if not eligible:
        return None
    if len(eligible) == 1:
        return eligible[0]
    if person is None:
        return random.choices(eligible, [b.weight for b in eligible])[0]
    return max(eligible, key=lambda b: b.weight / -math.log(unit(person, b.manifest_digest)))


def slots(backend: Backend, backends: Sequence[Backend], places: int) -> int:
    """How many of the `places` of its engine are `backend`'s. Versions that share one, an adapter and its base, part
    them as they part the traffic, each with one at least: so neither waits longer than the other for want of room."""
    shared = [b for b in backends if b.url == backend.url]
    heaviest = max(shared, key=lambda b: b.weight)
    total = sum(b.weight for b in shared) or 1
    parts = {b.model_version: max(1, places * b.weight // total) for b in shared if b is not heaviest}
    parts[heaviest.model_version] = max(1, places - sum(parts.values()))
    return parts[backend.model_version]
