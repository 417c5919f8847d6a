"""A small Kubernetes client: server-side apply, get, list, delete, events. One HTTP stack with kopf, a deadline on all.

The official client would be most of the operator's memory; the operator needs nine verbs of it.
"""

import asyncio
import json
import random
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any, Self

import aiohttp

from sluice_operator.kube.credentials import connection
from sluice_operator.kube.resources import Resource

Json = dict[str, Any]
Versions = list[int]

DEADLINE = aiohttp.ClientTimeout(total=30, connect=10)
PAGE = 100
"""Objects a list request: keeps the spike in memory small on both sides."""
ATTEMPTS = 4
RETRIED = {429, 500, 502, 503, 504}
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 4.0
"""Seconds before the second attempt, and at most before a later one: each pause is four times the one before, give or
take a quarter, so that many clients do not come back at once."""
LONGEST_OBEYED = 15.0
"""Seconds a Retry-After is obeyed for at most; beyond that the object's own back-off is the better wait."""
TOKEN_AGE = 300.0
"""Seconds after which the credentials are read again."""


class ApiError(Exception):
    """The API server said no. `status` is the HTTP status, `reason` Kubernetes' own word for it."""

    def __init__(self, verb: str, what: str, status: int, reason: str, message: str) -> None:
        super().__init__(f"cannot {verb} {what}: {message or reason or status}")
        self.status = status
        self.reason = reason
        self.message = message


class ApiUnreachable(Exception):
    """The API server did not answer in time, several times."""


