"""The gateway's settings, all from the environment."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from pydantic import ValidationError
from sluice_contracts.base import seconds
from sluice_contracts.drift import Drift

from sluice_serving.gateway.cache_settings import RedisSettings, WrongRedis, read_redis
from sluice_serving.gateway.jwt import ALGORITHMS, JwtSettings
from sluice_serving.gateway.trace_settings import TracingSettings, WrongTracing, read_tracing

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
DEFAULT_DATABASE = "sqlite:////var/lib/sluice/interactions.db"


class SettingsError(Exception):
    """The environment is wrong; the message names the variable and what it should hold."""


DEFAULT_SPOOL = Path("/var/lib/sluice/spool")


@dataclass(frozen=True)
class Settings:
    """Each is read from the variable that `read_settings` names."""

    keys_dir: Path
    routes_file: Path | None = None
    routes_config_map: tuple[str, str] | None = None
    """Namespace and name."""
    database_url: str = DEFAULT_DATABASE
    retention_seconds: float = 30 * 86400
    pseudonym_key_file: Path | None = None
    judge_token_file: Path | None = None
    """Sent to the judge of mirrored answers, where the routing table names one by URL."""
    plain_keys: bool = True
    """Whether a tenant's file may hold the key itself instead of its digest."""
    spool_dir: Path | None = None
    """Beside the database where that is a file, unless set."""
    spool_bytes: int = 256 << 20
    replicas: int = 1
    """Gateways of the pool: without a shared database each has its equal share of every budget."""
    contexts_per_tenant: int = 100_000
    jwt: JwtSettings | None = None
    drift: Drift | None = None
    """None: nothing is counted for drift."""
    redis: RedisSettings | None = None
    """None: gateways do not share the answers they keep."""
    tracing: TracingSettings | None = None
    """None: nothing is traced, whatever OTEL_* variables there are."""
    tls_dir: Path | None = None
    """Folder with tls.crt and tls.key: the API speaks TLS."""
    host: str = "0.0.0.0"
    port: int = 8080
    internal_port: int = 8081
    request_timeout: float = 300.0
    probe_seconds: float = 15.0
    """How long a new engine is asked for its health before requests are sent to it as it is."""
    drain_seconds: float = 300.0
    """How long answers that have begun may take after that: as long as any answer."""
    drain_delay: float = 2.0
    """How long requests are still accepted after SIGTERM: the time Kubernetes takes to tell everyone."""
    kubernetes_url: str = ""
    token_file: Path = SERVICE_ACCOUNT / "token"
    ca_file: Path = SERVICE_ACCOUNT / "ca.crt"

    @property
    def database_file(self) -> Path | None:
        """The SQLite file; None where the database is a server."""
        if not self.database_url.startswith("sqlite:///"):
            return None
        return Path(unquote(self.database_url.removeprefix("sqlite:///")))

    @property
    def spool(self) -> Path:
        """Where records wait for the database."""
        if self.spool_dir is not None:
            return self.spool_dir
        file = self.database_file
        return DEFAULT_SPOOL if file is None else file.with_name(f"{file.name}.spool")


