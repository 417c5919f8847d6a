"""Bringing a version's files to this machine, and proving that they are the ones the manifest names.

The cache holds each file once, under its digest, and one folder per version made of links. Every file is hashed at
every start, cached or not: what vLLM loads is what was evaluated. Between the check and the loading only this user may
write there: the cache's folders are this user's alone, its files are read-only and never followed through a link.

Nothing of a version is run. Its files are of kinds that hold data (weights are safetensors, never pickles), and one
that names code to go with the model is refused before vLLM is started.
"""

import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError
from sluice_contracts.base import canonical_json
from sluice_contracts.manifest import Artifact, Manifest
from sluice_storage import ChecksumError, join, open_store, read_bytes

CHUNK = 1 << 20
WORKERS = 4
SERVED_KINDS = (".safetensors", ".json", ".txt", ".jinja", ".model", ".tiktoken", ".md")
"""How the names of files end that an engine may be given: weights, configurations, tokenizers, chat templates. vLLM
would also take pickled weights, and transformers the Python that some models bring with them."""
LONGEST_CONFIG = 16 << 20


class ArtifactError(Exception):
    """A version cannot be served; the message says which file is at fault and what to do."""


def cache_folder() -> Path:
    """Where models are kept on this machine: $SLUICE_MODEL_CACHE, or a folder in the temporary one."""
    return Path(os.environ.get("SLUICE_MODEL_CACHE") or Path(tempfile.gettempdir()) / "sluice-models")


def read_manifest(uri: str, digest: str, *, model: str, lineage: str) -> Manifest:
    """The manifest at `uri` of a version that engines load whole, proven to have `digest` and to speak of `model` and
    `lineage`.

    Raises ArtifactError, and sluice_storage's StorageError if it cannot be read or was changed.
    """
    manifest = parse_manifest(uri, digest, model=model, lineage=lineage)
    if not manifest.served():
        raise ArtifactError(f"{uri} lists no file with role 'served': the run exported nothing an engine can load")
    if problem := unservable([a.path for a in manifest.served()]):
        raise ArtifactError(f"{uri} {problem}")
    return manifest


def unservable(paths: list[str]) -> str | None:
    """Why an engine is not given a model of these files, or None."""
    odd = [path for path in paths if not path.endswith(SERVED_KINDS)]
    if odd:
        return (
            f"lists {odd[0]} with role 'served', which is no file of data: weights must be safetensors, and code that "
            f"comes with a model is never run; export files that end in {', '.join(SERVED_KINDS)} only"
        )
    names = {PurePosixPath(path).name for path in paths}
    if "config.json" not in names or not any(name.endswith(".safetensors") for name in names):
        return "lists no config.json, or no safetensors, with role 'served': there is no whole model to load"
    return None


def refuse_code(folder: Path) -> None:
    """Raises ArtifactError if a configuration in the model's `folder` names code to go with the model (transformers'
    `auto_map`). vLLM is told not to run such code; here it is said which file asks for it."""
    for path in sorted(folder.rglob("*config*.json")):
        if path.stat().st_size > LONGEST_CONFIG:
            raise ArtifactError(f"{path.name} has {path.stat().st_size} bytes: no configuration is that long")
        try:
            content = json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            raise ArtifactError(f"{path.name} is not JSON: the export is broken; train or export again") from None
        if "auto_map" in _keys(content):
            raise ArtifactError(
                f"{path.name} names code that should come with the model (auto_map), and such code is never run: "
                "remove auto_map if vLLM knows the architecture by itself, or serve another model"
            )


def _keys(content: Any) -> set[str]:
    """The keys of all objects in some JSON, however deep."""
    found: set[str] = set()
    left = [content]
    while left:
        part = left.pop()
        if isinstance(part, dict):
            found |= part.keys()
            left += part.values()
        elif isinstance(part, list):
            left += part
    return found


def parse_manifest(uri: str, digest: str, *, model: str, lineage: str) -> Manifest:
    """The manifest at `uri`, whatever it lists. Raises as `read_manifest`."""
    data = read_bytes(uri, digest)
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(f"{uri} is no valid manifest: {where}: {first['msg']}") from None
    if manifest.model != model:
        raise ArtifactError(f"{uri} is of model {manifest.model!r}, but this pool serves {model!r}")
    if manifest.lineage != lineage:
        raise ArtifactError(f"{uri} has lineage {manifest.lineage}, but {lineage} was asked for")
    return manifest


def model_folder_name(artifacts: list[Artifact]) -> str:
    """One name for one set of files: a pure function of their paths and digests."""
    return hashlib.sha256(canonical_json(sorted([a.path, a.sha256] for a in artifacts))).hexdigest()[:32]


