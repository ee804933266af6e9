"""What a failing disk does to a store: flipped bits, missing ends, missing files."""

from __future__ import annotations

import errno
from pathlib import Path

from agentfs.index import Index
from agentfs.model import Location
from fakes.volumes import Shell


def flip(path: Path, offset: int, bit: int = 0) -> None:
    """Flip one bit of the byte at *offset*."""
    with open(path, "r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 1 << bit]))


def flip_in_log(store: Path) -> None:
    """Damage an entry in the middle of the index's log."""
    log = store / "index.db-wal"
    flip(log, log.stat().st_size // 2)


def segment_path(store: Path, segment: int) -> Path:
    return store / "segments" / f"{segment:016x}.seg"


def place_of(shell: Shell, path: str, chunk: int = 0) -> Location:
    """Where a chunk of a sealed file lies: the first, unless told."""
    (found, _) = shell.recipe(path)[chunk]
    assert found is not None
    (place,) = shell.volume.index.contents.locate([found])
    return place


def damage_block(store: Path, place: Location) -> None:
    """Flip a bit in the middle of the block's payload."""
    flip(segment_path(store, place.segment), place.offset + 40)


def blocks(store: Path) -> list[tuple[int, int, int]]:
    """(segment, offset, stored bytes) of all blocks of an unmounted store."""
    index = Index(store, read_only=True)
    found = index.execute("SELECT segment, offset, stored FROM block ORDER BY 1, 2").fetchall()
    index.close()
    return found


async def is_lost(shell: Shell, path: str, offset: int = 0, size: int = 100) -> bool:
    """Whether reading gives EIO. Any other error is one of the test."""
    try:
        await shell.read(path, offset, size)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return True
    return False
