"""The Jobs of a version: one opens a stage of a release and lays it out in the repository, one withdraws it, and one,
which holds no keys, deletes the files of a retired version.

A publisher's answer is the container's termination message, `{"tufVersion": n}`: no rights to the API server are needed
for it.
"""

import json
from collections.abc import Sequence
from typing import Any

from sluice_contracts.model_version import ModelVersionSpec, PublishStage
from sluice_contracts.names import LABEL_COMPONENT, LABEL_MODEL_VERSION

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


def yank_job_name(version: str) -> str:
    """`<version>-yank`."""
    return short_name(f"{version}-yank")


def retire_job_name(version: str) -> str:
    """`<version>-retire`."""
    return short_name(f"{version}-retire")


def publisher_labels(version: str) -> dict[str, str]:
    """The labels that select the pods that sign for a version."""
    return {LABEL_COMPONENT: "publisher", LABEL_MODEL_VERSION: short_name(version)}


def publish_job(
    meta: Meta, spec: ModelVersionSpec, lineage: str, stage: int, wanted: PublishStage, settings: Settings
) -> dict[str, Any]:
    """The Job that opens stage number `stage` (from 0)."""
    assert spec.publish is not None, "only a version with a publish block is published"
    command = ["release", "--manifest", spec.manifest.uri, "--digest", spec.manifest.digest]
    command += ["--channel", spec.publish.channel, "--version", spec.version, "--percent", str(wanted.percent)]
    return _signer(meta, spec, lineage, publish_job_name(meta.name, stage), command, settings)


def yank_job(
    meta: Meta, spec: ModelVersionSpec, lineage: str | None, channel: str, settings: Settings
) -> dict[str, Any]:
    """The Job that withdraws the version from `channel`, if it is the one offered there."""
    command = ["yank", "--channel", channel, "--model", spec.model, "--version", spec.version]
    return _signer(meta, spec, lineage, yank_job_name(meta.name), command, settings)


def retire_job(meta: Meta, spec: ModelVersionSpec, lineage: str | None, settings: Settings) -> dict[str, Any]:
    """The Job that deletes the version's files. It may be ended and begun again at any point."""
    words = ["retire", "--manifest", spec.manifest.uri, "--digest", spec.manifest.digest]
    return _job(meta, spec, lineage, retire_job_name(meta.name), "retirement", words, settings)


def channel_of(job: Object) -> str | None:
    """The channel that a Job of ours works on."""
    containers = (((job.get("spec") or {}).get("template") or {}).get("spec") or {}).get("containers") or []
    command = list((containers[0] if containers else {}).get("command") or [])
    return command[command.index("--channel") + 1] if "--channel" in command[:-1] else None


def _signer(
    meta: Meta, spec: ModelVersionSpec, lineage: str | None, name: str, words: list[str], settings: Settings
) -> dict[str, Any]:
    """A Job that has the signing keys."""
    words = [*words, "--repository", settings.releases_uri, "--keys", SIGNING]
    volume = {"name": "signing", "secret": {"secretName": settings.signing_secret}}
    mount = {"name": "signing", "mountPath": SIGNING, "readOnly": True}
    return _job(meta, spec, lineage, name, "publisher", words, settings, [(volume, mount)])


def _job(
    meta: Meta,
    spec: ModelVersionSpec,
    lineage: str | None,
    name: str,
    component: str,
    words: list[str],
    settings: Settings,
    mounted: Sequence[tuple[dict[str, Any], dict[str, Any]]] = (),
) -> dict[str, Any]:
    """`mounted`: volumes besides /tmp, each with its mount."""
    label = labels(component, model=spec.model, lineage=lineage, **{LABEL_MODEL_VERSION: short_name(meta.name)})
    main = container(
        "publisher",
        settings.images.publisher,
        settings,
        command=["sluice-train", "publish", *words],
        env=environment(settings),
        terminationMessagePath="/dev/termination-log",
        terminationMessagePolicy="FallbackToLogsOnError",
        volumeMounts=[*(mount for _, mount in mounted), {"name": "tmp", "mountPath": "/tmp"}],
        resources={"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"memory": "4Gi"}},
    )
    volumes = [*(volume for volume, _ in mounted), TMP]
    fields: dict[str, Any] = {"restartPolicy": "Never", "automountServiceAccountToken": False}
    if settings.service_account:
        fields["serviceAccountName"] = settings.service_account
    body = {
        "backoffLimit": TRIES,
        "activeDeadlineSeconds": DEADLINE_SECONDS,
        "template": {"metadata": {"labels": dict(label)}, "spec": pod_spec(settings, [main], volumes, **fields)},
    }
    return child(JOB, name, MODEL_VERSION, meta, label, lineage=lineage, spec=body)


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
