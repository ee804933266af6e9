"""Which staged files are to be sealed now, and in which order.

A file that is closed and has rested is done being written, for now; sealing it
earlier would store every step of an appended log or a rewritten history. A file
kept open is sealed when it has held unsealed changes for long, so that a power
cut costs at most that much. Order decides what is compressed together: files of
one kind and folder share most.
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
    def is_dirty(self) -> bool: ...


F = TypeVar("F", bound=Sealable)


def is_due(file: Sealable, now: float, *, rest_s: float, open_rest_s: float) -> bool:
    """Whether *file* should be sealed at *now* (time.monotonic())."""
    if not file.is_dirty:
        return False
    if not file.writers and now - file.changed_at >= rest_s:
        return True
    return now - file.dirty_since >= open_rest_s


def packing_order(files: Iterable[F]) -> list[F]:
    """By extension, folder and name."""
    return sorted(files, key=_packing_key)


def _packing_key(file: Sealable) -> tuple[bytes, int, bytes]:
    parent, name = file.name
    _, dot, extension = name.rpartition(b".")
    return (extension if dot else b"", parent, name)
