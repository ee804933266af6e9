"""Which staged files are to be sealed now, and in which order.

A file that is closed and has rested is done being written, for now. One that was
sealed before is likely to change again soon: a conversation grows every few
seconds. So it may hold unsealed changes as long as a file that is kept open may,
which bounds what a power cut costs, and then all that are like it are sealed
with it: what one seal writes to the index's log, ten at a time write once.
Order decides what is compressed together: files of one kind and folder share most.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar


class Sealable(Protocol):
    """What the decision needs to know of a file."""

    writers: int
    changed_at: float
    dirty_since: float
    name: tuple[int, bytes]

    @property
    def patience_s(self) -> float: ...
    @property
    def is_dirty(self) -> bool: ...
    @property
    def was_sealed(self) -> bool: ...


F = TypeVar("F", bound=Sealable)


def due(files: Iterable[F], now: float, *, rest_s: float, open_rest_s: float) -> list[F]:
    """The files to seal at *now* (time.monotonic()).

    :param rest_s: seconds that a new file is left alone after it was closed; 0: seal all
    :param open_rest_s: seconds that one which is open, or was sealed before, may stay dirty, if
        its patience is not more
    """
    new, aged, changing = [], [], []
    for file in files:
        if not file.is_dirty:
            continue
        if now - file.dirty_since >= max(open_rest_s, file.patience_s):
            aged.append(file)
        elif file.writers:
            continue
        elif file.was_sealed and rest_s:
            changing.append(file)
        elif now - file.changed_at >= rest_s:
            new.append(file)
    return new + aged + (changing if aged else [])


def packing_order(files: Iterable[F]) -> list[F]:
    """By extension, folder and name."""
    return sorted(files, key=_packing_key)


def _packing_key(file: Sealable) -> tuple[bytes, int, bytes]:
    parent, name = file.name
    _, dot, extension = name.rpartition(b".")
    return (extension if dot else b"", parent, name)