class KubeClient:
    """Speaks to one API server. Use as an asynchronous context manager."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None
        self._server = ""
        self._headers: dict[str, str] = {}
        self._read_at = 0.0
        self.writes = 0
        """Requests that changed something, or meant to. At rest it stands still."""
        self.retries = 0
        """Requests sent again because the server was busy, failing or gone."""
        self._answered = False
        self._failing_since: float | None = None

    async def __aenter__(self) -> Self:
        info = connection()
        context: ssl.SSLContext = info.as_ssl_context()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=context, limit=32), timeout=DEADLINE, trust_env=False
        )
        self._server = info.server.rstrip("/")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    def _authorization(self) -> dict[str, str]:
        if not self._headers or time.monotonic() - self._read_at > TOKEN_AGE:
            self._headers = connection().as_http_headers()
            self._read_at = time.monotonic()
        return self._headers

    async def request(
        self,
        verb: str,
        method: str,
        path: str,
        *,
        body: Any = None,
        content_type: str = "application/json",
        params: Mapping[str, str] | None = None,
    ) -> Json:
        """One request, tried again a few times when the server is busy or the connection breaks.

        Only requests that may be repeated come through here: reads, applies, deletes by name, creates by name.
        Raises ApiError, ApiUnreachable.
        """
        if self._session is None:
            raise RuntimeError("the client is used outside of its context")
        failure: Exception | None = None
        wait = 0.0
        data = None if body is None else json.dumps(body, separators=(",", ":")).encode()
        if method != "GET":
            self.writes += 1
        for attempt in range(ATTEMPTS):
            if attempt:
                self.retries += 1
                pause = min(FIRST_PAUSE * 4 ** (attempt - 1), LONGEST_PAUSE) * random.uniform(0.75, 1.25)
                await asyncio.sleep(max(pause, wait))
                wait = 0.0
            headers = {**self._authorization(), "Accept": "application/json", "Content-Type": content_type}
            try:
                async with self._session.request(
                    method, self._server + path, data=data, params=params, headers=headers
                ) as response:
                    text = await response.text()
                    self._note(response.status < 500 and response.status != 429)
                    if response.status < 400:
                        return dict(json.loads(text)) if text else {}
                    failure = _error(verb, path, response.status, text)
                    if response.status == 401:
                        self._headers = {}
                    elif response.status not in RETRIED:
                        raise failure
                    wait = _retry_after(response.headers.get("Retry-After"))
            except (aiohttp.ClientError, TimeoutError, json.JSONDecodeError) as error:
                self._note(False)
                failure = ApiUnreachable(f"cannot {verb} {path}: {type(error).__name__} {error}".strip())
        assert failure is not None
        raise failure

    def _note(self, well: bool) -> None:
        """Remember how the server is."""
        if well:
            self._answered, self._failing_since = True, None
        elif self._failing_since is None:
            self._failing_since = time.monotonic()

    def unreachable(self, patience: float) -> str | None:
        """Why nothing can be done at the API server now: it has never answered, or not for `patience` seconds."""
        if not self._answered:
            return "the API server has not answered yet"
        if self._failing_since is not None and time.monotonic() - self._failing_since > patience:
            return f"the API server has not answered for {time.monotonic() - self._failing_since:.0f} s"
        return None

    async def apply(self, resource: Resource, obj: Mapping[str, Any], manager: str) -> Json:
        """Server-side apply: these fields are `manager`'s from now on. Returns the object as it is now."""
        meta = obj["metadata"]
        return await self.request(
            "apply",
            "PATCH",
            resource.path(meta["namespace"], meta["name"]),
            body=obj,
            content_type="application/apply-patch+yaml",
            params={"fieldManager": manager, "force": "true"},
        )

    async def apply_status(
        self, resource: Resource, namespace: str, name: str, status: Mapping[str, Any], manager: str
    ) -> Json:
        """Server-side apply of the status subresource."""
        body = {
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": {"name": name, "namespace": namespace},
            "status": status,
        }
        return await self.request(
            "apply the status of",
            "PATCH",
            resource.path(namespace, name, "status"),
            body=body,
            content_type="application/apply-patch+yaml",
            params={"fieldManager": manager, "force": "true"},
        )

    async def merge(self, resource: Resource, namespace: str, name: str, patch: Mapping[str, Any]) -> Json:
        """A JSON merge patch: for removing what apply cannot, such as a person's annotation."""
        return await self.request(
            "patch",
            "PATCH",
            resource.path(namespace, name),
            body=patch,
            content_type="application/merge-patch+json",
            params={"fieldManager": "sluice-operator"},
        )

    async def get(self, resource: Resource, namespace: str, name: str) -> Json | None:
        """The object, or None."""
        try:
            return await self.request("read", "GET", resource.path(namespace, name))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def knows(self, resource: Resource) -> bool:
        """Whether the API server serves this kind in this version: whether its CRD is installed."""
        try:
            found = await self.request("discover", "GET", f"/apis/{resource.api_version}")
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        return any(r.get("name") == resource.plural for r in found.get("resources") or [])

    async def list(
        self,
        resource: Resource,
        namespace: str | None = None,
        labels: str | None = None,
        versions: Versions | None = None,
    ) -> AsyncIterator[Json]:
        """All objects that match, page by page. Items of a list carry no kind of their own: it is put back.

        Each page's resourceVersion is added to `versions`.
        """
        token = ""
        while True:
            params = {"limit": str(PAGE)}
            if labels:
                params["labelSelector"] = labels
            if token:
                params["continue"] = token
            page = await self.request("list", "GET", resource.path(namespace), params=params)
            if versions is not None:
                versions.append(int((page.get("metadata") or {}).get("resourceVersion") or 0))
            for item in page.get("items") or []:
                yield {"apiVersion": resource.api_version, "kind": resource.kind, **item}
            token = (page.get("metadata") or {}).get("continue") or ""
            if not token:
                return

    async def create(self, resource: Resource, obj: Mapping[str, Any]) -> Json | None:
        """Create by name; None if it was there already."""
        try:
            return await self.request("create", "POST", resource.path(obj["metadata"]["namespace"]), body=obj)
        except ApiError as error:
            if error.status == 409:
                return None
            raise

    async def replace(self, resource: Resource, obj: Mapping[str, Any]) -> Json:
        """Replace the object if nobody changed it since it was read. Raises ApiError with status 409 otherwise."""
        meta = obj["metadata"]
        return await self.request("replace", "PUT", resource.path(meta["namespace"], meta["name"]), body=obj)

    async def delete(self, resource: Resource, namespace: str, name: str) -> None:
        """Remove the object and, in the background, what it owns; none there is fine."""
        try:
            await self.request(
                "delete",
                "DELETE",
                resource.path(namespace, name),
                body={"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"},
            )
        except ApiError as error:
            if error.status != 404:
                raise


def _error(verb: str, path: str, status: int, text: str) -> ApiError:
    try:
        answer = json.loads(text)
        reason, message = str(answer.get("reason", "")), str(answer.get("message", ""))
    except (json.JSONDecodeError, AttributeError):
        reason, message = "", text[:500]
    return ApiError(verb, path, status, reason, message)


def _retry_after(text: str | None) -> float:
    """Seconds a busy server asks to be left alone; 0 if it does not say so in seconds."""
    return min(float(text), LONGEST_OBEYED) if text is not None and text.isdigit() else 0.0
