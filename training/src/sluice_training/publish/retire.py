"""Deleting the files of a version that nobody uses any more: its weights, device files and checkpoints.

Manifest, reports, samples and card stay: they are small, and they are what a lineage is proven by. Each file goes by
its name and none need be there, so that whoever was ended in the middle may begin again.
"""

from dataclasses import dataclass

from pydantic import ValidationError
from sluice_contracts.manifest import Manifest
from sluice_storage import NotFoundError, join, open_store, read_bytes

from sluice_training.publish.errors import PublishError

FOLDERS = ("export/", "checkpoints/")
"""Below the run folder: all that is large."""


@dataclass(frozen=True)
class Retired:
    """What went this time; 0 where an earlier attempt had done it."""

    files: int
    bytes: int


def retire(manifest_uri: str, digest: str) -> Retired:
    """Delete the files of the version with this manifest. Raises PublishError if the manifest is no such, or says that
    its files lie elsewhere; StorageError."""
    try:
        manifest = Manifest.model_validate_json(read_bytes(manifest_uri, digest))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise PublishError(f"{manifest_uri} is no manifest: {where}: {first['msg']}; nothing was deleted") from None
    folder = manifest_uri.rpartition("/")[0]
    if manifest.run_uri.rstrip("/") != folder:
        raise PublishError(
            f"the manifest lies in {folder} and says that its files are in {manifest.run_uri}; nothing was deleted"
        )
    listed = {a.path for a in manifest.artifacts if a.role != "report"}
    files = size = 0
    store = open_store(folder)
    # The large folders hold what the manifest does not list, too: checkpoints, and files of another attempt.
    for key in sorted(listed.union(*(store.list(prefix) for prefix in FOLDERS))):
        try:
            length = store.size(key)
        except NotFoundError:
            continue
        store.delete(key)
        files, size = files + 1, size + length
    return Retired(files, size)


def described(found: Retired, manifest_uri: str) -> str:
    """What a person reads."""
    where = join(manifest_uri.rpartition("/")[0])
    return f"deleted {found.files} files of {found.bytes:,} bytes below {where}; manifest and reports are kept"
