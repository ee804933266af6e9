"""The worker is killed. Programs notice nothing: what is open stays open, what is asked is done."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import wait_until

BUSY = Path(__file__).resolve().parents[2] / "bench" / "busy.py"
PROGRAMS, SECONDS, KILLS = 4, 9, 5

Kill = Callable[[], int]


@pytest.mark.timeout(180)
def test_programs_notice_no_kill(mounted: Any, kill_worker: Kill) -> None:
    """The short form of bench/takeover.py."""
    programs = [
        subprocess.Popen(
            [sys.executable, BUSY, mounted.path / str(number), str(SECONDS), str(number)],
            stdout=subprocess.PIPE,
        )
        for number in range(PROGRAMS)
    ]
    moments = random.Random(7)
    try:
        for _ in range(KILLS):
            time.sleep(1.1 + moments.random() / 2)  # sooner, and it would be given up
            kill_worker()
        answers = [json.loads(program.communicate(timeout=100)[0]) for program in programs]
    finally:
        for program in programs:
            program.kill()
            program.communicate()
    assert [answer["errors"] for answer in answers] == [[]] * PROGRAMS
    assert min(answer["operations"] for answer in answers) > 100
    assert max(answer["longest_s"] for answer in answers) < 2.0


def test_what_is_open_is_read_and_written_on(mounted: Any, kill_worker: Kill) -> None:
    path = mounted.path / "file"
    path.write_bytes(b"a" * 8192)
    with (
        path.open("rb", buffering=0) as reader,
        path.open("ab", buffering=0) as writer,
        mmap.mmap(os.open(path, os.O_RDWR), 0) as mapped,
    ):
        kill_worker()
        writer.write(b"b")
        mapped[0:1] = b"c"
        assert os.fstat(reader.fileno()).st_size == 8193
        assert reader.read() == b"c" + b"a" * 8191 + b"b"
        os.fsync(writer.fileno())
        kill_worker()
        assert path.read_bytes() == b"c" + b"a" * 8191 + b"b"
    path.unlink()


def test_counts_of_opens_are_right_after_it(mounted: Any, kill_worker: Kill) -> None:
    """A file that nobody has open is sealed and its copy goes; one that is open keeps its own."""
    (mounted.path / "closed").write_bytes(b"x" * 100)
    kept = (mounted.path / "open").open("wb", buffering=0)
    kept.write(b"y" * 100)
    kill_worker()
    kill_worker_when_another_serves = mounted.stats()["worker_pid"]
    assert kill_worker_when_another_serves
    mounted.agentfs("sync", mounted.path)
    assert mounted.stats()["staged_files"] == 1
    kept.close()
    mounted.agentfs("sync", mounted.path)
    assert mounted.stats()["staged_files"] == 0


def test_a_writer_that_the_relay_let_in_goes_on(mounted: Any, kill_worker: Kill) -> None:
    """Its file is not taken for one that nobody writes, which it becomes when it is closed."""
    path = mounted.path / "talk"
    text = b""
    for number in range(5):
        with path.open("ab", buffering=0) as file:
            file.write(b"turn %d\n" % number)
        text += b"turn %d\n" % number
    before = mounted.stats()["relay"]["answered_open"]
    with path.open("ab", buffering=0) as file:
        assert mounted.stats()["relay"]["answered_open"] > before
        kill_worker()
        mounted.agentfs("sync", mounted.path)
        assert mounted.stats()["staged_files"] == 1
        file.write(b"after it\n")
    text += b"after it\n"
    assert path.read_bytes() == text
    wait_until(lambda: closed_when_synced(mounted))
    mounted.remount()
    assert path.read_bytes() == text


def closed_when_synced(mounted: Any) -> bool:
    mounted.agentfs("sync", mounted.path)
    return bool(mounted.stats()["staged_files"] == 0)


def test_an_open_file_without_a_name_stays_until_it_is_closed(
    mounted: Any, kill_worker: Kill
) -> None:
    path = mounted.path / "gone"
    file = path.open("w+b", buffering=0)
    file.write(b"still here")
    path.unlink()
    kill_worker()
    assert os.fstat(file.fileno()).st_nlink == 0
    file.write(b", and more")
    assert os.pread(file.fileno(), 100, 0) == b"still here, and more"
    assert not path.exists()
    file.close()
    assert os.listdir(mounted.path) == []


def test_who_reads_an_image_keeps_it_when_the_file_is_written(
    mounted: Any, kill_worker: Kill
) -> None:
    """The name has moved to another nodeid before the kill, and does after it."""
    content = os.urandom(300_000)
    for name in ("one", "other"):
        (mounted.path / name).write_bytes(content)
    mounted.agentfs("sync", mounted.path)
    readers = [(mounted.path / name).open("rb", buffering=0) for name in ("one", "other")]
    number = os.stat(mounted.path / "one").st_ino
    with (mounted.path / "one").open("r+b", buffering=0) as writer:
        writer.write(b"new")
        kill_worker()
        assert os.fstat(readers[0].fileno()).st_size == len(content)
        assert readers[0].read() == content
        writer.write(b"er")
        assert (mounted.path / "one").read_bytes() == b"newer" + content[5:]
        assert os.stat(mounted.path / "one").st_ino == number
    with (mounted.path / "other").open("r+b", buffering=0) as writer:
        writer.write(b"other")
    assert readers[1].read() == content
    assert (mounted.path / "other").read_bytes() == b"other" + content[5:]
    kill_worker()
    assert (mounted.path / "one").read_bytes() == b"newer" + content[5:]
    for reader in readers:
        reader.close()


def test_a_listing_goes_on_where_it_was(mounted: Any, kill_worker: Kill) -> None:
    """Names that are removed as they are listed, as rm -r does, cost none of the others."""
    names = {f"{number:05}-{'x' * 60}" for number in range(4000)}
    for name in names:
        (mounted.path / name).touch()
    seen: list[str] = []
    with os.scandir(mounted.path) as entries:
        for count, entry in enumerate(entries):
            seen.append(entry.name)
            os.unlink(entry.path)
            if count in (700, 1900):
                kill_worker()
    assert sorted(seen) == sorted(names)
    assert os.listdir(mounted.path) == []


def test_a_working_directory_that_was_removed_can_still_be_left(
    mounted: Any, kill_worker: Kill
) -> None:
    folder = mounted.path / "folder"
    folder.mkdir()
    descriptor = os.open(folder, os.O_RDONLY)
    folder.rmdir()
    kill_worker()
    assert os.fstat(descriptor).st_nlink in (0, 2)
    assert os.listdir(descriptor) == []
    os.close(descriptor)


def test_numbers_of_inodes_are_not_given_twice(mounted: Any, kill_worker: Kill) -> None:
    (mounted.path / "a").touch()
    highest = os.stat(mounted.path / "a").st_ino
    held = os.open(mounted.path / "a", os.O_PATH)
    (mounted.path / "a").unlink()
    kill_worker()
    (mounted.path / "b").touch()
    assert os.stat(mounted.path / "b").st_ino > highest
    os.close(held)


def test_an_exchange_under_kills_is_done_once_each(mounted: Any, kill_worker: Kill) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    one, other = mounted.path / "one", mounted.path / "other"
    one.write_bytes(b"1")
    other.write_bytes(b"2")

    def kill_again_and_again() -> None:
        for _ in range(4):
            time.sleep(0.7)
            kill_worker()

    killer = threading.Thread(target=kill_again_and_again)
    killer.start()
    turn = 0
    while killer.is_alive():
        assert libc.renameat2(-100, bytes(one), -100, bytes(other), 2) == 0
        turn += 1
        assert (one.read_bytes() == b"2") is (turn % 2 == 1)
    killer.join()
    assert turn > 100


def test_everything_is_there_after_unmounting(mounted: Any, kill_worker: Kill) -> None:
    for number in range(50):
        (mounted.path / str(number)).write_bytes(bytes([number]) * 5000)
        if number % 20 == 10:
            kill_worker()
    mounted.remount()
    for number in range(50):
        assert (mounted.path / str(number)).read_bytes() == bytes([number]) * 5000
