"""The signed repository: who may write it, in which order, and what survives a crash."""

import stat
from datetime import timedelta
from pathlib import Path

import pytest
from sluice_contracts.release import Release, piece_path
from sluice_storage import StorageError, open_store
from sluice_training.publish import repository
from sluice_training.publish.errors import PublishError
from sluice_training.publish.pieces import MAX_PIECES, piece_size_for
from tuf.ngclient import Updater


class CrashingStore:
    """A real store that stops the publisher after a number of writes, as a killed process would."""

    def __init__(self, store, writes: int) -> None:
        self._store, self._left = store, writes
        self.uri = store.uri

    def write(self, key: str, data: bytes) -> None:
        if self._left == 0:
            raise StorageError("the publisher was killed here")
        self._left -= 1
        self._store.write(key, data)

    def __getattr__(self, name: str):
        return getattr(self._store, name)


def client_view(publisher, server, folder: Path) -> Release | None:
    """What python-tuf's own client believes."""
    folder.mkdir()
    updater = Updater(
        str(folder),
        f"{server.url}/metadata/",
        str(folder / "targets"),
        f"{server.url}/targets/",
        bootstrap=publisher.anchor,
    )
    info = updater.get_targetinfo("stable/support-bot.json")
    if info is None:
        return None
    return Release.model_validate_json(Path(updater.download_target(info)).read_bytes())


def test_keys_are_readable_by_their_owner_only(publisher) -> None:
    names = {p.name for p in publisher.keys.iterdir()}
    assert names == {"root.pem", "targets.pem", "snapshot.pem", "timestamp.pem", "root.json"}
    for key in publisher.keys.glob("*.pem"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600


def test_a_second_init_cannot_replace_a_repository(publisher) -> None:
    with pytest.raises(PublishError, match="already holds a repository"):
        repository.create(publisher.store, publisher.root / "other", root_keys=1, threshold=1, now=publisher.now)


@pytest.mark.parametrize(("threshold", "keys"), [(2, 1), (0, 1), (1, 17)])
def test_a_threshold_that_cannot_be_met_is_refused(tmp_path: Path, publisher, threshold: int, keys: int) -> None:
    store = open_store(f"file://{tmp_path}/new")
    with pytest.raises(PublishError, match="threshold"):
        repository.create(store, tmp_path / "keys", root_keys=keys, threshold=threshold, now=publisher.now)
    assert not (tmp_path / "keys").exists()


def test_a_root_signed_by_two_of_three_keys_is_trusted(tmp_path: Path, publisher) -> None:
    store = open_store(f"file://{tmp_path}/new")
    anchor = repository.create(store, tmp_path / "keys", root_keys=3, threshold=2, now=publisher.now)
    state = repository.load(store, anchor)
    assert state.root.signed.roles["root"].threshold == 2
    assert {p.name for p in (tmp_path / "keys").glob("root*")} == {"root.pem", "root-2.pem", "root-3.pem"}


def test_an_interrupted_init_goes_on_with_the_same_keys(tmp_path: Path, publisher) -> None:
    store, keys = open_store(f"file://{tmp_path}/new"), tmp_path / "keys"
    with pytest.raises(StorageError):
        repository.create(CrashingStore(store, 2), keys, root_keys=1, threshold=1, now=publisher.now)
    before = (keys / "root.pem").read_bytes()
    repository.create(store, keys, root_keys=1, threshold=1, now=publisher.now)
    assert (keys / "root.pem").read_bytes() == before


def test_clients_see_the_release_and_its_pieces(publisher, server, models, tmp_path: Path) -> None:
    publisher.release("v1", models["one"])
    release = client_view(publisher, server, tmp_path / "client")
    assert release is not None
    assert release.version == "v1"
    assert release.evaluation == {"intent.accuracy": 0.97}
    (variant,) = release.variants
    assert variant.context == 512
    assert variant.ram_bytes > variant.size
    data = b"".join((publisher.folder / piece_path(p)).read_bytes() for p in variant.pieces)
    assert data == models["one"].read_bytes()


@pytest.mark.parametrize("writes", [0, 11, 12, 13, 14, 15, 16])
def test_a_publisher_killed_after_any_write_leaves_the_old_release_in_force(
    publisher, server, models, tmp_path: Path, writes: int
) -> None:
    publisher.release("v1", models["one"])
    store = publisher.store
    publisher.store = CrashingStore(store, writes)
    # v2 shares 12 pieces with v1: 12 pieces, then target, targets, snapshot, timestamp
    try:
        publisher.release("v2", models["two"])
        crashed = False
    except StorageError:
        crashed = True
    assert crashed == (writes < 16)
    seen = client_view(publisher, server, tmp_path / "client")
    assert seen is not None
    assert seen.version == ("v1" if crashed else "v2")

    publisher.store = store
    publisher.release("v2", models["two"])
    seen = client_view(publisher, server, tmp_path / "later")
    assert seen is not None
    assert seen.version == "v2"


def test_versions_only_grow(publisher, models) -> None:
    numbers = [publisher.release("v1", models["one"], percent=p).tuf_version for p in (5, 25, 100)]
    assert numbers == [2, 3, 4]
    state = repository.load(publisher.store, publisher.anchor)
    assert state.timestamp.signed.version == 4
    assert state.snapshot.signed.version == 4


def test_a_key_of_another_repository_is_refused(publisher, tmp_path: Path) -> None:
    state = repository.load(publisher.store, publisher.anchor)
    other = tmp_path / "other"
    repository.create(open_store(f"file://{tmp_path}/new"), other, root_keys=1, threshold=1, now=publisher.now)
    with pytest.raises(PublishError, match=r"targets\.pem is not a key of this repository's targets role"):
        repository.load_signers(other, state.root.signed)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        (b"", "no unencrypted PEM"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n", "no unencrypted PEM"),
    ],
)
def test_a_missing_or_broken_key_is_named(publisher, content: bytes | None, words: str) -> None:
    state = repository.load(publisher.store, publisher.anchor)
    path = publisher.keys / "snapshot.pem"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PublishError, match=words) as caught:
        repository.load_signers(publisher.keys, state.root.signed)
    assert "snapshot.pem" in str(caught.value)


