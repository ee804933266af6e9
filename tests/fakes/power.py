"""A disk whose power can be cut: a filesystem on a loop device that is shut down unflushed."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import time
from pathlib import Path

import pytest

FS_IOC_SHUTDOWN = 0x8004587D
"""_IOR('X', 125, __u32), of ext4 and XFS."""
NOLOGFLUSH = 2

SIZE_BYTES = 512 << 20
LET_GO_S = 20.0


class LoopDisk:
    """A filesystem that is mounted at a path."""

    def __init__(self, path: Path, kind: str) -> None:
        self.path = path
        self._image = path.with_name(f"{path.name}.{kind}")
        # A copy of the image has the same UUID as the one that is still mounted somewhere.
        self._options = "loop,nouuid" if kind == "xfs" else "loop"
        with open(self._image, "wb") as image:
            image.truncate(SIZE_BYTES)
        self._call(f"mkfs.{kind}", "-q", self._image)
        path.mkdir()
        self._call("mount", "-o", self._options, self._image, path)
        if (path / "lost+found").exists():
            (path / "lost+found").rmdir()

    @staticmethod
    def _call(*command: str | Path) -> None:
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            pytest.skip(f"no filesystem to cut the power of: {error}")
        if done.returncode:
            pytest.skip(f"no filesystem to cut the power of: {done.stderr.strip()}")

    def cut_power(self) -> None:
        """From now on nothing reaches the disk, and what has not been flushed never will."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, FS_IOC_SHUTDOWN, struct.pack("I", NOLOGFLUSH))
        finally:
            os.close(fd)

    def restart(self) -> None:
        """Mount again what is on the disk, as soon as those who were killed have let go of it."""
        deadline = time.monotonic() + LET_GO_S
        while subprocess.run(["umount", self.path], capture_output=True, check=False).returncode:
            assert time.monotonic() < deadline, f"{self.path} is in use"
            time.sleep(0.05)
        self._leave_copies_behind()
        subprocess.run(["mount", "-o", self._options, self._image, self.path], check=True)

    def _leave_copies_behind(self) -> None:
        """Have an image of our own, if somebody made a mount namespace while this was mounted.

        The filesystem lives on in there, shut down, and mounting its image would give it back.
        """
        attached = subprocess.check_output(["losetup", "--associated", self._image])
        if attached:
            fresh = self._image.with_suffix(".fresh")
            subprocess.run(["cp", "--sparse=always", self._image, fresh], check=True)
            fresh.replace(self._image)

    def remove(self) -> None:
        subprocess.run(["umount", "-l", self.path], check=False)
        self._image.unlink()
