"""What every store promises, whichever it is."""

import hashlib
from pathlib import Path

import pytest
from sluice_storage import ChecksumError, NotFoundError, Store, read_bytes, write_bytes


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def test_what_is_written_can_be_read_listed_and_deleted(store: Store) -> None:
    store.write("runs/1/manifest.json", b"{}")
    store.write("runs/1/eval/report.json", b"[]")
    store.write("runs/2/manifest.json", b"{}")
    assert store.read("runs/1/manifest.json") == b"{}"
    assert list(store.list("runs/1/")) == ["runs/1/eval/report.json", "runs/1/manifest.json"]
    assert store.exists("runs/2/manifest.json")
    store.delete("runs/2/manifest.json")
    store.delete("runs/2/manifest.json")
    assert not store.exists("runs/2/manifest.json")


def test_a_later_write_replaces_the_whole_object(store: Store) -> None:
    store.write("progress.json", b"a long first version")
    store.write("progress.json", b"short")
    assert store.read("progress.json") == b"short"


def test_an_absent_folder_is_an_empty_one(store: Store) -> None:
    assert list(store.list("nothing/here/")) == []


def test_a_missing_object_is_named(store: Store) -> None:
    with pytest.raises(NotFoundError, match=r"/absent\.json"):
        store.read("absent.json")


def test_files_travel_both_ways(store: Store, tmp_path: Path) -> None:
    data = bytes(range(256)) * 9000
    source = tmp_path / "model.gguf"
    source.write_bytes(data)
    store.upload(source, "export/model.gguf")
    target = tmp_path / "deep" / "down" / "model.gguf"
    store.download("export/model.gguf", target)
    assert target.read_bytes() == data
    assert [p.name for p in target.parent.iterdir()] == ["model.gguf"]


def test_an_object_is_streamed_in_pieces(store: Store) -> None:
    data = bytes(range(256)) * 50_000
    store.write("export/model.gguf", data)
    pieces = list(store.stream("export/model.gguf"))
    assert len(pieces) > 1
    assert b"".join(pieces) == data
    with pytest.raises(NotFoundError, match="absent"):
        list(store.stream("absent.gguf"))


def test_a_failed_download_leaves_the_old_file_alone(store: Store, tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    target.write_bytes(b"old")
    with pytest.raises(NotFoundError):
        store.download("absent.gguf", target)
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["model.gguf"]


def test_bytes_that_were_changed_are_refused_with_both_digests(store: Store) -> None:
    uri = f"{store.uri}/manifest.json"
    write_bytes(uri, b"promised")
    assert read_bytes(uri, digest(b"promised")) == b"promised"
    store.write("manifest.json", b"changed")
    with pytest.raises(ChecksumError, match="changed after it was recorded") as refused:
        read_bytes(uri, digest(b"promised"))
    assert digest(b"promised") in str(refused.value)
    assert digest(b"changed") in str(refused.value)
