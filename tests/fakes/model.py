"""What a filesystem is, in dictionaries: the measure for agentfs, with the interface of `Shell`."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, field, replace

from agentfs.filesystem.namespace import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    Caller,
    without_setid,
)
from agentfs.filesystem.ranges import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE
from fakes.volumes import ROOT, Attributes, is_within, overlap


@dataclass(eq=False)
class Node:
    """One file of any type."""

    mode: int
    uid: int
    gid: int
    nlink: int = 1
    data: bytearray = field(default_factory=bytearray)
    rdev: int | None = None
    target: bytes | None = None
    entries: dict[bytes, Node] = field(default_factory=dict)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    atime_ns: int | None = None
    mtime_ns: int | None = None
    """As set by a program; None: when something was done, which no model knows."""
    was_named: bool = True

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)


@dataclass(eq=False)
class ModelHandle:
    """An open file."""

    node: Node


class Model:
    """A filesystem without a disk."""

    def __init__(self, caller: Caller = ROOT) -> None:
        self.caller = caller
        self.root = Node(stat.S_IFDIR | 0o755, 0, 0, nlink=2)

    def node(self, path: str) -> Node:
        node = self.root
        for name in os.fsencode(path).split(b"/"):
            if name:
                if not node.is_directory:
                    raise NotADirectoryError(errno.ENOTDIR, path)
                if name not in node.entries:
                    raise FileNotFoundError(errno.ENOENT, path)
                node = node.entries[name]
        return node

    def place(self, path: str) -> tuple[Node, bytes]:
        above, _, name = path.rpartition("/")
        directory = self.node(above)
        if not directory.is_directory:
            raise NotADirectoryError(errno.ENOTDIR, above)
        return directory, os.fsencode(name)

    def exists(self, path: str) -> bool:
        try:
            self.node(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def attributes(self, path: str) -> Attributes:
        node = self.node(path)
        size = len(node.data) if node.target is None else len(node.target)
        return Attributes(node.mode, node.uid, node.gid, node.nlink, size, node.rdev, node.target)

    def times(self, path: str) -> tuple[int | None, int | None]:
        node = self.node(path)
        return node.atime_ns, node.mtime_ns

    def is_same(self, one: str, other: str) -> bool:
        return self.node(one) is self.node(other)

    def names(self, path: str = "") -> list[bytes]:
        node = self.node(path)
        if not node.is_directory:
            raise NotADirectoryError(errno.ENOTDIR, path)
        return sorted(node.entries)

    def _create(self, path: str, mode: int, **more: object) -> Node:
        directory, name = self.place(path)
        if name in directory.entries:
            raise FileExistsError(errno.EEXIST, path)
        gid = self.caller.gid
        if directory.mode & stat.S_ISGID:
            gid = directory.gid
            mode |= stat.S_ISGID if stat.S_ISDIR(mode) else 0
        node = Node(mode, self.caller.uid, gid, **more)  # type: ignore[arg-type]
        if node.is_directory:
            node.nlink = 2
            directory.nlink += 1
        directory.entries[name] = node
        directory.mtime_ns = None
        return node

    def mkdir(self, path: str, mode: int = 0o755) -> Node:
        return self._create(path, stat.S_IFDIR | mode)

    def mknod(self, path: str, mode: int, rdev: int | None = None) -> Node:
        return self._create(path, mode, rdev=rdev)

    def symlink(self, target: bytes, path: str) -> Node:
        return self._create(path, stat.S_IFLNK | 0o777, target=target)

    def link(self, old: str, new: str) -> Node:
        node = self.node(old)
        if node.is_directory:
            raise PermissionError(errno.EPERM, old)
        directory, name = self.place(new)
        if name in directory.entries:
            raise FileExistsError(errno.EEXIST, new)
        directory.entries[name] = node
        directory.mtime_ns = None
        node.nlink += 1
        return node

    def unlink(self, path: str) -> None:
        directory, name = self.place(path)
        node = self.node(path)
        if node.is_directory:
            raise IsADirectoryError(errno.EISDIR, path)
        del directory.entries[name]
        directory.mtime_ns = None
        node.nlink -= 1

    def rmdir(self, path: str) -> None:
        directory, name = self.place(path)
        node = self.node(path)
        if not node.is_directory:
            raise NotADirectoryError(errno.ENOTDIR, path)
        if node.entries:
            raise OSError(errno.ENOTEMPTY, path)
        del directory.entries[name]
        directory.mtime_ns = None
        directory.nlink -= 1
        node.nlink = 0

    def rename(self, old: str, new: str, flags: int = 0) -> None:
        moved = self.node(old)
        old_directory, old_name = self.place(old)
        new_directory, new_name = self.place(new)
        if is_within(new, old) or is_within(old, new):
            into_itself = is_within(new, old) or flags & RENAME_EXCHANGE
            raise OSError(errno.EINVAL if into_itself else errno.ENOTEMPTY, new)
        victim = new_directory.entries.get(new_name)
        if flags & RENAME_EXCHANGE:
            if victim is None:
                raise FileNotFoundError(errno.ENOENT, new)
            old_directory.entries[old_name] = victim
            new_directory.entries[new_name] = moved
            difference = int(victim.is_directory) - int(moved.is_directory)
            old_directory.nlink += difference
            new_directory.nlink -= difference
            old_directory.mtime_ns = new_directory.mtime_ns = None
            return
        if victim is not None:
            if flags & RENAME_NOREPLACE:
                raise FileExistsError(errno.EEXIST, new)
            if victim is moved:
                return
            if victim.is_directory and not moved.is_directory:
                raise IsADirectoryError(errno.EISDIR, new)
            if victim.is_directory and victim.entries:
                raise OSError(errno.ENOTEMPTY, new)
            if moved.is_directory and not victim.is_directory:
                raise NotADirectoryError(errno.ENOTDIR, new)
            victim.nlink = 0 if victim.is_directory else victim.nlink - 1
            new_directory.nlink -= victim.is_directory
        del old_directory.entries[old_name]
        new_directory.entries[new_name] = moved
        old_directory.nlink -= moved.is_directory
        new_directory.nlink += moved.is_directory
        old_directory.mtime_ns = new_directory.mtime_ns = None

    async def clone(self, source: str, target: str, *, replaces: bool = False) -> None:
        node = self.node(source)
        directory, name = self.place(target)
        victim = directory.entries.get(name)
        if victim is not None and not replaces:
            raise FileExistsError(errno.EEXIST, target)
        if target == source or is_within(target, source) or is_within(source, target):
            raise OSError(errno.EINVAL, target)
        directory.entries[name] = twin = _twin(node, {})
        directory.mtime_ns = None
        directory.nlink += twin.is_directory
        if victim is not None:
            directory.nlink -= victim.is_directory
            _drop(victim)

    def change(self, path: str, **fields: int) -> None:
        node = self.node(path)
        if "mode" in fields:
            node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(fields["mode"])
        node.uid, node.gid = fields.get("uid", node.uid), fields.get("gid", node.gid)
        if ("uid" in fields or "gid" in fields) and not stat.S_ISDIR(node.mode):
            node.mode = without_setid(node.mode)
            node.xattrs.pop(b"security.capability", None)
        node.atime_ns = fields.get("atime_ns", node.atime_ns)
        node.mtime_ns = fields.get("mtime_ns", node.mtime_ns)

    def set_xattr(self, path: str, name: bytes, value: bytes) -> None:
        node = self.node(path)
        if not name.startswith((b"user.", b"security.", b"trusted.")):
            raise OSError(errno.EOPNOTSUPP, path)
        node.xattrs[name] = value

    def get_xattr(self, path: str, name: bytes) -> bytes:
        node = self.node(path)
        if name not in node.xattrs:
            raise OSError(errno.ENODATA, path)
        return node.xattrs[name]

    def remove_xattr(self, path: str, name: bytes) -> None:
        node = self.node(path)
        if node.xattrs.pop(name, None) is None:
            raise OSError(errno.ENODATA, path)

    def xattrs(self, path: str) -> dict[bytes, bytes]:
        return dict(self.node(path).xattrs)

    # Bytes

    def open(self, path: str, flags: int = os.O_RDWR) -> ModelHandle:
        if flags & os.O_CREAT and not self.exists(path):
            self.mknod(path, stat.S_IFREG | 0o644)
        node = self.node(path)
        if not stat.S_ISREG(node.mode):
            raise OSError(errno.EISDIR if node.is_directory else errno.ENXIO, path)
        return ModelHandle(node)

    def close(self, handle: ModelHandle) -> None:
        """Nothing to let go of."""

    async def pwrite(self, handle: ModelHandle, data: bytes, offset: int) -> None:
        node = handle.node
        if not data:
            return
        if len(node.data) < offset:
            node.data += bytes(offset - len(node.data))
        node.data[offset : offset + len(data)] = data
        node.mtime_ns = None

    async def pread(self, handle: ModelHandle, size: int, offset: int) -> bytes:
        handle.node.atime_ns = None
        return bytes(handle.node.data[offset : offset + size])

    async def write(self, path: str, data: bytes, offset: int = 0) -> None:
        await self.pwrite(self.open(path, os.O_WRONLY | os.O_CREAT), data, offset)

    async def append(self, path: str, data: bytes) -> None:
        size = self.attributes(path).size if self.exists(path) else 0
        await self.write(path, data, size)

    async def replace(self, path: str, data: bytes) -> None:
        await self.write(f"{path}.new", data)
        self.rename(f"{path}.new", path)

    async def truncate(self, path: str, size: int) -> None:
        node = self.open(path).node
        del node.data[size:]
        node.data += bytes(size - len(node.data))
        node.mtime_ns = None

    async def allocate(self, path: str, mode: int, offset: int, length: int) -> None:
        data = self.open(path).node.data
        end = offset + length
        if not mode & FALLOC_KEEP_SIZE:
            data += bytes(max(end - len(data), 0))
        if mode & (FALLOC_PUNCH_HOLE | FALLOC_ZERO_RANGE):
            inside = len(data[offset:end])
            data[offset : offset + inside] = bytes(inside)
        self._written(self.node(path))

    async def copy_range(self, old: str, start: int, new: str, at: int, length: int) -> int:
        source, target = self.open(old).node, self.open(new).node
        if source is target and overlap(start, at, length):
            raise OSError(errno.EINVAL, new)
        data = bytes(source.data[start : start + length])
        if data:
            await self.pwrite(ModelHandle(target), data, at)
        self._written(target)
        return len(data)

    def _written(self, node: Node) -> None:
        node.mtime_ns = None
        if self.caller.uid:
            node.mode = without_setid(node.mode)

    def open_unnamed(self, directory: str = "") -> ModelHandle:
        above = self.node(directory)
        gid = above.gid if above.mode & stat.S_ISGID else self.caller.gid
        mode = stat.S_IFREG | 0o644
        return ModelHandle(Node(mode, self.caller.uid, gid, nlink=0, was_named=False))

    def name(self, handle: ModelHandle, path: str) -> None:
        directory, name = self.place(path)
        if handle.node.was_named and not handle.node.nlink:
            raise FileNotFoundError(errno.ENOENT, path)
        if name in directory.entries:
            raise FileExistsError(errno.EEXIST, path)
        handle.node.was_named = True
        directory.entries[name] = handle.node
        directory.mtime_ns = None
        handle.node.nlink += 1

    async def read(self, path: str, offset: int = 0, size: int | None = None) -> bytes:
        handle = self.open(path)
        return await self.pread(handle, len(handle.node.data) if size is None else size, offset)


def _twin(node: Node, known: dict[Node, Node]) -> Node:
    """A copy of a tree; files with several names in it stay one."""
    if node in known:
        known[node].nlink += 1
        return known[node]
    twin = known[node] = replace(
        node,
        nlink=node.nlink if node.is_directory else 1,
        data=bytearray(node.data),
        xattrs=dict(node.xattrs),
    )
    twin.entries = {name: _twin(below, known) for name, below in node.entries.items()}
    return twin


def _drop(node: Node) -> None:
    """A name of a node is gone, and all below with that of a directory."""
    node.nlink = 0 if node.is_directory else node.nlink - 1
    for below in node.entries.values():
        _drop(below)
