"""The Job that signs one stage of a release and lays it out in the repository.

Its answer is the container's termination message, `{"tufVersion": n}`: no rights to the API server are needed for it.
"""

import json
from typing import Any

from sluice_contracts.model_version import ModelVersionSpec, PublishStage
from sluice_contracts.names import LABEL_MODEL_VERSION

from sluice_operator.children.metadata import child, labels, short_name
from sluice_operator.children.pods import TMP, container, environment, pod_spec
from sluice_operator.kube.resources import JOB, MODEL_VERSION
from sluice_operator.plan import Meta, Object
from sluice_operator.settings import Settings

SIGNING = "/etc/sluice/signing"
DEADLINE_SECONDS = 1800
TRIES = 2


def publish_job_name(version: str, stage: int) -> str:
    """`<version>-publish`, then `<version>-publish-2` and so on; `stage` counts from 0."""
    return short_name(f"{version}-publish" if stage == 0 else f"{version}-publish-{stage + 1}")


def publish_job(
    meta: Meta, spec: ModelVersionSpec, lineage: str, stage: int, wanted: PublishStage, settings: Settings
) -> dict[str, Any]:
    """The Job that opens stage number `stage` (from 0)."""
    assert spec.publish is not None, "only a version with a publish block is published"
    label = labels("publisher", model=spec.model, lineage=lineage, **{LABEL_MODEL_VERSION: short_name(meta.name)})
    command = ["sluice-train", "publish", "release"]
    command += ["--manifest", spec.manifest.uri, "--digest", spec.manifest.digest]
    command += ["--repository", settings.releases_uri, "--keys", SIGNING]
    command += ["--channel", spec.publish.channel, "--version", spec.version, "--percent", str(wanted.percent)]
    main = container(
        "publisher",
        settings.images.publisher,
        settings,
        command=command,
        env=environment(settings),
        terminationMessagePath="/dev/termination-log",
        terminationMessagePolicy="FallbackToLogsOnError",
        volumeMounts=[
            {"name": "signing", "mountPath": SIGNING, "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
        resources={"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"memory": "4Gi"}},
    )
    volumes = [{"name": "signing", "secret": {"secretName": settings.signing_secret}}, TMP]
    fields: dict[str, Any] = {"restartPolicy": "Never", "automountServiceAccountToken": False}
    if settings.service_account:
        fields["serviceAccountName"] = settings.service_account
    body = {
        "backoffLimit": TRIES,
        "activeDeadlineSeconds": DEADLINE_SECONDS,
        "template": {"metadata": {"labels": dict(label)}, "spec": pod_spec(settings, [main], volumes, **fields)},
    }
    return child(JOB, publish_job_name(meta.name, stage), MODEL_VERSION, meta, label, lineage=lineage, spec=body)


def tuf_version(message: str) -> int | None:
    """The version a publisher's termination message reports; None if it reports none."""
    try:
        found = json.loads(message)["tufVersion"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return None
    return found if isinstance(found, int) and found >= 1 else None


def termination_message(pod: Object) -> str | None:
    """What the publisher's container left behind, if it has ended."""
    for status in (pod.get("status") or {}).get("containerStatuses") or []:
        ended = (status.get("state") or {}).get("terminated")
        if ended is not None and status.get("name") == "publisher":
            return str(ended.get("message") or "")
    return None
