"""The metadata operations that metadata.py and scale.py time, in the order in which they run.

Each works through all files of one directory by full path, as programs do, and gives microseconds
per file. Python's own share is about a microsecond per system call, the same for every filesystem.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter

from bench.targets import Target

FILE_BYTES = 4096
LINE = b'{"role": "user", "content": "' + b"x" * 68 + b'"}\n'
CREATE = os.O_CREAT | os.O_EXCL | os.O_WRONLY
APPEND = os.O_APPEND | os.O_WRONLY

ABOUT = {
    "create": "open O_CREAT|O_EXCL + close of an empty file",
    "create_write": "the same with a write of 4 KiB",
    "append": "open O_APPEND, write 100 B, close; files just written",
    "stat_written": "stat after a write: the kernel has the name, and asks for the attributes",
    "stat": "stat again: the kernel answers from its caches",
    "stat_uncached": "stat after the kernel forgot the names (bench/caches.py)",
    "readdir_stat": "list the directory and stat each entry, names forgotten",
    "open_read": "open, read 4 KiB, close; read before",
    "open_read_sealed": "the same after a sync, names and pages forgotten",
    "rename": "rename within the directory",
    "unlink": "remove an empty file",
}

_words = b" ".join(b"%x" % (n * 2654435761 % (1 << 32)) for n in range(600))


def payload(number: int) -> bytes:
    """4 KiB that no other number has; hexadecimal words, compressible about 2 to 1."""
    head = b"%016d " % number
    start = number % 997
    return (head + _words[start : start + FILE_BYTES]).ljust(FILE_BYTES, b".")[:FILE_BYTES]


def _create(paths: Sequence[str]) -> None:
    for path in paths:
        os.close(os.open(path, CREATE, 0o644))


def _create_write(paths: Sequence[str], contents: Sequence[bytes]) -> None:
    for path, content in zip(paths, contents, strict=True):
        descriptor = os.open(path, CREATE, 0o644)
        os.write(descriptor, content)
        os.close(descriptor)


def _append(paths: Sequence[str]) -> None:
    for path in paths:
        descriptor = os.open(path, APPEND)
        os.write(descriptor, LINE)
        os.close(descriptor)


def _stat(paths: Sequence[str]) -> None:
    for path in paths:
        os.stat(path)


def _readdir_stat(directory: str, expected: int) -> None:
    with os.scandir(directory) as entries:
        seen = sum(1 for entry in entries if entry.stat())
    if seen != expected:
        raise RuntimeError(f"{directory} lists {seen} of {expected} files")


def _open_read(paths: Sequence[str]) -> None:
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        if len(os.read(descriptor, FILE_BYTES)) != FILE_BYTES:
            raise RuntimeError(f"{path} is short")
        os.close(descriptor)


def _rename(old: Sequence[str], new: Sequence[str]) -> None:
    for source, destination in zip(old, new, strict=True):
        os.rename(source, destination)


def _unlink(paths: Sequence[str]) -> None:
    for path in paths:
        os.unlink(path)


def measure(target: Target, tag: str, files: int) -> dict[str, float]:
    """Run every operation once over `files` files in fresh directories; microseconds per file."""
    empty, full = target.root / f"empty-{tag}", target.root / f"full-{tag}"
    empty.mkdir()
    full.mkdir()
    plain = [f"{empty}/file-{n:06d}.json" for n in range(files)]
    renamed = [f"{empty}/renamed-{n:06d}.json" for n in range(files)]
    written = [f"{full}/file-{n:06d}.json" for n in range(files)]
    seed = sum(tag.encode()) * 1_000_003
    contents = [payload(seed + n) for n in range(files)]
    taken: dict[str, float] = {}

    def timed(name: str, action: Callable[[], None]) -> None:
        start = perf_counter()
        action()
        taken[name] = (perf_counter() - start) * 1e6 / files

    timed("create", lambda: _create(plain))
    timed("create_write", lambda: _create_write(written, contents))
    timed("append", lambda: _append(written))
    timed("stat_written", lambda: _stat(written))
    timed("stat", lambda: _stat(written))
    _open_read(written)
    timed("open_read", lambda: _open_read(written))
    target.forget_names()
    timed("stat_uncached", lambda: _stat(plain))
    target.forget_names()
    timed("readdir_stat", lambda: _readdir_stat(str(full), files))
    target.sync()
    target.forget_names()
    timed("open_read_sealed", lambda: _open_read(written))
    timed("rename", lambda: _rename(plain, renamed))
    timed("unlink", lambda: _unlink(renamed))
    remove(full)
    remove(empty)
    return {name: taken[name] for name in ABOUT}


def remove(directory: Path) -> None:
    """Remove a directory of files, untimed."""
    for entry in os.scandir(directory):
        os.unlink(entry.path)
    directory.rmdir()
