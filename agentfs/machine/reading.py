"""A machine as /proc, /sys and a few files show it.

All paths are looked up below a root, so that another tree can stand in for the
machine. What is not there, or may not be read, is None: each kernel, container
and user shows something else.
"""

from __future__ import annotations

import functools
import gzip
import os
import re
import stat
from pathlib import Path
from typing import NamedTuple

from agentfs.config import KIB
from agentfs.machine.mountinfo import Mount, parse_mountinfo

FUSE_DEVICE = "/dev/fuse"

LATENCY_DEVICE = "/dev/cpu_dma_latency"
"""Who may write to it can keep processors awake: native/relay/watch.c."""

CAP_SYS_ADMIN = 21
"""Bit, from linux/capability.h."""

_CGROUP_UNLIMITED_BYTES = 1 << 62
"""Version 1 says "no limit" with a number about as large as there is."""


class _GroupFiles(NamedTuple):
    """How a version of control groups calls what there is of memory."""

    limit: str
    usage: str
    reclaimable: tuple[str, ...]
    """In memory.stat; pages of tmpfs are not among them."""


_VERSION_1 = _GroupFiles(
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    ("total_inactive_file", "total_active_file"),
)
_VERSION_2 = _GroupFiles("memory.max", "memory.current", ("inactive_file", "active_file"))


class MemoryGroup:
    """A control group whose memory has a limit."""

    def __init__(self, machine: Machine, directory: Path, names: _GroupFiles) -> None:
        self._machine = machine
        self._directory = directory
        self._names = names

    @property
    def limit_bytes(self) -> int | None:
        """None: there is none."""
        limit = self._machine.number(f"{self._directory}/{self._names.limit}")
        return limit if limit is not None and limit < _CGROUP_UNLIMITED_BYTES else None

    def available_share(self) -> float:
        """Of its limit, what is free or pages of files, which the kernel takes back first."""
        limit = self.limit_bytes
        used = self._machine.number(f"{self._directory}/{self._names.usage}")
        if not limit or used is None:
            return 1.0
        text = self._machine.text(f"{self._directory}/memory.stat") or ""
        figures = dict(line.split() for line in text.splitlines())
        pages = sum(int(figures.get(name, 0)) for name in self._names.reclaimable)
        return min(max(limit - used + pages, 0) / limit, 1.0)


