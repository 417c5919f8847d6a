"""The queue on disk: what it took survives, in order, whatever happens to the process or the disk."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sluice_serving.gateway.spool import Spool, SpoolInUse

MIB = 1 << 20


def records(first: int, count: int) -> list[bytes]:
    return [b"record %d" % i for i in range(first, first + count)]


def opened(folder: Path, limit: int = MIB, segment_bytes: int = 64) -> Spool:
    spool = Spool(folder, limit, segment_bytes)
    spool.open()
    return spool


def drain(spool: Spool, at_once: int = 3) -> list[bytes]:
    found: list[bytes] = []
    while True:
        some, mark = spool.read(at_once)
        spool.commit(mark)
        if not some:
            return found
        found += some


def test_records_come_back_in_order_over_many_segments_and_files_go_when_done(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    for i in range(0, 40, 4):
        assert spool.append(records(i, 4)) == 4
    assert len(list(tmp_path.glob("*.spool"))) > 3
    assert spool.waiting == 40
    assert drain(spool) == records(0, 40)
    assert (spool.waiting, len(list(tmp_path.glob("*.spool")))) == (0, 1)
    spool.trim()
    assert (spool.bytes, list(tmp_path.glob("*.spool"))) == (0, [])
    spool.append(records(40, 2))
    assert drain(spool) == records(40, 2)


def test_what_was_not_committed_is_read_again_by_the_next_process(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    spool.append(records(0, 20))
    _, mark = spool.read(5)
    spool.read(5)
    spool.commit(mark)
    spool.close()
    again = opened(tmp_path)
    assert again.waiting <= 20
    again.append(records(20, 5))
    found = drain(again)
    assert found[-20:] == records(5, 20)  # what was committed may come twice, nothing is missing
    assert again.waiting == 0


def test_a_line_that_was_cut_off_or_damaged_costs_only_itself(tmp_path: Path) -> None:
    spool = opened(tmp_path, segment_bytes=MIB)
    spool.append(records(0, 6))
    spool.close()
    (path,) = tmp_path.glob("*.spool")
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b"record 2", b"rEcord 2")
    path.write_bytes(b"".join(lines)[:-4])
    again = opened(tmp_path)
    again.append(records(6, 1))
    assert drain(again) == [b"record 0", b"record 1", b"record 3", b"record 4", b"record 6"]
    assert (again.corrupt, again.waiting) == (1, 0)


def test_a_full_spool_takes_what_fits_and_says_so(tmp_path: Path) -> None:
    spool = opened(tmp_path, limit=60)
    assert spool.append(records(0, 10)) == 3
    assert spool.append(records(3, 1)) == 0
    assert drain(spool) == records(0, 3)
    spool.trim()
    assert spool.append(records(3, 1)) == 1


def test_a_failing_disk_counts_nothing_as_written_and_loses_nothing_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = opened(tmp_path, segment_bytes=MIB)
    spool.append(records(0, 2))

    def no_space(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        with pytest.raises(OSError, match="No space"):
            spool.append(records(2, 2))
    assert spool.waiting == 2
    spool.append(records(2, 2))
    assert drain(spool) == records(0, 4)


def test_each_append_is_on_disk_before_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = opened(tmp_path)
    synced: list[int] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.fstat(fd).st_size), real(fd)))
    spool.append(records(0, 1))
    assert len(b"00000000 record 0\n") in synced


PROCESS = """
import sys
from pathlib import Path
from sluice_serving.gateway.spool import Spool
spool = Spool(Path(sys.argv[1]), 1 << 30, 4096)
spool.open()
n = 0
while True:
    n += spool.append([b"record %d" % i for i in range(n, n + 7)])
    print(n, flush=True)
    if n % 3 == 0:
        _, mark = spool.read(5)
        spool.commit(mark)
        print("committed", mark.lines, flush=True)
"""


def test_a_process_that_is_killed_loses_nothing_it_acknowledged(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", PROCESS, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(200)]
        process.kill()
        said += process.stdout.readlines()
    said = [line for line in said if line.endswith("\n")]
    acknowledged = max(int(line) for line in said if line[0].isdigit())
    committed = sum(int(line.split()[1]) for line in said if line.startswith("committed"))
    found = drain(opened(tmp_path), at_once=100)
    numbers = [int(record.split()[1]) for record in found]
    assert set(range(committed + 5, acknowledged)) <= set(numbers)  # 5: a commit that was not told any more
    assert numbers == sorted(numbers)


def test_a_folder_serves_one_process(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    with pytest.raises(SpoolInUse, match="SLUICE_SPOOL_DIR"):
        opened(tmp_path)
    spool.close()
    opened(tmp_path).close()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.integers(1, 6), st.sampled_from(["read", "crash", "trim"])), max_size=25))
def test_nothing_that_was_taken_is_ever_missing(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int | str]
) -> None:
    folder = tmp_path_factory.mktemp("spool")
    spool, taken, seen = opened(folder), 0, []
    for step in steps:
        if isinstance(step, int):
            taken += spool.append(records(taken, step))
        elif step == "read":
            some, mark = spool.read(4)
            seen += some
            spool.commit(mark)
        elif step == "trim":
            spool.trim()
        else:
            spool.close()
            spool = opened(folder)
    seen += drain(spool)
    first_time = list(dict.fromkeys(seen))
    assert first_time == records(0, taken)
    assert spool.waiting == 0
    spool.close()
