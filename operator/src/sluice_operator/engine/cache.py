"""The operator's own memory of its objects and their children.

Filled by one list per kind at the start, then by kopf's watch, and by the answers to the operator's own writes, so that
a plan never sees the world from before its last write. Newer resourceVersions win; a deletion leaves a tombstone, so
that an older event which arrives late brings nothing back.

`@kopf.index` is not used: its start-up is quadratic in the number of objects.

Children are most of the objects, and each is read only by looks at its owner, so they are kept as JSON text: a seventh
of what Python's own dictionaries take. Our own kinds are read by looks at each other and are kept as they are, with
equal texts held once.
"""

import json
import sys
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Set
from typing import Any, NamedTuple

from sluice_operator.kube.resources import OWN, Resource
from sluice_operator.plan import Object

TOMBSTONES = 10_000
INTERNED = 64
"""Texts up to this many characters are held once: keys, reasons, names, types, moments."""


class Key(NamedTuple):
    """One object."""

    resource: Resource
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.resource.kind} {self.namespace}/{self.name}"


Objects = list[Object]
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
References = Callable[[Resource, Object], Iterable[Key]]


class _Packed:
    """One object at one resourceVersion."""

    __slots__ = ("_kept", "owner", "uid", "version")

    def __init__(self, resource: Resource, obj: Object) -> None:
        self.version, self.uid, self.owner = _version(obj), _uid(obj), owner_of(obj)
        kept = slim(obj)
        whole = resource in OWN
        self._kept = _interned(kept) if whole else json.dumps(kept, separators=(",", ":"), ensure_ascii=False).encode()

    @property
    def object(self) -> Object:
        """The object. Of our own kinds always the same one: nobody changes what a cache gave."""
        found: Object = json.loads(self._kept) if isinstance(self._kept, bytes) else self._kept
        return found


class Cache:
    """Objects by key, by owner, and by who refers to them."""

    def __init__(self, references: References | None = None) -> None:
        self._objects: dict[Resource, dict[str, dict[str, _Packed]]] = defaultdict(lambda: defaultdict(dict))
        self._children: dict[Key, set[Key]] = defaultdict(set)
        self._referrers: dict[Key, set[Key]] = defaultdict(set)
        self._refers: dict[Key, frozenset[Key]] = {}
        self._gone: OrderedDict[Key, int] = OrderedDict()
        self._references = references or (lambda _resource, _obj: ())

    def get(self, resource: Resource, namespace: str, name: str) -> Object | None:
        """The object, or None."""
        found = self._objects[resource][namespace].get(name)
        return found.object if found is not None else None

    def list(self, resource: Resource, namespace: str | None = None) -> Iterator[Object]:
        """All objects of a kind, of one namespace or of all."""
        for _, found in self._all(resource, namespace):
            yield found.object

    def _all(self, resource: Resource, namespace: str | None = None) -> Iterator[tuple[Key, _Packed]]:
        spaces = [namespace] if namespace is not None else list(self._objects[resource])
        for space in spaces:
            for name, found in list(self._objects[resource][space].items()):
                yield Key(resource, space, name), found

    def children(self, owner: Resource, namespace: str, name: str, resource: Resource) -> Iterator[Object]:
        """Objects of kind `resource` that `owner` controls."""
        for key in sorted(self._children.get(Key(owner, namespace, name), ()), key=str):
            if key.resource == resource:
                found = self.get(*key)
                if found is not None:
                    yield found

    def referrers(self, key: Key) -> frozenset[Key]:
        """Objects that name `key` in their spec or status."""
        return frozenset(self._referrers.get(key, ()))

    def refers_to(self, key: Key) -> frozenset[Key]:
        """Objects that `key` names."""
        return self._refers.get(key, frozenset())

    def upsert(self, resource: Resource, obj: Object) -> bool:
        """Take in a state of an object. Returns False if it was an old one, or nothing new."""
        key = key_of(resource, obj)
        version = _version(obj)
        if version <= self._gone.get(key, -1):
            return False
        known = self._objects[resource][key.namespace].get(key.name)
        if known is not None and version <= known.version:
            return False
        packed = self._objects[resource][key.namespace][key.name] = _Packed(resource, obj)
        self._link(key, known, packed, obj)
        return True

    def remove(self, resource: Resource, obj: Object) -> bool:
        """Take in a deletion. Returns False if the object has been made anew since."""
        key = key_of(resource, obj)
        known = self._objects[resource][key.namespace].get(key.name)
        if known is not None and known.version > _version(obj) and known.uid != _uid(obj):
            return False
        self._gone[key] = max(self._gone.get(key, -1), _version(obj))
        self._gone.move_to_end(key)
        while len(self._gone) > TOMBSTONES:
            self._gone.popitem(last=False)
        if known is None:
            return False
        del self._objects[resource][key.namespace][key.name]
        self._unlink(key, known)
        return True

    def reap(self, resource: Resource, namespace: str | None, listed: Set[Key], version: int) -> Objects:
        """Drop what a list at `version` no longer holds: a watch that was interrupted never tells of deletions in
        between. Returns what was dropped."""
        known = self._all(resource, namespace)
        gone = [(key, found) for key, found in known if key not in listed and found.version <= version]
        for key, found in gone:
            del self._objects[resource][key.namespace][key.name]
            self._unlink(key, found)
        return [found.object for _, found in gone]

    def own(self) -> Iterator[Key]:
        """All objects of our own kinds."""
        for resource in OWN:
            for key, _ in self._all(resource):
                yield key

    def __len__(self) -> int:
        return sum(len(space) for spaces in self._objects.values() for space in spaces.values())

    def _link(self, key: Key, before: _Packed | None, packed: _Packed, after: Object) -> None:
        old, new = before.owner if before is not None else None, packed.owner
        if old is not None and old != new:
            self._children[old].discard(key)
        if new is not None:
            self._children[new].add(key)
        refers = frozenset(self._references(key.resource, after))
        for gone in self._refers.get(key, frozenset()) - refers:
            self._referrers[gone].discard(key)
        for target in refers:
            self._referrers[target].add(key)
        if refers or key in self._refers:
            self._refers[key] = refers

    def _unlink(self, key: Key, gone: _Packed) -> None:
        owner = gone.owner
        if owner is not None:
            self._children[owner].discard(key)
            if not self._children[owner]:
                del self._children[owner]
        for target in self._refers.pop(key, frozenset()):
            self._referrers[target].discard(key)
            if not self._referrers[target]:
                del self._referrers[target]


