"""What is particular to a folder, to a bucket, and to a wrong URI."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from sluice_storage import NotFoundError, StorageError, join, open_store
from sluice_storage.store import split, write_atomically


def test_an_unknown_scheme_is_refused_with_the_known_ones() -> None:
    with pytest.raises(StorageError, match=r"s3://bucket.*use gs://bucket/path or file:///path"):
        open_store("s3://bucket/models")


@pytest.mark.parametrize("uri", ["gs://bucket", "gs://bucket/", "file:///", "nothing"])
def test_a_uri_without_an_object_is_refused(uri: str) -> None:
    with pytest.raises(StorageError, match="names no object"):
        split(uri)


def test_join_puts_one_slash_between_parts() -> None:
    assert join("gs://bucket/", "/runs/", "", "1") == "gs://bucket/runs/1"


def test_a_key_cannot_climb_out_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    store = open_store((tmp_path / "store").as_uri())
    with pytest.raises(StorageError, match="would lie outside"):
        store.read("../secret")


def test_a_link_cannot_lead_out_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(StorageError, match="would lie outside"):
        open_store((tmp_path / "store").as_uri()).read("link")


def test_a_folder_with_a_space_in_its_name(tmp_path: Path) -> None:
    store = open_store((tmp_path / "my models").as_uri())
    store.write("a.json", b"{}")
    assert (tmp_path / "my models" / "a.json").read_bytes() == b"{}"


def test_a_write_that_breaks_off_leaves_the_old_file(tmp_path: Path) -> None:
    def broken() -> Iterator[bytes]:
        yield b"half"
        raise OSError(28, os.strerror(28))

    target = tmp_path / "progress.json"
    target.write_bytes(b"old")
    with pytest.raises(OSError, match="No space left"):
        write_atomically(target, broken())
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_half_written_file_is_never_listed(tmp_path: Path) -> None:
    store = open_store(tmp_path.as_uri())
    store.write("a.json", b"{}")
    (tmp_path / ".b.json.x1y2").write_bytes(b"half")
    assert list(store.list()) == ["a.json"]


def test_a_file_where_a_folder_is_needed_is_explained(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(StorageError, match=r"cannot write file://.*/runs/1\.json: (File exists|Not a directory)"):
        open_store(tmp_path.as_uri()).write("runs/1.json", b"{}")


@pytest.mark.apiserver
def test_a_missing_bucket_is_named_whatever_is_asked_of_it(emulator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator)
    store = open_store("gs://no-such-bucket/runs")
    for attempt in (lambda: store.read("a"), lambda: store.write("a", b"x"), lambda: list(store.list())):
        with pytest.raises(NotFoundError, match=r"gs://no-such-bucket/runs.*the object or the bucket does not exist"):
            attempt()


def test_without_credentials_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "")
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    with pytest.raises(StorageError, match="no Google Cloud credentials: use workload identity"):
        open_store("gs://bucket/runs").read("a")
