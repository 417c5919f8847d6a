"""As much of a Kubernetes client as the stand-in needs."""

import base64
import ssl
import tempfile
from pathlib import Path
from typing import Any

import aiohttp
import yaml

JSON = dict[str, Any]
TIMEOUT = aiohttp.ClientTimeout(total=10.0)
PATHS = {
    "RayCluster": "apis/ray.io/v1/{}rayclusters",
    "RayJob": "apis/ray.io/v1/{}rayjobs",
    "RayService": "apis/ray.io/v1/{}rayservices",
    "Pod": "api/v1/{}pods",
    "Service": "api/v1/{}services",
    "ServiceAccount": "api/v1/{}serviceaccounts",
    "Role": "apis/rbac.authorization.k8s.io/v1/{}roles",
    "RoleBinding": "apis/rbac.authorization.k8s.io/v1/{}rolebindings",
}


class KubeError(Exception):
    """The API server refused a request, or did not answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def client_context(kubeconfig: Path) -> tuple[str, ssl.SSLContext]:
    """The server and the TLS context (its authority, our certificate) of a kubeconfig with embedded data."""
    config = yaml.safe_load(kubeconfig.read_text())
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
    context = ssl.create_default_context(cadata=authority)
    # The standard library reads a client's key only from a file.
    with tempfile.NamedTemporaryFile() as file:
        file.write(base64.b64decode(user["client-certificate-data"]) + base64.b64decode(user["client-key-data"]))
        file.flush()
        context.load_cert_chain(file.name)
    return str(cluster["server"]), context


class Kube:
    """Requests to one API server. Every method raises KubeError."""

    def __init__(self, session: aiohttp.ClientSession, server: str, context: ssl.SSLContext) -> None:
        self._session, self._server, self._context = session, server, context

    async def _ask(self, method: str, path: str, body: JSON | None = None, content: str = "application/json") -> JSON:
        try:
            async with self._session.request(
                method,
                f"{self._server}/{path}",
                json=body,
                headers={"Content-Type": content},
                ssl=self._context,
                timeout=TIMEOUT,
            ) as reply:
                answer = await reply.json(content_type=None)
                if reply.status >= 400:
                    raise KubeError(reply.status, f"{method} {path}: {answer.get('message', reply.status)}")
                return dict(answer)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise KubeError(0, f"{method} {path}: {str(error) or type(error).__name__}") from error

    @staticmethod
    def _path(kind: str, namespace: str = "", name: str = "") -> str:
        base = PATHS[kind].format(f"namespaces/{namespace}/" if namespace else "")
        return f"{base}/{name}" if name else base

    async def list(self, kind: str, query: str = "") -> list[JSON]:
        """Every object of a kind in all namespaces, with kind filled in (lists leave it out)."""
        answer = await self._ask("GET", self._path(kind) + query)
        return [item | {"kind": kind} for item in answer["items"]]

    async def create(self, kind: str, value: JSON) -> JSON:
        return await self._ask("POST", self._path(kind, value["metadata"]["namespace"]), value)

    async def apply(self, kind: str, value: JSON) -> JSON:
        """Server-side apply."""
        path = self._path(kind, value["metadata"]["namespace"], value["metadata"]["name"])
        query = "?fieldManager=kuberay-stand-in&force=true"
        return await self._ask("PATCH", path + query, value, "application/apply-patch+yaml")

    async def patch(self, kind: str, namespace: str, name: str, value: JSON) -> JSON:
        """Merge patch."""
        return await self._ask("PATCH", self._path(kind, namespace, name), value, "application/merge-patch+json")

    async def put_status(self, kind: str, value: JSON) -> JSON:
        metadata = value["metadata"]
        return await self._ask("PUT", self._path(kind, metadata["namespace"], metadata["name"]) + "/status", value)

    async def delete(self, kind: str, namespace: str, name: str) -> None:
        """Delete in the background; already gone is fine."""
        try:
            await self._ask("DELETE", self._path(kind, namespace, name), {"propagationPolicy": "Background"})
        except KubeError as error:
            if error.status != 404:
                raise