_OWNERS = {(r.api_version, r.kind): r for r in OWN}


def owner_of(obj: Object) -> Key | None:
    """The object of ours that controls `obj`."""
    meta = obj["metadata"]
    for reference in meta.get("ownerReferences") or []:
        resource = _OWNERS.get((reference.get("apiVersion"), reference.get("kind")))
        if resource is not None and reference.get("controller"):
            return Key(resource, meta.get("namespace", ""), reference["name"])
    return None


def key_of(resource: Resource, obj: Object) -> Key:
    """The key of an object."""
    meta = obj["metadata"]
    return Key(resource, meta.get("namespace", ""), meta["name"])


def _uid(obj: Object) -> str:
    return str(obj["metadata"].get("uid", ""))


def _version(obj: Object) -> int:
    """resourceVersions are comparable as numbers: documented so since Kubernetes 1.35, and true of etcd ever since."""
    text = str(obj["metadata"].get("resourceVersion", "0"))
    return int(text) if text.isdigit() else 0


def slim(obj: Object) -> Object:
    """The object without managedFields, which are most of its bytes and read by nobody here, and without what a
    person's client-side `kubectl apply` leaves: the whole object once more."""
    meta: dict[str, Any] = {k: v for k, v in obj["metadata"].items() if k != "managedFields"}
    if LAST_APPLIED in (meta.get("annotations") or {}):
        meta["annotations"] = {k: v for k, v in meta["annotations"].items() if k != LAST_APPLIED}
    return {**obj, "metadata": meta}


def _interned(value: Any) -> Any:
    """The same value, in which equal short texts are one and the same."""
    if isinstance(value, str):
        return sys.intern(value) if type(value) is str and len(value) <= INTERNED else value
    if isinstance(value, dict):
        return {_interned(k): _interned(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_interned(v) for v in value]
    return value
