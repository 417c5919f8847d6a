"""Where the demo plays: every way to say it wrong names the variable and what it should hold."""

from pathlib import Path

import pytest
from sluice_devcluster.demo.ground import GroundError, ground


@pytest.fixture
def existing(tmp_path: Path) -> dict[str, str]:
    """A complete description of a cluster of one's own."""
    for name in ("config", "values.yaml"):
        (tmp_path / name).write_text("{}")
    return {
        "SLUICE_CLUSTER": "existing",
        "KUBECONFIG": str(tmp_path / "config"),
        "SLUICE_VALUES": str(tmp_path / "values.yaml"),
        "SLUICE_STORAGE_URI": "gs://team-models/",
        "SLUICE_RELEASES_URI": "gs://team-releases",
    }


def test_without_a_word_the_local_cluster_is_meant(tmp_path: Path) -> None:
    place = ground({}, tmp_path)
    assert place.local
    assert place.storage_url == place.emulator


def test_an_existing_cluster_uses_real_storage(existing: dict[str, str], tmp_path: Path) -> None:
    place = ground(existing, tmp_path)
    assert not place.local
    assert place.storage == "gs://team-models"
    assert place.storage_url == "https://storage.googleapis.com"
    assert ground(existing | {"STORAGE_EMULATOR_HOST": "http://e:1"}, tmp_path).storage_url == "http://e:1"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"SLUICE_CLUSTER": "martian"}, "SLUICE_CLUSTER is 'martian': use local"),
        ({"KUBECONFIG": "", "SLUICE_VALUES": ""}, r"also needs KUBECONFIG \(.*; SLUICE_VALUES \(a Helm values file"),
        ({"SLUICE_STORAGE_URI": "s3://bucket"}, "SLUICE_STORAGE_URI is 's3://bucket': it must start with gs://"),
        ({"KUBECONFIG": "/nowhere/config"}, "KUBECONFIG: cannot read /nowhere/config"),
    ],
)
def test_what_is_wrong_is_named(existing: dict[str, str], tmp_path: Path, change: dict[str, str], message: str) -> None:
    with pytest.raises(GroundError, match=message):
        ground(existing | change, tmp_path)
