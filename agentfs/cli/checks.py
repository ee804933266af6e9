"""What must hold before a mount is tried. Nothing here changes anything.

Each check raises the error for its condition, in one line that says what is
wrong and what to do. They run in the order of `check_all`, from the store to
the mountpoint to the machine, so that the first line is the one to act on.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from agentfs.cli import output
from agentfs.cli.mounts import looks_like_store, mount_at, mounts_of
from agentfs.config import MIB, MountConfig
from agentfs.control import lock, ownership
from agentfs.errors import FuseUnavailable, MountpointUnusable, NoSpace, StoreUnusable
from agentfs.machine.reading import CAP_SYS_ADMIN, FUSE_DEVICE, Machine

MIN_FREE_BYTES = 16 * MIB  # the index, its WAL and the first segment's beginning

# What a daemon leaves behind that ended before it could make an index.
BEFORE_THE_INDEX = frozenset({"daemon.log", "daemon.log.1", "lock", "control", "segments"})


def check_all(config: MountConfig) -> None:
    """Raise the first reason why *config* cannot be mounted, if there is one."""
    check_store(config.store)
    check_store_free(config.store)
    check_mountpoint(config.mountpoint, config.store)
    check_fuse(config.allow_other)
    check_space(config.store)


def check_store(store: Path) -> None:
    """The store is a store, or an empty or missing directory where one can be made."""
    ancestor = _nearest_existing(store)
    if not ancestor.is_dir():
        raise StoreUnusable(f"the store path {ancestor} is not a directory; choose another --store")
    if not os.access(ancestor, os.W_OK | os.X_OK):
        raise StoreUnusable(
            f"no right to write in {ancestor}; choose another --store or become its owner"
        )
    if ancestor != store:
        return
    try:
        names = set(os.listdir(store))
    except OSError as error:
        raise StoreUnusable(f"the store {store} cannot be read: {error.strerror}") from error
    if names - BEFORE_THE_INDEX and not looks_like_store(store):
        raise StoreUnusable(
            f"{store} holds files but is no agentfs store; choose an empty or a new directory"
        )
    ownership.check_own(store)


def check_store_free(store: Path) -> None:
    """No daemon has the store."""
    pid = lock.holder(store)
    if pid is not None:
        raise lock.busy(store, pid)


def check_mountpoint(mountpoint: Path, store: Path) -> None:
    """The mountpoint is a directory on which nothing is mounted yet.

    A dead agentfs mount of the same store passes: `mount` clears it.
    """
    there = mount_at(mountpoint)
    if there is not None:
        if there.is_agentfs and there.store == store:
            return  # check_store_free ran before: this mount has no daemon any more
        raise MountpointUnusable(_busy_message(mountpoint, there.fstype, there.source))
    if mountpoint == store or store in mountpoint.parents or mountpoint in store.parents:
        raise MountpointUnusable(
            f"the store {store} and the mountpoint {mountpoint} lie in each other; keep them apart"
        )
    try:
        mode = os.stat(mountpoint).st_mode
    except FileNotFoundError:
        raise MountpointUnusable(
            f"{mountpoint} does not exist; make it with: mkdir {mountpoint}"
        ) from None
    except OSError as error:
        raise MountpointUnusable(f"{mountpoint} is unusable: {error.strerror}") from error
    if not stat.S_ISDIR(mode):
        raise MountpointUnusable(f"{mountpoint} is not a directory; name one that is")
    if os.geteuid() != 0 and not os.access(mountpoint, os.W_OK):
        raise MountpointUnusable(
            f"{mountpoint} belongs to another user, who alone may mount there; name one of yours"
        )


def check_fuse(allow_other: bool) -> None:
    """The machine has FUSE and this process may mount."""
    machine = Machine()
    if not machine.exists(FUSE_DEVICE):
        raise FuseUnavailable(
            f"{FUSE_DEVICE} is missing; load it with: modprobe fuse "
            "(in a container: docker run --device /dev/fuse --cap-add SYS_ADMIN)"
        )
    if not machine.may_use(FUSE_DEVICE):
        raise FuseUnavailable(f"no right to open {FUSE_DEVICE}; as root: chmod 666 {FUSE_DEVICE}")
    if machine.is_root:
        if not machine.has_capability(CAP_SYS_ADMIN):
            raise FuseUnavailable(
                "no right to mount: CAP_SYS_ADMIN is missing (docker run --cap-add SYS_ADMIN)"
            )
        return
    if machine.program("fusermount3") is None:
        raise FuseUnavailable(
            "fusermount3 is missing; install the Debian package fuse3: apt-get install fuse3"
        )
    if allow_other and not machine.users_may_allow_other:
        raise FuseUnavailable(
            "allow_other is for root only, unless /etc/fuse.conf has a line user_allow_other"
        )


def check_space(store: Path) -> None:
    """The disk has room for a new store; one that is full can be mounted, or nothing could go."""
    if looks_like_store(store):
        return
    usage = os.statvfs(_nearest_existing(store))
    free_bytes = usage.f_bavail * usage.f_frsize
    if free_bytes < MIN_FREE_BYTES:
        raise NoSpace(
            f"the disk below {store} has {output.size(free_bytes)} free, agentfs needs "
            f"{output.size(MIN_FREE_BYTES)} to start; free some or choose another --store"
        )


def dead_mounts(config: MountConfig) -> list[Path]:
    """Return where the store is still mounted though its daemon is gone."""
    return [mount.mountpoint for mount in mounts_of(config.store)]


def is_not_empty(mountpoint: Path) -> bool:
    """Whether a mount hides files; a dead mount hides none that can be seen."""
    try:
        return bool(os.listdir(mountpoint))
    except OSError:
        return False


def _busy_message(mountpoint: Path, fstype: str, source: str) -> str:
    try:
        os.stat(mountpoint)
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            return (
                f"{mountpoint} is a dead {fstype} mount of {source}; "
                f"clear it with: fusermount3 -u -z {mountpoint}"
            )
    return (
        f"{mountpoint} is already a mountpoint ({fstype} of {source}); "
        "unmount that first or name another directory"
    )


def _nearest_existing(path: Path) -> Path:
    while not os.path.lexists(path):
        path = path.parent
    return path
