"""Files that are read again and again: after the first time nobody asks the daemon."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import run_agentfs, wait_until

TEXT = b"You are a helpful assistant.\n" * 1000


@pytest.fixture
def prompt(mounted: Any) -> Path:
    """A file that the daemon lets programs open without asking it."""
    path: Path = mounted.path / "prompt"
    path.write_bytes(TEXT)
    until_granted(mounted, path)
    return path


def granted(mounted: Any) -> int:
    return int(mounted.stats()["relay"]["answered_open"])


def until_granted(mounted: Any, path: Path) -> None:
    """The close of who read it last may not have reached the daemon yet."""

    def is_granted() -> bool:
        before = granted(mounted)
        path.read_bytes()
        return granted(mounted) > before

    wait_until(is_granted)


def opened(path: Path) -> int:
    return os.open(path, os.O_RDONLY)


def drop_pages(fd: int) -> None:
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def test_opens_that_follow_need_no_python(mounted: Any, prompt: Path) -> None:
    before = mounted.stats()["relay"]
    for _ in range(100):
        assert prompt.read_bytes() == TEXT
    after = mounted.stats()["relay"]
    assert after["answered_open"] - before["answered_open"] == 100
    assert after["answered_release"] - before["answered_release"] >= 99


def test_bytes_that_the_kernel_has_no_more_are_asked_for(mounted: Any, prompt: Path) -> None:
    fd = opened(prompt)
    for seal in (False, True):
        if seal:
            mounted.agentfs("sync", mounted.path)
        drop_pages(fd)
        assert os.pread(fd, len(TEXT) + 1, 0) == TEXT
        assert os.pread(fd, 100, 3000) == TEXT[3000:3100]
    os.close(fd)


def test_a_file_that_is_removed_is_there_for_who_was_let_in(mounted: Any, prompt: Path) -> None:
    fd = opened(prompt)
    prompt.unlink()
    mounted.agentfs("sync", mounted.path)
    mounted.agentfs("gc", mounted.path)
    drop_pages(fd)
    assert os.pread(fd, len(TEXT), 0) == TEXT
    assert os.fstat(fd).st_nlink == 0
    os.close(fd)
    wait_until(lambda: mounted.stats()["files"] == 0)
    mounted.agentfs("gc", mounted.path)
    assert mounted.stats()["logical_bytes"] == 0


def test_a_file_that_is_replaced_is_there_for_who_was_let_in(mounted: Any, prompt: Path) -> None:
    fd = opened(prompt)
    other = prompt.with_name("other")
    other.write_bytes(b"new")
    other.rename(prompt)
    assert prompt.read_bytes() == b"new"
    assert os.pread(fd, len(TEXT), 0) == TEXT
    os.close(fd)
    assert prompt.read_bytes() == b"new"


def test_what_is_written_is_seen_by_who_was_let_in_and_by_who_comes(prompt: Path) -> None:
    fd = opened(prompt)
    with prompt.open("r+b", buffering=0) as writer:
        for turn in range(10):
            writer.write(b"%08d" % turn)
            assert os.pread(fd, 8 * turn + 8, 0)[8 * turn :] == b"%08d" % turn
            assert prompt.read_bytes()[: 8 * turn + 8] == os.pread(fd, 8 * turn + 8, 0)
    prompt.write_bytes(b"short")
    assert os.fstat(fd).st_size == 5
    assert os.pread(fd, 100, 0) == prompt.read_bytes() == b"short"
    os.truncate(prompt, 2)
    assert os.pread(fd, 100, 0) == prompt.read_bytes() == b"sh"
    os.close(fd)


def test_who_truncates_by_opening_for_reading_is_seen(prompt: Path) -> None:
    assert prompt.stat().st_size == len(TEXT)
    os.close(os.open(prompt, os.O_RDONLY | os.O_TRUNC))
    assert prompt.stat().st_size == 0
    with prompt.open("ab") as writer:
        writer.write(b"more")
    assert prompt.read_bytes() == b"more"


def test_the_read_that_follows_a_change_is_recorded(mounted: Any, prompt: Path) -> None:
    """Or the one after that: in relay mode it may come before the close of who wrote."""

    def is_recorded(path: Path) -> bool:
        path.read_bytes()
        status = path.stat()
        return status.st_atime_ns > max(status.st_mtime_ns, status.st_ctime_ns)

    fd = opened(prompt)  # it stays known to be open meanwhile
    with prompt.open("ab") as writer:
        writer.write(b"more")
    wait_until(lambda: is_recorded(prompt))
    os.utime(prompt, ns=(1, 2))
    assert prompt.stat().st_atime_ns == 1
    wait_until(lambda: is_recorded(prompt))
    until_granted(mounted, prompt)
    renamed = prompt.rename(prompt.with_name("renamed"))
    wait_until(lambda: is_recorded(renamed))
    os.close(fd)


def test_what_a_program_may_no_longer_read_it_cannot_open(
    mounted: Any, prompt: Path, as_root: None, open_to_all: None, run_as: Any
) -> None:
    prompt.chmod(0o644)
    until_granted(mounted, prompt)
    code = "print(open(sys.argv[1]).read(3))"
    assert run_as(1000, code, prompt) == "You\n"
    prompt.chmod(0o600)
    refused = "try:\n    open(sys.argv[1])\nexcept PermissionError:\n    print('refused')"
    assert run_as(1000, refused, prompt) == "refused\n"


def test_who_opens_all_the_time_does_not_keep_others_waiting(
    mounted: Any, prompt: Path, script: Any
) -> None:
    code = "while True: os.close(os.open(sys.argv[1], os.O_RDONLY))"
    readers = [script(code, prompt) for _ in range(4)]
    try:
        for number in range(10):
            (mounted.path / f"{number}").write_bytes(b"%d" % number)
            assert run_agentfs("sync", mounted.path, timeout=20).returncode == 0
    finally:
        for reader in readers:
            reader.kill()
            reader.communicate()


def test_many_files_are_read_again(mounted: Any) -> None:
    paths = [mounted.path / f"{number}" for number in range(300)]
    for number, path in enumerate(paths):
        path.write_bytes(b"%d" % number * 10)
    for _ in range(3):
        for number, path in enumerate(paths):
            assert path.read_bytes() == b"%d" % number * 10
    for path in paths:
        path.unlink()
    wait_until(lambda: mounted.stats()["relay"]["attached"] == 0)
    assert mounted.stats()["files"] == 0
