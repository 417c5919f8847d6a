"""Tenants' files: many keys, each with its rights; wrong ones are named without what they hold."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from sluice_serving.gateway.keys import KeyStore
from sluice_serving.gateway.tenants import TenantFileError, read_tenant

SECRET = "sk-a-secret"


def digest(key: str) -> str:
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


def tenant(*keys: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"keys": list(keys)} | more).encode()


def write(folder: Path, name: str, content: bytes) -> None:
    (folder / name).with_suffix(".new").write_bytes(content)
    (folder / name).with_suffix(".new").replace(folder / name)


def test_a_tenant_has_several_keys_with_rights_of_their_own(tmp_path: Path) -> None:
    write(tmp_path, "acme", tenant(
        {"id": "web", "digest": digest("sk-web"), "priority": 8, "budgets": [{"window": "day", "requests": 9}]},
        {"id": "ops", "digest": digest("sk-ops"), "admin": True},
        priority=3, contexts=True,
    ))  # fmt: skip
    keys = KeyStore(tmp_path)
    keys.load()
    web, ops = keys.authenticate("sk-web"), keys.authenticate("sk-ops")
    assert web is not None
    assert ops is not None
    assert (web.tenant, web.key_id, web.priority, web.admin, web.budgets[0].requests) == (
        "acme",
        "acme/web",
        8,
        False,
        9,
    )
    assert (ops.key_id, ops.priority, ops.admin, ops.policy.contexts) == ("acme/ops", 3, True, True)


def test_a_key_ends_with_its_time(tmp_path: Path) -> None:
    write(tmp_path, "acme", tenant({"id": "web", "digest": digest("sk-web"), "expires": "2030-01-01T00:00:00Z"}))
    now = [1893456000.0 - 1]
    keys = KeyStore(tmp_path, clock=lambda: now[0])
    keys.load()
    assert keys.authenticate("sk-web") is not None
    now[0] += 1
    assert keys.authenticate("sk-web") is None


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"{", "the file: Invalid JSON"),
        (tenant({"id": "web"}), "keys.0.digest: Field required"),
        (tenant({"id": "web", "digest": SECRET}), "keys.0.digest: String should match pattern"),
        (tenant({"id": "We b", "digest": digest(SECRET)}), "keys.0.id"),
        (tenant({"id": "a", "digest": digest("1")}, {"id": "a", "digest": digest("2")}), "two keys have the same id"),
        (tenant({"id": "a", "digest": digest("1")}, {"id": "b", "digest": digest("1")}), "the same digest"),
        (tenant({"id": "a", "digest": digest("1"), "expires": "2026-02-30T00:00:00Z"}), "keys.0.expires: no day"),
        (tenant(priority=10), "priority: Input should be less than or equal to 9"),
        (tenant(budgets=[{"window": "week", "requests": 1}]), "budgets.0.window"),
        (tenant(budgets=[{"window": "day"}]), "a budget needs requests, tokens or money"),
        (tenant(budgets=[{"window": "day", "requests": 0, "tokens": -1}]), "and 1 more"),
        (tenant(keepContent="yes please"), "keepContent"),
        (tenant(keep=True), "keep: Extra inputs are not permitted"),
        (b"\xff", "not UTF-8"),
        (b" \n", "empty"),
        (b"x" * (1 << 20) + b"y", "more than 1048576 bytes"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_without_its_content(content: bytes, names: str) -> None:
    with pytest.raises(TenantFileError, match=names) as error:
        read_tenant("acme", content)
    assert SECRET not in str(error.value)


def test_a_file_that_turns_out_wrong_leaves_its_tenant_as_it_was_and_the_others_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, "acme", tenant({"id": "web", "digest": digest("sk-web")}))
    keys = KeyStore(tmp_path)
    keys.load()
    write(tmp_path, "acme", tenant({"id": "web", "digest": SECRET}))
    write(tmp_path, "rival", tenant({"id": "web", "digest": digest("sk-rival")}))
    write(tmp_path, "fresh", b"{")
    keys.load()
    assert [keys.authenticate(k) is not None for k in ("sk-web", "sk-rival")] == [True, True]
    assert "tenant acme: keys.0.digest" in caplog.text
    assert "its former keys stay in force" in caplog.text
    assert "tenant fresh" in caplog.text
    assert SECRET not in caplog.text
    write(tmp_path, "acme", b"")  # emptied on purpose: this takes access away
    keys.load()
    assert keys.authenticate("sk-web") is None


def test_plain_keys_are_pointed_out_and_can_be_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "acme").write_text(SECRET)
    lenient = KeyStore(tmp_path)
    lenient.load()
    assert lenient.authenticate(SECRET) is not None
    assert "the key of tenant acme lies in plain text" in caplog.text
    strict = KeyStore(tmp_path, plain_keys=False)
    strict.load()
    assert strict.authenticate(SECRET) is None
    assert "which the pool refuses" in caplog.text
    (tmp_path / "acme").write_text(digest(SECRET))
    strict.load()
    assert strict.authenticate(SECRET) is not None


def test_one_key_is_never_two_tenants(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for name in ("acme", "rival"):
        write(tmp_path, name, tenant({"id": "web", "digest": digest(SECRET)}))
    keys = KeyStore(tmp_path)
    keys.load()
    caller = keys.authenticate(SECRET)
    assert caller is not None
    assert caller.tenant == "acme"
    assert "tenant rival: key web is also a key of tenant acme" in caplog.text


def test_the_table_in_memory_is_not_ordered_by_what_a_stranger_could_probe(tmp_path: Path) -> None:
    write(tmp_path, "acme", tenant({"id": "web", "digest": digest(SECRET)}))
    one, other = KeyStore(tmp_path), KeyStore(tmp_path)
    one.load()
    other.load()
    assert not one._held.keys() & other._held.keys()
    assert one.fingerprint() == other.fingerprint()


def test_a_key_is_compared_in_constant_time_also_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[int, int]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return one == other

    write(tmp_path, "acme", tenant({"id": "web", "digest": digest(SECRET)}))
    keys = KeyStore(tmp_path)
    keys.load()
    monkeypatch.setattr("sluice_serving.gateway.keys.hmac.compare_digest", compare)
    assert [keys.authenticate(k) is not None for k in (SECRET, "sk-none", "")] == [True, False, False]
    assert compared == [(32, 32)] * 3