@pytest.mark.parametrize("file", ["timestamp.json", "1.snapshot.json", "1.targets.json", "1.root.json"])
def test_nothing_is_published_on_altered_metadata(publisher, models, file: str) -> None:
    path = publisher.folder / "metadata" / file
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"version":1', b'"version":7'))
    publisher.anchor = None if file == "1.root.json" else publisher.anchor
    with pytest.raises(PublishError, match=r"does not verify|no repository there"):
        publisher.release("v1", models["one"])


def test_two_publishers_at_once_do_not_overwrite_each_other(publisher, models) -> None:
    state = repository.load(publisher.store, publisher.anchor)
    signers = repository.load_signers(publisher.keys, state.root.signed)
    publisher.release("v1", models["one"])
    with pytest.raises(PublishError, match="another publisher"):
        repository.publish(publisher.store, state, signers, path="stable/other.json", data=b"{}", now=publisher.now)


def test_refresh_renews_what_would_expire(publisher) -> None:
    state = repository.load(publisher.store, publisher.anchor)
    signers = repository.load_signers(publisher.keys, state.root.signed)
    now = publisher.now
    assert repository.refresh(publisher.store, state, signers, now=now + timedelta(days=8)) == ["timestamp"]
    assert state.timestamp.signed.expires > now + timedelta(days=14)
    renewed = repository.refresh(publisher.store, state, signers, now=now + timedelta(days=25))
    assert renewed == ["snapshot", "timestamp"]
    renewed = repository.refresh(publisher.store, state, signers, now=now + timedelta(days=80))
    assert renewed == ["targets", "snapshot", "timestamp"]
    repository.load(publisher.store, publisher.anchor)


@pytest.mark.parametrize("size", [1, 65_536, 16 * 2**20, 16 * 2**20 + 1, 5 * 2**30, 400 * 2**30])
def test_pieces_are_small_for_small_files_and_few_for_large_ones(size: int) -> None:
    piece = piece_size_for(size)
    assert piece >= 64 * 1024
    assert -(-size // piece) <= MAX_PIECES
    assert piece_size_for(1_500_000) == 64 * 1024
