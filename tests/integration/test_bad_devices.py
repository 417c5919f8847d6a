"""Publishing that goes wrong, and a device that lacks something, tried as their owners would."""

import importlib.util
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from sluice_devcluster.ports import free_port

from tests.integration.user import REPOSITORY, ZEROS, Ended, User, helps, needs_root, taken_port


def publish(user: User, **how: Any) -> Ended:
    options = {"manifest": user.uri("manifest.json"), "digest": ZEROS, "keys": "keys", "version": "v1"}
    options.update({k: how.pop(k) for k in list(how) if k in options})
    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    return user.run("sluice-train", "publish", "release", "--repository", user.uri("releases"), *flags, **how)


def test_publishing_into_no_repository(user: User) -> None:
    helps(publish(user), 1, user.uri("releases"), "make one with `sluice-train publish init`")


def test_publishing_with_a_digest_that_is_none(publisher: User) -> None:
    helps(publish(publisher, digest="sha256:12"), 2, "--digest 'sha256:12'", "64 hexadecimal digits")


def test_publishing_without_keys(publisher: User) -> None:
    helps(publish(publisher, keys="lost"), 1, "lost/targets.pem does not exist", "mount their Secret there")


def test_publishing_with_a_damaged_key(publisher: User) -> None:
    publisher.file("keys/targets.pem", "-----BEGIN")
    helps(publish(publisher), 1, "keys/targets.pem", "was it cut short when it was copied?")


def test_publishing_with_a_key_one_may_not_read(stranger: User) -> None:
    owner = replace(stranger, become=())
    made = owner.run("sluice-train", "publish", "init", "--repository", owner.uri("releases"), "--keys", "keys")
    assert made.code == 0, made.said
    (owner.folder / "keys").chmod(0o755)
    helps(publish(stranger), 1, "cannot read the signing key keys/targets.pem: Permission denied")


def test_publishing_with_a_folder_in_place_of_a_key(publisher: User) -> None:
    key = publisher.folder / "keys" / "targets.pem"
    key.unlink()
    key.mkdir()
    helps(publish(publisher), 1, "cannot read the signing key keys/targets.pem: Is a directory")


def test_publishing_a_manifest_that_was_changed(publisher: User) -> None:
    publisher.file("manifest.json", "{}")
    helps(publish(publisher), 1, "manifest.json has digest", "it was changed after it was recorded")


def test_a_second_repository_in_the_place_of_the_first(publisher: User) -> None:
    ended = publisher.run(
        "sluice-train", "publish", "init", "--repository", publisher.uri("releases"), "--keys", "other"
    )
    helps(ended, 1, "already holds a repository")


def edge(user: User, *arguments: str, home: str = "home") -> Ended:
    return user.run("sluice-edge", *arguments, "--home", home)


def edge_init(user: User, repository: str, home: str = "home", root: str = "keys/root.json") -> Ended:
    return edge(user, "init", "--repository", repository, "--root", root, "--model", "support-bot", home=home)


def test_a_device_without_a_home(user: User) -> None:
    helps(edge(user, "sync"), 1, "home", "make one with `sluice-edge init`")


def test_a_device_with_a_repository_of_an_unknown_kind(publisher: User) -> None:
    helps(edge_init(publisher, "ftp://somewhere"), 2, "--repository", "http")


def test_a_device_without_a_root_of_trust(user: User) -> None:
    helps(edge_init(user, user.uri("releases")), 2, "--root keys/root.json", "take root.json from the publisher")


@pytest.mark.parametrize("command", [["chat", "hello"], ["serve"], ["verify-offline"]], ids=lambda c: c[0])
def test_a_device_without_a_model(publisher: User, command: list[str]) -> None:
    assert edge_init(publisher, publisher.uri("releases")).code == 0
    helps(edge(publisher, *command), 1, "no model is installed on this device yet", "`sluice-edge sync`")


def test_a_device_whose_repository_does_not_answer(publisher: User) -> None:
    port = free_port()
    assert edge_init(publisher, f"http://127.0.0.1:{port}/releases").code == 0
    helps(edge(publisher, "sync"), 1, f"http://127.0.0.1:{port}/releases", "is the repository reachable?")


def _edge_world() -> Any:
    name = "bad_input_edge_world"
    path = REPOSITORY / "tests" / "edge_agent" / "world.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A repository with one real version of 1.5 MB, and its keys."""
    world, folder = _edge_world(), tmp_path_factory.mktemp("released")
    publisher = world.Publisher(folder)
    publisher.release("v1", world.write_gguf(folder / "model.gguf"))
    return publisher


def test_a_device_with_a_full_disk(user: User, released: Any) -> None:
    needs_root()
    disk = user.folder / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "sluice-test", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine does not let tests mount a tmpfs")
    try:
        home = str(disk / "home")
        assert edge_init(user, released.uri, home=home, root=str(released.root_file)).code == 0
        ended = edge(user, "sync", home=home)
        left = list((disk / "home" / "slots").rglob("*.gguf"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    helps(ended, 1, "cannot write the model file", "the disk is full; free some space there", "--home")
    assert not left


def test_a_device_whose_port_is_taken(user: User, released: Any) -> None:
    assert edge_init(user, released.uri, root=str(released.root_file)).code == 0
    synced = edge(user, "sync")
    assert synced.code == 0, synced.said
    with taken_port() as port:
        helps(edge(user, "serve", "--port", str(port)), 1, str(port), "--port")
