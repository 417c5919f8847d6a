"""A TUF repository in a bucket or folder: reading its verified state, and moving it one step forward.

What a client trusts hangs on `timestamp.json` alone, and that is written last. Whatever was written before it is not
referenced yet, so a publisher that dies in the middle leaves the old state in force, and the next one goes over it.
Versions only grow: each is one more than the version in the repository's current, verified metadata.
"""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from securesystemslib.signer import CryptoSigner
from sluice_storage import NotFoundError, Store
from tuf.api.exceptions import RepositoryError, UnsignedMetadataError
from tuf.api.metadata import (
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization import DeserializationError
from tuf.api.serialization.json import JSONSerializer

from sluice_training.publish.errors import PublishError
from sluice_training.publish.keys import ONLINE_ROLES, load_key, load_or_make_key, root_key_name

LIFETIMES = {
    "root": timedelta(days=365),
    "targets": timedelta(days=90),
    "snapshot": timedelta(days=30),
    "timestamp": timedelta(days=7),
}
"""How long a signature holds. A device that is shown older metadata than this knows that it is being kept back."""
MAX_ROOTS = 256
"""As many rotations as python-tuf's client follows."""
_JSON = JSONSerializer(compact=True)


@dataclass
class State:
    """The repository's current metadata, verified against the root. Expiry is the clients' concern, not checked here:
    a publisher must be able to refresh what has expired."""

    root: Metadata[Root]
    timestamp: Metadata[Timestamp]
    snapshot: Metadata[Snapshot]
    targets: Metadata[Targets]
    timestamp_bytes: bytes


@dataclass
class Signers:
    """The publisher's keys, one a role."""

    targets: CryptoSigner
    snapshot: CryptoSigner
    timestamp: CryptoSigner


def load_signers(keys: Path, root: Root) -> Signers:
    """The three online keys in `keys`. Raises PublishError if one is missing or is not the root's key for its role."""
    found = {}
    for role in ONLINE_ROLES:
        signer = load_key(keys / f"{role}.pem")
        if signer.public_key.keyid not in root.roles[role].keyids:
            raise PublishError(
                f"{keys / f'{role}.pem'} is not a key of this repository's {role} role; "
                "these keys belong to another repository, or the root was rotated"
            )
        found[role] = signer
    return Signers(**found)


def create(store: Store, keys: Path, *, root_keys: int, threshold: int, now: datetime) -> bytes:
    """Make an empty repository and its keys; return the root metadata that devices start from.

    Keys found in `keys` are taken, so an interrupted call can be repeated. Raises PublishError if there already is a
    repository, or if `threshold` is not within 1 … `root_keys`.
    """
    if not 1 <= threshold <= root_keys <= 16:
        raise PublishError(f"--threshold {threshold} of --root-keys {root_keys}: need 1 <= threshold <= keys <= 16")
    if store.exists("metadata/timestamp.json"):
        raise PublishError(f"{store.uri} already holds a repository; devices would refuse a second one in its place")
    roots = [load_or_make_key(keys / root_key_name(i)) for i in range(root_keys)]
    online = Signers(**{role: load_or_make_key(keys / f"{role}.pem") for role in ONLINE_ROLES})

    root = Root(expires=_expiry("root", now), consistent_snapshot=True)
    for signer in roots:
        root.add_key(signer.public_key, "root")
    root.roles["root"].threshold = threshold
    for role in ONLINE_ROLES:
        root.add_key(getattr(online, role).public_key, role)
    signed_root = Metadata(root)
    for signer in roots:
        signed_root.sign(signer, append=True)
    root_bytes = signed_root.to_bytes(_JSON)

    targets = Metadata(Targets(expires=_expiry("targets", now)))
    snapshot = Metadata(Snapshot(expires=_expiry("snapshot", now)))
    timestamp = Metadata(Timestamp(expires=_expiry("timestamp", now)))
    targets.sign(online.targets)
    snapshot.sign(online.snapshot)
    timestamp.sign(online.timestamp)
    store.write("metadata/1.root.json", root_bytes)
    store.write("metadata/1.targets.json", targets.to_bytes(_JSON))
    store.write("metadata/1.snapshot.json", snapshot.to_bytes(_JSON))
    store.write("metadata/timestamp.json", timestamp.to_bytes(_JSON))
    return root_bytes


def load(store: Store, anchor: bytes | None) -> State:
    """The repository's state, each file verified as a client would, but for expiry.

    `anchor` is a root that is trusted already (keys/root.json); without one the repository's first root is believed.
    Raises PublishError if there is no repository or if a signature, version or digest does not hold.
    """
    try:
        root = _load_root(store, anchor)
        timestamp_bytes = store.read("metadata/timestamp.json")
        timestamp = Metadata[Timestamp].from_bytes(timestamp_bytes)
        root.signed.verify_delegate(Timestamp.type, timestamp.signed_bytes, timestamp.signatures)
        number = timestamp.signed.snapshot_meta.version
        snapshot = Metadata[Snapshot].from_bytes(store.read(f"metadata/{number}.snapshot.json"))
        root.signed.verify_delegate(Snapshot.type, snapshot.signed_bytes, snapshot.signatures)
        number = snapshot.signed.meta["targets.json"].version
        targets = Metadata[Targets].from_bytes(store.read(f"metadata/{number}.targets.json"))
        root.signed.verify_delegate(Targets.type, targets.signed_bytes, targets.signatures)
    except NotFoundError as error:
        raise PublishError(f"no repository there ({error}); make one with `sluice-train publish init`") from error
    except (RepositoryError, UnsignedMetadataError, DeserializationError, KeyError, ValueError) as error:
        raise PublishError(
            f"the metadata in {store.uri} does not verify ({error}); nothing is published on top of it"
        ) from error
    return State(root, timestamp, snapshot, targets, timestamp_bytes)


def publish(
    store: Store,
    state: State,
    signers: Signers,
    *,
    path: str,
    data: bytes | None,
    now: datetime,
) -> int:
    """Set the target `path` to `data`, or remove it where `data` is None. Return the new version of targets.

    Order: target file, targets, snapshot, timestamp. Raises PublishError if another publisher moved the repository on
    since `state` was read.
    """
    targets = state.targets.signed
    if data is None:
        targets.targets.pop(path, None)
    else:
        info = TargetFile.from_data(path, data, ["sha256"])
        store.write(f"targets/{consistent_name(path, data)}", data)
        targets.targets[path] = info
    _advance_targets(store, state, signers, now)
    _advance_snapshot(store, state, signers, now)
    _advance_timestamp(store, state, signers, now)
    return targets.version


def refresh(store: Store, state: State, signers: Signers, *, now: datetime) -> list[str]:
    """Re-sign what would expire: timestamp always, snapshot and targets once a third of their lifetime is left.

    Returns the roles that were re-signed.
    """
    renewed = ["timestamp"]
    if _old("targets", state.targets.signed.expires, now):
        _advance_targets(store, state, signers, now)
        renewed.insert(0, "targets")
    if "targets" in renewed or _old("snapshot", state.snapshot.signed.expires, now):
        _advance_snapshot(store, state, signers, now)
        renewed.insert(-1, "snapshot")
    _advance_timestamp(store, state, signers, now)
    return renewed


def target_bytes(store: Store, state: State, path: str) -> bytes | None:
    """The target's content, verified; None if there is no such target. Raises PublishError if it was altered."""
    info = state.targets.signed.targets.get(path)
    if info is None:
        return None
    folder, _, name = path.rpartition("/")
    data = store.read(f"targets/{folder}/{info.hashes['sha256']}.{name}")
    try:
        info.verify_length_and_hashes(data)
    except RepositoryError as error:
        raise PublishError(f"{store.uri}: the target {path} was altered: {error}") from error
    return data


def consistent_name(path: str, data: bytes) -> str:
    """Where consistent snapshots keep a target: `<folder>/<sha256>.<name>`."""
    folder, slash, name = path.rpartition("/")
    return f"{folder}{slash}{hashlib.sha256(data).hexdigest()}.{name}"


def _load_root(store: Store, anchor: bytes | None) -> Metadata[Root]:
    root = Metadata[Root].from_bytes(anchor if anchor is not None else store.read("metadata/1.root.json"))
    root.verify_delegate(Root.type, root)
    for number in range(root.signed.version + 1, root.signed.version + MAX_ROOTS):
        try:
            data = store.read(f"metadata/{number}.root.json")
        except NotFoundError:
            break
        successor = Metadata[Root].from_bytes(data)
        root.verify_delegate(Root.type, successor)
        successor.verify_delegate(Root.type, successor)
        root = successor
    return root


def _advance_targets(store: Store, state: State, signers: Signers, now: datetime) -> None:
    signed = state.targets.signed
    signed.version += 1
    signed.expires = _expiry("targets", now)
    state.targets.sign(signers.targets)
    data = state.targets.to_bytes(_JSON)
    store.write(f"metadata/{signed.version}.targets.json", data)
    state.snapshot.signed.meta["targets.json"] = MetaFile.from_data(signed.version, data, ["sha256"])


def _advance_snapshot(store: Store, state: State, signers: Signers, now: datetime) -> None:
    signed = state.snapshot.signed
    signed.version += 1
    signed.expires = _expiry("snapshot", now)
    state.snapshot.sign(signers.snapshot)
    data = state.snapshot.to_bytes(_JSON)
    store.write(f"metadata/{signed.version}.snapshot.json", data)
    state.timestamp.signed.snapshot_meta = MetaFile.from_data(signed.version, data, ["sha256"])


def _advance_timestamp(store: Store, state: State, signers: Signers, now: datetime) -> None:
    signed = state.timestamp.signed
    signed.version += 1
    signed.expires = _expiry("timestamp", now)
    state.timestamp.sign(signers.timestamp)
    data = state.timestamp.to_bytes(_JSON)
    if store.read("metadata/timestamp.json") != state.timestamp_bytes:
        raise PublishError(f"another publisher changed {store.uri} in the meantime; run this again")
    store.write("metadata/timestamp.json", data)
    state.timestamp_bytes = data


def _expiry(role: str, now: datetime) -> datetime:
    return (now + LIFETIMES[role]).astimezone(UTC).replace(microsecond=0)


def _old(role: str, expires: datetime, now: datetime) -> bool:
    return expires - now < LIFETIMES[role] / 3
