"""A Volume driven as the kernel drives it, without a kernel: by paths, with lookups and handles.

`Shell` keeps the kernel's side of the contract: every handle is opened and released, permission
is not checked, and a name is looked up before it is used.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from agentfs.chunks.recipe import Recipe
from agentfs.config import Hot, Profile, Seal, Store
from agentfs.filesystem.clone import Cloned
from agentfs.filesystem.directory import DirectoryStream
from agentfs.filesystem.files import Handle
from agentfs.filesystem.livefile import LiveFile
from agentfs.filesystem.namespace import RENAME_EXCHANGE, AttributeChange, Caller
from agentfs.filesystem.volume import Volume
from agentfs.model import ROOT_INODE, Inode
from fakes.relay import FakeRelay

KIB = 1024
MIB = 1024 * KIB

ROOT = Caller(0, 0)
AGENT = Caller(1000, 1000)

NEVER_S = 86_400.0


def profile(
    *,
    budget_bytes: int = 1 << 30,
    rest_s: float = NEVER_S,
    block_bytes: int = MIB,
    dedup: str = "all",
) -> Profile:
    """By default nothing is sealed unless a test asks for it."""
    return Profile(
        "test",
        seal=Seal(rest_s=rest_s, open_rest_s=rest_s),
        store=Store(block_bytes=block_bytes, level=1, dedup=dedup),
        hot=Hot(bytes=budget_bytes),
    )


def quiet(done: int, total: int) -> None:
    """Progress nobody looks at."""


@dataclass(frozen=True)
class Attributes:
    """What stat(2) and readlink(2) tell of a file, but times and numbers."""

    mode: int
    uid: int
    gid: int
    nlink: int
    size: int
    rdev: int | None
    target: bytes | None


def is_within(path: str, above: str) -> bool:
    return path.startswith(f"{above}/")


def overlap(start: int, at: int, length: int) -> bool:
    """Whether two ranges of a file have bytes in common."""
    return abs(start - at) < length


@dataclass
class Shell:
    """Operations by path on an open volume."""

    volume: Volume
    caller: Caller = ROOT

    def inode(self, path: str) -> Inode:
        """What *path* means; symbolic links are not followed."""
        inode = self.volume.table.get(ROOT_INODE)
        for name in os.fsencode(path).split(b"/"):
            if name:
                if not inode.is_directory:
                    raise NotADirectoryError(errno.ENOTDIR, path)
                found = self.volume.namespace.lookup(inode.id, name)
                if found is None:
                    raise FileNotFoundError(errno.ENOENT, path)
                inode = found
        return inode

    def place(self, path: str) -> tuple[int, bytes]:
        """(directory's inode, last name)."""
        above, _, name = path.rpartition("/")
        directory = self.inode(above)
        if not directory.is_directory:
            raise NotADirectoryError(errno.ENOTDIR, above)
        return directory.id, os.fsencode(name)

    def exists(self, path: str) -> bool:
        try:
            self.inode(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def attributes(self, path: str) -> Attributes:
        inode = self.inode(path)
        return Attributes(
            inode.mode, inode.uid, inode.gid, inode.nlink, inode.size, inode.rdev, inode.target
        )

    def times(self, path: str) -> tuple[int, int]:
        """(atime, mtime) in nanoseconds."""
        inode = self.inode(path)
        return inode.atime_ns, inode.mtime_ns

    def is_same(self, one: str, other: str) -> bool:
        return self.inode(one).id == self.inode(other).id

    def describe(self, path: str, what: str) -> str:
        """An attribute of ours, as programs get it."""
        name = b"user.agentfs." + what.encode()
        value = self.volume.describer.attribute(self.inode(path), name, is_told_all=True)
        return value.decode()

    def set_xattr(self, path: str, name: bytes, value: bytes) -> None:
        self.volume.namespace.set_xattr(self.inode(path).id, name, value)

    def get_xattr(self, path: str, name: bytes) -> bytes:
        return self.volume.namespace.get_xattr(self.inode(path).id, name)

    def remove_xattr(self, path: str, name: bytes) -> None:
        self.volume.namespace.remove_xattr(self.inode(path).id, name)

    def xattrs(self, path: str) -> dict[bytes, bytes]:
        inode = self.inode(path).id
        names = self.volume.namespace.list_xattrs(inode)
        return {name: self.volume.namespace.get_xattr(inode, name) for name in names}

    def mkdir(self, path: str, mode: int = 0o755) -> Inode:
        parent, name = self.place(path)
        return self.volume.namespace.create(parent, name, stat.S_IFDIR | mode, self.caller)

    def mknod(self, path: str, mode: int, rdev: int | None = None) -> Inode:
        parent, name = self.place(path)
        return self.volume.namespace.create(parent, name, mode, self.caller, rdev=rdev)

    def symlink(self, target: bytes, path: str) -> Inode:
        parent, name = self.place(path)
        mode = stat.S_IFLNK | 0o777
        return self.volume.namespace.create(parent, name, mode, self.caller, target=target)

    def link(self, old: str, new: str) -> Inode:
        inode = self.inode(old)
        if inode.is_directory:  # the kernel's check
            raise PermissionError(errno.EPERM, old)
        return self.volume.namespace.link(inode.id, *self.place(new))

    def unlink(self, path: str) -> None:
        self.volume.namespace.unlink(*self.place(path))

    def rmdir(self, path: str) -> None:
        self.volume.namespace.rmdir(*self.place(path))

    def rename(self, old: str, new: str, flags: int = 0) -> None:
        self.inode(old)
        places = *self.place(old), *self.place(new)
        if is_within(new, old) or is_within(old, new):  # the kernel's check
            into_itself = is_within(new, old) or flags & RENAME_EXCHANGE
            raise OSError(errno.EINVAL if into_itself else errno.ENOTEMPTY, new)
        self.volume.namespace.rename(*places, flags)

    def change(self, path: str, **fields: int) -> None:
        inode = self.inode(path)
        self.volume.namespace.change_attributes(inode, AttributeChange(**fields))
        file = self.volume.table.live(inode.id)
        if file is not None:
            self.volume.files.attributes_set(file)

    def names(self, path: str = "") -> list[bytes]:
        directory = self.inode(path)
        if not directory.is_directory:
            raise NotADirectoryError(errno.ENOTDIR, path)
        stream = DirectoryStream(self.volume.namespace, directory.id)
        return [name for _, name, _ in stream.entries(0)][2:]

    # Bytes

    def open(self, path: str, flags: int = os.O_RDWR) -> Handle:
        """An open file; made when *flags* have O_CREAT."""
        if flags & os.O_CREAT and not self.exists(path):
            self.mknod(path, stat.S_IFREG | 0o644)
        inode = self.inode(path)
        if not inode.is_regular:  # the kernel does not ask us to open others
            raise OSError(errno.EISDIR if inode.is_directory else errno.ENXIO, path)
        handle = self.volume.files.open(
            inode, flags & ~os.O_CREAT, is_privileged=self.caller.uid == 0
        )
        handle.file.name = self.place(path)
        return handle

    def close(self, handle: Handle) -> None:
        self.volume.files.release(handle)

    async def write(self, path: str, data: bytes, offset: int = 0) -> None:
        """Open, made if need be; write; close."""
        handle = self.open(path, os.O_WRONLY | os.O_CREAT)
        try:
            await self.pwrite(handle, data, offset)
        finally:
            self.close(handle)

    async def replace(self, path: str, data: bytes) -> None:
        """Write all of a file beside it, and rename it over."""
        await self.write(f"{path}.new", data)
        self.rename(f"{path}.new", path)

    async def append(self, path: str, data: bytes) -> None:
        size = self.inode(path).size if self.exists(path) else 0
        await self.write(path, data, size)

    async def truncate(self, path: str, size: int) -> None:
        handle = self.open(path, os.O_WRONLY)
        try:
            await self.volume.files.truncate(handle.file, size, is_privileged=True)
        finally:
            self.close(handle)

    async def read(self, path: str, offset: int = 0, size: int | None = None) -> bytes:
        handle = self.open(path, os.O_RDONLY)
        try:
            size = handle.file.inode.size if size is None else size
            return await self.volume.files.read(handle, offset, size)
        finally:
            self.close(handle)

    async def pwrite(self, handle: Handle, data: bytes, offset: int) -> None:
        if data:  # the kernel does not ask us to write nothing
            assert await self.volume.files.write(handle, offset, data) == len(data)

    async def pread(self, handle: Handle, size: int, offset: int) -> bytes:
        return await self.volume.files.read(handle, offset, size)

    async def allocate(self, path: str, mode: int, offset: int, length: int) -> None:
        handle = self.open(path, os.O_WRONLY)
        try:
            await self.volume.files.allocate(
                handle.file, mode, offset, length, is_privileged=self.caller.uid == 0
            )
        finally:
            self.close(handle)

    async def copy_range(self, old: str, start: int, new: str, at: int, length: int) -> int:
        """Open both, copy once, close; how many bytes."""
        source = self.open(old, os.O_RDONLY)
        try:
            target = self.open(new, os.O_WRONLY)
        except OSError:
            self.close(source)
            raise
        try:
            if source.file is target.file and overlap(start, at, length):  # the kernel's check
                raise OSError(errno.EINVAL, new)
            return await self.volume.files.copy_range(
                source.file, start, target.file, at, length, is_privileged=self.caller.uid == 0
            )
        finally:
            self.close(source)
            self.close(target)

    async def seek(self, path: str, offset: int, whence: int) -> int:
        handle = self.open(path, os.O_RDONLY)
        try:
            return await self.volume.files.seek(handle.file, offset, whence)
        finally:
            self.close(handle)

    def open_unnamed(self, directory: str = "") -> Handle:
        """A file without a name, as O_TMPFILE opens it."""
        inode = self.volume.namespace.create_unnamed(
            self.inode(directory).id, stat.S_IFREG | 0o644, self.caller
        )
        return self.volume.files.open(inode, os.O_RDWR, is_privileged=self.caller.uid == 0)

    def name(self, handle: Handle, path: str) -> None:
        """Give an open file a name."""
        self.volume.namespace.link(handle.file.inode.id, *self.place(path))

    # Beside requests

    def file(self, path: str) -> LiveFile:
        """The live file of *path*, which must be open or staged."""
        file = self.volume.table.live(self.inode(path).id)
        assert file is not None, f"{path} is neither open nor staged"
        return file

    def is_staged(self, path: str) -> bool:
        file = self.volume.table.live(self.inode(path).id)
        return file is not None and file.staged is not None

    def recipe(self, path: str) -> list[tuple[int | None, int]]:
        """(chunk or None, length) of the sealed content of *path*."""
        content = self.inode(path).content
        assert content is not None, f"{path} was never sealed"
        recipe = Recipe(*self.volume.index.contents.get(content))
        return [(chunk, length) for chunk, _, length in recipe.parts()]

    async def seal(self, *paths: str) -> None:
        files = [self.file(path) for path in paths]
        await self.volume.sealer.seal(files, wait=True)

    async def sync(self) -> int:
        return await self.volume.sync(quiet)

    async def fsync(self, path: str) -> None:
        """Needs `Sealer.serve_fsync` to run; see `running`."""
        handle = self.open(path, os.O_RDONLY)
        try:
            await self.volume.sealer.fsync(handle.file)
        finally:
            self.close(handle)

    async def clone(self, source: str, target: str, *, replaces: bool = False) -> Cloned:
        return await self.volume.clone(
            os.fsencode(source), os.fsencode(target), replaces=replaces, progress=quiet
        )

    async def spawn(self, template: str, target: str, name: str) -> Cloned:
        return await self.volume.spawn(os.fsencode(template), os.fsencode(target), name.encode())

    async def compact(self) -> dict[str, int]:
        return await self.volume.compact(quiet)

    async def collect(self) -> dict[str, int]:
        return await self.volume.collect(quiet)

    def segment_bytes(self) -> int:
        return sum(file.stat().st_size for file in (self.volume.path / "segments").iterdir())


@asynccontextmanager
async def running(volume: Volume) -> AsyncIterator[Volume]:
    """Serve *volume* as a mount does while the block runs."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(volume.run)
        yield volume
        nursery.cancel_scope.cancel()


class Machine:
    """Where stores live: a disk and a tmpfs, both below one directory, and volumes on them."""

    def __init__(self, path: Path) -> None:
        self.store = path / "store"
        self.tmpfs = path / "tmpfs"
        self.store.mkdir()
        self.tmpfs.mkdir()
        self.volume: Volume | None = None

    def open(self, settings: Profile | None = None, *, relay: FakeRelay | None = None) -> Shell:
        assert self.volume is None, "close the one that is open"
        self.volume = Volume(self.store, settings or profile(), relay=relay)
        return Shell(self.volume)

    def close(self) -> None:
        """As a mount ends that could not seal: what is staged stays so."""
        if self.volume is not None:
            self.volume.close()
            self.volume = None

    async def unmount(self) -> None:
        """As a mount ends."""
        assert self.volume is not None
        await self.volume.seal_for_close()
        self.close()

    def kill(self) -> None:
        """As SIGKILL ends a mount: what was written stays, no code runs any more.

        SQLite would tidy up if this process closed the index, and lock us out if it did not. So
        both trees are copied as they are, the volume closed, and the copies put back.
        """
        assert self.volume is not None
        trees = (self.store, self.tmpfs)
        for tree in trees:
            copy_tree(tree, saved(tree))
        self.close()
        for tree in trees:
            put_back(tree)

    def staged_names(self) -> list[str]:
        """Staged files on tmpfs, where `store` says whose they are, and on disk."""
        fast = {file.name for folder in self.tmpfs.iterdir() for file in folder.iterdir()}
        return sorted([*fast - {"store"}, *os.listdir(self.store / "staging")])


def saved(tree: Path) -> Path:
    """Where `Machine.kill` keeps a copy of *tree* meanwhile."""
    return tree.with_name(f"{tree.name}.saved")


def put_back(tree: Path) -> None:
    """Give *tree*, which stays the same directory, what was saved of it."""
    for entry in tree.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    for entry in saved(tree).iterdir():
        entry.rename(tree / entry.name)
    saved(tree).rmdir()


def copy_tree(source: Path, target: Path) -> None:
    """Holes stay holes, times stay times."""
    subprocess.run(["cp", "-a", "--sparse=auto", f"{source}", f"{target}"], check=True)