def read_settings(env: Mapping[str, str]) -> Settings:
    """Settings from `env`. Raises SettingsError."""
    config_map = _config_map(env.get("SLUICE_ROUTES_CONFIGMAP", ""))
    routes_file = Path(env["SLUICE_ROUTES_FILE"]) if env.get("SLUICE_ROUTES_FILE") else None
    if (config_map is None) == (routes_file is None):
        raise SettingsError(
            "set exactly one of SLUICE_ROUTES_CONFIGMAP (namespace/name) and SLUICE_ROUTES_FILE (a path)"
        )
    keys_dir = env.get("SLUICE_KEYS_DIR")
    if not keys_dir:
        raise SettingsError("SLUICE_KEYS_DIR is not set: it names the folder with one API key per file")
    key_file = env.get("SLUICE_PSEUDONYM_KEY_FILE")
    return Settings(
        keys_dir=Path(keys_dir),
        routes_file=routes_file,
        routes_config_map=config_map,
        database_url=_database_url(env),
        retention_seconds=_duration(env, "SLUICE_RETENTION", "30d"),
        pseudonym_key_file=Path(key_file) if key_file else None,
        judge_token_file=Path(env["SLUICE_JUDGE_TOKEN_FILE"]) if env.get("SLUICE_JUDGE_TOKEN_FILE") else None,
        plain_keys=_choice(env, "SLUICE_PLAIN_KEYS", "allow", "refuse") == "allow",
        spool_dir=Path(env["SLUICE_SPOOL_DIR"]) if env.get("SLUICE_SPOOL_DIR") else None,
        spool_bytes=_whole(env, "SLUICE_SPOOL_BYTES", 256 << 20, 1 << 20, 1 << 40),
        replicas=_whole(env, "SLUICE_REPLICAS", 1, 1, 1000),
        contexts_per_tenant=_whole(env, "SLUICE_CONTEXTS_PER_TENANT", 100_000, 1, 100_000_000),
        jwt=_jwt(env),
        drift=_drift(env),
        redis=_redis(env),
        tracing=_tracing(env),
        tls_dir=Path(env["SLUICE_TLS_DIR"]) if env.get("SLUICE_TLS_DIR") else None,
        host=env.get("SLUICE_HOST", "0.0.0.0"),
        port=_port(env, "SLUICE_PORT", 8080),
        internal_port=_port(env, "SLUICE_INTERNAL_PORT", 8081),
        request_timeout=_number(env, "SLUICE_REQUEST_TIMEOUT_SECONDS", 300),
        probe_seconds=_number(env, "SLUICE_PROBE_SECONDS", 15),
        drain_seconds=_number(env, "SLUICE_DRAIN_SECONDS", 300),
        drain_delay=_number(env, "SLUICE_DRAIN_DELAY_SECONDS", 2),
        kubernetes_url=_kubernetes_url(env),
        token_file=Path(env.get("SLUICE_KUBERNETES_TOKEN_FILE", SERVICE_ACCOUNT / "token")),
        ca_file=Path(env.get("SLUICE_KUBERNETES_CA_FILE", SERVICE_ACCOUNT / "ca.crt")),
    )


def read_data_settings(env: Mapping[str, str]) -> Settings:
    """What concerns the database, for commands that serve nobody. Raises SettingsError."""
    key_file = env.get("SLUICE_PSEUDONYM_KEY_FILE")
    return Settings(
        keys_dir=Path(),
        database_url=_database_url(env),
        retention_seconds=_duration(env, "SLUICE_RETENTION", "30d"),
        pseudonym_key_file=Path(key_file) if key_file else None,
        drift=_drift(env),
    )


def _config_map(text: str) -> tuple[str, str] | None:
    if not text:
        return None
    namespace, _, name = text.partition("/")
    if not namespace or not name or "/" in name:
        raise SettingsError(f"SLUICE_ROUTES_CONFIGMAP is {text!r}; expected namespace/name")
    return namespace, name


def _database_url(env: Mapping[str, str]) -> str:
    if path := env.get("SLUICE_DATABASE_URL_FILE"):
        try:
            url = Path(path).read_text().strip()
        except OSError as error:
            raise SettingsError(f"SLUICE_DATABASE_URL_FILE: cannot read {path}: {error.strerror}") from None
        name = "SLUICE_DATABASE_URL_FILE"
    else:
        url, name = env.get("SLUICE_DATABASE_URL") or DEFAULT_DATABASE, "SLUICE_DATABASE_URL"
    if not url.startswith(("sqlite:///", "postgresql://", "postgres://")):
        # The URL may hold a password, so it is not repeated here.
        raise SettingsError(f"{name} must start with postgresql:// or sqlite:///")
    return url


