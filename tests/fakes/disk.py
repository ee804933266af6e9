"""A disk that forgets what was not synced, or fails to sync, as LevelDB's fault injection does.

`DiskStore` stands between a volume and its chunk store, `watch` between it and its index. Both
keep in *durable* a copy of what a power cut would leave at this moment, in the worst case.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentfs.chunks import Store
from agentfs.index import Index

INDEX_FILES = ("index.db", "index.db-wal", "index.db-packed")


class Disk:
    """What of a store is durable, and whether syncing works."""

    def __init__(self, store: Path, durable: Path) -> None:
        self.store = store
        self.durable = durable
        self.fails = False
        self.segment_syncs = 0
        self.index_syncs = 0
        self.before_sync: Callable[[], None] = lambda: None
        """Called first in each sync of the segments, in the thread that syncs."""
        (durable / "segments").mkdir(parents=True)

    def check(self) -> None:
        if self.fails:
            raise OSError(errno.EIO, "the disk failed")

    def keep(self, name: str, size: int) -> None:
        """The first *size* bytes of a file survive, unless it was removed meanwhile."""
        if not (self.store / name).exists():
            return
        with open(self.store / name, "rb") as source, open(self.durable / name, "wb") as target:
            target.write(source.read(size))

    def sizes(self, pattern: str) -> dict[str, int]:
        return {
            str(path.relative_to(self.store)): path.stat().st_size
            for path in self.store.glob(pattern)
        }

    def cut_power(self, tmpfs: Path, *, wal_reached_the_disk: bool = False) -> None:
        """Leave of the store what was durable, and nothing on tmpfs. No volume may be open.

        :param wal_reached_the_disk: as when the kernel happened to write it back unasked
        """
        kept = INDEX_FILES if wal_reached_the_disk else ()
        for name in kept:
            if (self.store / name).exists():
                shutil.copyfile(self.store / name, self.durable / name)
        for name in INDEX_FILES:
            (self.store / name).unlink(missing_ok=True)
        shutil.rmtree(self.store / "segments")
        shutil.copytree(self.durable, self.store, dirs_exist_ok=True)
        for folder in tmpfs.iterdir():
            shutil.rmtree(folder)


class DiskStore:
    """A chunk store on a `Disk`."""

    disk: Disk

    def __init__(self, directory: Path, **options: Any) -> None:
        self._store = Store(directory, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def sync(self) -> None:
        sizes = self.disk.sizes("segments/*")
        self.disk.before_sync()
        self.disk.check()
        self._store.sync()
        self.disk.segment_syncs += 1
        for name, size in sizes.items():
            self.disk.keep(name, size)

    def add_dictionary(self, kind: int, dictionary: bytes) -> int:
        """Durable when it returns."""
        number = self._store.add_dictionary(kind, dictionary)
        for name, size in self.disk.sizes(f"segments/{number:016x}.*").items():
            if not name.endswith(".seg"):
                self.disk.keep(name, size)
        return number

    def remove_dictionary(self, number: int) -> None:
        """The worst case, as `remove`."""
        self._store.remove_dictionary(number)
        for path in (self.disk.durable / "segments").glob(f"{number:016x}.*"):
            if path.suffix != ".seg":
                path.unlink()

    def remove(self, segment: int) -> None:
        """The worst case: gone from the disk at once."""
        before = set(self.disk.sizes("segments/*"))
        self._store.remove(segment)
        for name in before - set(self.disk.sizes("segments/*")):
            (self.disk.durable / name).unlink(missing_ok=True)


def watch(index: Index, disk: Disk) -> None:
    """Put *index* on *disk*. Its checkpoints are durable, its commits only when synced."""
    sync_wal, checkpoint = index.sync_wal, index.checkpoint

    def watched_sync() -> None:
        sizes = disk.sizes("index.db-wal")
        disk.check()
        sync_wal()
        disk.index_syncs += 1
        for name, size in sizes.items():
            disk.keep(name, size)

    def watched_checkpoint() -> None:
        disk.check()
        checkpoint()
        for name, size in disk.sizes("index.db*").items():
            disk.keep(name, 0 if name.endswith("-wal") else size)

    index.sync_wal = watched_sync  # type: ignore[method-assign]
    index.checkpoint = watched_checkpoint  # type: ignore[method-assign]
