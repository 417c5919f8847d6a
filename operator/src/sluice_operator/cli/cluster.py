"""The few Kubernetes reads (and one write) of the command line, each with a deadline, each error made readable."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from kubernetes import client, config
from urllib3.exceptions import HTTPError
from urllib3.util import Retry

from sluice_operator.cli.errors import CliError
from sluice_operator.kube.resources import Resource

TIMEOUT = (5.0, 30.0)
"""Seconds to connect, and to wait for an answer."""
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
            raise CliError(f"cannot {what}: the API server answered {error.status} {error.reason}") from None
        except HTTPError as error:
            raise CliError(
                f"cannot reach the API server {self._host} ({_cause(error)}); "
                "is the cluster up, and KUBECONFIG the right one?"
            ) from None


class _NotThere(Exception):
    """404."""


class _Forbidden(CliError):
    """403: some callers go on without."""


def _cause(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return type(reason).__name__


def _service_account_namespace() -> str:
    try:
        with open("/var/run/secrets/kubernetes.io/serviceaccount/namespace", encoding="utf-8") as file:
            return file.read().strip() or "default"
    except OSError:
        return "default"
