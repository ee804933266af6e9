"""Staged files: the private, uncompressed copy that a file is written through.

One file per inode, named by its number in hexadecimal, in one of two
directories: on tmpfs, or on the store's disk for what tmpfs has no room for.
Its length and mtime are the file's own while it is staged, so the files alone
say what a killed daemon knew: the next mount takes them over. A name appears
only when the copy behind it is complete (copies are made under `.tmp`).

Inodes that were cloned before they were sealed share one file, each by a name of
its own. Such a file is *frozen*: its mode has no write permission, and nobody
writes it again by any name, not even the last one. Its times are in the rows.

What a crash of the machine leaves of them is worth nothing: they are not synced
while they are written, so the disk may have kept a length without its bytes.
`boot` in the store names the boot they belong to; there is none after an
orderly end, which syncs what is left.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import trio

from agentfs.config import ram_bytes
from agentfs.errors import StoreUnusable
from agentfs.filesystem.mutex import Mutex
from agentfs.filesystem.ranges import copy_data
from agentfs.filesystem.room import Room
from agentfs.model import SECTOR_BYTES

log = logging.getLogger(__name__)

TMPFS = Path("/dev/shm")
OWN_TMPFS = Path("/run/agentfs")
"""Below it each store mounted by root has a tmpfs of its own."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

_INCOMPLETE = ".tmp"
_IMAGES = "images"
_OWNER = "store"
_BOOT = "boot"
_NOT_STAGED = {_IMAGES, _OWNER}
_ROOM_TRIES = 4
_ROWS_SHARE = 0.05
"""Of bytes that are sealed: what the index takes for chunks of 4 KiB, headers included."""
_NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
_FROZEN_MODE = 0o400

_FILES_MAX = 65_536
"""Staged at once, however small they are: each takes 7 kB, with its page and inode on tmpfs and
what we know of it. Beyond that nothing new is staged before something has been sealed."""

_WRITE_BEHIND_BYTES = 64 << 20
"""Written to staged files on disk before it is waited for: well below what makes the kernel hold up
whoever writes next, which would be the event loop."""


