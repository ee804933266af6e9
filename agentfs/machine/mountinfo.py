"""The format of /proc/self/mountinfo, as proc_pid_mountinfo(5) has it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

FSTYPE = "fuse.agentfs"

_OCTAL = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo."""

    mountpoint: Path
    fstype: str
    source: str
    """For agentfs the absolute path of the store."""
    device_minor: int
    """Names the connection's directory below /sys/fs/fuse/connections."""
    root: Path = Path("/")
    """What of the filesystem is mounted: a directory of it, if this is a bind mount."""
    options: tuple[str, ...] = ()
    """Of the filesystem itself, not of this mount of it."""

    @property
    def is_agentfs(self) -> bool:
        """Whether an agentfs daemon made this mount."""
        return self.fstype == FSTYPE

    @property
    def store(self) -> Path:
        """The store behind an agentfs mount."""
        return Path(self.source)


def parse_mountinfo(text: bytes) -> list[Mount]:
    """Return the mounts of *text*; of two on one place the upper comes later."""
    mounts = []
    for line in text.splitlines():
        left, _, right = line.partition(b" - ")
        fields, described = left.split(b" "), right.split(b" ")
        if len(fields) < 6 or len(described) < 2:
            continue
        mounts.append(
            Mount(
                mountpoint=Path(_unescape(fields[4])),
                fstype=_unescape(described[0]),
                source=_unescape(described[1]),
                device_minor=int(fields[2].split(b":")[1]),
                root=Path(_unescape(fields[3])),
                options=tuple(map(_unescape, b"".join(described[2:3]).split(b","))),
            )
        )
    return mounts


def _unescape(field: bytes) -> str:
    return os.fsdecode(_OCTAL.sub(lambda match: bytes([int(match[1], 8)]), field))
