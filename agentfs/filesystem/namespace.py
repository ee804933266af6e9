"""Names and attributes: everything about files but their bytes.

Every method is one synchronous transaction on the event loop's thread, so two
of them never interleave. Permission is the kernel's business (the filesystem is
mounted with default_permissions); what is left here is what only the owner of
the names can know: which exist, what they mean, and what follows from a change.

The kernel serialises changes to one directory, and has looked up every name it
asks about, so checks it has made are repeated here only where they cost nothing.
"""

from __future__ import annotations

import errno
import stat
import time
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias

from agentfs.filesystem import acl
from agentfs.filesystem.livefile import InodeTable, LiveFile
from agentfs.index import Index
from agentfs.index.xattrs import ACCESS_LIST, CAPABILITY, DEFAULT_LIST, LISTS
from agentfs.model import NAME_BYTES_MAX, ROOT_INODE, VIEW_FIRST, VIEW_NAME, Inode

RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2
"""Flags of renameat2(2)."""

_KEPT_XATTRS = (b"user.", b"security.", b"trusted.")

_READABLE = 0o444

Row: TypeAlias = tuple[Any, ...]
"""An entry of a directory: the columns of its inode, then its name."""


class Caller(NamedTuple):
    """Who asks."""

    uid: int
    gid: int
    umask: int = 0
    """Permissions that what is made does not get, unless its directory has a default list."""


class Detached(NamedTuple):
    """An inode that has lost a name."""

    inode: Inode
    is_removed: bool
    """Its row has gone with the name."""


@dataclass(slots=True)
class AttributeChange:
    """What setattr is to change; None: leave it."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None


class SealFirst(Exception):
    """A file must be sealed before its name may change as it is to."""

    def __init__(self, file: LiveFile) -> None:
        super().__init__()
        self.file = file


def without_setid(mode: int) -> int:
    """The mode that a file has after someone without privilege has changed it."""
    mode &= ~stat.S_ISUID
    if mode & stat.S_IXGRP:
        mode &= ~stat.S_ISGID
    return mode


def whole(found: Inode | Row) -> Inode:
    """An inode, made of its row where that is all there is."""
    return found if isinstance(found, Inode) else Inode(*found[:-1])


def is_in_view(parent: int, name: bytes) -> bool:
    """Whether a name that has no row is the view's, or is in it."""
    return parent >= VIEW_FIRST or (parent == ROOT_INODE and name == VIEW_NAME)


def _read_only() -> OSError:
    return OSError(errno.EROFS, "the view of the daemon cannot be changed")


