"""Where the API server is and how to speak to it: a service account inside a cluster, KUBECONFIG outside.

The service account's token is read again for every connection and every ten minutes: kubelet rotates the file.
"""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import kopf

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TOKEN_LIFETIME = timedelta(minutes=10)


class CredentialsError(Exception):
    """No way to reach an API server was found; the message says what was looked for."""


def connection(account: Path = SERVICE_ACCOUNT) -> kopf.ConnectionInfo:
    """The connection this process should use. Raises CredentialsError."""
    host = os.environ.get("KUBERNETES_SERVICE_HOST")
    if not os.environ.get("KUBECONFIG") and host and (account / "token").is_file():
        port = os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        return kopf.ConnectionInfo(
            server=f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}",
            ca_path=str(account / "ca.crt"),
            token=(account / "token").read_text().strip(),
            default_namespace=_namespace(account),
            expiration=datetime.now(UTC) + TOKEN_LIFETIME,
        )
    try:
        found = kopf.login_with_kubeconfig(settings=kopf.OperatorSettings())
    except (OSError, KeyError, kopf.LoginError) as error:
        raise CredentialsError(
            f"cannot use the kubeconfig {os.environ.get('KUBECONFIG', '~/.kube/config')}: {error}"
        ) from error
    if found is None:
        raise CredentialsError("no Kubernetes API server: run inside a cluster, or set KUBECONFIG")
    return found


def _namespace(account: Path) -> str | None:
    path = account / "namespace"
    return path.read_text().strip() if path.is_file() else None
