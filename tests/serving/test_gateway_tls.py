"""The API over TLS: only with the pool's certificate, and with a renewed one from the next connection on."""

import asyncio
import os
import shutil
import ssl
import threading
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from sluice_devcluster.pki import Identity, write_pki
from sluice_serving.gateway import tls
from sluice_serving.gateway.main import build_gateway, serve
from sluice_serving.gateway.settings import Settings, SettingsError, read_settings
from sluice_serving.gateway.tls import Certificate

HERE = ("localhost", "127.0.0.1")


def made(folder: Path, secret: Path, generation: str) -> Path:
    """A mounted Secret with a fresh certificate, as the kubelet lays it: links, of which one is swapped. Returns the
    authority that signed it."""
    write_pki(folder / generation, (Identity("server", "gateway", hosts=HERE),))
    real = secret / f"..{generation}"
    real.mkdir(parents=True)
    for name, ending in ((tls.CERTIFICATE, "crt"), (tls.KEY, "key")):
        shutil.copy(folder / generation / f"server.{ending}", real / name)
        if not (secret / name).is_symlink():
            (secret / name).symlink_to(Path("..data") / name)
    (secret / "..new").symlink_to(real.name)
    os.replace(secret / "..new", secret / "..data")
    return folder / generation / "ca.crt"


async def asked(gateway: Any, authority: Path) -> int:
    """The status of one request on a new connection, believing that authority only."""
    trusted = ssl.create_default_context(cafile=str(authority))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusted, force_close=True)) as session:
        url = f"https://127.0.0.1:{gateway.settings.port}/v1/models"
        async with session.get(url, headers={"authorization": "Bearer sk-test-5f1c2d"}) as got:
            return got.status


async def test_a_renewed_certificate_is_used_without_a_restart(
    start_gateway: Any, engines: Any, served: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "POLL_SECONDS", 0.05)
    secret = tmp_path / "secret"
    old = made(tmp_path, secret, "one")
    gateway = await start_gateway(tls_dir=secret)
    await gateway.route(served(await engines()))
    assert await asked(gateway, old) == 200

    new = made(tmp_path, secret, "two")

    for _ in range(200):
        try:
            assert await asked(gateway, new) == 200
            break
        except aiohttp.ClientConnectorCertificateError:
            pass
    else:
        pytest.fail("the renewed certificate was never shown")
    with pytest.raises(aiohttp.ClientConnectorCertificateError):
        await asked(gateway, old)


async def test_no_connection_meets_half_of_a_renewed_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "POLL_SECONDS", 0.01)
    made(tmp_path, tmp_path / "secret", "one")
    certificate = tls.Certificate(tmp_path / "secret")
    certificate.load()
    load, taken_by = certificate.context.load_cert_chain, []

    def noting(*args: Any, **kwargs: Any) -> None:
        taken_by.append(threading.current_thread())
        load(*args, **kwargs)

    monkeypatch.setattr(certificate.context, "load_cert_chain", noting)
    watching = asyncio.create_task(certificate.watch())
    made(tmp_path, tmp_path / "secret", "two")
    async with asyncio.timeout(20):
        while not taken_by:
            await asyncio.sleep(0.01)
    watching.cancel()
    assert taken_by == [threading.current_thread()]  # connections are taken by this thread too, so never in between


async def test_without_tls_nobody_is_answered(start_gateway: Any, engines: Any, served: Any, tmp_path: Path) -> None:
    made(tmp_path, tmp_path / "secret", "one")
    gateway = await start_gateway(tls_dir=tmp_path / "secret")
    await gateway.route(served(await engines()))
    with pytest.raises(aiohttp.ClientError):
        async with gateway.session.get(f"{gateway.url}/v1/models"):
            pass


def test_a_wrong_pair_leaves_the_one_in_force(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    made(tmp_path, secret, "one")
    certificate = Certificate(secret)
    assert certificate.load()
    assert not certificate.load(), "nothing is new"
    write_pki(tmp_path / "two", (Identity("server", "gateway", hosts=HERE),))
    shutil.copy(tmp_path / "two" / "server.key", secret / "..one" / tls.KEY)
    before = certificate.context.cert_store_stats()
    with pytest.raises(ValueError, match=r"tls\.crt and tls\.key are no certificate with its private key in PEM"):
        certificate.load()
    assert certificate.context.cert_store_stats() == before


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
async def test_a_gateway_without_a_certificate_does_not_start(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / tls.CERTIFICATE).write_bytes(content)
        (tmp_path / tls.KEY).write_bytes(content)
    (tmp_path / "keys").mkdir()
    settings = Settings(
        keys_dir=tmp_path / "keys",
        routes_file=tmp_path / "routes.json",
        database_url=f"sqlite:///{tmp_path}/i.db",
        tls_dir=tmp_path,
    )
    build_gateway(settings)  # the rest of it is well
    with pytest.raises(SettingsError, match=r"SLUICE_TLS_DIR: .*tls\.crt"):
        await serve(settings)


def test_the_variable_is_read(tmp_path: Path) -> None:
    env = {"SLUICE_KEYS_DIR": "/k", "SLUICE_ROUTES_FILE": "/r"}
    assert read_settings(env).tls_dir is None
    assert read_settings(env | {"SLUICE_TLS_DIR": "/t"}).tls_dir == Path("/t")
