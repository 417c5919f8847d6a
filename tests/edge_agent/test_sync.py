"""A device follows its repository: what it fetches, what it keeps, what it takes into use."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from edge_world import MODEL
from sluice_edge import slots
from sluice_edge.durable import exclusive
from sluice_edge.engine.child import Engine
from sluice_edge.errors import ConfigurationError, FetchError, UnhealthyError
from sluice_edge.pull.update import engine_settings


def in_use(device) -> tuple[str, bytes]:
    current = slots.current(device.home)
    return current.version.version, current.model.read_bytes()


def answers(device) -> bool:
    settings = engine_settings(device.home, device.home.config(), slots.current(device.home))
    with Engine(settings) as engine:
        reply = engine.chat([{"role": "user", "content": "hello"}], max_tokens=4, seconds=20)
    return reply["usage"]["completion_tokens"] > 0


def test_the_first_sync_installs_a_model_that_answers(device, publisher, models, server) -> None:
    publisher.release("v1", models["one"])
    receipt = device.sync()
    assert (receipt.outcome, receipt.version, receipt.quantization) == ("updated", "v1", "Q8_0")
    assert in_use(device) == ("v1", models["one"].read_bytes())
    assert answers(device)


def test_a_sync_with_nothing_new_moves_only_metadata(device, publisher, models, server) -> None:
    publisher.release("v1", models["one"])
    device.sync()
    server.reset()
    receipt = device.sync()
    assert receipt.outcome == "unchanged"
    assert server.requests["pieces"] == server.requests["targets"] == 0
    assert receipt.bytes.pieces == 0
    assert 0 < receipt.bytes.metadata == server.sent["metadata"] < 1000


def test_an_update_fetches_only_missing_pieces(device, publisher, models, server) -> None:
    publisher.release("v1", models["one"])
    device.sync()
    publisher.release("v2", models["two"])
    server.reset()
    receipt = device.sync()
    moved = receipt.bytes
    assert in_use(device) == ("v2", models["two"].read_bytes())
    assert (moved.pieces_total, moved.pieces_fetched, moved.reused) == (24, 12, 12)
    assert server.requests["pieces"] == 12
    assert moved.pieces == server.sent["pieces"] < 0.6 * models["two"].stat().st_size
    assert slots.previous(device.home).version.version == "v1"


def test_a_broken_download_goes_on_where_it_was(device, publisher, models, server, fast_retries) -> None:
    publisher.release("v1", models["one"])
    lost = publisher.pieces()[-1]
    hidden = lost.with_name("hidden")
    lost.rename(hidden)
    with pytest.raises(FetchError, match=r"piece \d+ of 24 of Q8_0 is missing"):
        device.sync()
    had = server.requests["pieces"]
    hidden.rename(lost)
    server.reset()
    receipt = device.sync()
    assert receipt.outcome == "updated"
    assert server.requests["pieces"] < 24
    assert had + server.requests["pieces"] >= 24
    assert receipt.bytes.reused == 24 - receipt.bytes.pieces_fetched > 0


def test_a_servers_hiccup_is_tried_again(device, publisher, models, server, fast_retries) -> None:
    publisher.release("v1", models["one"])
    server.fail_once = {"metadata/timestamp.json", *(str(p.relative_to(publisher.folder)) for p in publisher.pieces())}
    assert device.sync().outcome == "updated"


def test_a_folder_serves_as_well_as_a_server(make_device, publisher, models) -> None:
    publisher.release("v1", models["one"])
    device = make_device(publisher.uri)
    receipt = device.sync()
    assert receipt.outcome == "updated"
    assert receipt.bytes.pieces == models["one"].stat().st_size
    assert device.sync().outcome == "unchanged"


def test_a_folder_that_is_not_mounted_is_named(make_device, publisher, models, tmp_path: Path) -> None:
    device = make_device(f"file://{tmp_path}/stick")
    with pytest.raises(FetchError, match="is the folder or stick mounted"):
        device.sync()


def test_a_stage_that_is_not_open_for_this_device_changes_nothing(make_device, publisher, models, server) -> None:
    device = make_device(server.url, cohort=10)
    publisher.release("v1", models["one"])
    device.sync()
    publisher.release("v2", models["two"], percent=10)
    receipt = device.sync()
    assert receipt.outcome == "waiting"
    assert "open for 10 % of devices; this one is number 10" in receipt.message
    assert in_use(device)[0] == "v1"
    publisher.release("v2", models["two"], percent=11)
    assert device.sync().outcome == "updated"


def test_a_withdrawn_release_leaves_the_installed_version(device, publisher, models, server) -> None:
    from sluice_training.publish.release import withdraw

    publisher.release("v1", models["one"])
    device.sync()
    withdraw(
        publisher.store,
        publisher.keys,
        publisher.anchor,
        channel="stable",
        model=MODEL,
        version=None,
        now=publisher.now,
    )
    assert device.sync().outcome == "waiting"
    assert in_use(device)[0] == "v1"


@pytest.mark.parametrize("fault", ["broken", "mute"])
def test_a_model_that_does_not_answer_is_never_taken_into_use(device, publisher, models, server, fault: str) -> None:
    publisher.release("v1", models["one"])
    device.sync()
    publisher.release("v2", models[fault])
    with pytest.raises(UnhealthyError, match="version v2 was not taken into use"):
        device.sync()
    assert in_use(device) == ("v1", models["one"].read_bytes())
    server.reset()
    receipt = device.sync()
    assert receipt.outcome == "waiting"
    assert "failed its health check" in receipt.message
    assert server.requests["pieces"] == 0, "a file that failed here must not be fetched again and again"
    with pytest.raises(UnhealthyError):
        device.sync(retry=True)


def test_going_back_by_hand_and_forward_again(device, publisher, models, server) -> None:
    publisher.release("v1", models["one"])
    device.sync()
    publisher.release("v2", models["two"])
    device.sync()
    assert device.command("rollback").stdout == "back to v1\n"
    assert in_use(device)[0] == "v1"
    assert device.sync().outcome == "waiting"
    assert device.sync(retry=True).version == "v2"


def test_a_rotten_file_is_mended_by_fetching_only_the_rot(device, publisher, models, server) -> None:
    publisher.release("v1", models["one"])
    device.sync()
    model = slots.current(device.home).model
    data = bytearray(model.read_bytes())
    data[700_000] ^= 0xFF
    model.write_bytes(bytes(data))
    assert device.sync().outcome == "unchanged", "an ordinary sync does not hash gigabytes"
    receipt = device.sync(repair=True)
    assert receipt.outcome == "updated"
    assert receipt.bytes.pieces_fetched == 1
    assert in_use(device) == ("v1", models["one"].read_bytes())


def test_two_syncs_do_not_run_at_once(device, publisher, models, server) -> None:
    with exclusive(device.home.sync_lock, ""), pytest.raises(ConfigurationError, match="another sync is running"):
        device.sync()


def test_the_receipt_says_where_everything_came_from(device, publisher, models, server) -> None:
    publisher.release("v1", models["one"])
    printed = device.json("sync")
    assert printed["bytes"]["piecesFetched"] == 24
    status = device.json("status")
    assert status["installed"]["lineage"] == printed["lineage"]
    assert status["installed"]["gitSha"] == "abc1234"
    assert status["lastSync"] == printed
    identity = json.loads(device.home.device_file.read_bytes())
    assert identity["id"] not in json.dumps(status)


FULL_DISK = """
set -e
mount -t tmpfs -o size=4m tmpfs "$DISK"
agent() { "$PYTHON" -m sluice_edge "$@" --home "$DISK/home"; }
agent init --repository "file://$REPOSITORY" --root "$ROOT" --model support-bot --variant Q8_0 --cohort 0
for version in v1 v2 v3; do
    ln -sfn "$PUBLISHED/$version" "$REPOSITORY"
    agent sync
    agent status | grep "installed *$version"
