"""Who holds a store: an flock on `STORE/lock`, with the holder's pid as its text.

The lock is the truth: the kernel drops it when the daemon ends, however it ends.
The pid only makes messages useful; it is stale while nobody holds the lock.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from agentfs.control import ownership
from agentfs.errors import StoreBusy, StoreUnusable

LOCK_NAME = "lock"

# holder() takes a shared lock for an instant; hold() must not mistake that for a daemon.
_RETRY_S = 0.5
_RETRY_EVERY_S = 0.02


def hold(store_dir: Path) -> int:
    """Take the store for this process; returns the descriptor that holds it.

    Closing the descriptor, or dying, lets go. Raises StoreBusy if another has it, StoreUnusable
    if the store is another user's.
    """
    ownership.close_to_others(store_dir)
    fd = os.open(store_dir / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + _RETRY_S
        while not _try_lock(fd, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                raise busy(store_dir, _pid_in(fd))
            time.sleep(_RETRY_EVERY_S)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


def holder(store_dir: Path) -> int | None:
    """Return the pid of the daemon that holds the store, 0 if it left none, None if free."""
    try:
        fd = os.open(store_dir / LOCK_NAME, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        raise StoreUnusable(
            f"the store {store_dir} belongs to another user; ask as that user or as root"
        ) from error
    try:
        return None if _try_lock(fd, fcntl.LOCK_SH) else _pid_in(fd)
    finally:
        os.close(fd)


def busy(store_dir: Path, pid: int) -> StoreBusy:
    """Build the error for a store that *pid* (0: unknown) holds."""
    by = f"the agentfs daemon with pid {pid}" if pid else "another agentfs daemon"
    return StoreBusy(
        f"the store {store_dir} is mounted by {by}; agentfs umount {store_dir} ends it"
    )


def _try_lock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _pid_in(fd: int) -> int:
    text = os.pread(fd, 32, 0).strip()
    return int(text) if text.isdigit() else 0
