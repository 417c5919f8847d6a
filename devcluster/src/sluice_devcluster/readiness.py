"""Whether the cluster is ready, asked from outside as a user would: the API, the node, names, buckets."""

import json
import socket
import ssl
import struct
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import cached_property
from typing import Any

from sluice_devcluster import network
from sluice_devcluster.node_plan import BUCKETS
from sluice_devcluster.places import State

TIMEOUT_S = 3.0


def dns_query(name: str, identifier: int = 1) -> bytes:
    """A DNS question for a name's IPv4 address (RFC 1035, section 4)."""
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.rstrip(".").split("."))
    return struct.pack("!6H", identifier, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", 1, 1)


def dns_answered(reply: bytes) -> bool:
    """Whether a DNS reply carries an answer without an error."""
    if len(reply) < 12:
        return False
    _, flags, _, answers, _, _ = struct.unpack("!6H", reply[:12])
    return bool(flags & 0x000F == 0 and answers > 0)


class Checks:
    """The checks in the order in which they come to hold; one that held is not asked again by `pending`."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._left: dict[str, Callable[[], bool]] = self._all()

    def _all(self) -> dict[str, Callable[[], bool]]:
        return {
            "API server": lambda: self._get("/readyz") is not None,
            "storage": self._storage,
            "node programs": self._state.started.exists,
            "node": self._node,
            "service accounts": self._account,
            "names": self._names,
            "services": self._services,
        }

    def pending(self) -> list[str]:
        """The names of the checks that do not hold yet."""
        while self._left:
            name = next(iter(self._left))
            if not self._left[name]():
                break
            del self._left[name]
        return list(self._left)

    def results(self) -> dict[str, bool]:
        """Every check, asked now."""
        return {name: check() for name, check in self._all().items()}

    @cached_property
    def _context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self._state.pki / "ca.crt"))
        context.load_cert_chain(self._state.pki / "admin.crt", self._state.pki / "admin.key")
        return context

    def _get(self, path: str) -> bytes | None:
        try:
            with urllib.request.urlopen(network.API_SERVER + path, timeout=TIMEOUT_S, context=self._context) as reply:
                return bytes(reply.read())
        except OSError:
            return None

    def _object(self, path: str) -> dict[str, Any]:
        body = self._get(path)
        return dict(json.loads(body)) if body else {}

    def _node(self) -> bool:
        conditions = self._object(f"/api/v1/nodes/{network.NODE_NAME}").get("status", {}).get("conditions", [])
        return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

    def _account(self) -> bool:
        return bool(self._object("/api/v1/namespaces/default/serviceaccounts/default"))

    def _names(self) -> bool:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connection:
            connection.settimeout(0.5)
            try:
                connection.sendto(dns_query(f"kubernetes.default.svc.{network.DOMAIN}"), (network.NODE_ADDRESS, 53))
                return dns_answered(connection.recv(512))
            except OSError:
                return False

    def _services(self) -> bool:
        """Whether kube-proxy sends a cluster address to its end: here the API server's own."""
        try:
            with socket.create_connection((network.KUBERNETES_SERVICE, 443), TIMEOUT_S):
                return True
        except OSError:
            return False

    def _storage(self) -> bool:
        try:
            for bucket in BUCKETS:
                with urllib.request.urlopen(f"{network.STORAGE}/storage/v1/b/{bucket}", timeout=TIMEOUT_S):
                    pass
        except OSError:
            return False
        return True