def relative_paths(artifacts: list[Artifact]) -> list[str]:
    """Each artefact's path below the deepest folder that holds them all, which is the model's folder."""
    parents = [PurePosixPath(a.path).parent for a in artifacts]
    common = PurePosixPath(os.path.commonpath(parents)) if parents else PurePosixPath()
    return [str(PurePosixPath(a.path).relative_to(common)) for a in artifacts]


def fetch_model(run_uri: str, artifacts: list[Artifact], cache: Path) -> Path:
    """A folder of this machine with exactly `artifacts`, each of the right size and digest.

    What is not in the cache is downloaded from `run_uri`. Safe to call from several processes at once.
    Raises ArtifactError, StorageError.
    """
    _own(cache)
    with ThreadPoolExecutor(WORKERS) as pool:
        blobs = list(pool.map(lambda artifact: _fetch(run_uri, artifact, cache / "sha256"), artifacts))
    folder = cache / "models" / model_folder_name(artifacts)
    paths = relative_paths(artifacts)
    if not _holds_exactly(folder, dict(zip(paths, blobs, strict=True))):
        _link(folder, dict(zip(paths, blobs, strict=True)))
    return folder


def _own(cache: Path) -> None:
    """Make the cache's folders, or make sure of them. Raises ArtifactError where another user could change in them what
    was verified: the default one lies in a folder that all users of the machine may write to."""
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    us = os.geteuid()
    for folder in (cache, cache / "sha256", cache / "models"):
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        ours = found.st_uid == us and stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o022
        # The outermost may be a volume, which belongs to root and to our group.
        if not ours and not (folder == cache and {found.st_uid, folder.stat().st_uid} <= {us, 0}):
            raise ArtifactError(
                f"{folder} can be changed by other users of this machine: remove it, or set SLUICE_MODEL_CACHE to a "
                "folder that only this user may write to"
            )


def _fetch(run_uri: str, artifact: Artifact, blobs: Path) -> Path:
    blob = blobs / artifact.sha256.removeprefix("sha256:")
    if blob.exists() and _defect(blob, artifact) is None:
        return blob
    blob.unlink(missing_ok=True)  # half-written by no one, so tampered with or damaged: fetched anew
    incoming = blobs / f"{blob.name}.{os.getpid()}.incoming"
    try:
        open_store(run_uri).download(artifact.path, incoming)
        if defect := _defect(incoming, artifact):
            raise ChecksumError(
                f"{join(run_uri, artifact.path)} {defect}: it is not the file that was evaluated; refusing to serve it"
            )
        incoming.chmod(0o444)
        incoming.replace(blob)
    finally:
        incoming.unlink(missing_ok=True)
    return blob


def _defect(path: Path, artifact: Artifact) -> str | None:
    """What is wrong with the file, or None."""
    try:
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb")
    except OSError as error:
        return f"cannot be read as a file of its own: {error.strerror}"
    digest = hashlib.sha256()
    with file:
        size = os.fstat(file.fileno()).st_size
        if size != artifact.size:
            return f"has {size} bytes, the manifest says {artifact.size}"
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    found = f"sha256:{digest.hexdigest()}"
    return None if found == artifact.sha256 else f"has digest {found}, the manifest says {artifact.sha256}"


def _holds_exactly(folder: Path, files: dict[str, Path]) -> bool:
    """Whether `folder` has these files and no others, each the very blob that was verified."""
    if not folder.is_dir():
        return False
    present = {p.relative_to(folder).as_posix(): p for p in _files(folder)}
    return present.keys() == files.keys() and all(present[name].samefile(blob) for name, blob in files.items())


def _files(folder: Path) -> Iterable[Path]:
    """All that is no folder; a link to a folder is none, and what lies behind it is not looked at."""
    return (p for p in folder.rglob("*") if p.is_symlink() or not p.is_dir())


def _link(folder: Path, files: dict[str, Path]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        for name, blob in files.items():
            target = fresh / name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                target.hardlink_to(blob)
            except OSError:  # a file system without hard links
                target.symlink_to(blob)
        fresh.chmod(0o755)
        if folder.exists():
            stale = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".stale."))
            folder.rename(stale / "model")
            shutil.rmtree(stale, ignore_errors=True)
        try:
            fresh.rename(folder)
        except OSError:
            if not _holds_exactly(folder, files):  # another process was first, with other files
                raise ArtifactError(
                    f"{folder} is being changed by another process; empty the cache and retry"
                ) from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
