"""What a hostile or broken repository may not achieve. In each case the installed model keeps running."""

import json
import shutil
from datetime import UTC, datetime, timedelta

import pytest
from edge_world import Publisher
from sluice_edge import slots
from sluice_edge.cli import app
from sluice_edge.errors import EdgeError, FetchError, TrustError
from typer.testing import CliRunner

pytestmark = pytest.mark.usefixtures("fast_retries")


@pytest.fixture
def running(device, publisher, models, server):
    """A device that runs v1 while the repository offers v2."""
    publisher.release("v1", models["one"])
    device.sync()
    shutil.copytree(publisher.folder, publisher.root / "as-of-v1")
    publisher.release("v2", models["two"])
    return device


def refused(device, error: type[EdgeError], words: str) -> EdgeError:
    before = slots.current(device.home)
    with pytest.raises(error, match=words) as caught:
        device.sync()
    after = slots.current(device.home)
    assert (after.version, after.model) == (before.version, before.model)
    assert after.version.version == "v1"
    last = json.loads(device.home.last_sync.read_bytes())
    assert last["outcome"] == "failed"
    return caught.value


def latest(publisher, role: str):
    return max((publisher.folder / "metadata").glob(f"*.{role}.json"), key=lambda p: int(p.name.partition(".")[0]))


def flip(path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


def test_a_flipped_bit_in_a_piece_is_refused_and_named(running, publisher, models, server) -> None:
    new = [
        p for p in publisher.pieces() if not (publisher.root / "as-of-v1" / p.relative_to(publisher.folder)).exists()
    ]
    flip(new[0], 1000)
    server.reset()
    error = refused(running, TrustError, r"piece \d+ of 24 of Q8_0 was altered")
    assert new[0].name in str(error)
    assert server.requests["pieces"] <= 12 + 3, "a wrong piece is asked for a bounded number of times"
    flip(new[0], 1000)
    assert running.sync().version == "v2"


def test_a_truncated_piece_is_refused(running, publisher, models) -> None:
    for piece in publisher.pieces():
        piece.write_bytes(piece.read_bytes()[:-1])
    refused(running, TrustError, "was altered")


def test_a_piece_without_end_is_cut_off(running, publisher, server) -> None:
    for piece in publisher.pieces():
        piece.write_bytes(piece.read_bytes() + b"\0" * 5_000_000)
    refused(running, FetchError, "longer than the 65,536 bytes it may have")


def test_old_metadata_is_a_roll_back(running, publisher) -> None:
    running.sync()
    running.command("rollback")
    shutil.rmtree(publisher.folder / "metadata")
    shutil.copytree(publisher.root / "as-of-v1" / "metadata", publisher.folder / "metadata")
    refused(running, TrustError, "older metadata than this device has seen")


def test_a_roll_back_is_noticed_even_if_the_client_lost_its_files(running, publisher) -> None:
    running.sync()
    running.command("rollback")
    shutil.rmtree(running.home.metadata)
    shutil.rmtree(publisher.folder / "metadata")
    shutil.copytree(publisher.root / "as-of-v1" / "metadata", publisher.folder / "metadata")
    refused(running, TrustError, "this device has seen 3")


def test_an_altered_release_is_refused(running, publisher) -> None:
    for target in (publisher.folder / "targets/stable").iterdir():
        target.write_bytes(target.read_bytes().replace(b'"percent":100', b'"percent":101'))
    refused(running, TrustError, "altered after it was signed")


@pytest.mark.parametrize("role", ["targets", "snapshot"])
def test_altered_metadata_is_refused(running, publisher, role: str) -> None:
    path = latest(publisher, role)
    path.write_bytes(path.read_bytes().replace(b'"_type"', b'"_typf"'))
    refused(running, TrustError, "altered after it was signed")


def test_an_altered_timestamp_is_refused(running, publisher) -> None:
    path = publisher.folder / "metadata/timestamp.json"
    path.write_bytes(path.read_bytes().replace(b'"version":3', b'"version":9'))
    refused(running, TrustError, "not signed by the keys this device trusts")


def test_metadata_without_end_is_cut_off(running, publisher) -> None:
    (publisher.folder / "metadata/timestamp.json").write_bytes(b" " * 1_000_000)
    refused(running, TrustError, "more than it may")


def test_a_publisher_with_other_keys_is_refused(running, publisher, models) -> None:
    impostor = Publisher(publisher.root / "impostor")
    for number in range(4):
        impostor.release(f"evil-{number}", models["two"])
    shutil.rmtree(publisher.folder)
    shutil.copytree(impostor.folder, publisher.folder)
    refused(running, TrustError, "not signed by the keys this device trusts")


def test_expired_metadata_blocks_the_update_only(make_device, publisher, models, server) -> None:
    publisher.release("v1", models["one"])
    device = make_device(server.url)
    device.sync()
    publisher.now = datetime.now(UTC) - timedelta(days=8)
    publisher.release("v2", models["two"])
    error = refused(device, TrustError, "has expired")
    assert "check this device's clock" in str(error)
    assert device.json("chat", "hello")["version"] == "v1"
    publisher.now = datetime.now(UTC)
    publisher.release("v2", models["two"], percent=99)
    assert device.sync().version == "v2"


def test_a_release_for_another_model_is_refused(make_device, publisher, models, server) -> None:
    from sluice_edge.pull.trust import read_release

    publisher.release("v1", models["one"])
    document = next((publisher.folder / "targets/stable").iterdir()).read_bytes()
    with pytest.raises(TrustError, match="for the model 'support-bot', not 'other'"):
        read_release(document, "other")
    with pytest.raises(TrustError, match="format this agent does not know"):
        read_release(document.replace(b'"schemaVersion":1', b'"schemaVersion":2'), "support-bot")
    release = json.loads(document)
    release["variants"][0]["pieces"].pop()
    with pytest.raises(TrustError, match="its size needs 24"):
        read_release(json.dumps(release).encode(), "support-bot")


def test_no_repository_at_all_blocks_the_update_only(make_device, publisher, models, server) -> None:
    publisher.release("v1", models["one"])
    device = make_device(server.url)
    device.sync()
    config = json.loads(device.home.config_file.read_bytes())
    config["repository"] = "http://127.0.0.1:9/nothing"
    device.home.config_file.write_text(json.dumps(config))
    refused(device, FetchError, "cannot reach the repository")
    done = CliRunner().invoke(app, ["sync", "--home", str(device.home.root)])
    assert done.exit_code == 1
    assert done.stderr.strip().count("\n") == 0
    assert device.json("chat", "hello")["version"] == "v1"


def test_a_redirect_to_another_host_is_not_followed(make_device, publisher, models, server) -> None:
    publisher.release("v1", models["one"])
    device = make_device(server.url)
    plain = server.answer

    def redirect(handler) -> None:
        if "pieces" not in handler.path:
            plain(handler)
            return
        handler.send_response(302)
        handler.send_header("Location", "http://192.0.2.1/")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    server.answer = redirect
    with pytest.raises(FetchError, match="status 302, expected 200"):
        device.sync()
