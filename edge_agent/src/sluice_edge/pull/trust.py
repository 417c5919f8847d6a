"""What the repository offers, and whether it may be believed: The Update Framework's client, and its refusals in words.

A refusal here blocks the update only. What is installed was verified when it came and keeps running, however old the
metadata becomes.
"""

import json
import logging
from dataclasses import dataclass

from pydantic import ValidationError
from sluice_contracts.base import sha256
from sluice_contracts.release import Release, target_path
from tuf.api import exceptions as tuf_errors
from tuf.ngclient import Updater
from tuf.ngclient.config import UpdaterConfig

from sluice_edge import durable
from sluice_edge.errors import FetchError, TrustError
from sluice_edge.home import AgentConfig, Home, first_problem
from sluice_edge.pull.fetch import MetadataFetcher, Source

MAX_RELEASE = 4_000_000
"""Bytes of a release document: 20,000 digests in each of two variants."""


@dataclass(frozen=True)
class Offer:
    """The verified state of the repository, for one model."""

    tuf_version: int
    """Version of the targets metadata."""
    release: Release | None
    """None: nothing is published for this model in this channel."""
    document: bytes = b""

    @property
    def digest(self) -> str:
        """Digest of the release document."""
        return sha256(self.document)


def look(home: Home, config: AgentConfig, source: Source) -> Offer:
    """Refresh the metadata and read the release. Raises FetchError, TrustError."""
    logging.getLogger("tuf").setLevel(logging.CRITICAL)  # its refusals come as our own errors
    for folder in (home.metadata, home.targets):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = target_path(config.channel, config.model)
    try:
        updater = Updater(
            metadata_dir=str(home.metadata),
            metadata_base_url=f"{source.url}/metadata/",
            target_dir=str(home.targets),
            target_base_url=f"{source.url}/targets/",
            fetcher=MetadataFetcher(source),
            config=UpdaterConfig(max_root_rotations=64, targets_max_length=MetadataFetcher.LARGEST),
            bootstrap=home.root_of_trust.read_bytes(),
        )
        updater.refresh()
        version = _targets_version(home)
        _never_back(home, version)
        info = updater.get_targetinfo(path)
        if info is None:
            return Offer(version, None)
        if info.length > MAX_RELEASE:
            raise TrustError(f"the release {path} has {info.length:,} bytes, more than {MAX_RELEASE:,}; refused")
        cached = updater.find_cached_target(info) or updater.download_target(info)
    except tuf_errors.DownloadLengthMismatchError as error:
        raise TrustError(f"the repository sent more than it may: {error}; refused") from error
    except tuf_errors.DownloadError as error:
        raise FetchError(f"cannot reach the repository: {error}") from error
    except tuf_errors.RepositoryError as error:
        raise TrustError(f"{_refusal(error)}; update refused, the installed model keeps running") from error
    except OSError as error:
        raise durable.explain(error, "cannot keep the repository's metadata") from error
    with open(cached, "rb") as file:
        document = file.read()
    return Offer(version, read_release(document, config.model), document)


def read_release(document: bytes, model: str) -> Release:
    """The release in verified bytes. Raises TrustError if it is of another format or for another model."""
    try:
        release = Release.model_validate_json(document)
    except ValidationError as error:
        raise TrustError(
            f"the signed release is in a format this agent does not know ({first_problem(error)}); update the agent"
        ) from error
    if release.model != model:
        raise TrustError(f"the signed release is for the model {release.model!r}, not {model!r}; refused")
    for variant in release.variants:
        needed = -(-variant.size // variant.piece_size)
        if len(variant.pieces) != needed:
            raise TrustError(
                f"the signed release lists {len(variant.pieces)} pieces for {variant.quantization}, "
                f"its size needs {needed}; refused"
            )
    return release


def _targets_version(home: Home) -> int:
    """Read from the verified file the client just kept: it has no public attribute for it."""
    with open(home.metadata / "targets.json", "rb") as file:
        version: int = json.load(file)["signed"]["version"]
    return version


def _never_back(home: Home, version: int) -> None:
    """python-tuf refuses to go back while its own files are whole; this holds even if a power cut cost one of them."""
    seen = int(json.loads(home.seen.read_bytes())["targets"]) if home.seen.exists() else 0
    if version < seen:
        raise TrustError(
            f"the repository offers targets version {version}, this device has seen {seen}: "
            "a roll-back or a stale mirror; update refused, the installed model keeps running"
        )
    if version > seen:
        durable.write(home.seen, json.dumps({"targets": version}).encode())


def _refusal(error: tuf_errors.RepositoryError) -> str:
    match error:
        case tuf_errors.BadVersionNumberError():
            return (
                f"the repository offers older metadata than this device has seen ({error}): "
                "a roll-back or a stale mirror"
            )
        case tuf_errors.ExpiredMetadataError():
            return (
                f"the repository's metadata has expired ({error}): it was not signed anew in time, or somebody keeps "
                "the new one back; check this device's clock, then ask the publisher for `sluice-train publish refresh`"
            )
        case tuf_errors.UnsignedMetadataError():
            return f"the repository's metadata is not signed by the keys this device trusts ({error})"
        case tuf_errors.LengthOrHashMismatchError():
            return f"a file was altered after it was signed ({error})"
        case _:
            return f"the repository's metadata does not verify ({error})"