def open_private_directory(path: Path) -> Path:
    """Make *path* a directory that only we can enter.

    :raises StoreUnusable: it exists and is another user's, or is not a directory
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise StoreUnusable(f"{path} belongs to someone else; remove it or unmount there")
    os.chmod(path, 0o700)
    return path


def mount_tmpfs(path: Path, budget_bytes: int) -> None:
    """Mount a tmpfs at *path* that only we can enter; one that a daemon left is taken over.

    Its size is more than the budget: what goes beyond that is on its way out, but a program
    that writes one large file through the kernel must not find it full. Huge pages make
    mapping 50 MB a thousand times cost 1 MB of page tables instead of 20.

    :raises StoreUnusable: it cannot be mounted
    """
    open_private_directory(path)
    options = f"size={max(2 * budget_bytes, ram_bytes() // 2)},mode=0700,nosuid,nodev,noexec"
    if os.path.ismount(path):
        options = f"remount,{options}"
    for attempt in (f"{options},huge=within_size", options):
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", attempt, "agentfs", str(path)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 0:
            return
    raise StoreUnusable(f"no tmpfs can be mounted at {path}: {done.stderr.strip()}")


def directory_on_tmpfs(store_id: str, *, private: bool) -> Path:
    """Where the staged files of a store lie that are not on its disk.

    :param private: on a tmpfs of our own
    """
    return OWN_TMPFS / store_id if private else TMPFS / f"agentfs-{os.geteuid()}-{store_id}"


def is_anothers(directory: Path, store: Path) -> bool:
    """Whether *directory* is another user's, or has staged files of another copy of *store*.

    Everybody may make directories in /dev/shm, and can see how ours are named.
    """
    try:
        status = os.lstat(directory)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            return True
        owner = Path(os.fsdecode((directory / _OWNER).read_bytes()))
        return not owner.samefile(store)
    except OSError:
        return False  # there are none, or their store was moved to here


def was_used_in_this_boot(store: Path) -> bool:
    """Whether a daemon that was killed had the store, and the machine has run on since."""
    try:
        return (store / _BOOT).read_text() == BOOT_ID.read_text()
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """No other daemon mounts or unmounts below OWN_TMPFS meanwhile."""
    fd = os.open(open_private_directory(OWN_TMPFS), os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def unmount_orphans() -> None:
    """Give back the tmpfs of stores that were deleted while no daemon could notice.

    One with staged files stays: its store may only have been moved, or not be mounted yet.
    One with nothing at all is of a daemon that was killed while it mounted or unmounted.
    To be called alone.
    """
    for path in OWN_TMPFS.iterdir():
        with contextlib.suppress(FileNotFoundError):  # somebody else took it away
            if _is_orphan(path):
                unmount(path)


def _is_orphan(path: Path) -> bool:
    names = set(os.listdir(path))
    if _OWNER not in names:
        return not names
    owner = Path(os.fsdecode((path / _OWNER).read_bytes()))
    if not _is_gone(owner):
        return False
    if names - _NOT_STAGED:
        log.warning("%s has staged files of %s, which is not there", path, owner)
        return False
    log.info("the store of %s is gone: unmounted", path)
    return True


def _is_gone(store: Path) -> bool:
    """Whether it is certain that there is nothing: its disk may only have failed."""
    try:
        os.stat(store)
    except OSError as error:
        return error.errno in (errno.ENOENT, errno.ENOTDIR)
    return False


def unmount(path: Path) -> None:
    """Unmount a tmpfs and remove its mountpoint, whoever looks into it. To be called alone."""
    if os.path.ismount(path):
        subprocess.run(["umount", "--lazy", str(path)], check=False)
    path.rmdir()


class StagedFile:
    """One staged file; its descriptor is open only while something uses it."""

    __slots__ = ("counted_bytes", "fd", "is_frozen", "is_moving", "on_disk", "path", "sharers")

    def __init__(self, path: str, *, on_disk: bool, fd: int | None = None) -> None:
        self.path = path
        self.on_disk = on_disk
        self.fd = fd  # owned; closed by close()
        self.counted_bytes = 0
        """Its part of the staging's used_bytes, or disk_bytes."""
        self.is_moving = False
        """Being copied to disk: what is written now would be left behind."""
        self.is_frozen = False
        """Other inodes have, or had, the same file: who wants to write makes a copy."""
        self.sharers: set[StagedFile] | None = None
        """Those that have it now, this one included; one of them is counted for it."""

    def descriptor(self) -> int:
        """A descriptor open for reading and, unless frozen, writing; kept until close()."""
        if self.fd is None:
            access = os.O_RDONLY if self.is_frozen else os.O_RDWR
            self.fd = os.open(self.path, access | os.O_CLOEXEC)
        return self.fd

    @contextlib.contextmanager
    def opened(self, access: int = os.O_RDONLY) -> Iterator[int]:
        """A descriptor that no close() takes away meanwhile."""
        fd = os.open(self.path, access | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)

    def close(self) -> None:
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None


