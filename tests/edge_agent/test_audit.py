"""The audit log shows every later change of what it says."""

import json
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sluice_edge.audit import GENESIS, AuditLog

KEY = "ab" * 32


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    log = AuditLog(tmp_path / "audit.log", KEY)
    for number in range(5):
        log.append("event", number=number)
    return log


def test_an_untouched_log_holds(log: AuditLog) -> None:
    verdict = log.verify()
    assert (verdict.entries, verdict.problem) == (5, None)
    assert (5, verdict.head) == log.head()
    assert AuditLog(log.path.with_name("none"), KEY).verify().head == GENESIS


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda lines: [*lines[:2], lines[2].replace('"number":2', '"number":7'), *lines[3:]], "entry 3 was changed"),
        (lambda lines: [*lines[:2], *lines[3:]], "entry 3 does not follow entry 2"),
        (lambda lines: [lines[1], lines[0], *lines[2:]], "entry 1 does not follow"),
        (lambda lines: lines[1:], "entry 1 does not follow"),
        (lambda lines: [*lines[:4], "garbage"], "entry 5 is no entry"),
        (lambda lines: [*lines, lines[-1]], "entry 6 does not follow"),
    ],
)
def test_each_change_is_noticed_and_its_place_named(log: AuditLog, change, words: str) -> None:
    lines = log.path.read_text().splitlines()
    log.path.write_text("\n".join(change(lines)) + "\n")
    assert words in (log.verify().problem or "")
    log.append("later")
    assert words in (log.verify().problem or ""), "a later entry does not heal it"


@settings(deadline=None, max_examples=30)  # each example writes files
@given(st.integers(1, 400))
def test_a_line_torn_by_a_power_cut_is_dropped_and_the_chain_goes_on(tmp_path_factory, cut: int) -> None:
    log = AuditLog(tmp_path_factory.mktemp("log") / "audit.log", KEY)
    for number in range(3):
        log.append("event", number=number)
    data = log.path.read_bytes()
    log.path.write_bytes(data[:-cut] if cut < len(data) else b"")
    whole = log.path.read_bytes().count(b"\n")
    log.append("after")
    verdict = log.verify()
    assert (verdict.entries, verdict.problem) == (whole + 1, None)


def test_several_writers_make_one_chain(tmp_path: Path) -> None:
    def write() -> None:
        log = AuditLog(tmp_path / "audit.log", KEY)
        for number in range(20):
            log.append("event", number=number)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert AuditLog(tmp_path / "audit.log", KEY).verify().entries == 80


def test_content_appears_as_a_keyed_hash_only(tmp_path: Path) -> None:
    one, two = AuditLog(tmp_path / "a", KEY), AuditLog(tmp_path / "b", "cd" * 32)
    assert one.hash_of(b"question") == one.hash_of(b"question")
    assert one.hash_of(b"question") != two.hash_of(b"question"), "a copied log cannot be searched for a guess"


def test_the_command_shows_and_checks_it(device, publisher, models, server) -> None:
    publisher.release("v1", models["one"])
    device.sync()
    device.command("chat", "hello")
    events = [json.loads(line)["event"] for line in device.home.audit.read_text().splitlines()]
    assert events == ["switch", "sync", "request"]
    assert device.json("audit")["entries"] == 3
    device.home.audit.write_text(device.home.audit.read_text().replace('"local"', '"remote"'))
    changed = device.command("audit", check=False)
    assert changed.returncode == 1
    assert "entry 3 was changed" in changed.stderr
