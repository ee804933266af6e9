"""The table of docs/RELAY.md: who sees what when a file whose content others share is written."""

from __future__ import annotations

import mmap
import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SHARED = bytes(range(256)) * 400
NOBODY = "65534"


def by_open(path: Path) -> bytes:
    fd = os.open(path, os.O_RDWR)
    os.pwrite(fd, b"NEW", 10)
    os.close(fd)
    return SHARED[:10] + b"NEW" + SHARED[13:]


def by_o_trunc(path: Path) -> bytes:
    fd = os.open(path, os.O_WRONLY | os.O_TRUNC)
    os.write(fd, b"short")
    os.close(fd)
    return b"short"


def by_truncate(path: Path) -> bytes:
    os.truncate(path, 50_000)
    return SHARED[:50_000]


def by_truncate_to_nothing(path: Path) -> bytes:
    os.truncate(path, 0)
    return b""


def by_append(path: Path) -> bytes:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.write(fd, b"tail")
    os.close(fd)
    return SHARED + b"tail"


def by_mapping(path: Path) -> bytes:
    fd = os.open(path, os.O_RDWR)
    with mmap.mmap(fd, 0) as mapping:
        mapping[5:8] = b"MAP"
        mapping.flush()
    os.close(fd)
    return SHARED[:5] + b"MAP" + SHARED[8:]


def by_rename_over(path: Path) -> bytes:
    other = path.with_name("other")
    other.write_bytes(b"renamed")
    other.rename(path)
    return b"renamed"


def by_unlink(path: Path) -> None:
    path.unlink()


def by_hard_link(path: Path) -> bytes:
    return by_open(path.with_name("link"))


def by_another_user(path: Path) -> bytes:
    path.chmod(0o666)
    append = f"printf X >> {shlex.quote(str(path))}"
    command = ["setpriv", "--reuid", NOBODY, "--clear-groups", "sh", "-c", append]
    subprocess.run(command, check=True, timeout=20)
    return SHARED + b"X"


def read_through(fd: int) -> bytes:
    return os.pread(fd, 2 * len(SHARED), 0)


WRITERS = [
    by_open,
    by_o_trunc,
    by_truncate,
    by_truncate_to_nothing,
    by_append,
    by_mapping,
    by_rename_over,
    by_unlink,
    by_hard_link,
    by_another_user,
]
READERS = ["nobody", "one", "both", "one maps", "both map"]


@pytest.fixture
def shared(mounted: Any, open_to_all: None) -> Path:
    """A directory for each reader with two files of one sealed content, one of them linked."""
    for reader in READERS:
        directory = mounted.path / reader
        directory.mkdir()
        for name in ("file", "twin"):
            (directory / name).write_bytes(SHARED)
        os.link(directory / "file", directory / "link")
    mounted.agentfs("sync", mounted.path)
    path: Path = mounted.path
    path.chmod(0o755)
    return path


@pytest.mark.skipif(os.geteuid() != 0, reason="writing as another user takes root")
@pytest.mark.parametrize("write", WRITERS)
def test_a_write_changes_one_file_and_nobody_reads_anothers_bytes(
    shared: Path, write: Callable[[Path], bytes | None]
) -> None:
    for reader in READERS:
        file, twin, link = (shared / reader / name for name in ("file", "twin", "link"))
        opened = {"nobody": (), "one": (file,), "one maps": (file,)}.get(reader, (file, twin))
        fds = [os.open(path, os.O_RDONLY) for path in opened]
        maps = [mmap.mmap(fd, 0, prot=mmap.PROT_READ) for fd in fds] if "map" in reader else []
        number = file.stat().st_ino
        wanted = write(file)
        leaves_inode = write in (by_rename_over, by_unlink)
        if wanted is None:
            assert not file.exists(), reader
        else:
            assert file.read_bytes() == wanted, reader
            assert file.stat().st_size == len(wanted), reader
        assert link.read_bytes() == (SHARED if leaves_inode else wanted), reader
        assert link.stat().st_ino == number, reader
        assert twin.read_bytes() == SHARED, reader
        if fds:
            assert read_through(fds[0]) in (SHARED, wanted), reader
        for fd in fds[1:]:
            assert read_through(fd) == SHARED, reader
        for mapping in maps[1:]:
            assert mapping[:] == SHARED, reader
        for mapping in maps:
            mapping.close()
        for fd in fds:
            os.close(fd)


def test_a_reader_of_unshared_content_sees_what_is_appended(mounted: Any) -> None:
    """As `tail -f` needs it: the log had been sealed before both came."""
    log = mounted.path / "log"
    log.write_bytes(b"one\n")
    mounted.agentfs("sync", mounted.path)
    with log.open("rb") as reader:
        assert reader.read() == b"one\n"
        with log.open("ab") as writer:
            writer.write(b"two\n")
        assert os.fstat(reader.fileno()).st_size == 8
        assert reader.read() == b"two\n"


def test_a_mapping_sees_what_is_appended_within_its_length(mounted: Any) -> None:
    log = mounted.path / "log"
    log.write_bytes(b"a" * 4096)
    with log.open("r+b") as writer, log.open("rb") as reader:
        writer.seek(0, os.SEEK_END)
        writer.write(b"b" * 4096)
        writer.flush()
        with mmap.mmap(reader.fileno(), 0, prot=mmap.PROT_READ) as mapping:
            assert mapping[:] == b"a" * 4096 + b"b" * 4096
