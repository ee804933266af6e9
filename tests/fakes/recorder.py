"""A program that changes files, and writes down what it is about to do and what is done.

    python recorder.py FOLDER LOG SEED

Ends at the first error, as when the mount has died, or on SIGTERM. Each line of LOG is an
operation, as JSON, or `ok TIME` for the one before it, by time.monotonic();
`History.read` makes sense of them.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

Op = tuple[Any, ...]
"""("create", name), ("write", name, offset, tag, length), ("truncate", name, length),
("map", name, tag), which writes all of a file through a mapping and calls msync,
("chmod", name, mode), ("rename", old, new), ("link", old, new), ("unlink", name),
("fsync", name), ("fsyncdir",)."""

NAMES = 10
LENGTH_MAX = 200_000


def data_of(tag: str, length: int) -> bytes:
    """Bytes that no other tag has; every other one does not compress."""
    if len(tag) % 2:
        return random.Random(tag).randbytes(length)
    return (f"{tag};".encode() * (length // (len(tag) + 1) + 1))[:length]


class Performer:
    """Does operations below a folder. What it wrote it may keep open."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.held: dict[int, int] = {}
        """Descriptors by inode number."""

    def __call__(self, op: Op) -> None:
        kind, *arguments = op
        getattr(self, f"_{kind}")(*arguments)

    def hold(self, name: str) -> None:
        fd = os.open(self.folder / name, os.O_RDWR)
        number = os.fstat(fd).st_ino
        self._let_go(number)
        self.held[number] = fd

    def let_go_of_one(self) -> None:
        for number in list(self.held)[:1]:
            self._let_go(number)

    def _let_go(self, number: int) -> None:
        fd = self.held.pop(number, None)
        if fd is not None:
            os.close(fd)

    def _opened(self, name: str) -> int:
        """A descriptor that the caller closes."""
        path = self.folder / name
        held = self.held.get(path.stat().st_ino)
        return os.open(path, os.O_RDWR) if held is None else os.dup(held)

    def _create(self, name: str) -> None:
        os.close(os.open(self.folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))

    def _write(self, name: str, offset: int, tag: str, length: int) -> None:
        fd = self._opened(name)
        try:
            if os.pwrite(fd, data_of(tag, length), offset) < length:
                raise OSError(errno.EIO, "written in part: the mount has ended meanwhile")
        finally:
            os.close(fd)

    def _map(self, name: str, tag: str) -> None:
        fd = self._opened(name)
        try:
            length = os.fstat(fd).st_size
            with mmap.mmap(fd, length) as mapping:
                mapping[:] = data_of(tag, length)
                mapping.flush()
        finally:
            os.close(fd)

    def _truncate(self, name: str, length: int) -> None:
        os.truncate(self.folder / name, length)

    def _chmod(self, name: str, mode: int) -> None:
        os.chmod(self.folder / name, mode)

    def _rename(self, old: str, new: str) -> None:
        os.rename(self.folder / old, self.folder / new)

    def _link(self, old: str, new: str) -> None:
        os.link(self.folder / old, self.folder / new)

    def _unlink(self, name: str) -> None:
        os.unlink(self.folder / name)

    def _fsync(self, name: str) -> None:
        fd = self._opened(name)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _fsyncdir(self) -> None:
        fd = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


class Chooser:
    """Chooses operations that can be done, knowing what is there."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._rng = random.Random(seed)
        self._tag = f"{seed}"
        self._step = 0
        boxes: dict[int, list[int]] = {}
        self.sizes: dict[str, list[int]] = {}
        """The size of each file, in a box that all its names share."""
        for path in sorted(folder.iterdir()):
            status = path.stat()
            self.sizes[path.name] = boxes.setdefault(status.st_ino, [status.st_size])

    def next_op(self) -> Op:
        """The operation to do next, taken as done."""
        rng = self._rng
        self._step += 1
        tag = f"{self._tag}.{self._step}"
        free = [f"f{n}" for n in range(NAMES) if f"f{n}" not in self.sizes]
        if not self.sizes or (free and rng.random() < 0.15):
            name = rng.choice(free)
            self.sizes[name] = [0]
            return "create", name
        name = rng.choice(list(self.sizes))
        box = self.sizes[name]
        size = box[0]
        action = rng.random()
        if action < 0.35:
            offset = rng.choice([size, size, 0, rng.randrange(size + 1)])
            length = rng.choice([10, 3000, 20_000, 100_000])
            if offset + length <= LENGTH_MAX:
                box[0] = max(size, offset + length)
                return "write", name, offset, tag, length
        if action < 0.40 and size:
            return "map", name, tag
        if action < 0.47:
            box[0] = rng.choice([0, size // 2])
            return "truncate", name, box[0]
        if action < 0.52:
            return "chmod", name, rng.choice([0o600, 0o644, 0o640])
        if action < 0.70:
            new = f"f{rng.randrange(NAMES)}"
            if self.sizes.get(new) is not box:  # else it would do nothing
                self.sizes[new] = self.sizes.pop(name)
                return "rename", name, new
        if action < 0.73 and free:
            new = rng.choice(free)
            self.sizes[new] = box
            return "link", name, new
        if action < 0.77:
            del self.sizes[name]
            return "unlink", name
        if action < 0.82:
            return ("fsyncdir",)
        return "fsync", name


def main() -> None:
    """Work until something fails."""
    folder, log, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    folder.mkdir(exist_ok=True)
    rng = random.Random(seed + 1)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    perform, choose = Performer(folder), Chooser(folder, seed)
    try:
        while True:
            op = choose.next_op()
            os.write(out, json.dumps(op).encode() + b"\n")
            perform(op)
            os.write(out, f"ok {time.monotonic()}\n".encode())
            if op[0] == "write" and rng.random() < 0.3:
                perform.hold(op[1])
            elif len(perform.held) > 3:
                perform.let_go_of_one()
    except OSError as error:
        os.write(out, f"# {error}\n".encode())


if __name__ == "__main__":
    main()
