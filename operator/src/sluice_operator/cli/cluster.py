"""The Kubernetes reads (and one write) of the command line, each with a deadline, each error made readable."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from kubernetes import client, config
from urllib3.exceptions import HTTPError
from urllib3.util import Retry

from sluice_operator.cli.errors import CliError
from sluice_operator.kube.resources import Resource

TIMEOUT = (5.0, 30.0)
"""Seconds to connect, and to wait for an answer."""
ASK_TIMEOUT = (3.0, 8.0)
"""The same for a pod's page: it answers at once or not at all."""
FOLLOW_SECONDS = 86_400.0
ANSWER_BYTES = 16_000_000
ERROR_BYTES = 4096
CONNECTIONS = 24
"""Kept open at most: logs of a dozen pods are followed at once."""
PAGE = 500
PAGES = 200
OPERATOR_SELECTOR = "app.kubernetes.io/name=sluice-operator"


class Cluster(Protocol):
    """What the commands need of a cluster."""

    namespace: str
    """The namespace meant where none is given."""

    def get(self, resource: Resource, namespace: str, name: str) -> Mapping[str, Any] | None:
        """The object, or None. Raises CliError."""

    def everything(self, resource: Resource, namespace: str | None) -> list[Mapping[str, Any]]:
        """The objects of one namespace, or of all where it is None. Raises CliError."""

    def annotate(self, resource: Resource, namespace: str, name: str, key: str, value: str | None) -> None:
        """Set an annotation, or remove it where `value` is None. Raises CliError."""

    def events(self, resource: Resource, namespace: str, name: str) -> list[Mapping[str, Any]]:
        """The events about one object, in no order. Empty if they may not be read. Raises CliError."""

    def operator_environment(self) -> dict[str, str]:
        """The plain environment of the operator's Deployment. Empty if there is none, or it may not be read."""

    def pods(self, namespace: str, selector: str) -> list[Mapping[str, Any]]:
        """The pods with these labels. Raises CliError."""

    def pod_log(self, namespace: str, pod: str, container: str, tail: int, *, follow: bool) -> Iterator[str]:
        """The last lines of a container's log; with `follow` also those to come, until it ends. Raises CliError."""

    def ask(self, namespace: str, pod: str, port: int, path: str) -> bytes:
        """GET a page of a pod, through the API server's proxy. Raises CliError."""

    def ask_lines(self, namespace: str, pod: str, port: int, path: str) -> Iterator[str]:
        """The same of a page that goes on and on, line by line. Raises CliError."""


