"""The ceiling: an in-memory pyfuse3 filesystem that does nothing a filesystem could leave out.

What an honest daemon on pyfuse3 as shipped can reach, so that agentfs is judged by what it adds:

- attributes are kept as ready `EntryAttributes`, open files as ready `FileInfo`;
- a handler is one or two dictionary look-ups and never suspends, so one task serves all;
- entries and attributes stay valid for a day: this daemon is the only writer;
- a missing name is a negative entry (inode 0), not an exception;
- FLUSH, ACCESS and GETXATTR are left to pyfuse3's defaults: ENOSYS, the kernel asks once;
- the garbage collector is off: nothing here is a cycle.

What it keeps is honest, too: permissions (`default_permissions`), link counts, times, files that
are unlinked while open. No writeback cache: it would exclude passthrough, which agentfs needs.

A ceiling for calls, not for gigabytes: a bytearray that grows is copied now and then.

It waits for requests as pyfuse3 ships it. With `--polling` it waits as agentfs does
(agentfs/fuse/loop.py): the same filesystem on an equal loop, which shows what of agentfs's speed is
its loop and what its filesystem costs.

    python -m bench.bare MOUNTPOINT            serves until it is unmounted
"""

import argparse
import contextlib
import errno
import gc
import os
import select
import stat
import sys
import time
from collections.abc import Sequence

import pyfuse3
import trio
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FileNameT,
    FlagT,
    FUSEError,
    InodeT,
    ModeT,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
)

from agentfs.fuse import loop

TIMEOUT_SECONDS = 86400.0
BLOCK_BYTES = 4096


class Node:
    """An inode. The kernel holds it until FORGET; a handle is the inode number itself."""

    __slots__ = ("attr", "children", "data", "opened", "target")

    def __init__(self, attr: EntryAttributes) -> None:
        self.attr = attr
        self.data = bytearray()
        self.children: dict[bytes, Node] = {}
        self.target = b""
        self.opened = FileInfo(fh=FileHandleT(attr.st_ino))