def _jwt(env: Mapping[str, str]) -> JwtSettings | None:
    issuer = env.get("SLUICE_JWT_ISSUER")
    if not issuer:
        for name in ("SLUICE_JWT_AUDIENCE", "SLUICE_JWT_KEYS_URL", "SLUICE_JWT_KEYS_FILE"):
            if env.get(name):
                raise SettingsError(f"{name} is set, but SLUICE_JWT_ISSUER is not: whose tokens should be believed?")
        return None
    audience, url, file = (env.get(f"SLUICE_JWT_{name}") for name in ("AUDIENCE", "KEYS_URL", "KEYS_FILE"))
    if not audience:
        raise SettingsError("SLUICE_JWT_AUDIENCE is not set: without it, tokens for others would be believed")
    if bool(url) == bool(file):
        raise SettingsError("set exactly one of SLUICE_JWT_KEYS_URL and SLUICE_JWT_KEYS_FILE")
    if url and not url.startswith(("https://", "http://127.0.0.1:", "http://localhost:")):
        raise SettingsError("SLUICE_JWT_KEYS_URL must start with https://: whoever answers decides who is let in")
    algorithms = tuple(a.strip() for a in (env.get("SLUICE_JWT_ALGORITHMS") or "RS256,ES256").split(","))
    for algorithm in algorithms:
        if algorithm not in ALGORITHMS:
            raise SettingsError(f"SLUICE_JWT_ALGORITHMS has {algorithm!r}; possible are {', '.join(ALGORITHMS)}")
    return JwtSettings(
        issuer=issuer,
        audience=audience,
        keys_url=url or None,
        keys_file=Path(file) if file else None,
        algorithms=algorithms,
        tenant_claim=env.get("SLUICE_JWT_TENANT_CLAIM") or "tenant",
        tenant=env.get("SLUICE_JWT_TENANT") or None,
    )


def _tracing(env: Mapping[str, str]) -> TracingSettings | None:
    try:
        return read_tracing(env)
    except WrongTracing as error:
        raise SettingsError(str(error)) from None


def _redis(env: Mapping[str, str]) -> RedisSettings | None:
    try:
        return read_redis(env)
    except WrongRedis as error:
        raise SettingsError(str(error)) from None


def _drift(env: Mapping[str, str]) -> Drift | None:
    text = env.get("SLUICE_DRIFT")
    if not text:
        return None
    try:
        return Drift.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the text"
        raise SettingsError(f"SLUICE_DRIFT: {where}: {first['msg']}; expected JSON as in the pool's gateway.drift, "
                            "such as {}") from None  # fmt: skip


def _choice(env: Mapping[str, str], name: str, default: str, *others: str) -> str:
    text = env.get(name) or default
    if text not in {default, *others}:
        raise SettingsError(f"{name} is {text!r}; expected {' or '.join((default, *others))}")
    return text


def _whole(env: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    text = env.get(name) or str(default)
    if not text.isdecimal() or not low <= int(text) <= high:
        raise SettingsError(f"{name} is {text!r}; expected a whole number from {low} to {high}")
    return int(text)


def _duration(env: Mapping[str, str], name: str, default: str) -> float:
    try:
        return seconds(env.get(name) or default)
    except ValueError as error:
        raise SettingsError(f"{name}: {error}") from None


def _number(env: Mapping[str, str], name: str, default: float) -> float:
    text = env.get(name) or str(default)
    try:
        value = float(text)
    except ValueError:
        raise SettingsError(f"{name} is {text!r}; expected a number of seconds") from None
    if not 0 <= value <= 86400:
        raise SettingsError(f"{name} is {text}; expected 0 to 86400 seconds")
    return value


def _port(env: Mapping[str, str], name: str, default: int) -> int:
    text = env.get(name) or str(default)
    if not text.isdecimal() or int(text) > 65535:
        raise SettingsError(f"{name} is {text!r}; expected a port number")
    return int(text)


def _kubernetes_url(env: Mapping[str, str]) -> str:
    if url := env.get("SLUICE_KUBERNETES_URL"):
        return url.rstrip("/")
    host, port = env.get("KUBERNETES_SERVICE_HOST", ""), env.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        return ""
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
