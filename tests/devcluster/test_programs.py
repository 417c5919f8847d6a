"""The key of the built programs, the pins it stands for, and finding a Go that can build them."""

import shutil
from pathlib import Path

import pytest
from sluice_devcluster import build, programs
from sluice_devcluster.errors import DevClusterError


@pytest.fixture
def gomods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the pins that may be changed."""
    copy = tmp_path / "gomods"
    shutil.copytree(programs.GOMODS, copy)
    monkeypatch.setattr(programs, "GOMODS", copy)
    return copy


def test_every_part_of_a_cluster_is_pinned() -> None:
    names = {p.name for p in programs.programs()}

    assert names >= {"etcd", "kube-apiserver", "kubelet", "kubectl", "containerd", "containerd-shim-runc-v2", "ctr"}
    assert names >= {"bridge", "host-local", "portmap", "coredns", "fake-gcs-server", "helm", "pause"}


def test_tool_directives_are_read_single_and_in_blocks() -> None:
    text = "module m\ntool a.example/one\ntool (\n\tb.example/two // why\n\tc.example/three\n)\nrequire x v1\n"

    assert programs.tools(text) == ["a.example/one", "b.example/two", "c.example/three"]


@pytest.mark.parametrize("file", ["helm/go.sum", "cni/go.mod", "pause/main.go"])
def test_a_changed_pin_gives_another_key(gomods: Path, file: str) -> None:
    before = programs.build_key()
    assert programs.build_key() == before

    (gomods / file).write_text((gomods / file).read_text() + "\n")

    assert programs.build_key() != before


def test_missing_programs_are_named_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICE_CACHE", str(tmp_path))
    programs.program_folder().mkdir(parents=True)
    (programs.program_folder() / "etcd").touch()

    with pytest.raises(DevClusterError, match="sluice-dev build") as caught:
        programs.built_programs()

    assert "kubelet" in str(caught.value)
    assert "etcd," not in str(caught.value)


@pytest.mark.parametrize(
    ("printed", "version"),
    [("go version go1.26.8 linux/amd64", (1, 26, 8)), ("go version go1.27 linux/amd64", (1, 27, 0)), ("", ())],
)
def test_gos_version_is_read(printed: str, version: tuple[int, ...]) -> None:
    assert build.go_version(printed) == version


def test_without_go_and_uv_the_message_names_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICE_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(DevClusterError, match=r"Go \d+\.\d+\.\d+ or newer is needed, and uv"):
        build.find_go(lambda step: None)


def test_an_old_go_on_path_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICE_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    old = tmp_path / "go"
    old.write_text("#!/bin/sh\necho go version go1.19 linux/amd64\n")
    old.chmod(0o755)

    with pytest.raises(DevClusterError, match="or newer is needed"):
        build.find_go(lambda step: None)


def test_settings_of_the_caller_do_not_change_what_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOFLAGS", "-race")
    monkeypatch.setenv("CGO_ENABLED", "1")
    monkeypatch.setenv("GOPROXY", "https://proxy.example")

    environment = build.go_environment()

    assert environment["GOFLAGS"] == "-mod=readonly"
    assert environment["CGO_ENABLED"] == "0"
    assert environment["GOPROXY"] == "https://proxy.example"
