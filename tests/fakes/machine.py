"""A machine made of files: as /proc, /sys, /etc and /dev of a good one, to be made worse."""

from __future__ import annotations

import os
from pathlib import Path

from agentfs.machine.reading import Machine

KERNEL = "6.18.44-test"
ALL_CAPABILITIES = "000001ffffffffff"

# A server with Debian 13, root's view; a tree below tmp_path has no /proc/self of its own process.
FILES = {
    "/proc/sys/kernel/osrelease": KERNEL,
    "/proc/sys/kernel/random/boot_id": "7d2a7b52-8b39-4a83-a7bb-cbcd5e9a4de8",
    "/proc/filesystems": "nodev\tsysfs\n\text4\n\tfuseblk\nnodev\tfuse\nnodev\tfusectl",
    f"/boot/config-{KERNEL}": "CONFIG_FUSE_FS=y\nCONFIG_FUSE_PASSTHROUGH=y\nCONFIG_ZSWAP=y\n"
    "CONFIG_CRYPTO_ZSTD=m\n# CONFIG_CRYPTO_LZ4 is not set",
    "/proc/self/status": f"Name:\tpython3\nCapEff:\t{ALL_CAPABILITIES}",
    "/proc/self/limits": "Limit                     Soft Limit           Hard Limit\n"
    "Max open files            1024                 1048576              files",
    "/proc/self/cgroup": "0::/system.slice/agentfs@default.service",
    "/proc/self/mountinfo": "24 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
    "26 24 0:24 / /dev/shm rw,nosuid,nodev shared:4 - tmpfs tmpfs rw,inode64\n"
    "31 24 0:27 / /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw,nsdelegate",
    "/sys/fs/cgroup/system.slice/memory.max": "max",
    "/proc/sys/fs/nr_open": "1048576",
    "/proc/meminfo": "MemTotal:       16384000 kB\nMemFree:  1638400 kB\nHugePages_Total:  0",
    "/proc/pressure/memory": "some avg10=0.00 avg60=0.00 avg300=0.00 total=0",
    "/proc/swaps": "Filename\tType\tSize\tUsed\tPriority\n/swapfile file 16777212 0 -2",
    "/proc/sys/vm/swappiness": "100",
    "/proc/crypto": "name         : lzo\nmodule       : kernel",
    "/sys/module/zswap/parameters/enabled": "Y",
    "/sys/module/zswap/parameters/compressor": "zstd",
    "/sys/module/zswap/parameters/shrinker_enabled": "Y",
    "/sys/kernel/mm/transparent_hugepage/shmem_enabled": "always within_size advise [never] deny",
    "/sys/devices/system/cpu/cpuidle/current_governor": "haltpoll",
    "/sys/module/haltpoll/parameters/guest_halt_poll_ns": "200000",
    "/etc/fuse.conf": "# mount_max = 1000\nuser_allow_other",
    "/dev/fuse": "",
    "/usr/bin/fusermount3": "",
}


class FakeMachine(Machine):
    """All that `FILES` has, below a directory."""

    def __init__(self, root: Path, *, uid: int = 0) -> None:
        super().__init__(root, uid=uid)
        for path, text in FILES.items():
            self.set(path, text)
        self.path("/usr/bin/fusermount3").chmod(0o4755)

    def set(self, path: str, text: str) -> None:
        """Give a file other contents."""
        self.__dict__.pop("kernel", None)  # what it keeps of them
        self.__dict__.pop("_kernel_config", None)
        file = self.path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")

    def remove(self, path: str) -> None:
        self.path(path).unlink()

    def as_user(self, uid: int = 1000) -> FakeMachine:
        """The same machine, as somebody else sees it."""
        self.uid = uid
        return self

    def tree(self) -> dict[str, bytes]:
        """Every file with its bytes."""
        return {
            os.fspath(path.relative_to(self.root)): path.read_bytes()
            for path in sorted(self.root.rglob("*"))
            if path.is_file()
        }
