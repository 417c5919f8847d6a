"""Whether an object is already as it should be: nothing is written when nothing changed.

Two questions. Is what we want the same as when we last applied it? (A digest in an annotation says so; it finds fields
that are to go.) And does the object still hold all of it? (A comparison finds what others changed.) Fields that others
added are theirs.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

from sluice_contracts.base import canonical_json
from sluice_contracts.names import GROUP

from sluice_operator.children.hardware import quantity
from sluice_operator.plan import Object

APPLIED = f"{GROUP}/applied"
"""Annotation of a child: the digest of what was last applied."""
KEYS = ("name", "uid", "key", "port", "type")
"""What tells the entries of a list apart, where a list is a map by key."""


def stamped(obj: Object) -> dict[str, Any]:
    """`obj` with the digest of itself in its annotations."""
    digest = hashlib.sha256(canonical_json(obj)).hexdigest()[:16]
    meta = obj["metadata"]
    annotations = {**(meta.get("annotations") or {}), APPLIED: digest}
    return {**obj, "metadata": {**meta, "annotations": annotations}}


def is_so(wanted: Any, found: Any) -> bool:
    """Whether `found` holds all that `wanted` does."""
    if isinstance(wanted, Mapping):
        if not isinstance(found, Mapping):
            return not wanted and found is None
        return all(_is_nothing(v) if k not in found else is_so(v, found[k]) for k, v in wanted.items())
    if isinstance(wanted, list):
        if not isinstance(found, list):
            return not wanted and found is None
        return _list_is_so(wanted, found)
    if isinstance(wanted, str) and isinstance(found, str) and wanted != found:
        return _same_quantity(wanted, found)
    return bool(wanted == found)


def _is_nothing(value: Any) -> bool:
    """What the API server drops from its answers: nothing, false, and empty collections."""
    return value is None or value is False or (isinstance(value, Mapping | list) and not value)


def _list_is_so(wanted: list[Any], found: list[Any]) -> bool:
    key = next((k for k in KEYS if _keyed_by(wanted, k) and _keyed_by(found, k)), None)
    if key is None:
        return len(wanted) == len(found) and all(is_so(w, f) for w, f in zip(wanted, found, strict=True))
    by_key = {f[key]: f for f in found}
    return all(w[key] in by_key and is_so(w, by_key[w[key]]) for w in wanted)


def _keyed_by(items: list[Any], key: str) -> bool:
    if not items or not all(isinstance(i, Mapping) and isinstance(i.get(key), str | int) for i in items):
        return False
    return len({i[key] for i in items}) == len(items)


def _same_quantity(a: str, b: str) -> bool:
    """The API server rewrites quantities: 1000m becomes 1."""
    try:
        return quantity(a) == quantity(b)
    except ValueError:
        return False