done
head -c 1500000 /dev/zero > "$DISK/filler" || true
ln -sfn "$PUBLISHED/v4" "$REPOSITORY"
if agent sync; then echo "sync did not fail"; exit 1; fi
agent status | grep "installed *v3"
agent chat hello > /dev/null
find "$DISK/home/slots" -name '*.part' | grep . && exit 1
rm "$DISK/filler"
agent sync
agent status | grep "installed *v4"
"""


def test_a_full_disk_stops_the_update_and_nothing_else(publisher, models, tmp_path: Path) -> None:
    """Room for two models: a third pushes out the oldest; with no room for that either, the one in use stays."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode != 0:
        pytest.skip("needs root: a small disk is mounted in a mount namespace")
    from edge_world import write_gguf

    for number in (1, 2, 3, 4):
        publisher.release(f"v{number}", write_gguf(tmp_path / f"{number}.gguf", seed=number))
        shutil.copytree(publisher.folder, tmp_path / "published" / f"v{number}")
    (tmp_path / "disk").mkdir()
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", FULL_DISK],
        env={
            **os.environ,
            "DISK": str(tmp_path / "disk"),
            "REPOSITORY": str(tmp_path / "followed"),
            "PUBLISHED": str(tmp_path / "published"),
            "ROOT": str(publisher.root_file),
            "PYTHON": sys.executable,
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "giving up the previous version to make room" in done.stderr
    assert "the disk is full; free some space" in done.stderr
