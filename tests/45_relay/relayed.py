"""A tiny filesystem behind the relay, in a process of its own.

    python relayed.py MOUNTPOINT BACKING [--direct] [--threads=N]

One directory of regular files, each over a backing file. It obeys its standard input: each line
is a Python expression over `fs`, answered with one line of JSON. With --direct pyfuse3 mounts by
itself and there is no relay: what forwarding is measured against.
"""

import errno
import json
import os
import stat
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError

from agentfs.fuse import _relay
from agentfs.model import Inode

FOREVER = 2**63 - 1
TIMEOUT_S = 3600


@dataclass
class Image:
    """A backing file, shared by any number of inodes."""

    fd: int
    backing_id: int = 0


@dataclass
class Node:
    """An inode."""

    nodeid: int
    image: Image | None
    mode: int
    writable: bool = False
    fresh_until_ns: int = FOREVER
    names: int = 1
    times_ns: int = field(default_factory=time.time_ns)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


class Relayed(pyfuse3.Operations):
    """What tests ask is in the public methods and attributes; the rest are FUSE handlers."""

    def __init__(self, mountpoint: str, backing: Path, *, direct: bool, threads: int) -> None:
        super().__init__()
        self.relay = None
        if not direct:
            options = "fsname=re\\,layed,default_permissions,allow_other,max_read=1048576"
            devices = _relay.mount(mountpoint, options, threads=threads)
            self.relay = _relay.Relay(mountpoint, devices)
        self.backing = backing
        self.calls: dict[str, int] = {}
        self.lookups: dict[int, int] = {}
        self.nodes = {1: Node(1, None, stat.S_IFDIR | 0o755)}
        self.names: dict[bytes, int] = {}
        self.handles: dict[int, Node] = {}
        self.slow_s = 1.0
        self.notify_in_create = False
        self.put_in_create = 0
        self.ready = trio.Event()

    # For tests

    def image(self, name: str) -> Image:
        """The backing file of that name, registered."""
        image = Image(os.open(self.backing / name, os.O_RDWR | os.O_CREAT, 0o600))
        if self.relay is not None:
            image.backing_id = self.relay.register(image.fd)
        return image

    def add(self, name: str, image: Image, **options: object) -> int:
        """A file over that image; attached at once."""
        node = Node(max(self.nodes) + 1, image, stat.S_IFREG | 0o644, **options)
        self.nodes[node.nodeid] = node
        self.names[name.encode()] = node.nodeid
        self._attach(node)
        return node.nodeid

    def add_many(self, pattern: str, image_name: str, count: int) -> None:
        image = self.image(image_name)
        for number in range(count):
            self.add(pattern % number, image)

    def count(self, name: str) -> int:
        return self.calls.get(name, 0)

    def nodeid(self, name: str) -> int:
        return self.names[name.encode()]

    def put_attr(self, nodeid: int, size: int, valid_s: int) -> None:
        """Attributes of that inode, told by their size."""
        node = self.nodes[nodeid]
        times_ns = [node.times_ns] * 3
        inode = Inode(nodeid, node.mode, 0, 0, node.names, size, *times_ns)
        self.relay.put_attr(nodeid, inode, valid_s)

    def _attach(self, node: Node) -> None:
        if self.relay is not None:
            self.relay.attach(
                node.nodeid,
                node.image.backing_id,
                node.image.fd,
                writable=node.writable,
                fresh_until_ns=node.fresh_until_ns,
                capability_free=True,
                opens_writes=False,
            )

    # Handlers

    def _called(self, name: str) -> None:
        self.calls[name] = self.calls.get(name, 0) + 1

    def _entry(self, node: Node, *, looked_up: bool = False) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino = node.nodeid
        entry.st_mode = node.mode
        entry.st_nlink = node.names
        entry.st_size = os.fstat(node.image.fd).st_size if node.image else 0
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = node.times_ns
        entry.entry_timeout = entry.attr_timeout = TIMEOUT_S
        if looked_up:
            self.lookups[node.nodeid] = self.lookups.get(node.nodeid, 0) + 1
        return entry

    async def lookup(self, parent, name, ctx):
        self._called("lookup")
        if name.startswith(b"slow"):
            await trio.sleep(self.slow_s)
        if name not in self.names:
            raise FUSEError(errno.ENOENT)
        return self._entry(self.nodes[self.names[name]], looked_up=True)

    async def forget(self, inode_list):
        for nodeid, count in inode_list:
            self.lookups[nodeid] = self.lookups.get(nodeid, 0) - count

    async def getattr(self, inode, ctx):
        self._called("getattr")
        return self._entry(self.nodes[inode])

    async def setattr(self, inode, attr, fields, fh, ctx):
        self._called("setattr")
        node = self.nodes[inode]
        if fields.update_size:
            os.ftruncate(node.image.fd, attr.st_size)
        if fields.update_mode:
            node.mode = attr.st_mode
        return self._entry(node)

    async def getxattr(self, inode, name, ctx):
        self._called("getxattr")
        if name not in self.nodes[inode].xattrs:
            raise FUSEError(errno.ENODATA)
        return self.nodes[inode].xattrs[name]

    async def setxattr(self, inode, name, value, ctx):
        self.nodes[inode].xattrs[name] = value

    async def link(self, inode, parent, name, ctx):
        node = self.nodes[inode]
        node.names += 1
        self.names[name] = inode
        return self._entry(node, looked_up=True)

    async def unlink(self, parent, name, ctx):
        node = self.nodes[self.names.pop(name)]
        node.names -= 1
        if self.relay is not None:
            self.relay.attr_changed(node.nodeid)

    async def create(self, parent, name, mode, flags, ctx):
        self._called("create")
        if self.notify_in_create:
            # The kernel holds the directory's lock until this create is answered.
            self._invalidate(name)
            await trio.sleep(0.2)
        if self.put_in_create:
            self.put_attr(parent, self.put_in_create, TIMEOUT_S)
        nodeid = self.add(
            os.fsdecode(name), self.image(f"created-{len(self.nodes)}"), writable=True
        )
        node = self.nodes[nodeid]
        node.mode = mode
        return await self.open(nodeid, flags, ctx), self._entry(node, looked_up=True)

    def _invalidate(self, name: bytes) -> None:
        pyfuse3.invalidate_entry_async(1, name, ignore_enoent=True)

    async def open(self, inode, flags, ctx):
        self._called("open")
        node = self.nodes[inode]
        if flags & os.O_TRUNC:
            os.ftruncate(node.image.fd, 0)
        fh = len(self.handles) + self.count("release") + 1
        self.handles[fh] = node
        return FileInfo(fh=fh, keep_cache=True)

    async def read(self, fh, offset, size):
        self._called("read")
        return os.pread(self.handles[fh].image.fd, size, offset)

    async def write(self, fh, offset, data):
        self._called("write")
        return os.pwrite(self.handles[fh].image.fd, data, offset)

    async def release(self, fh):
        self._called("release")
        del self.handles[fh]

    async def fsync(self, fh, datasync):
        self._called("fsync")
        self.last_fsync = fh

    async def opendir(self, inode, ctx):
        return 1

    async def readdir(self, fh, start, token):
        for position, (name, nodeid) in enumerate(list(self.names.items())):
            if position >= start:
                entry = self._entry(self.nodes[nodeid])
                if not pyfuse3.readdir_reply(token, name, entry, position + 1):
                    return
                self.lookups[nodeid] = self.lookups.get(nodeid, 0) + 1


