"""What may be published, and what publishing again does."""

import json
from pathlib import Path

import pytest
from sluice_contracts.names import Quantization
from sluice_contracts.training_run import Waiver
from sluice_storage import ChecksumError
from sluice_training.publish import release as releases
from sluice_training.publish import repository
from sluice_training.publish.cli import app
from sluice_training.publish.errors import PublishError
from typer.testing import CliRunner


def offered(publisher) -> dict | None:
    state = repository.load(publisher.store, publisher.anchor)
    data = repository.target_bytes(publisher.store, state, "stable/support-bot.json")
    return None if data is None else json.loads(data)


def test_publishing_the_same_twice_changes_nothing(publisher, models) -> None:
    first = publisher.release("v1", models["one"])
    files = {p: p.stat().st_mtime_ns for p in publisher.folder.rglob("*") if p.is_file()}
    again = publisher.release("v1", models["one"])
    assert (first.changed, again.changed) == (True, False)
    assert again.tuf_version == first.tuf_version
    assert {p: p.stat().st_mtime_ns for p in publisher.folder.rglob("*") if p.is_file()} == files


def test_an_update_stores_only_new_pieces(publisher, models) -> None:
    first = publisher.release("v1", models["one"])
    second = publisher.release("v2", models["two"])
    assert first.pieces_uploaded == first.pieces_total
    assert second.pieces_uploaded == 12
    assert second.bytes_uploaded < 0.6 * models["two"].stat().st_size


def test_opening_the_next_stage_moves_no_pieces(publisher, models) -> None:
    publisher.release("v1", models["one"], percent=5)
    staged = publisher.release("v1", models["one"], percent=100)
    assert staged.changed
    assert staged.pieces_uploaded == 0
    assert offered(publisher)["cohort"] == {"percent": 100}


def test_a_failed_evaluation_is_not_published(publisher, models) -> None:
    with pytest.raises(PublishError, match=r"evaluation failed and nobody waived it: intent\.accuracy"):
        publisher.release("v1", models["one"], passed=False)
    assert offered(publisher) is None
    assert publisher.pieces() == []


def test_a_waived_evaluation_is_published_and_says_so(publisher, models) -> None:
    publisher.release(
        "v1", models["one"], passed=False, waiver=Waiver(reason="a drill of the canary", approved_by="ops")
    )
    assert offered(publisher)["evaluationPassed"] is False


def test_a_failed_parity_gate_is_not_published(publisher, models) -> None:
    with pytest.raises(PublishError, match="failed the parity gate: meanKld"):
        publisher.release("v1", models["one"], parity_passed=False)
    assert publisher.pieces() == []


