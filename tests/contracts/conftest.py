"""What the API server says of a manifest, asked over one connection: a kubectl for each question would take minutes."""

import base64
import http.client
import json
import ssl
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

PLURALS = {"TrainingRun": "trainingruns", "ModelVersion": "modelversions", "InferencePool": "inferencepools"}
Manifest = dict[str, Any]


class Api:
    """What `kubectl apply` sends, strict about unknown fields: a creation, or an apply patch for what is there."""

    def __init__(self, kubeconfig: dict[str, Any]) -> None:
        cluster = kubeconfig["clusters"][0]["cluster"]
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        self._token = kubeconfig["users"][0]["user"]["token"]
        context = ssl.create_default_context(cadata=authority)
        self._connection = http.client.HTTPSConnection(urlsplit(cluster["server"]).netloc, context=context, timeout=30)

    def close(self) -> None:
        self._connection.close()

    def refusal(self, manifest: Manifest) -> str:
        """The message with which a new object is refused. Nothing is stored, whatever the answer."""
        return self._refused(manifest, *self._create(manifest))

    def accepted(self, manifest: Manifest) -> Manifest:
        """What would be stored of a new object."""
        status, said = self._create(manifest)
        assert status < 400, said["message"]
        return said

    def stored(self, manifest: Manifest) -> None:
        """Apply `manifest`."""
        status, said = self._apply(manifest, "")
        assert status < 400, said["message"]

    def change_refusal(self, manifest: Manifest) -> str:
        """The message with which a change of a stored object is refused."""
        return self._refused(manifest, *self._apply(manifest, "&dryRun=All"))

    @staticmethod
    def _refused(manifest: Manifest, status: int, said: Manifest) -> str:
        assert status >= 400, f"was accepted: {json.dumps(manifest)}"
        return str(said["message"])

    def _create(self, manifest: Manifest) -> tuple[int, Manifest]:
        return self._ask("POST", manifest, "", "&dryRun=All", "application/json")

    def _apply(self, manifest: Manifest, options: str) -> tuple[int, Manifest]:
        return self._ask("PATCH", manifest, f"/{manifest['metadata']['name']}", options, "application/apply-patch+yaml")

    def _ask(self, verb: str, manifest: Manifest, name: str, options: str, content: str) -> tuple[int, Manifest]:
        path = f"namespaces/{manifest['metadata']['namespace']}/{PLURALS[manifest['kind']]}{name}"
        url = f"/apis/{manifest['apiVersion']}/{path}?fieldManager=test&fieldValidation=Strict{options}"
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": content}
        try:
            return self._answer(verb, url, json.dumps(manifest), headers)
        except (http.client.HTTPException, OSError):
            # The server closes a connection that was idle for long, as between two files. To ask twice is safe.
            self._connection.close()
            return self._answer(verb, url, json.dumps(manifest), headers)

    def _answer(self, verb: str, url: str, body: str, headers: dict[str, str]) -> tuple[int, Manifest]:
        self._connection.request(verb, url, body, headers)
        answer = self._connection.getresponse()
        return answer.status, json.loads(answer.read())


@pytest.fixture(scope="session")
def api(kubectl: Any) -> Iterator[Api]:
    """The real API server."""
    made = Api(yaml.safe_load(kubectl.kubeconfig.read_text()))
    yield made
    made.close()
