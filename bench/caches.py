"""Makes a filesystem forget, without disturbing the rest of the machine.

`/proc/sys/vm/drop_caches` empties the caches of everything that runs; other work then pays, and so
does the next measurement. Two narrower tools reach the same state for one mount, one directory:

- `forget_names`: a remount with unchanged flags makes the kernel call `shrink_dcache_sb`, which
  drops every unused dentry of that one superblock. A FUSE inode goes with its last dentry (FORGET
  is sent), its attributes and pages with it. The next stat is a LOOKUP that the daemon must answer.
  tmpfs pins its dentries and forgets nothing; ext4 forgets names, but keeps inodes and blocks.
- `forget_pages`: `posix_fadvise(DONTNEED)` on every file below a directory, after fsync. With an
  unmount before and a mount after, a read has to come from the disk.
"""

import ctypes
import os
import stat
from pathlib import Path

MS_REMOUNT = 32
MS_RELATIME = 1 << 21
ST_RELATIME = 4096
SAME_IN_STATVFS = 1 | 2 | 4 | 8 | 1024 | 2048  # rdonly nosuid nodev noexec noatime nodiratime

_libc = ctypes.CDLL(None, use_errno=True)


def forget_names(mountpoint: Path) -> None:
    """Drop the dentries of that mount. Needs CAP_SYS_ADMIN; raises OSError without."""
    flags = os.statvfs(mountpoint).f_flag
    wanted = MS_REMOUNT | (flags & SAME_IN_STATVFS)
    if flags & ST_RELATIME:
        wanted |= MS_RELATIME
    if _libc.mount(b"none", os.fsencode(mountpoint), None, ctypes.c_ulong(wanted), None):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(mountpoint))


def forget_pages(*places: Path) -> None:
    """Write out and drop the cached pages of the files at or below each place."""
    for place in places:
        for file in [place] if place.is_file() else sorted(place.rglob("*")):
            try:
                if not stat.S_ISREG(file.lstat().st_mode):
                    continue
                descriptor = os.open(file, os.O_RDONLY)
            except FileNotFoundError:  # a live store replaces files
                continue
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
