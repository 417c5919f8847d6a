"""A dataset that was damaged or mistaken is refused with the file, the line and the field."""

import json
from pathlib import Path

import pytest
from sluice_contracts.base import sha256
from sluice_contracts.dataset import DatasetManifest
from sluice_contracts.training_run import DatasetReference
from sluice_training.dataset.build import Written
from sluice_training.dataset.read import parse_rows, read_manifest, read_rows
from sluice_training.errors import InvalidInputError

GOOD = {
    "id": "x",
    "domain": "general",
    "task": "question",
    "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}],
}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"domain": "sports"}, "domain"),
        ({"task": None}, "task"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": ""}, GOOD["messages"][1]]}, "messages.0.content"),
        ({"messages": [{"role": "robot", "content": "x"}, GOOD["messages"][1]]}, "messages.0.role"),
        ({"messages": list(reversed(GOOD["messages"]))}, "the last one must be the assistant's answer"),
        ({"label": 3}, "label: unknown field"),
    ],
)
def test_a_wrong_field_is_named_with_file_and_line(change: dict[str, object], named: str) -> None:
    data = (json.dumps(GOOD) + "\n" + json.dumps({**GOOD, **change}) + "\n").encode()
    with pytest.raises(InvalidInputError) as error:
        parse_rows(data, "gs://b/train.jsonl")
    assert "gs://b/train.jsonl, line 2" in str(error.value)
    assert named in str(error.value)


@pytest.mark.parametrize("line", [b"{", b'{"id": "\xff"}', b"[1, 2]"])
def test_a_line_that_is_no_row_is_named(line: bytes) -> None:
    with pytest.raises(InvalidInputError, match=r"train\.jsonl, line 1"):
        parse_rows(line, "train.jsonl")


def reference(written: Written) -> DatasetReference:
    return DatasetReference(uri=written.uri, digest=written.digest)


def test_a_missing_dataset_says_how_to_make_one(store: str) -> None:
    missing = DatasetReference(uri=f"{store}/distillation_dataset/none", digest="sha256:" + "0" * 64)
    with pytest.raises(InvalidInputError, match=r"dataset\.uri: .* build it with `sluice-train dataset build`"):
        read_manifest(missing)


def test_a_manifest_with_another_digest_is_refused(small_dataset: Written) -> None:
    other = DatasetReference(uri=small_dataset.uri, digest="sha256:" + "0" * 64)
    with pytest.raises(InvalidInputError, match=r"dataset\.digest: .* changed after it was recorded"):
        read_manifest(other)


def test_what_is_no_manifest_is_refused(store: str) -> None:
    path = Path(store.removeprefix("file://")) / "manifest.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"runId": 3}')
    with pytest.raises(InvalidInputError, match="is no dataset manifest"):
        read_manifest(DatasetReference(uri=store, digest=sha256(path.read_bytes())))


def copy_of(written: Written, store: str) -> tuple[str, DatasetManifest, Path]:
    folder = Path(store.removeprefix("file://"))
    folder.mkdir(parents=True)
    for file in Path(written.uri.removeprefix("file://")).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return store, read_manifest(reference(written)), folder


def test_a_row_that_was_changed_after_the_build_is_refused(small_dataset: Written, store: str) -> None:
    uri, manifest, folder = copy_of(small_dataset, store)
    path = folder / "train.jsonl"
    path.write_bytes(path.read_bytes().replace(b"doctor", b"Doctor", 1))
    with pytest.raises(InvalidInputError, match=r"train\.jsonl has digest .* it was changed"):
        read_rows(uri, manifest, "train")


def test_a_file_that_is_gone_is_named(small_dataset: Written, store: str) -> None:
    uri, manifest, folder = copy_of(small_dataset, store)
    (folder / "val.jsonl").unlink()
    with pytest.raises(InvalidInputError, match=r"the manifest lists val\.jsonl, but .* does not exist"):
        read_rows(uri, manifest, "val")