class Namespace:
    """The tree of names."""

    def __init__(self, index: Index, table: InodeTable, *, keeps_acl: bool = True) -> None:
        """:param keeps_acl: whether files may have access lists; if any has one, they may"""
        self.keeps_acl = keeps_acl or index.xattrs.may_have_acl()
        self._index = index
        self._inodes = index.inodes
        self._dentries = index.dentries
        self._xattrs = index.xattrs
        self._table = table

    def lookup(self, parent: int, name: bytes) -> Inode | None:
        """The inode a name means, or None. The caller tells the kernel of it."""
        if name == b".":
            return self._table.get(parent)
        if name == b"..":
            above = self._table.get(parent).parent
            return self._table.get(above) if above is not None else None
        inode = self._dentries.lookup(parent, name)
        if inode is None:
            if len(name) > NAME_BYTES_MAX:
                raise OSError(errno.ENAMETOOLONG, "name too long")
            return None
        return self._table.current(inode.id, inode)

    def name_in(self, directory: int, inode: int) -> bytes | None:
        """A name that a directory has for an inode; reads its names up to there."""
        live = self._table.live(inode)
        is_known = live is not None and live.name[0] == directory
        if live is not None and is_known and self._dentries.means(*live.name, inode):
            return live.name[1]
        return self._dentries.name_in(directory, inode)

    def walk(self, path: bytes) -> list[Inode]:
        """The inodes that a path below the root leads through; no link is followed.

        :raises OSError: ENOENT or ENOTDIR
        """
        way = [self._table.get(ROOT_INODE)]
        for name in filter(None, path.split(b"/")):
            if not way[-1].is_directory:
                raise OSError(errno.ENOTDIR, "not a directory")
            way.append(self._existing(way[-1].id, name))
        return way

    def create(
        self,
        parent: int,
        name: bytes,
        mode: int,
        caller: Caller,
        *,
        rdev: int | None = None,
        target: bytes | None = None,
    ) -> Inode:
        """A new inode of any type under a new name.

        :raises FileExistsError: the name is taken
        """
        if len(name) > NAME_BYTES_MAX:
            raise OSError(errno.ENAMETOOLONG, "name too long")
        directory = self._taking(parent, name)
        inode, lists = self._new_inode(directory, mode, caller)
        inode.rdev = rdev
        if target is not None:
            inode.target = target
            inode.size = len(target)
        inode.parent = parent
        is_directory = inode.is_directory
        if is_directory:
            inode.nlink = 2
        with self._index.transaction:
            self._dentries.insert(parent, name, inode.id)
            self._insert(inode, lists)
            self._touch(directory, inode.mtime_ns, subdirectories=int(is_directory))
        return inode

    def create_unnamed(self, parent: int, mode: int, caller: Caller) -> Inode:
        """A new regular file without a name (O_TMPFILE); `link` may give it one."""
        inode, lists = self._new_inode(self._living(parent), mode, caller)
        inode.nlink = 0
        inode.parent = parent
        with self._index.transaction:
            self._insert(inode, lists)
        self._table.opened_unnamed(inode)
        return inode

    def _new_inode(
        self, directory: Inode, mode: int, caller: Caller
    ) -> tuple[Inode, dict[bytes, bytes]]:
        """One to be made in *directory*, with one link, and its access lists."""
        now = time.time_ns()
        mode, lists = self._permissions(directory, mode, caller.umask)
        gid = caller.gid
        if directory.mode & stat.S_ISGID:
            gid = directory.gid
            if stat.S_ISDIR(mode):
                mode |= stat.S_ISGID
        inode = Inode(
            id=self._inodes.allocate(),
            mode=mode,
            uid=caller.uid,
            gid=gid,
            nlink=1,
            size=0,
            atime_ns=now,
            mtime_ns=now,
            ctime_ns=now,
        )
        return inode, lists

    def _permissions(
        self, directory: Inode, mode: int, umask: int
    ) -> tuple[int, dict[bytes, bytes]]:
        """The mode and the access lists of what is made in *directory*."""
        if stat.S_ISLNK(mode):
            return mode, {}
        default = self._xattrs.get(directory.id, DEFAULT_LIST)
        if default is None:
            return mode & ~umask, {}
        mode, access = acl.inherited(default, mode)
        lists = {} if access is None else {ACCESS_LIST: access}
        return mode, lists | ({DEFAULT_LIST: default} if stat.S_ISDIR(mode) else {})

    def _insert(self, inode: Inode, lists: dict[bytes, bytes]) -> None:
        """In a transaction."""
        self._inodes.insert(inode)
        for name, value in lists.items():
            self._xattrs.set(inode.id, name, value)

    def _touch(self, directory: Inode, now_ns: int, *, subdirectories: int = 0) -> None:
        """Stamp a directory whose entries change. Last in a transaction: it cannot fail."""
        self._inodes.touch_directory(directory.id, now_ns, subdirectories)
        directory.mtime_ns = directory.ctime_ns = now_ns
        directory.nlink += subdirectories
        self._table.directory_changed(directory)

    def link(self, inode_id: int, parent: int, name: bytes) -> Inode:
        """One more name for an inode."""
        inode = self._table.get(inode_id)
        if inode.nlink == 0 and not inode.is_unnamed:
            raise OSError(errno.ENOENT, "inode has no name left")
        if inode.id >= VIEW_FIRST:
            raise _read_only()
        directory = self._taking(parent, name)
        now = time.time_ns()
        with self._index.transaction:
            self._dentries.insert(parent, name, inode.id)
            self._inodes.set_links(inode.id, inode.nlink + 1, now)
            if inode.id in self._index.loans:
                self._take_back(inode)
            if inode.is_unnamed:
                self._inodes.set_parent(inode.id, parent)
            self._touch(directory, now)
        if inode.is_unnamed:
            inode.parent = parent
            self._table.linked(inode)
            live = self._table.live(inode.id)
            if live is not None:
                live.name = (parent, name)
        inode.nlink += 1
        inode.ctime_ns = now
        self._table.changed(inode.id)
        return inode

    def unlink(self, parent: int, name: bytes) -> None:
        """Remove a name of anything but a directory."""
        inode = self._existing(parent, name)
        if inode.is_directory:
            raise OSError(errno.EISDIR, "is a directory")
        now = time.time_ns()
        with self._index.transaction:
            self._dentries.delete(parent, name)
            is_removed = self._drop_link(inode, now)
            self._touch(self._table.get(parent), now)
        self._after_drop(inode, is_removed=is_removed)

    def rmdir(self, parent: int, name: bytes) -> None:
        """Remove an empty directory."""
        inode = self._existing(parent, name)
        if not inode.is_directory:
            raise OSError(errno.ENOTDIR, "not a directory")
        if not self._dentries.is_empty(inode.id):
            raise OSError(errno.ENOTEMPTY, "directory is not empty")
        now = time.time_ns()
        with self._index.transaction:
            self._dentries.delete(parent, name)
            is_removed = self._drop_link(inode, now)
            self._touch(self._table.get(parent), now, subdirectories=-1)
        self._after_drop(inode, is_removed=is_removed)

    def rename(
        self,
        old_parent: int,
        old_name: bytes,
        new_parent: int,
        new_name: bytes,
        flags: int,
        request: int = 0,
        *,
        seals_first: bool = False,
    ) -> None:
        """Move a name, replacing what the new one means, or exchange two.

        :param request: its number, if it may have been done before: an exchange is done once
        :raises SealFirst: the file is to be sealed, or a power cut could leave it empty; only
            if *seals_first*
        """
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE):
            raise OSError(errno.EINVAL, "unknown rename flag")
        if len(new_name) > NAME_BYTES_MAX:
            raise OSError(errno.ENAMETOOLONG, "name too long")
        self._taking(new_parent, new_name)
        moved = self._existing(old_parent, old_name)
        victim = self.lookup(new_parent, new_name)
        if flags & RENAME_EXCHANGE:
            if victim is None:
                raise OSError(errno.ENOENT, "nothing to exchange with")
            if request and self._dentries.last_exchange(old_parent) == request:
                return
            self._exchange(moved, old_parent, old_name, victim, new_parent, new_name, request)
            return
        if victim is not None:
            if flags & RENAME_NOREPLACE:
                raise OSError(errno.EEXIST, "name is taken")
            if victim.id == moved.id:
                return
            self._check_replaceable(moved, victim)
        now = time.time_ns()
        with self._index.transaction:
            self._dentries.delete(old_parent, old_name)
            self._dentries.point(new_parent, new_name, moved.id)
            if old_parent != new_parent:
                self._inodes.set_parent(moved.id, new_parent)
                moved.parent = new_parent
            self._inodes.set_times(moved.id, moved.mtime_ns, now)
            self._lend_content(moved, victim, may_fall_back=not seals_first)
            is_removed = False
            if victim is not None:
                is_removed = self._drop_link(victim, now)
            self._touch_both(old_parent, new_parent, now, moved, victim)
        moved.ctime_ns = now
        self._table.changed(moved.id)
        live = self._table.live(moved.id)
        if live is not None:
            live.name = (new_parent, new_name)
            replaced = self._table.live(victim.id) if victim is not None else None
            if replaced is not None and replaced.is_dirty:
                live.dirty_since = min(live.dirty_since, replaced.dirty_since)
        if victim is not None:
            self._after_drop(victim, is_removed=is_removed)

    def _touch_both(
        self, old_parent: int, new_parent: int, now_ns: int, moved: Inode, victim: Inode | None
    ) -> None:
        """Stamp the directories that a rename took a name from and gave one to."""
        gained = int(moved.is_directory)
        lost = int(victim is not None and victim.is_directory)
        if old_parent == new_parent:
            self._touch(self._table.get(new_parent), now_ns, subdirectories=-lost)
            return
        self._touch(self._table.get(old_parent), now_ns, subdirectories=-gained)
        self._touch(self._table.get(new_parent), now_ns, subdirectories=gained - lost)

    def _lend_content(
        self, moved: Inode, victim: Inode | None, *, may_fall_back: bool = True
    ) -> None:
        """Let a staged file that replaces a sealed one fall back to the sealed content.

        Its row names no content until it is sealed. Should the machine lose power
        first, the name shows the content it had before the rename, not an empty file. One
        that is empty has nothing to lose, and may have been fsynced as it is. In a transaction.

        What was lent to it for the name it had before is taken back.

        :raises SealFirst: those who may read the file, or know it by another name, could not
            read the other; nothing has changed, unless *may_fall_back*: it goes without then
        """
        live = self._table.live(moved.id)
        is_borrower = moved.id in self._index.loans
        if live is None or live.staged is None or (moved.content is not None and not is_borrower):
            return
        live.refresh()
        lent = self._inodes.get(victim.id) if victim is not None and moved.size else None
        if lent is None or lent.content is None:
            lent = None
        elif not self._may_show(moved, lent):
            if not may_fall_back:
                raise SealFirst(live)
            lent = None
        if is_borrower:
            self._take_back(moved)
        if lent is not None and lent.content is not None:
            if victim is not None and self._goes_with_name(victim):
                self._inodes.set_content(victim.id, None, 0, None)  # its reference goes over
            else:
                self._index.contents.reference(lent.content)
            self._inodes.set_content(moved.id, lent.content, lent.size, lent.holes)
            self._index.loans.add(moved.id)
            moved.content = lent.content

    def _may_show(self, file: Inode, other: Inode) -> bool:
        """Whether one name alone leads to a file, and nobody may read it who may not read *other*.

        May be False where that holds: of two files with access lists.
        """
        is_wider = stat.S_IMODE(file.mode) & ~stat.S_IMODE(other.mode) & _READABLE
        lists = [self._xattrs.get(inode.id, ACCESS_LIST) for inode in (file, other)]
        return (
            file.nlink == 1
            and (file.uid, file.gid) == (other.uid, other.gid)
            and not is_wider
            and lists[0] == lists[1]
        )

    def _take_back(self, inode: Inode) -> None:
        """Let a file that was lent a content name none. In a transaction."""
        self._index.contents.release(inode.content)
        self._inodes.set_content(inode.id, None, 0, None)
        self._index.loans.end(inode.id)
        inode.content = None

    def borrower(self, inode_id: int) -> LiveFile | None:
        """The file, if it shows after a power cut what it was renamed over."""
        return self._table.live(inode_id) if inode_id in self._index.loans else None

    def _exchange(
        self,
        one: Inode,
        one_parent: int,
        one_name: bytes,
        other: Inode,
        other_parent: int,
        other_name: bytes,
        request: int,
    ) -> None:
        now = time.time_ns()
        difference = int(other.is_directory) - int(one.is_directory)
        with self._index.transaction:
            if request:
                self._dentries.note_exchange(one_parent, request)
            self._dentries.point(one_parent, one_name, other.id)
            self._dentries.point(other_parent, other_name, one.id)
            for inode, parent in ((one, other_parent), (other, one_parent)):
                if inode.id in self._index.loans:
                    self._take_back(inode)
                self._inodes.set_times(inode.id, inode.mtime_ns, now)
                inode.ctime_ns = now
                self._table.changed(inode.id)
                self._inodes.set_parent(inode.id, parent)
                inode.parent = parent
            if one_parent == other_parent:
                self._touch(self._table.get(one_parent), now)
            else:
                self._touch(self._table.get(one_parent), now, subdirectories=difference)
                self._touch(self._table.get(other_parent), now, subdirectories=-difference)

    def attach(self, inode: Inode, parent: int, name: bytes, *, replaces: bool) -> Detached | None:
        """Give an inode that has no name its first one; what the name meant before, of any type.

        In a transaction; `let_go` is to follow it.

        :raises OSError: ENOENT, the directory is gone; EEXIST, the name is taken
        """
        directory = self._taking(parent, name)
        victim = self.lookup(parent, name)
        if victim is not None and not replaces:
            raise OSError(errno.EEXIST, "name is taken")
        now = time.time_ns()
        self._dentries.point(parent, name, inode.id)
        detached = None
        if victim is not None:
            detached = Detached(victim, is_removed=self._drop_link(victim, now))
        self._inodes.set_parent(inode.id, parent)
        inode.parent = parent
        lost = int(victim is not None and victim.is_directory)
        self._touch(directory, now, subdirectories=int(inode.is_directory) - lost)
        return detached

    def empty(self, directory: int, limit: int) -> list[Detached]:
        """Remove up to *limit* names of a directory that has no name itself.

        Directories among what they meant are such ones then. `let_go` is to follow.
        """
        now = time.time_ns()
        detached = []
        with self._index.transaction:
            for row in self._dentries.after(directory, b"", limit):
                inode = self._existing(directory, row[-1])  # another name of it may just have gone
                self._dentries.delete(directory, row[-1])
                detached.append(Detached(inode, is_removed=self._drop_link(inode, now)))
        return detached

    def let_go(self, detached: Detached) -> None:
        """A name was taken from an inode; from a directory, which is empty by now, the last."""
        self._after_drop(detached.inode, is_removed=detached.is_removed)

    def _living(self, parent: int) -> Inode:
        """A directory that takes names.

        :raises OSError: ENOENT, it has lost its own: what is in it goes as well
        """
        directory = self._table.get(parent)
        if directory.nlink == 0:
            raise OSError(errno.ENOENT, "directory is gone")
        if parent >= VIEW_FIRST:
            raise _read_only()
        return directory

    def _taking(self, parent: int, name: bytes) -> Inode:
        """The same, for a name that is to be made or replaced.

        :raises OSError: EROFS, the name is the view's
        """
        if name == VIEW_NAME and parent == ROOT_INODE and self.lookup(parent, name) is None:
            raise _read_only()
        return self._living(parent)

    def _existing(self, parent: int, name: bytes) -> Inode:
        inode = self.lookup(parent, name)
        if inode is None:
            if is_in_view(parent, name):
                raise _read_only()
            raise OSError(errno.ENOENT, "no such name")
        return inode

    def _check_replaceable(self, moved: Inode, victim: Inode) -> None:
        if victim.is_directory:
            if not moved.is_directory:
                raise OSError(errno.EISDIR, "is a directory")
            if not self._dentries.is_empty(victim.id):
                raise OSError(errno.ENOTEMPTY, "directory is not empty")
        elif moved.is_directory:
            raise OSError(errno.ENOTDIR, "not a directory")

    def _goes_with_name(self, inode: Inode) -> bool:
        """Whether an inode's row goes when it loses a name."""
        is_last = inode.nlink == 1 and not inode.is_directory
        return is_last and not self._table.is_open(inode.id)

    def _drop_link(self, inode: Inode, now_ns: int) -> bool:
        """Take one name away; True when the row went with it.

        An open file and a directory, which may be somebody's working directory, keep their
        rows until they are let go of, so that another daemon can take over from this one.
        """
        left = 0 if inode.is_directory else inode.nlink - 1
        is_removed = self._goes_with_name(inode)
        if is_removed:
            self._index.remove_inode(inode.id)
        else:
            self._inodes.set_links(inode.id, left, now_ns)
            if left == 0 and not inode.is_directory:
                self._inodes.set_parent(inode.id, None)
        if left == 0 and not inode.is_directory:
            inode.parent = None
        inode.nlink = left
        inode.ctime_ns = now_ns
        self._table.changed(inode.id)
        return is_removed

    def _after_drop(self, inode: Inode, *, is_removed: bool) -> None:
        if inode.nlink == 0:
            self._table.unlinked(inode, is_removed=is_removed)

    def other_names(self, inode: Inode) -> list[tuple[int, bytes]]:
        """(parent, name) of all names of an inode that has several; else none."""
        return self._dentries.names_of(inode.id) if inode.nlink > 1 else []

    def rows_after(self, parent: int, name: bytes, limit: int) -> list[Row]:
        """Up to *limit* entries of a directory that sort after *name*; see `inode_of`."""
        return self._dentries.after(parent, name, limit)

    def kept_rows_after(self, parent: int, name: bytes, limit: int) -> list[Row] | None:
        """The same, and faster; None: not all of them are in memory."""
        return self._dentries.kept_after(parent, name, limit)

    def inode_of(self, row: Row) -> Inode:
        """The inode of an entry as it is now, if no row has changed since."""
        return whole(self.current_of(row))

    def current_of(self, row: Row) -> Inode | Row:
        """The same, or the row if that is all there is: a listing needs no more."""
        return self._table.current(row[0], row)

    @property
    def changes(self) -> int:
        """Grows whenever a row changes."""
        return self._index.changes

    # Attributes

    def change_attributes(self, inode: Inode, change: AttributeChange) -> None:
        """chmod, chown and utimensat."""
        if change.mode is not None:
            inode.mode = stat.S_IFMT(inode.mode) | stat.S_IMODE(change.mode)
        if change.uid is not None or change.gid is not None:
            self._change_owner(inode, change)
        if change.atime_ns is not None:
            inode.atime_ns = change.atime_ns
        if change.mtime_ns is not None:
            inode.mtime_ns = change.mtime_ns
        inode.ctime_ns = time.time_ns() if change.ctime_ns is None else change.ctime_ns
        self._inodes.update_attributes(inode)

    def _change_owner(self, inode: Inode, change: AttributeChange) -> None:
        if change.uid is not None:
            inode.uid = change.uid
        if change.gid is not None:
            inode.gid = change.gid
        if not inode.is_directory:
            # The kernel leaves this to us, for root as well (FUSE_HANDLE_KILLPRIV_V2).
            inode.mode = without_setid(inode.mode)
            self._xattrs.remove(inode.id, CAPABILITY)

    def drop_privileges(self, inode: Inode) -> None:
        """Someone without privilege changed the bytes: take away set-id bits and capabilities."""
        plain = without_setid(inode.mode)
        if plain != inode.mode:
            inode.mode = plain
            self._inodes.update_attributes(inode)
            self._table.changed(inode.id)

    def drop_capabilities(self, inode: Inode) -> None:
        self._xattrs.remove(inode.id, CAPABILITY)

    # Extended attributes

    def _is_kept(self, name: bytes) -> bool:
        return name.startswith(_KEPT_XATTRS) or (self.keeps_acl and name in LISTS)

    def get_xattr(self, inode_id: int, name: bytes) -> bytes:
        """:raises OSError: ENODATA, or EOPNOTSUPP for a namespace that is not kept"""
        value = self._xattrs.get(inode_id, name)
        if value is None:
            if not self._is_kept(name):
                raise OSError(errno.EOPNOTSUPP, "attribute namespace is not supported")
            raise OSError(errno.ENODATA, "no such attribute")
        if name == ACCESS_LIST:
            return acl.with_mode(value, self._table.get(inode_id).mode)
        return value

    def has_xattr(self, inode_id: int, name: bytes, *, other_than: bytes) -> bool:
        """Whether there is an attribute of that name with another value."""
        return self._xattrs.get(inode_id, name) not in (None, other_than)

    def set_xattr(
        self, inode_id: int, name: bytes, value: bytes, *, keeps_setgid: bool = True
    ) -> None:
        """Set an attribute; an access list sets the mode as well.

        :param keeps_setgid: who sets an access list may set that bit as well
        :raises OSError: EINVAL, it is no access list; EOPNOTSUPP, ENOENT
        """
        if not self._is_kept(name):
            raise OSError(errno.EOPNOTSUPP, "attribute namespace is not supported")
        inode = self._table.get(inode_id)
        if self._table.is_ghost(inode_id):
            raise OSError(errno.ENOENT, "inode has no name left")
        if name == DEFAULT_LIST:
            acl.check(value)
        with self._index.transaction:
            if name == ACCESS_LIST:
                self._set_access_list(inode, value, keeps_setgid=keeps_setgid)
            else:
                self._xattrs.set(inode_id, name, value)
            inode.ctime_ns = time.time_ns()
            self._inodes.update_attributes(inode)
        self._table.changed(inode.id)

    def _set_access_list(self, inode: Inode, value: bytes, *, keeps_setgid: bool) -> None:
        """In a transaction, before the inode's row is written."""
        mode, is_minimal = acl.mode_of(value, inode.mode)
        if is_minimal:
            self._xattrs.remove(inode.id, ACCESS_LIST)
        else:
            self._xattrs.set(inode.id, ACCESS_LIST, acl.without_mode(value))
        inode.mode = mode if keeps_setgid else mode & ~stat.S_ISGID

    def list_xattrs(self, inode_id: int) -> list[bytes]:
        return self._xattrs.names(inode_id)

    def remove_xattr(self, inode_id: int, name: bytes) -> None:
        inode = self._table.get(inode_id)
        inode.ctime_ns = time.time_ns()
        with self._index.transaction:
            is_gone = self._xattrs.remove(inode_id, name) or name in LISTS
            if not is_gone:  # of lists acl(5) has it that who has none may be left without
                raise OSError(errno.ENODATA, "no such attribute")
            self._inodes.update_attributes(inode)
        self._table.changed(inode.id)