class ApiCluster:
    """A cluster by KUBECONFIG, or the one this process runs in."""

    def __init__(self) -> None:
        configuration = client.Configuration()
        try:
            if os.environ.get("KUBERNETES_SERVICE_HOST") and not os.environ.get("KUBECONFIG"):
                config.load_incluster_config(client_configuration=configuration)
                self.namespace = _service_account_namespace()
            else:
                file = os.environ.get("KUBECONFIG") or None
                config.load_kube_config(file, client_configuration=configuration)
                _, context = config.list_kube_config_contexts(file)
                self.namespace = (context.get("context") or {}).get("namespace") or "default"
        except (config.ConfigException, OSError) as error:
            where = os.environ.get("KUBECONFIG") or "~/.kube/config"
            raise CliError(
                f"no Kubernetes cluster: cannot use {where} ({error}); set KUBECONFIG to your cluster's file"
            ) from None
        configuration.connection_pool_maxsize = CONNECTIONS
        configuration.retries = Retry(total=2, connect=0, read=1, backoff_factor=0.2)
        self._host = configuration.host
        self._api = client.ApiClient(configuration)
        self._custom = client.CustomObjectsApi(self._api)
        self._core = client.CoreV1Api(self._api)
        self._apps = client.AppsV1Api(self._api)

    def get(self, resource: Resource, namespace: str, name: str) -> Mapping[str, Any] | None:
        try:
            with self._explained(f"read {resource.kind} {namespace}/{name}"):
                found: Mapping[str, Any] = self._custom.get_namespaced_custom_object(
                    resource.group, resource.version, namespace, resource.plural, name, _request_timeout=TIMEOUT
                )
                return found
        except _NotThere:
            return None

    def everything(self, resource: Resource, namespace: str | None) -> list[Mapping[str, Any]]:
        found: list[Mapping[str, Any]] = []
        token = ""
        try:
            for _ in range(PAGES):
                with self._explained(f"list {resource.plural}"):
                    more: dict[str, Any] = {"limit": PAGE, "_request_timeout": TIMEOUT}
                    if token:
                        more["_continue"] = token
                    kind = (resource.group, resource.version)
                    page = (
                        self._custom.list_cluster_custom_object(*kind, resource.plural, **more)
                        if namespace is None
                        else self._custom.list_namespaced_custom_object(*kind, namespace, resource.plural, **more)
                    )
                found += page.get("items") or []
                token = (page.get("metadata") or {}).get("continue") or ""
                if not token:
                    break
        except _NotThere:
            raise CliError(
                f"this cluster does not know {resource}: install Sluice there (helm install sluice charts/sluice), "
                "or point KUBECONFIG at the cluster that has it"
            ) from None
        return found

    def annotate(self, resource: Resource, namespace: str, name: str, key: str, value: str | None) -> None:
        body = {"metadata": {"annotations": {key: value}}}
        what = f"annotate {resource.kind} {namespace}/{name}"
        try:
            with self._explained(what):
                self._custom.patch_namespaced_custom_object(
                    resource.group, resource.version, namespace, resource.plural, name, body, _request_timeout=TIMEOUT
                )
        except _NotThere:
            raise CliError(f"cannot {what}: it is gone") from None

    def events(self, resource: Resource, namespace: str, name: str) -> list[Mapping[str, Any]]:
        selector = f"involvedObject.kind={resource.kind},involvedObject.name={name}"
        try:
            with self._explained(f"list the events of {resource.kind} {namespace}/{name}"):
                found = self._core.list_namespaced_event(
                    namespace, field_selector=selector, limit=PAGE, _request_timeout=TIMEOUT
                )
        except (_NotThere, _Forbidden):
            return []
        plain = self._api.sanitize_for_serialization(found.items)
        return list(plain)

    def operator_environment(self) -> dict[str, str]:
        try:
            with self._explained("look for the operator"):
                found = self._apps.list_deployment_for_all_namespaces(
                    label_selector=OPERATOR_SELECTOR, limit=10, _request_timeout=TIMEOUT
                )
        except (_NotThere, _Forbidden):
            return {}
        containers = [c for d in found.items for c in d.spec.template.spec.containers]
        return {e.name: e.value for c in containers for e in c.env or [] if e.value is not None}

    def pods(self, namespace: str, selector: str) -> list[Mapping[str, Any]]:
        with self._explained(f"list pods in namespace {namespace}"):
            found = self._core.list_namespaced_pod(
                namespace, label_selector=selector, limit=PAGE, _request_timeout=TIMEOUT
            )
        return list(self._api.sanitize_for_serialization(found.items))

    def pod_log(self, namespace: str, pod: str, container: str, tail: int, *, follow: bool) -> Iterator[str]:
        what = f"read the log of pod {namespace}/{pod}"
        query = [("container", container), ("tailLines", str(tail)), ("follow", str(follow).lower())]
        connect, read = TIMEOUT
        try:
            with self._explained(what):
                # A pod may be silent for hours: then only its end, or an interrupt, ends the reading.
                answer = self._open(f"{_pod(namespace, pod)}/log", query, (connect, FOLLOW_SECONDS if follow else read))
                try:
                    yield from _lines(answer.stream(decode_content=True))
                finally:
                    answer.close()
        except _NotThere:
            raise CliError(f"cannot {what}: it is gone") from None

    def ask(self, namespace: str, pod: str, port: int, path: str) -> bytes:
        what = f"reach port {port} of pod {namespace}/{pod} through the API server"
        try:
            with self._explained(what):
                answer = self._open(f"{_pod(namespace, f'{pod}:{port}')}/proxy/{path}", [], ASK_TIMEOUT)
                try:
                    data: bytes = answer.read(ANSWER_BYTES)
                finally:
                    answer.close()
        except _NotThere:
            raise CliError(f"cannot {what}: it does not know /{path}, or the pod is gone") from None
        return data

    def ask_lines(self, namespace: str, pod: str, port: int, path: str) -> Iterator[str]:
        what = f"follow port {port} of pod {namespace}/{pod} through the API server"
        try:
            with self._explained(what):
                path = f"{_pod(namespace, f'{pod}:{port}')}/proxy/{path}"
                answer = self._open(path, [], (ASK_TIMEOUT[0], FOLLOW_SECONDS))
                try:
                    yield from _lines(answer.stream(decode_content=True))
                finally:
                    answer.close()
        except _NotThere:
            raise CliError(f"cannot {what}: the pod is gone") from None

    def _open(self, path: str, query: list[tuple[str, str]], timeout: tuple[float, float]) -> Any:
        """The raw answer to a GET, to be read by the caller: the client's own methods would hold all of it, and do not
        look at the status of an answer that is streamed. Raises ApiException."""
        request = self._api.param_serialize("GET", path, query_params=query, auth_settings=["BearerToken"])
        found = self._api.call_api(*request, _request_timeout=timeout)
        if not 200 <= found.status < 300:
            error = client.ApiException(status=found.status, reason=found.reason)
            error.body = found.response.read(ERROR_BYTES)
            found.response.close()
            raise error
        return found.response

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except client.ApiException as error:
            if error.status == 404:
                raise _NotThere from None
            if error.status == 403:
                raise _Forbidden(
                    f"no access: you may not {what}; ask for the role (kubectl auth can-i --list shows yours)"
                ) from None
            if error.status == 401:
                raise CliError(f"{self._host} refused your credentials; renew those in your kubeconfig") from None
            raise CliError(
                f"cannot {what}: the API server answered {error.status} {error.reason}{_said(error)}"
            ) from None
        except HTTPError as error:
            raise CliError(
                f"cannot reach the API server {self._host} ({_cause(error)}); "
                "is the cluster up, and KUBECONFIG the right one?"
            ) from None


class _NotThere(Exception):
    """404."""


class _Forbidden(CliError):
    """403: some callers go on without."""


def _pod(namespace: str, pod: str) -> str:
    return f"/api/v1/namespaces/{namespace}/pods/{pod}"


def _said(error: client.ApiException) -> str:
    """The message of the API server's Status object, where the body is one."""
    try:
        message = json.loads(error.body or "")["message"]
    except (ValueError, KeyError, TypeError):
        return ""
    return f": {message}"


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Whole lines of a stream that comes in pieces."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (line.decode(errors="replace") for line in whole)
    if rest:
        yield rest.decode(errors="replace")


def _cause(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return type(reason).__name__


def _service_account_namespace() -> str:
    try:
        with open("/var/run/secrets/kubernetes.io/serviceaccount/namespace", encoding="utf-8") as file:
            return file.read().strip() or "default"
    except OSError:
        return "default"