class Bare(pyfuse3.Operations):
    """Names and bytes in dictionaries; see the module's head for what is left out and why."""

    def __init__(self) -> None:
        super().__init__()
        self._nodes: dict[int, Node] = {}
        self._doomed: set[int] = set()
        self._listings: dict[int, list[tuple[bytes, Node]]] = {}
        self._next_inode = pyfuse3.ROOT_INODE
        self._next_listing = 0
        self._missing = EntryAttributes()
        self._missing.st_ino = InodeT(0)
        self._missing.entry_timeout = TIMEOUT_SECONDS
        self._add(ModeT(stat.S_IFDIR | 0o755), os.getuid(), os.getgid())

    def _add(self, mode: ModeT, uid: int, gid: int) -> Node:
        attr = EntryAttributes()
        attr.st_ino = InodeT(self._next_inode)
        attr.st_mode = mode
        attr.st_nlink = 2 if stat.S_ISDIR(mode) else 1
        attr.st_uid = uid
        attr.st_gid = gid
        attr.st_blksize = BLOCK_BYTES
        attr.entry_timeout = attr.attr_timeout = TIMEOUT_SECONDS
        attr.st_atime_ns = attr.st_mtime_ns = attr.st_ctime_ns = time.time_ns()
        node = Node(attr)
        self._nodes[self._next_inode] = node
        self._next_inode = InodeT(self._next_inode + 1)
        return node

    def _enter(self, parent: int, name: bytes, mode: int, ctx: RequestContext) -> Node:
        """A new node under that name. The kernel has looked the name up: it is free."""
        directory = self._nodes[parent]
        node = self._add(ModeT(mode & ~ctx.umask), ctx.uid, ctx.gid)
        directory.children[name] = node
        above = directory.attr
        above.st_mtime_ns = above.st_ctime_ns = node.attr.st_ctime_ns
        if stat.S_ISDIR(mode):
            above.st_nlink += 1
        return node

    def _drop(self, directory: Node, name: bytes) -> Node:
        """Take a name away. A node without names stays until the kernel forgets it."""
        try:
            node = directory.children.pop(name)
        except KeyError:
            raise FUSEError(errno.ENOENT) from None
        attr, above = node.attr, directory.attr
        attr.st_ctime_ns = above.st_mtime_ns = above.st_ctime_ns = time.time_ns()
        if stat.S_ISDIR(attr.st_mode):
            attr.st_nlink = 0
            above.st_nlink -= 1
        else:
            attr.st_nlink -= 1
        if not attr.st_nlink:
            self._doomed.add(attr.st_ino)
        return node

    async def lookup(
        self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        node = self._nodes[parent_inode].children.get(name)
        return self._missing if node is None else node.attr

    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        try:
            return self._nodes[inode].attr
        except KeyError:
            raise FUSEError(errno.ESTALE) from None

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        """An inode without names gets no new look-ups, so its first FORGET is its last."""
        if self._doomed:
            for inode, _ in inode_list:
                if inode in self._doomed:
                    self._doomed.remove(inode)
                    del self._nodes[inode]

    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        node = self._nodes[inode]
        kept = node.attr
        kept.st_ctime_ns = time.time_ns()
        if fields.update_size:
            grown = attr.st_size - kept.st_size
            if grown > 0:
                node.data.extend(bytes(grown))
            else:
                del node.data[attr.st_size :]
            kept.st_size = attr.st_size
            kept.st_blocks = (attr.st_size + 511) >> 9
            kept.st_mtime_ns = kept.st_ctime_ns
        if fields.update_mode:
            kept.st_mode = attr.st_mode
        if fields.update_uid:
            kept.st_uid = attr.st_uid
        if fields.update_gid:
            kept.st_gid = attr.st_gid
        if fields.update_atime:
            kept.st_atime_ns = attr.st_atime_ns
        if fields.update_mtime:
            kept.st_mtime_ns = attr.st_mtime_ns
        return kept

    async def mkdir(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext
    ) -> EntryAttributes:
        return self._enter(parent_inode, name, mode, ctx).attr

    async def create(
        self,
        parent_inode: InodeT,
        name: FileNameT,
        mode: ModeT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> tuple[FileInfo, EntryAttributes]:
        node = self._enter(parent_inode, name, mode | stat.S_IFREG, ctx)
        return node.opened, node.attr

    async def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        node = self._enter(parent_inode, name, stat.S_IFLNK | 0o777, ctx)
        node.attr.st_mode = ModeT(stat.S_IFLNK | 0o777)
        node.attr.st_size = len(target)
        node.target = target
        return node.attr

    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        return FileNameT(self._nodes[inode].target)

    async def link(
        self, inode: InodeT, new_parent_inode: InodeT, new_name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        node, directory = self._nodes[inode], self._nodes[new_parent_inode]
        directory.children[new_name] = node
        node.attr.st_nlink += 1
        now = time.time_ns()
        node.attr.st_ctime_ns = directory.attr.st_mtime_ns = directory.attr.st_ctime_ns = now
        return node.attr

    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        self._drop(self._nodes[parent_inode], name)

    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        directory = self._nodes[parent_inode]
        node = directory.children.get(name)
        if node is not None and node.children:
            raise FUSEError(errno.ENOTEMPTY)
        self._drop(directory, name)

    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> None:
        old, new = self._nodes[parent_inode_old], self._nodes[parent_inode_new]
        node = old.children[name_old]
        replaced = new.children.get(name_new)
        if flags:
            raise FUSEError(errno.EINVAL)
        if replaced is not None:
            if replaced.children:
                raise FUSEError(errno.ENOTEMPTY)
            self._drop(new, name_new)
        del old.children[name_old]
        new.children[name_new] = node
        now = time.time_ns()
        for attr in (old.attr, new.attr):
            attr.st_mtime_ns = attr.st_ctime_ns = now
        node.attr.st_ctime_ns = now
        if old is not new and stat.S_ISDIR(node.attr.st_mode):
            old.attr.st_nlink -= 1
            new.attr.st_nlink += 1

    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        return self._nodes[inode].opened

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        # pyfuse3 takes any buffer; a view saves the copy and is gone before the next request.
        return memoryview(self._nodes[fh].data)[off : off + size]  # type: ignore[return-value]

    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        node = self._nodes[fh]
        data, attr = node.data, node.attr
        end = off + len(buf)
        if off > len(data):
            data.extend(bytes(off - len(data)))
        data[off:end] = buf
        if end > attr.st_size:
            attr.st_size = end
            attr.st_blocks = (end + 511) >> 9
        attr.st_mtime_ns = attr.st_ctime_ns = time.time_ns()
        return len(buf)

    async def release(self, fh: FileHandleT) -> None:
        return None

    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        return None

    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        return None

    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        self._next_listing += 1
        self._listings[self._next_listing] = list(self._nodes[inode].children.items())
        return FileHandleT(self._next_listing)

    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        listing = self._listings[fh]
        for position in range(start_id, len(listing)):
            name, node = listing[position]
            if node.attr.st_nlink and not pyfuse3.readdir_reply(
                token, FileNameT(name), node.attr, position + 1
            ):
                break

    async def releasedir(self, fh: FileHandleT) -> None:
        del self._listings[fh]

    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        answer = StatvfsData()
        answer.f_bsize = answer.f_frsize = BLOCK_BYTES
        answer.f_blocks = answer.f_bfree = answer.f_bavail = 1 << 28
        answer.f_files = answer.f_ffree = answer.f_favail = 1 << 30
        answer.f_namemax = 255
        return answer


def _poll(fd: int, timeout_ms: int) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(timeout_ms))


def main() -> int:
    """Mount, serve until unmounted, leave."""
    parser = argparse.ArgumentParser(prog="python -m bench.bare", description=__doc__)
    parser.add_argument("mountpoint")
    parser.add_argument("--polling", action="store_true", help="wait for requests as agentfs does")
    arguments = parser.parse_args()
    gc.disable()
    if arguments.polling:
        loop.enable(_poll, on_reply=lambda: None, answer=lambda request: None)
    options = set(pyfuse3.default_options) | {"fsname=bare", "default_permissions"}
    pyfuse3.init(Bare(), arguments.mountpoint, options)
    try:
        trio.run(pyfuse3.main, 1, 1)
    finally:
        with contextlib.suppress(RuntimeError):
            pyfuse3.close(unmount=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