class Machine:
    """What can be read of the machine below *root*."""

    def __init__(self, root: Path = Path("/"), *, uid: int | None = None) -> None:
        self.root = root
        self.uid = os.geteuid() if uid is None else uid

    def path(self, absolute: str) -> Path:
        return self.root / absolute.lstrip("/")

    def exists(self, path: str) -> bool:
        return os.path.exists(self.path(path))

    def text(self, path: str) -> str | None:
        """A small file, without white space around it.

        Not by pathlib: it interns what a path is made of, and for who asks again and again the
        table of interned strings grows by half a MiB.
        """
        try:
            with open(f"{self.root}/{path}", encoding="utf-8", errors="replace") as file:
                return file.read().strip()
        except OSError:
            return None

    def number(self, path: str) -> int | None:
        """A file that holds one whole number."""
        text = self.text(path)
        return int(text) if text is not None and re.fullmatch(r"-?\d+", text) else None

    def setting(self, path: str) -> str | None:
        """What a kernel setting is; of several in a line, the one in brackets."""
        text = self.text(path)
        chosen = re.search(r"\[(\S+)\]", text or "")
        return chosen[1] if chosen else text

    # Kernel

    @functools.cached_property
    def kernel(self) -> str:
        return self.text("/proc/sys/kernel/osrelease") or "unknown"

    @property
    def kernel_version(self) -> tuple[int, int] | None:
        """(6, 9) of "6.9.0-rc1+"."""
        match = re.match(r"(\d+)\.(\d+)", self.kernel)
        return (int(match[1]), int(match[2])) if match else None

    @functools.cached_property
    def _kernel_config(self) -> dict[str, str] | None:
        try:
            text = gzip.decompress(self.path("/proc/config.gz").read_bytes()).decode()
        except (OSError, EOFError, ValueError):
            places = f"/boot/config-{self.kernel}", f"/lib/modules/{self.kernel}/config"
            text = next(filter(None, map(self.text, places)), "")
        if not text:
            return None
        return dict(re.findall(r"^CONFIG_(\w+)=(.*)$", text, flags=re.MULTILINE))

    def kernel_option(self, name: str) -> str | None:
        """Y, m or n as the kernel was built with CONFIG_*name*; None: it does not say."""
        return None if self._kernel_config is None else self._kernel_config.get(name, "n")

    @property
    def boot(self) -> str | None:
        """Another one after each boot."""
        return self.text("/proc/sys/kernel/random/boot_id")

    # Rights

    @property
    def is_root(self) -> bool:
        return self.uid == 0

    def has_capability(self, bit: int) -> bool:
        match = re.search(r"^CapEff:\s*([0-9a-f]+)$", self.text("/proc/self/status") or "", re.M)
        return match is not None and bool(int(match[1], 16) >> bit & 1)

    def may_use(self, path: str) -> bool:
        """Whether a device can be opened: rules of a container may forbid what its mode allows."""
        try:
            os.close(os.open(self.path(path), os.O_RDWR | os.O_CLOEXEC))
        except OSError:
            return False
        return True

    @property
    def users_may_allow_other(self) -> bool:
        """What fusermount3 lets users do."""
        lines = (self.text("/etc/fuse.conf") or "").splitlines()
        return any(line.strip() == "user_allow_other" for line in lines)

    def program(self, name: str) -> Path | None:
        """The program that PATH leads to."""
        for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
            path = self.path(folder) / name
            if os.path.isfile(path) and os.access(path, os.X_OK):  # Path.is_file raises EACCES
                return path
        return None

    @staticmethod
    def is_setuid(program: Path) -> bool:
        return bool(program.stat().st_mode & stat.S_ISUID)

    def descriptor_limit(self) -> int | None:
        """How many files a process of ours may have open, at most."""
        if self.is_root:
            return self.number("/proc/sys/fs/nr_open")
        limits = self.text("/proc/self/limits") or ""
        match = re.search(r"^Max open files\s+\d+\s+(\d+)", limits, flags=re.MULTILINE)
        return int(match[1]) if match else None

    # Memory

    def memory(self) -> dict[str, int]:
        """Bytes by the names of /proc/meminfo; empty if it cannot be read."""
        lines = re.findall(r"^(\w+):\s+(\d+) kB$", self.text("/proc/meminfo") or "", re.MULTILINE)
        return {name: int(kib) * KIB for name, kib in lines}

    def mounts(self) -> list[Mount]:
        try:
            return parse_mountinfo(self.path("/proc/self/mountinfo").read_bytes())
        except OSError:
            return []

    def mount_at(self, mountpoint: str) -> Mount | None:
        found = [mount for mount in self.mounts() if mount.mountpoint == Path(mountpoint)]
        return found[-1] if found else None

    def cgroup_limit_bytes(self) -> int | None:
        """What our control group, or one above it, may use of memory; None: all there is."""
        limits = [group.limit_bytes for group in self.memory_groups()]
        return min((limit for limit in limits if limit is not None), default=None)

    def memory_groups(self) -> list[MemoryGroup]:
        """Our control group and those above it, if they have a limit now."""
        groups = (
            MemoryGroup(self, above, names)
            for directory, names in self._cgroups()
            for above in (directory, *directory.parents)
        )
        return [group for group in groups if group.limit_bytes is not None]

    def pressure_files(self) -> list[str]:
        """Where the kernel says how long programs wait for memory: all of them, and our group's."""
        own = [f"{directory}/memory.pressure" for directory, _ in self._cgroups()]
        return [path for path in ("/proc/pressure/memory", *own) if self.text(path)]

    def _cgroups(self) -> list[tuple[Path, _GroupFiles]]:
        """Our group's directory in each hierarchy that may limit memory."""
        found = []
        for line in (self.text("/proc/self/cgroup") or "").splitlines():
            _, controllers, group = line.split(":", 2)
            for mount in self.mounts():
                if mount.fstype == "cgroup2" and not controllers:
                    names = _VERSION_2
                elif mount.fstype == "cgroup" and controllers == "memory" in mount.options:
                    names = _VERSION_1
                else:
                    continue
                # In a container the path may begin where what is mounted does not.
                inside = group if mount.root == Path("/") else os.path.relpath(group, mount.root)
                found.append((mount.mountpoint / inside.lstrip("/"), names))
        return found

    def swaps(self) -> list[tuple[str, int]]:
        """(device or file, bytes) of what is swapped to."""
        rows = [line.split() for line in (self.text("/proc/swaps") or "").splitlines()[1:]]
        return [(row[0], int(row[2]) * KIB) for row in rows if len(row) >= 3]

    @property
    def swaps_to_ram(self) -> bool:
        """All swap is compressed RAM already, and zswap above it would compress twice."""
        swaps = self.swaps()
        return bool(swaps) and all(name.startswith("/dev/zram") for name, _ in swaps)