async def _watch(fs: Relayed) -> None:
    while not fs.relay.unmounted:
        await trio.lowlevel.wait_readable(fs.relay.event_fd)
        if fs.relay.ready and not fs.ready.is_set():
            fs.relay.drain()
            fs.ready.set()
        if not fs.relay.unmounted:
            await trio.sleep(0.05)
    pyfuse3.terminate()


async def _pump(fs: Relayed) -> None:
    while True:
        await trio.lowlevel.wait_readable(fs.relay.replies_fd)
        fs.relay.pump()


def _obey(fs: Relayed, token: trio.lowlevel.TrioToken) -> None:
    def answer(line: str) -> str:
        try:
            return json.dumps(
                {"value": eval(line, {"fs": fs, "os": os, "pyfuse3": pyfuse3, "Inode": Inode})}
            )
        except Exception as error:
            return json.dumps({"error": repr(error)})

    for line in sys.stdin:
        try:
            answered = trio.from_thread.run_sync(answer, line, trio_token=token)
        except trio.RunFinishedError:
            return
        print(answered, flush=True)


async def _announce(fs: Relayed) -> None:
    if fs.relay is not None:
        await fs.ready.wait()
    token = trio.lowlevel.current_trio_token()
    threading.Thread(target=_obey, args=(fs, token), daemon=True).start()
    print(json.dumps({"value": "mounted"}), flush=True)


async def _serve(fs: Relayed) -> None:
    async with trio.open_nursery() as nursery:
        if fs.relay is not None:
            nursery.start_soon(_watch, fs)
            nursery.start_soon(_pump, fs)
            fs.relay.start()
        nursery.start_soon(_announce, fs)
        await pyfuse3.main()
        nursery.cancel_scope.cancel()


def main() -> None:
    options = dict(option.lstrip("-").partition("=")[::2] for option in sys.argv[3:])
    direct = "direct" in options
    fs = Relayed(
        sys.argv[1], Path(sys.argv[2]), direct=direct, threads=int(options.get("threads", 2))
    )
    where = sys.argv[1] if direct else f"/dev/fd/{fs.relay.python_fd}"
    pyfuse3.init(fs, where, {*pyfuse3.default_options, "fsname=relayed"})
    try:
        trio.run(_serve, fs)
    finally:
        pyfuse3.close(unmount=direct)
        if fs.relay is not None:
            fs.relay.close()


if __name__ == "__main__":
    main()