class Staging:
    """The staged files of one store."""

    def __init__(
        self, store: Path, store_id: str, budget_bytes: int, *, private: bool = False
    ) -> None:
        """
        :param store: its directory; staged files that tmpfs cannot take go below it
        :param store_id: names the directory on tmpfs
        :param budget_bytes: what may lie on tmpfs at once
        :param private: use a tmpfs of our own, with huge pages; takes root
        """
        self._disk = open_private_directory(store / "staging")
        directory = directory_on_tmpfs(store_id, private=private)
        self._own_tmpfs = directory if private else None
        self._fast = directory if private or TMPFS.is_dir() else self._disk
        with alone() if private else contextlib.nullcontext():
            if private:
                unmount_orphans()
                mount_tmpfs(directory, budget_bytes)
            if self._fast is not self._disk:
                owner = open_private_directory(directory) / _OWNER
                owner.write_bytes(os.fsencode(store.absolute()))
        self.room = Room(store)
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        """On tmpfs: staged files, by the sizes they were counted with, and resident images."""
        self.disk_bytes = 0
        """Of staged files on disk."""
        self.files = 0
        """How many are staged."""
        self._unsynced: set[str] = set()
        """Paths on disk that were written since the last flush, and how much that was."""
        self._unsynced_bytes = 0
        self._flushing = Mutex()
        self.image_bytes = 0
        """Of used_bytes, the images."""
        self.evicted_bytes = 0
        """Of images that were dropped, so far."""
        self.evicted_ahead_bytes = 0
        """Of these, before the room was wanted."""
        self.expected_bytes = 0
        """By how much used_bytes is about to grow."""
        self.slows_writers = False
        """Memory is so short that tmpfs takes nothing new, and who writes waits for a seal."""
        self.waits = 0
        """How often a program had to wait for room."""
        self.refusals = 0
        """How often tmpfs did not take something."""
        self.is_wanted = trio.Event()
        """Set by who waits for room that sealing would make."""
        self.was_made = trio.Event()
        """Set, and replaced, whenever there may be more room."""
        self.make_room: Callable[[int], bool] = lambda wanted_bytes: False
        """Frees room on tmpfs for so many bytes more; replaced by whoever keeps images there."""
        self._boot = store / _BOOT
        self._drop_what_a_crash_left()
        if not self._boot.exists():  # else a worker before us wrote and synced it
            self._boot.write_text(BOOT_ID.read_text())
            sync_path(self._boot)
            sync_path(store)

    def _drop_what_a_crash_left(self) -> None:
        if not self._boot.exists() or self._boot.read_text() == BOOT_ID.read_text():
            return
        for name in os.listdir(self._disk):
            log.warning("staged file %s was being written when the machine stopped: dropped", name)
            os.unlink(self._disk / name)
        self._boot.unlink()

    def _path(self, inode_id: int, *, on_disk: bool) -> str:
        return f"{self._disk if on_disk else self._fast}/{inode_id:x}"

    def create(self, inode_id: int, size_bytes: int = 0) -> StagedFile:
        """An empty staged file, for content that will be about *size_bytes* long."""
        on_disk = self._fast is self._disk or not self.takes(size_bytes)
        path = self._path(inode_id, on_disk=on_disk)
        try:
            fd = os.open(path, _NEW_FILE, 0o600)
        except OSError as error:
            if error.errno != errno.ENOSPC or on_disk:
                raise
            path, on_disk = self._path(inode_id, on_disk=True), True
            fd = os.open(path, _NEW_FILE, 0o600)
        return self._new(path, on_disk=on_disk, fd=fd)

    def _new(self, path: str, *, on_disk: bool, fd: int | None = None) -> StagedFile:
        self.files += 1
        return StagedFile(path, on_disk=on_disk, fd=fd)

    def create_incomplete(
        self, inode_id: int, size_bytes: int, *, on_disk: bool = False
    ) -> StagedFile:
        """Like `create`, under a name that a restart discards; see `complete`."""
        on_disk = on_disk or self._fast is self._disk or not self.takes(size_bytes)
        path = self._path(inode_id, on_disk=on_disk) + _INCOMPLETE
        fd = os.open(path, _NEW_FILE, 0o600)
        return self._new(path, on_disk=on_disk, fd=fd)

    def complete(self, staged: StagedFile) -> None:
        """Give a finished copy its name."""
        final = staged.path.removesuffix(_INCOMPLETE)
        os.rename(staged.path, final)
        staged.path = final

    def accept(self, inode_id: int, path: str) -> StagedFile:
        """Make a file that lies on the tmpfs already a staged one."""
        staged = self._new(self._path(inode_id, on_disk=False), on_disk=False)
        os.rename(path, staged.path)
        return staged

    def image_directory(self) -> Path:
        """Where resident images lie: beside the staged files on tmpfs."""
        return open_private_directory(self._fast / _IMAGES)

    def share(self, staged: StagedFile, inode_id: int) -> StagedFile:
        """Freeze a staged file and give another inode a name of it."""
        if not staged.is_frozen:
            os.chmod(staged.path, _FROZEN_MODE)  # by which the next mount knows it
            staged.is_frozen = True
        path = self._path(inode_id, on_disk=staged.on_disk)
        os.link(staged.path, path)
        twin = self._new(path, on_disk=staged.on_disk)
        _join(staged, twin)
        return twin

    def discard(self, staged: StagedFile) -> None:
        """Remove a staged file and, unless others share them, its bytes."""
        self.let_go(staged)
        os.unlink(staged.path)

    def replace(self, staged: StagedFile, own: StagedFile) -> None:
        """A complete copy, *own*, has taken the place of a frozen file."""
        self.let_go(staged)
        if staged.path != own.path:
            os.unlink(staged.path)

    def let_go(self, staged: StagedFile) -> None:
        """Count and use a staged file no more; its name is the caller's to deal with."""
        if staged.sharers is not None:
            staged.sharers.remove(staged)
            for heir in staged.sharers:
                heir.counted_bytes += staged.counted_bytes
                staged.counted_bytes = 0
                break
            staged.sharers = None
        self.count(staged, 0)
        self.files -= 1
        staged.close()

    def count(self, staged: StagedFile, size_bytes: int) -> None:
        """Note how long a staged file is now."""
        growth = size_bytes - staged.counted_bytes
        staged.counted_bytes = size_bytes
        if staged.on_disk:
            self.disk_bytes += growth
        else:
            self.used_bytes += growth

    def size_of(self, staged: StagedFile) -> int:
        return os.stat(staged.path if staged.fd is None else staged.fd).st_size

    def taken_bytes(self, staged: StagedFile) -> int:
        """What a staged file really takes: without holes, with what is reserved beyond its end."""
        status = os.stat(staged.path if staged.fd is None else staged.fd)
        return status.st_blocks * SECTOR_BYTES

    def count_images(self, growth_bytes: int) -> None:
        """Note that images take so much more, or less, of tmpfs."""
        self.used_bytes += growth_bytes
        self.image_bytes += growth_bytes

    def evict(self, size_bytes: int) -> None:
        """Note that an image of so many bytes was dropped."""
        self.count_images(-size_bytes)
        self.evicted_bytes += size_bytes

    def make_room_ahead(self) -> None:
        """Be within the budget, also with what is expected: nobody is to wait for an eviction."""
        before = self.evicted_bytes
        is_ahead = self.used_bytes <= self.budget_bytes
        self.make_room(self.expected_bytes)
        if is_ahead:
            self.evicted_ahead_bytes += self.evicted_bytes - before

    async def wait_for_room(self, wanted_bytes: int = 0) -> None:
        """Return when tmpfs may take so much more, or when sealing does not get it there.

        While writers are slowed, wait for the next tick first, which is not hurried: that would
        take from those who are short of memory. What is written goes to disk then.
        """
        if self.slows_writers:
            self.waits += 1
            await self.was_made.wait()
        for _ in range(_ROOM_TRIES if wanted_bytes <= self.budget_bytes else 0):
            if not self._is_crowded and (self.slows_writers or self.fits(wanted_bytes)):
                return
            self.waits += 1
            self.is_wanted.set()
            await self.was_made.wait()

    @property
    def makes_wait(self) -> bool:
        """Whether who is about to stage one more file calls `wait_for_room` first."""
        return self.slows_writers or self._is_crowded

    @property
    def _is_crowded(self) -> bool:
        """Whether so many files are staged that some must be sealed before there are more."""
        return self.files >= _FILES_MAX

    @property
    def files_share(self) -> float:
        """Of the files that may be staged, those that are."""
        return self.files / _FILES_MAX

    @property
    def staged_bytes(self) -> int:
        """On tmpfs, of files that are not sealed."""
        return self.used_bytes - self.image_bytes

    async def write_behind(self, staged: StagedFile, size_bytes: int) -> None:
        """Return when so much more may be written on disk: a slow disk slows who writes.

        :raises OSError: what was written before has not reached the disk
        """
        while self._unsynced and self._unsynced_bytes + size_bytes > _WRITE_BEHIND_BYTES:
            async with self._flushing:
                if self._unsynced_bytes + size_bytes > _WRITE_BEHIND_BYTES:
                    paths, self._unsynced, self._unsynced_bytes = self._unsynced, set(), 0
                    await trio.to_thread.run_sync(_sync_those_left, paths)
        self._unsynced.add(staged.path)
        self._unsynced_bytes += size_bytes

    def free_bytes(self) -> int:
        """Room on the disk that neither the reserve nor sealing what is staged will want."""
        staged_bytes = self.staged_bytes + self.disk_bytes
        rows_bytes = int(staged_bytes * _ROWS_SHARE)
        return max(self.room.spare_bytes() - staged_bytes - rows_bytes, 0)

    def lacks_disk(self, growth_bytes: int) -> bool:
        """Whether so much more, sealed after all that is staged, might find the disk full."""
        return self.free_bytes() <= growth_bytes

    def require_disk(self, size_bytes: int) -> None:
        """:raises OSError: ENOSPC, when so much would take the room of what is staged"""
        if self.lacks_disk(size_bytes):
            raise OSError(errno.ENOSPC, "no space left below the store")

    async def wait_for_disk(self, growth_bytes: int) -> None:
        """Return when sealing has made sure of room on disk for so much more.

        :raises OSError: ENOSPC, when it has not
        """
        for _ in range(_ROOM_TRIES):
            self.is_wanted.set()
            await self.was_made.wait()
            if not self.lacks_disk(growth_bytes):
                return
        raise OSError(errno.ENOSPC, "no space left below the store")

    @property
    def is_safe_unasked(self) -> bool:
        """Whether the disk can take all that the kernel may write to tmpfs without asking."""
        return self.room.recent_spare_bytes() > self.budget_bytes

    def fits(self, growth_bytes: int) -> bool:
        """Whether tmpfs may take *growth_bytes* more."""
        return self.used_bytes + growth_bytes <= self.budget_bytes or self.make_room(growth_bytes)

    def takes(self, growth_bytes: int) -> bool:
        """Whether so much more is to go to tmpfs, and not to disk."""
        if not self.slows_writers and self.fits(growth_bytes):
            return True
        self.refusals += 1
        return False

    def copy_to_disk(self, staged: StagedFile) -> int:
        """Copy a staged file from tmpfs to the store's disk; a descriptor of the copy.

        Safe in any thread while nobody writes to it; `switch_to_disk` is to follow.
        """
        size = self.size_of(staged)
        self.room.require(size)
        target = self._disk_path(staged)
        source = staged.descriptor()
        fd = os.open(target + _INCOMPLETE, _NEW_FILE, 0o600)
        try:
            copy_data(source, fd, size)
            os.fdatasync(fd)  # else the kernel holds up whoever writes next
        except BaseException:
            os.close(fd)
            os.unlink(target + _INCOMPLETE)
            raise
        return fd

    def switch_to_disk(self, staged: StagedFile, fd: int) -> None:
        """Let the copy that `copy_to_disk` made take the place of the file on tmpfs."""
        status = os.stat(staged.path)
        target = self._disk_path(staged)
        os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))
        os.rename(target + _INCOMPLETE, target)
        os.unlink(staged.path)
        self.let_go(staged)
        self.files += 1
        staged.fd, staged.path, staged.on_disk, staged.is_frozen = fd, target, True, False
        self.count(staged, status.st_size)

    def _disk_path(self, staged: StagedFile) -> str:
        return f"{self._disk}/{os.path.basename(staged.path)}"

    def survivors(self) -> Iterator[tuple[int, StagedFile, os.stat_result]]:
        """(inode number, staged file, its status) of what an earlier daemon left.

        Drops unfinished copies.
        """
        shared: dict[tuple[int, int], StagedFile] = {}
        for directory, on_disk in ((self._disk, True), (self._fast, False)):
            if directory is self._disk and not on_disk:
                continue
            for entry in os.scandir(directory):
                if entry.name in _NOT_STAGED:
                    continue
                if entry.name.endswith(_INCOMPLETE):
                    os.unlink(entry.path)
                    continue
                staged = self._new(entry.path, on_disk=on_disk)
                status = entry.stat()
                staged.is_frozen = not status.st_mode & stat.S_IWUSR
                first = shared.setdefault((status.st_dev, status.st_ino), staged)
                if first is staged:
                    self.count(staged, status.st_size)
                else:
                    _join(first, staged)
                yield int(entry.name, 16), staged, status

    def close(self) -> None:
        """Sync what is left on disk; remove the directory on tmpfs when nothing is in it."""
        for name in os.listdir(self._disk):
            sync_path(self._disk / name)
        sync_path(self._disk)
        self._boot.unlink()
        sync_path(self._boot.parent)
        if self._fast is not self._disk and not set(os.listdir(self._fast)) - _NOT_STAGED:
            if self._own_tmpfs is not None:
                with alone():
                    unmount(self._own_tmpfs)
            else:
                shutil.rmtree(self._fast)


def _join(staged: StagedFile, twin: StagedFile) -> None:
    if staged.sharers is None:
        staged.sharers = {staged}
    staged.sharers.add(twin)
    twin.sharers = staged.sharers
    twin.is_frozen = True


def _sync_those_left(paths: set[str]) -> None:
    for path in paths:
        with contextlib.suppress(FileNotFoundError):  # sealed, or removed
            sync_path(Path(path))


def sync_path(path: Path) -> None:
    """fsync(2) a file or a directory."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
