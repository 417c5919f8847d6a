"""Artefacts against their digests: what is altered is named, and a look never waits for gigabytes."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from sluice_contracts.manifest import Manifest
from sluice_contracts.model_version import ModelVersionSpec, ModelVersionStatus
from sluice_operator.artifacts import Artifacts, Problem
from sluice_operator.engine.cache import Cache
from sluice_operator.model_version.observe import Observed, observe
from sluice_operator.verification import KEPT_SECONDS, STREAMS, Checking, Verification

LINEAGE = "a" * 64
WEIGHTS = "export/safetensors/model.safetensors"


class World:
    """One version's files, and what an operator finds of them."""

    def __init__(self, bucket: Any, make: Any) -> None:
        self.bucket, self.make = bucket, make
        self.reference = bucket.version(LINEAGE)
        self.folder = bucket.root / "runs" / LINEAGE
        self.spec = ModelVersionSpec(model="support-bot", version="v1", manifest=self.reference)
        self.seconds = 0.0
        self.verification = Verification(clock=lambda: self.seconds)

    @property
    def manifest(self) -> Manifest:
        return Manifest.model_validate_json((self.folder / "manifest.json").read_bytes())

    async def check(self, patience: float = 5.0) -> Problem | Checking | None:
        return await self.verification.check(
            self.reference.digest, f"file://{self.folder}", self.manifest.artifacts, patience
        )

    async def observe(self, **annotations: str) -> Observed:
        meta = self.make.meta("v1", annotations=annotations)
        kube: Any = None  # nothing here is asked of the API server
        return await observe(meta, self.spec, ModelVersionStatus(), Cache(), Artifacts(), self.verification, kube)


@pytest.fixture
def world(bucket: Any, make: Any) -> World:
    return World(bucket, make)


async def test_untouched_files_are_verified_in_one_look(world: World) -> None:
    assert isinstance((await world.observe()).manifest, Manifest)


async def test_a_file_changed_without_changing_its_size_is_named(world: World) -> None:
    (world.folder / WEIGHTS).write_bytes(b"x" * 64)
    found = (await world.observe()).manifest
    assert isinstance(found, Problem)
    assert (found.reason, found.lasting) == ("ArtifactChanged", True)
    assert WEIGHTS in found.message


async def test_a_missing_file_is_named(world: World) -> None:
    (world.folder / WEIGHTS).unlink()
    found = await world.check()
    assert isinstance(found, Problem)
    assert found.reason == "ArtifactMissing"
    assert WEIGHTS in found.message


async def test_what_was_altered_is_not_read_again_at_every_look(world: World) -> None:
    (world.folder / WEIGHTS).write_bytes(b"x" * 64)
    assert isinstance(await world.check(), Problem)
    (world.folder / WEIGHTS).write_bytes(b"w" * 64)
    assert isinstance(await world.check(), Problem)
    world.seconds = KEPT_SECONDS
    assert await world.check() is None


async def test_a_look_does_not_wait_and_sees_how_far_it_is(world: World) -> None:
    first = await world.check(patience=0)
    assert isinstance(first, Checking)
    assert (first.files, first.of_files, first.of_bytes) == (0, 2, 96)
    async with asyncio.timeout(5):
        while (found := await world.check(patience=0.01)) is not None:
            assert isinstance(found, Checking)


async def test_a_look_does_not_wait_for_other_versions(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    class SlowStore:
        """A fake: storage that holds its bytes back."""

        def stream(self, key: str) -> Iterator[bytes]:
            held.wait(30)
            yield b""

    held = threading.Event()
    monkeypatch.setattr("sluice_operator.verification.open_store", lambda _folder: SlowStore())
    try:
        for number in range(STREAMS):
            others = await world.verification.check(
                f"sha256:{number}", "file:///x", world.manifest.artifacts, patience=0
            )
            assert isinstance(others, Checking)
            await asyncio.sleep(0)
        began = asyncio.get_running_loop().time()
        assert isinstance(await world.check(patience=30), Checking)
        assert asyncio.get_running_loop().time() - began < 15
    finally:
        held.set()


@pytest.mark.parametrize("file", ["parity.json", "eval/report.json"])
async def test_a_changed_report_is_named(world: World, file: str) -> None:
    path = world.folder / file
    path.write_bytes(path.read_bytes().replace(b"2026", b"2025"))
    found = (await world.observe()).manifest
    assert isinstance(found, Problem)
    assert found.reason == "ReportDigestMismatch"
    assert file in found.message


async def test_a_version_whose_lineage_is_not_its_runs_is_refused(world: World) -> None:
    found = (await world.observe(**{"sluice.dev/lineage": "b" * 64})).manifest
    assert isinstance(found, Problem)
    assert found.reason == "LineageMismatch"
