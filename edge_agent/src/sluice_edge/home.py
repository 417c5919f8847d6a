"""The agent's home folder: where everything lies, and the settings and identity kept there.

config.json   settings, written by `sluice-edge init`
root.json     the root of trust that `init` was given; never changed by an update
device.json   random id (decides the cohort) and a random key for the audit log's hashes; never leaves the device
key           the local API's key
tuf/          signed metadata seen so far; slots/ the two model slots; current.json which one is in use
update.json   an update in progress; rejected.json files that failed here; sync.json how the last sync ended
signals.db    counts of outcomes; outbox/ batches on their way; audit.log hashes of what happened
"""

import hashlib
import secrets
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, ValidationError
from sluice_contracts.base import Contract, Name
from sluice_contracts.names import Quantization

from sluice_edge import durable
from sluice_edge.errors import ConfigurationError

DEFAULT_PORT = 8093


_WEB = "a web address that begins with https:// or http://"
FORMS = {
    "repository": f"{_WEB}, or a folder as file:///…, without spaces, ? or #",
    "channel": "a channel: small letters, digits and -, beginning with a letter",
    "proxy": _WEB,
    "upload_endpoint": _WEB,
}
"""What a field with a pattern should look like, for people."""


class AgentConfig(Contract):
    """config.json."""

    schema_version: Literal[1] = 1
    repository: Annotated[str, StringConstraints(pattern=r"^(https?|file)://[^\s?#]+$", max_length=1024)]
    """The repository's root, without a trailing slash."""
    model: Name
    channel: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,31}$")] = "stable"
    prefer: Annotated[list[Quantization], Field(min_length=1)] = [
        Quantization.Q4_K_M,
        Quantization.Q5_K_M,
        Quantization.Q6_K,
        Quantization.Q8_0,
    ]
    """Quantisations in order of preference; the first that fits into memory is taken."""
    memory_share: Annotated[float, Field(gt=0, le=1)] = 0.6
    """How much of the device's memory a model may use."""
    max_context: Annotated[int, Field(ge=64, le=131_072)] = 4096
    threads: Annotated[int, Field(ge=0, le=256)] = 0
    """Threads of the engine; 0 = the engine chooses."""
    port: Annotated[int, Field(ge=0, le=65_535)] = DEFAULT_PORT
    proxy: Annotated[str, StringConstraints(pattern=r"^https?://", max_length=256)] | None = None
    """The one proxy the puller uses. Proxy settings in the environment are not looked at."""
    upload_endpoint: Annotated[str, StringConstraints(pattern=r"^https?://", max_length=256)] = (
        "https://storage.googleapis.com"
    )
    """Where gs:// uploads of signals go."""


class Device(Contract):
    """device.json."""

    id: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
    audit_key: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    fixed_cohort: Annotated[int, Field(ge=0, le=99)] | None = None

    @property
    def cohort(self) -> int:
        """0-99, the same for good: a release at n percent is for the devices below n."""
        if self.fixed_cohort is not None:
            return self.fixed_cohort
        return int.from_bytes(hashlib.sha256(self.id.encode()).digest()[:8]) % 100


class Home:
    """Paths below the home folder, and the documents kept there."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.config_file = self.root / "config.json"
        self.root_of_trust = self.root / "root.json"
        self.device_file = self.root / "device.json"
        self.key_file = self.root / "key"
        self.metadata = self.root / "tuf"
        self.targets = self.root / "targets"
        self.slots = self.root / "slots"
        self.pointer = self.root / "current.json"
        self.journal = self.root / "update.json"
        self.rejected = self.root / "rejected.json"
        self.seen = self.root / "seen.json"
        self.last_sync = self.root / "sync.json"
        self.signals = self.root / "signals.db"
        self.outbox = self.root / "outbox"
        self.audit = self.root / "audit.log"
        self.serving = self.root / "serving.json"
        self.sync_lock = self.root / "sync.lock"
        self.serve_lock = self.root / "serve.lock"
        self.engine_log = self.root / "engine.log"

    def config(self) -> AgentConfig:
        """The settings. Raises ConfigurationError, which says how to make them."""
        data = self._read(self.config_file)
        try:
            return AgentConfig.model_validate_json(data)
        except ValidationError as error:
            raise ConfigurationError(f"{self.config_file}: {first_problem(error)}") from error

    def device(self) -> Device:
        """The device's identity."""
        data = self._read(self.device_file)
        try:
            return Device.model_validate_json(data)
        except ValidationError as error:
            raise ConfigurationError(f"{self.device_file}: {first_problem(error)}") from error

    def key(self) -> str:
        """The local API's key."""
        return self._read(self.key_file).decode().strip()

    def _read(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise ConfigurationError(
                f"{self.root} is no agent's home ({path.name} is missing); make one with `sluice-edge init`"
            ) from None
        except OSError as error:
            raise durable.explain(error, f"cannot read {path}") from error


def initialise(home: Home, config: AgentConfig, root_of_trust: bytes, cohort: int | None) -> None:
    """Make the home folder. config.json is written last: without it the folder is no home yet.

    Raises ConfigurationError if there is a home already, or if `root_of_trust` is no TUF root.
    """
    from tuf.api.metadata import Metadata, Root

    if home.config_file.exists():
        raise ConfigurationError(f"{home.root} is an agent's home already; remove it first if it should start anew")
    try:
        root = Metadata[Root].from_bytes(root_of_trust)
        root.verify_delegate(Root.type, root)
    except Exception as error:  # python-tuf raises several unrelated types here
        raise ConfigurationError(
            f"--root is no valid root of trust ({error}); take root.json from `sluice-train publish init`"
        ) from error
    device = Device(id=secrets.token_hex(16), audit_key=secrets.token_hex(32), fixed_cohort=cohort)
    durable.write(home.root_of_trust, root_of_trust)
    durable.write(home.device_file, device.canonical())
    durable.write(home.key_file, secrets.token_urlsafe(32).encode() + b"\n")
    durable.write(home.config_file, config.canonical())


def first_problem(error: ValidationError) -> str:
    """The first problem of a document: which field, what is wrong."""
    detail = error.errors()[0]
    field = ".".join(map(str, detail["loc"])) or "document"
    if detail["type"] == "string_pattern_mismatch" and field in FORMS:
        return f"{field}: {str(detail['input'])[:200]!r} is not {FORMS[field]}"
    return f"{field}: {detail['msg']}"
