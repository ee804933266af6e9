"""Which agentfs mounts there are, and which one a command means.

All answers come from /proc/self/mountinfo. Nothing here touches a mountpoint:
a stat() below a daemon that hangs would hang too.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from agentfs.config import DEFAULT_MOUNTPOINT, default_store
from agentfs.errors import NotMounted, UsageError
from agentfs.machine.mountinfo import Mount, parse_mountinfo

MOUNTINFO = Path("/proc/self/mountinfo")


@dataclass(frozen=True, slots=True)
class Target:
    """What a command works on: a store, and where it is mounted, if it is."""

    store: Path
    mountpoint: Path | None


def all_mounts() -> list[Mount]:
    """Return this mount namespace's mounts; of two on one place the upper comes later."""
    return parse_mountinfo(MOUNTINFO.read_bytes())


def mount_at(mountpoint: Path) -> Mount | None:
    """Return what is mounted exactly at *mountpoint* (absolute), the upper one of several."""
    found = [mount for mount in all_mounts() if mount.mountpoint == mountpoint]
    return found[-1] if found else None


def mount_holding(path: Path) -> Mount | None:
    """Return the mount that *path* (absolute, without links) is in."""
    found = [mount for mount in all_mounts() if path.is_relative_to(mount.mountpoint)]
    longest = max((len(mount.mountpoint.parts) for mount in found), default=0)
    deepest = [mount for mount in found if len(mount.mountpoint.parts) == longest]
    return deepest[-1] if deepest else None


def mounts_of(store: Path) -> list[Mount]:
    """Return every agentfs mount of *store* (absolute)."""
    return [mount for mount in all_mounts() if mount.is_agentfs and mount.store == store]


def absolute(path: str | Path) -> Path:
    """Make *path* absolute and resolve links, except in what may be a mountpoint.

    Links above the last component are resolved, because mountinfo has none.
    """
    plain = Path(os.path.abspath(path))
    if any(mount.mountpoint == plain for mount in all_mounts()):
        return plain
    return Path(os.path.realpath(plain.parent)) / plain.name


def find_target(given: str | None) -> Target:
    """Return what *given*, a mountpoint or a store, stands for.

    Without one: /agentmem if agentfs is mounted there, else the only agentfs
    mount, else the default store. Raises NotMounted or UsageError.
    """
    mounts = [mount for mount in all_mounts() if mount.is_agentfs]
    if given is None:
        return _default_target(mounts)
    path = absolute(given)
    for mount in reversed(mounts):
        if path == mount.mountpoint or path == mount.store:
            return Target(mount.store, mount.mountpoint)
    for mount in reversed(mounts):  # a link to a mountpoint or a store
        if path.is_symlink() and Path(os.readlink(path)) in (mount.mountpoint, mount.store):
            return Target(mount.store, mount.mountpoint)
    if looks_like_store(path):
        return Target(path.resolve(), None)
    raise NotMounted(
        f"{path} is neither an agentfs mountpoint nor a store; agentfs mount makes one"
    )


def looks_like_store(path: Path) -> bool:
    """Whether *path* is a directory that an agentfs daemon has used as its store."""
    return os.path.isfile(path / "index.db") or os.path.isdir(path / "namespace")


def _default_target(mounts: list[Mount]) -> Target:
    for mount in reversed(mounts):
        if mount.mountpoint == DEFAULT_MOUNTPOINT:
            return Target(mount.store, mount.mountpoint)
    if len(mounts) == 1:
        return Target(mounts[0].store, mounts[0].mountpoint)
    if mounts:
        names = ", ".join(sorted({str(mount.mountpoint) for mount in mounts}))
        raise UsageError(f"several agentfs mounts are there, say which: {names}")
    store = default_store()
    if looks_like_store(store):
        return Target(store, None)
    raise NotMounted(
        f"no agentfs is mounted and there is no store at {store}; agentfs mount makes both"
    )
