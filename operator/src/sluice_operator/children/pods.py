"""What every pod of a child shares: the `restricted` pod security standard, writable places, local settings.

https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
"""

from collections.abc import Mapping
from typing import Any

from sluice_contracts.telemetry import OFF_SWITCHES

from sluice_operator.settings import Settings

USER = 1000
TMP = {"name": "tmp", "emptyDir": {}}
SHARED_MEMORY = {"name": "shm", "emptyDir": {"medium": "Memory"}}
"""Ray's object store lives in /dev/shm; a container's default of 64 MB makes it fall back to slow files."""

QUIET = [{"name": name, "value": value} for name, value in sorted(OFF_SWITCHES.items())]
"""For containers that KubeRay adds: what `environment` has of this for our own."""


def environment(settings: Settings, **own: str) -> list[dict[str, str]]:
    """Environment variables of a container, sorted by name so that equal settings give equal pods."""
    found = {"HOME": "/tmp", "SLUICE_GIT_SHA": settings.git_sha, **OFF_SWITCHES, **own}
    if settings.storage_emulator:
        found["STORAGE_EMULATOR_HOST"] = settings.storage_emulator
    return [{"name": name, "value": found[name]} for name in sorted(found)]


def container(name: str, image: str, settings: Settings, **fields: Any) -> dict[str, Any]:
    """A container that may do nothing it does not need."""
    return {
        "name": name,
        "image": image,
        "imagePullPolicy": settings.images.pull_policy,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        **fields,
    }


def pod_spec(
    settings: Settings, containers: list[dict[str, Any]], volumes: list[dict[str, Any]], **fields: Any
) -> dict[str, Any]:
    """A pod spec that the `restricted` standard admits."""
    spec: dict[str, Any] = {
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": containers,
        "volumes": volumes,
        **fields,
    }
    if settings.runtime_class:
        spec["runtimeClassName"] = settings.runtime_class
    return spec


def overlay(template: dict[str, Any], patch: Mapping[str, Any] | None) -> dict[str, Any]:
    """`template` with a person's `podTemplate` merged in.

    Objects merge by key; lists of named things (containers, env, volumes) merge by name; tolerations are added to ours,
    which the hardware needs; other lists are replaced. A container without a match merges into the first one if it has
    no name.
    """
    return template if patch is None else _merge(template, patch)


def _merge(base: Any, patch: Any, key: str = "") -> Any:
    if isinstance(base, Mapping) and isinstance(patch, Mapping):
        merged = dict(base)
        for key, value in patch.items():
            merged[key] = _merge(base[key], value, key) if key in base else value
        return merged
    if isinstance(base, list) and isinstance(patch, list) and key == "tolerations":
        return [*base, *(item for item in patch if item not in base)]
    if isinstance(base, list) and isinstance(patch, list) and _named(base):
        return _merge_named(base, patch)
    return patch


def _named(items: list[Any]) -> bool:
    return bool(items) and all(isinstance(i, Mapping) and "name" in i for i in items)


def _merge_named(base: list[Any], patch: list[Any]) -> list[Any]:
    merged = list(base)
    for item in patch:
        # What is no object at all is passed on as well: the API server refuses the pod and says why.
        name = item.get("name", base[0]["name"]) if isinstance(item, Mapping) else None
        at = next((i for i, b in enumerate(merged) if isinstance(b, Mapping) and b["name"] == name), None)
        if at is None:
            merged.append(item)
        else:
            merged[at] = _merge(merged[at], item)
    return merged
