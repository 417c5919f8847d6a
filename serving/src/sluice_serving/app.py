"""The Ray Serve import path `sluice_serving.app:build`.

Built in a short-lived task on the head node, so it imports as little as it can: vLLM is imported where it runs, in the
replica. The manifest is checked here, so that a wrong digest fails the application at once with its reason; every file
is checked again in each replica, on the node that loads it.
"""

from typing import Any

from ray import serve
from ray.serve import Application

from sluice_serving.arguments import deployment_options, parse_arguments
from sluice_serving.artifacts import read_manifest
from sluice_serving.replica import ModelReplica


def build(args: dict[str, Any]) -> Application:
    """The application that serves one version through the OpenAI API under `/v1`.

    Raises ValueError if an argument is wrong, ArtifactError or sluice_storage's StorageError if the manifest is.
    """
    arguments = parse_arguments(args)
    manifest = read_manifest(
        arguments.manifest_uri, arguments.manifest_digest, model=arguments.model, lineage=arguments.lineage
    )
    deployment = serve.deployment(serve.ingress()(ModelReplica), **deployment_options(arguments))
    return deployment.bind(arguments.wire(), manifest.run_uri, [artifact.wire() for artifact in manifest.served()])
