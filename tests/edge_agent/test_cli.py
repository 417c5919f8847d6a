"""Mistakes at the command line: one line that names the thing and the remedy."""

import json

import pytest


@pytest.mark.parametrize(
    "command", [["sync"], ["status"], ["serve"], ["chat", "x"], ["verify-offline"], ["audit"], ["signals", "show"]]
)
def test_every_command_says_when_there_is_no_home(device, tmp_path, command: list[str]) -> None:
    done = device.command(*command, "--home", str(tmp_path / "nowhere"), check=False)
    assert done.returncode == 1
    assert "make one with `sluice-edge init`" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("command", [["chat", "x"], ["serve"], ["verify-offline"]])
def test_every_command_says_when_there_is_no_model(device, command: list[str]) -> None:
    done = device.command(*command, check=False)
    assert done.returncode == 1
    assert "fetch one with `sluice-edge sync`" in done.stderr


@pytest.mark.parametrize(
    ("args", "words", "code"),
    [
        (
            ["--repository", "gs://bucket"],
            "--repository: 'gs://bucket' is not a web address that begins with https://",
            2,
        ),
        (["--model", "Support Bot"], "--model", 2),
        (["--channel", "No!"], "--channel: 'No!' is not a channel: small letters", 2),
        (["--root", "/nowhere/root.json"], "cannot read --root", 2),
        (["--root", __file__], "no valid root of trust", 1),
        (["--proxy", "socks5://x"], "--proxy: 'socks5://x' is not a web address", 2),
        (["--variant", "Q3_K"], "--variant", 2),
        (["--cohort", "100"], "--cohort", 2),
    ],
)
def test_init_names_what_is_wrong(device, publisher, tmp_path, args: list[str], words: str, code: int) -> None:
    good = {
        "--repository": "http://127.0.0.1:1/r",
        "--root": str(publisher.root_file),
        "--model": "support-bot",
        "--home": str(tmp_path / "new"),
    }
    merged = good | dict(zip(args[::2], args[1::2], strict=True))
    done = device.command("init", *(part for pair in merged.items() for part in pair), check=False)
    assert done.returncode == code
    assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "new" / "config.json").exists()


def test_init_keeps_secrets_to_their_owner_and_does_not_overwrite(device, publisher, tmp_path) -> None:
    args = ["init", "--repository", "http://h/r/", "--root", str(publisher.root_file), "--model", "support-bot"]
    args += ["--home", str(tmp_path / "new"), "--variant", "Q8_0"]
    device.command(*args)
    for name in ("key", "device.json", "config.json"):
        assert (tmp_path / "new" / name).stat().st_mode & 0o077 == 0
    config = json.loads((tmp_path / "new/config.json").read_bytes())
    assert config["repository"] == "http://h/r"
    assert config["prefer"][0] == "Q8_0"
    again = device.command(*args, check=False)
    assert again.returncode == 1
    assert "an agent's home already" in again.stderr


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("config.json", "{}", "config.json: repository"),
        ("config.json", "not json", "config.json"),
        ("config.json", '{"repository": "http://h", "model": "m", "colour": "red"}', "colour"),
        ("device.json", '{"id": "x"}', "device.json"),
        ("current.json", "{", "current.json is damaged"),
    ],
)
def test_a_damaged_file_is_named(device, file: str, content: str, words: str) -> None:
    (device.home.root / file).write_text(content)
    done = device.command("status", check=False)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_feedback_without_an_answer_and_a_rollback_without_a_past(device, publisher, models, server) -> None:
    assert "no answer with the id" in device.command("feedback", "chatcmpl-x", check=False).stderr
    publisher.release("v1", models["one"])
    device.sync()
    assert "no previous version" in device.command("rollback", check=False).stderr


def test_a_missing_model_file_is_fetched_again(device, publisher, models, server) -> None:
    publisher.release("v1", models["one"])
    device.sync()
    (device.home.slots / "a/model.gguf").unlink()
    done = device.command("chat", "x", check=False)
    assert "fetch it again with `sluice-edge sync`" in done.stderr
    assert device.sync().outcome == "updated"
    assert device.json("chat", "x")["version"] == "v1"
