"""Requests that follow each other closely: the daemon answers some of them by a shorter way."""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

OPERATIONS = 4000
NAMES = [b"a", b"b", b"c \xff", b"d" * 255, b"e" * 256]


class Walk:
    """Random steps below a directory; what they answered."""

    def __init__(self, root: Path, seed: int) -> None:
        self._rng = random.Random(seed)
        self._root = os.fsencode(root)
        self.answers: list[object] = []

    def run(self, steps: int) -> None:
        kinds: list[Callable[[], object]] = [
            *(self._create, self._create_new, self._append, self._mkdir),
            *(self._unlink, self._rmdir, self._rename, self._look, self._list),
            *(self._read, self._read),
        ]
        for _ in range(steps):
            step = self._rng.choice(kinds)
            try:
                answer = step()
            except OSError as error:
                answer = errno.errorcode[error.errno or 0]
            self.answers.append((step.__name__, answer))

    def _path(self) -> bytes:
        depth = self._rng.choice([1, 1, 2, 3])
        return b"/".join([self._root, *self._rng.choices(NAMES, k=depth)])

    def _create(self) -> object:
        return self._open(os.O_CREAT | os.O_RDWR)

    def _create_new(self) -> object:
        return self._open(os.O_CREAT | os.O_EXCL | os.O_WRONLY)

    def _open(self, flags: int) -> object:
        fd = os.open(self._path(), flags, self._rng.choice([0o644, 0o4755, 0o600, 0o2770]))
        try:
            written = os.write(fd, b"x" * self._rng.randrange(20))
            return written, told(os.fstat(fd))
        finally:
            os.close(fd)

    def _append(self) -> object:
        fd = os.open(self._path(), os.O_WRONLY | os.O_APPEND)
        try:
            return os.write(fd, b"line\n")
        finally:
            os.close(fd)

    def _read(self) -> object:
        fd = os.open(self._path(), os.O_RDONLY)
        try:
            return os.read(fd, 100)
        finally:
            os.close(fd)

    def _mkdir(self) -> object:
        return os.mkdir(self._path(), self._rng.choice([0o755, 0o1777, 0o2770]))

    def _unlink(self) -> object:
        return os.unlink(self._path())

    def _rmdir(self) -> object:
        return os.rmdir(self._path())

    def _rename(self) -> object:
        return os.rename(self._path(), self._path())

    def _look(self) -> object:
        return told(os.lstat(self._path()))

    def _list(self) -> object:
        return sorted(os.listdir(os.path.dirname(self._path())))


def told(status: os.stat_result) -> object:
    """What two filesystems must agree on."""
    is_directory = stat.S_ISDIR(status.st_mode)
    size = 0 if is_directory else status.st_size
    return status.st_mode, status.st_nlink, status.st_uid, status.st_gid, size


@pytest.mark.parametrize("seed", range(2))
def test_a_burst_of_changes_is_answered_as_by_another_filesystem(
    mounted: Any, tmp_path: Path, seed: int
) -> None:
    beside = tmp_path / "beside"
    beside.mkdir()
    if seed % 2:  # new entries inherit the group
        for directory in (beside, mounted.path):
            directory.chmod(0o2777)
    walks = [Walk(root, seed) for root in (beside, mounted.path)]
    for walk in walks:
        walk.run(OPERATIONS)
    for number, answers in enumerate(zip(*(walk.answers for walk in walks), strict=True)):
        assert answers[0] == answers[1], f"step {number}"


def test_bursts_go_the_shorter_way(mounted: Any) -> None:
    for number in range(200):
        (mounted.path / f"{number}").touch()
        (mounted.path / f"{number}").unlink()
    relay = mounted.stats()["relay"]
    assert relay["kept"] > relay["forwarded"]