@pytest.mark.parametrize(
    ("file", "error"),
    [
        ("manifest.json", ChecksumError),
        ("eval/report.json", ChecksumError),
        ("parity.json", ChecksumError),
        ("export/gguf/support-bot-Q8_0.gguf", PublishError),
    ],
)
def test_files_changed_after_the_run_are_refused(publisher, models, file: str, error: type[Exception]) -> None:
    publisher.release("v1", models["one"])
    folder = publisher.root / "runs-v2"
    with pytest.raises(PublishError):
        publisher.release("v2", models["two"], passed=False)  # makes the folder, publishes nothing
    data = bytearray((folder / file).read_bytes())
    digest = releases.pieces.digest_of(folder / "manifest.json")
    data[len(data) // 2] ^= 1
    (folder / file).write_bytes(bytes(data))
    wish = releases.Wish(f"file://{folder}/manifest.json", digest, "stable", "v2", 100)
    with pytest.raises((error, PublishError)):
        releases.publish_release(publisher.store, publisher.keys, publisher.anchor, wish, publisher.now, print)
    assert offered(publisher)["version"] == "v1"


def test_a_device_file_changed_after_the_run_is_named(publisher, models) -> None:
    folder = publisher.root / "runs-v1"
    from edge_world import write_run

    uri, digest = write_run(folder, {Quantization.Q8_0: models["one"]})
    file = folder / "export/gguf/support-bot-Q8_0.gguf"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    wish = releases.Wish(uri, digest, "stable", "v1", 100)
    with pytest.raises(PublishError, match=r"support-bot-Q8_0\.gguf has digest .* changed after the run"):
        releases.publish_release(publisher.store, publisher.keys, publisher.anchor, wish, publisher.now, print)


def test_a_published_version_never_changes(publisher, models) -> None:
    publisher.release("v1", models["one"])
    from edge_world import write_run

    uri, digest = write_run(publisher.root / "other", {Quantization.Q8_0: models["two"]}, name="other")
    wish = releases.Wish(uri, digest, "stable", "v1", 100)
    with pytest.raises(PublishError, match="already offers version v1 from another manifest"):
        releases.publish_release(publisher.store, publisher.keys, publisher.anchor, wish, publisher.now, print)


def test_yank_withdraws_only_the_version_it_names(publisher, models) -> None:
    publisher.release("v1", models["one"])
    common = {"channel": "stable", "model": "support-bot", "now": publisher.now}
    late = releases.withdraw(publisher.store, publisher.keys, publisher.anchor, version="v0", **common)
    assert not late.changed
    done = releases.withdraw(publisher.store, publisher.keys, publisher.anchor, version="v1", **common)
    assert done.changed
    assert offered(publisher) is None


def command(*args: str):
    return CliRunner().invoke(app, list(args))


def release_args(publisher, folder: Path, digest: str) -> list[str]:
    return [
        "release",
        f"--manifest=file://{folder}/manifest.json",
        f"--digest={digest}",
        f"--repository={publisher.uri}",
        f"--keys={publisher.keys}",
        "--channel=stable",
        "--version=v1",
        "--percent=10",
        f"--termination-file={folder}/termination",
    ]


def test_the_command_leaves_its_result_for_kubernetes(publisher, models, tmp_path: Path) -> None:
    from edge_world import write_run

    folder = tmp_path / "run"
    _, digest = write_run(folder, {Quantization.Q8_0: models["one"]})
    result = command(*release_args(publisher, folder, digest), "-o", "json")
    assert result.exit_code == 0, result.output
    assert json.loads((folder / "termination").read_text()) == {"tufVersion": 2}
    assert json.loads(result.stdout.splitlines()[-1])["tufVersion"] == 2
    assert offered(publisher)["cohort"] == {"percent": 10}


def test_the_command_leaves_its_error_for_kubernetes(publisher, models, tmp_path: Path) -> None:
    from edge_world import write_run

    folder = tmp_path / "run"
    _, digest = write_run(folder, {Quantization.Q8_0: models["one"]}, passed=False)
    result = command(*release_args(publisher, folder, digest))
    assert result.exit_code == 1
    assert "nobody waived it" in result.stderr
    assert "nobody waived it" in json.loads((folder / "termination").read_text())["error"]


@pytest.mark.parametrize(
    ("change", "words", "code"),
    [
        ({"--digest": "sha256:12"}, "is no digest", 2),
        ({"--channel": "Stable!"}, "lower-case", 2),
        ({"--repository": "s3://bucket"}, "use gs://bucket/path or file:///path", 1),
        ({"--repository": "file:///nowhere/at/all"}, "no repository there", 1),
        ({"--manifest": "file:///nowhere/manifest.json"}, "does not exist", 1),
        ({"--keys": "/nowhere"}, "does not exist; make the keys", 1),
    ],
)
def test_bad_arguments_are_named(
    publisher, models, tmp_path: Path, change: dict[str, str], words: str, code: int
) -> None:
    args = release_args(publisher, tmp_path, "sha256:" + "0" * 64)
    args = [
        a if a.partition("=")[0] not in change else f"{a.partition('=')[0]}={change[a.partition('=')[0]]}" for a in args
    ]
    result = command(*args)
    assert result.exit_code == code
    assert words in result.stderr.replace("\n", " ")


def test_init_refresh_and_yank_as_commands(tmp_path: Path) -> None:
    common = [f"--repository=file://{tmp_path}/repo", f"--keys={tmp_path}/keys"]
    assert command("init", *common).exit_code == 0
    assert (tmp_path / "keys/root.json").exists()
    assert command("init", *common).exit_code == 1
    assert command("refresh", *common).exit_code == 0
    result = command("yank", *common, "--model=support-bot")
    assert result.exit_code == 0
    assert "nothing to withdraw" in result.stdout
