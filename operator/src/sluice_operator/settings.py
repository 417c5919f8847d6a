"""The operator's configuration: its environment, read once at the start and passed on as plain data."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sluice_operator.prices import Prices, PricesError, parse_prices


class SettingsError(Exception):
    """A variable is missing or wrong; the message names it."""


@dataclass(frozen=True)
class Images:
    """The images of the operator's children."""

    trainer: str
    serve: str
    gateway: str
    publisher: str
    pull_policy: str = "IfNotPresent"


@dataclass(frozen=True)
class Prometheus:
    """A Prometheus that scrapes the gateways, as the chart's values name it."""

    url: str = ""
    token_file: Path | None = None
    """Its bearer token, sent to `url` alone."""


@dataclass(frozen=True)
class Settings:
    """All that the operator was told at its start."""

    namespace: str
    storage_uri: str
    releases_uri: str
    git_sha: str
    images: Images
    watch_namespaces: tuple[str, ...] = ()
    """Empty: all namespaces."""
    runtime_class: str | None = None
    ray_version: str = "2.60.0"
    storage_emulator: str | None = None
    signing_secret: str = "sluice-signing"
    service_account: str | None = None
    """ServiceAccount of Ray and publisher pods; None: the namespace's default."""
    identity: str = "sluice-operator"
    """Who holds the Lease: the pod's name."""
    concurrency: int = 8
    resync_seconds: float = 600
    http_port: int = 8080
    log_level: str = "INFO"
    leader_election: bool = True
    prices: Prices = field(default_factory=Prices)
    """What machines cost an hour; empty: costs are neither shown nor limited."""
    prometheus: Prometheus = field(default_factory=Prometheus)
    """Where pools whose analysis reads Prometheus find it, unless they name one themselves."""


def from_environment(environment: Mapping[str, str] | None = None) -> Settings:
    """The settings `environment` holds (default: this process's). Raises SettingsError, naming the variable."""
    env = os.environ if environment is None else environment

    def need(name: str) -> str:
        value = env.get(name, "").strip()
        if not value:
            raise SettingsError(
                f"{name} is not set: the Helm chart sets it; set it in the environment when running by hand"
            )
        return value

    def number(name: str, default: int, low: int, high: int) -> int:
        text = env.get(name, "").strip() or str(default)
        if not text.isdigit() or not low <= int(text) <= high:
            raise SettingsError(f"{name} is {text!r}: expected a whole number from {low} to {high}")
        return int(text)

    def prices() -> Prices:
        try:
            return parse_prices(env.get("SLUICE_PRICES", ""))
        except PricesError as error:
            raise SettingsError(f"SLUICE_PRICES {error}: see `prices` in the Helm chart's values") from None

    def prometheus() -> Prometheus:
        url, token = env.get("SLUICE_PROMETHEUS_URL", "").strip(), env.get("SLUICE_PROMETHEUS_TOKEN_FILE", "").strip()
        if url and not url.startswith(("http://", "https://")):
            raise SettingsError(f"SLUICE_PROMETHEUS_URL is {url!r}: expected http://… or https://…")
        return Prometheus(url.rstrip("/"), Path(token) if token else None)

    storage = need("SLUICE_STORAGE_URI")
    if not storage.startswith(("gs://", "file:///")):
        raise SettingsError(f"SLUICE_STORAGE_URI is {storage!r}: expected gs://bucket/path or file:///path")
    return Settings(
        namespace=need("SLUICE_NAMESPACE"),
        storage_uri=storage.rstrip("/"),
        releases_uri=env.get("SLUICE_RELEASES_URI", "").strip().rstrip("/") or f"{storage.rstrip('/')}-releases",
        git_sha=env.get("SLUICE_GIT_SHA", "").strip() or "unknown",
        images=Images(
            trainer=need("SLUICE_IMAGE_TRAINER"),
            serve=need("SLUICE_IMAGE_SERVE"),
            gateway=need("SLUICE_IMAGE_GATEWAY"),
            publisher=need("SLUICE_IMAGE_PUBLISHER"),
            pull_policy=env.get("SLUICE_IMAGE_PULL_POLICY", "").strip() or "IfNotPresent",
        ),
        watch_namespaces=tuple(n.strip() for n in env.get("SLUICE_WATCH_NAMESPACES", "").split(",") if n.strip()),
        runtime_class=env.get("SLUICE_RUNTIME_CLASS", "").strip() or None,
        ray_version=env.get("SLUICE_RAY_VERSION", "").strip() or "2.60.0",
        storage_emulator=env.get("STORAGE_EMULATOR_HOST", "").strip() or None,
        signing_secret=env.get("SLUICE_SIGNING_SECRET", "").strip() or "sluice-signing",
        service_account=env.get("SLUICE_SERVICE_ACCOUNT", "").strip() or None,
        identity=env.get("POD_NAME", "").strip() or f"{os.uname().nodename}-{os.getpid()}",
        concurrency=number("SLUICE_CONCURRENCY", 8, 1, 256),
        resync_seconds=float(number("SLUICE_RESYNC_SECONDS", 600, 5, 86_400)),
        http_port=number("SLUICE_HTTP_PORT", 8080, 1, 65_535),
        log_level=env.get("SLUICE_LOG_LEVEL", "").strip().upper() or "INFO",
        leader_election=env.get("SLUICE_LEADER_ELECTION", "true").strip().lower() != "false",
        prices=prices(),
        prometheus=prometheus(),
    )
