"""The nouns every layer shares: plain records without behaviour of their own."""

from __future__ import annotations

import enum
import stat
from dataclasses import dataclass

NAME_BYTES_MAX = 255
"""Of one name in a directory."""

ROOT_INODE = 1
"""The inode of the mounted directory itself; FUSE fixes its number."""

VIEW_NAME = b".agentfs"
"""Of the read-only view, filesystem/view.py, in the root."""

VIEW_FIRST = 1 << 39
"""Nodeids from here on are of the view; those of inodes are lower."""

AGENT_ATTRIBUTE = b"user.agentfs.agent"
"""Extended attribute of a directory that is an agent's; its value is the name."""

SECTOR_BYTES = 512
"""Unit of st_blocks, fixed by stat(2)."""

CACHE_S = 86_400
"""How long the kernel may keep names and attributes: nobody but the kernel changes them."""


@dataclass(slots=True)
class Inode:
    """One file of any type, as its index row has it. Times are nanoseconds since the epoch."""

    id: int
    mode: int
    """File type and permission bits, as st_mode."""
    uid: int
    gid: int
    nlink: int
    size: int
    """Bytes, as st_size; of a staged file the live size, else that of its content."""
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    content: int | None = None
    """Id of the sealed content; None: empty, or not a regular file."""
    holes: int | None = None
    """Bytes of *size* that are holes; None: none."""
    rdev: int | None = None
    """Device number; device files only."""
    target: bytes | None = None
    """What a symbolic link points at."""
    parent: int | None = None
    """The directory that holds it; of a file that never had a name, where it was opened. One of
    several names may be gone: then it says where that was. None: it has lost its last."""

    @property
    def sectors(self) -> int:
        """As st_blocks."""
        return -(-(self.size - (self.holes or 0)) // SECTOR_BYTES)

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_unnamed(self) -> bool:
        """A file opened with O_TMPFILE that has got no name yet."""
        return self.nlink == 0 and self.parent is not None and self.is_regular

    @property
    def is_doomed(self) -> bool:
        """No name leads to it, and none will."""
        return self.nlink == 0 and not self.is_unnamed

    @property
    def is_regular(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def type_letter(self) -> str:
        """As the first letter of a line of `ls -l`."""
        return stat.filemode(self.mode)[0]


@dataclass(slots=True, frozen=True)
class Location:
    """Where a chunk's bytes lie: *length* bytes at *start* of a raw block."""

    segment: int
    offset: int
    """Of the block, in bytes from the start of the segment file."""
    start: int
    length: int


@dataclass(slots=True, frozen=True)
class NewBlock:
    """A block just appended to a segment, with the chunks it holds, in order."""

    segment: int
    offset: int
    stored_bytes: int
    """On disk, header included."""
    chunks: list[tuple[bytes, int]]
    """(digest of 16 bytes, length in bytes)."""
    domain: int | None = None
    """Of all of them: the uid by whose key they are named; None: by none."""


@dataclass(slots=True, frozen=True)
class StoredBlock:
    """A block that the index knows."""

    id: int
    segment: int
    offset: int
    """Of the block, in bytes from the start of the segment file."""
    chunks: bytes
    """Runs of ids (index/runs.py): of all its chunks, and of some that lie elsewhere by now."""


@dataclass(slots=True, frozen=True)
class StoredChunk:
    """A chunk that the store has, and where."""

    id: int
    digest: bytes
    block: int
    """Id of the block's row."""
    place: Location
    domain: int | None
    """As in `NewBlock`."""


@dataclass(slots=True, frozen=True)
class SegmentUse:
    """What the blocks of one segment hold, in bytes."""

    number: int
    blocks: int
    stored: int
    raw: int
    live: int
    """Raw bytes that chunks claim."""
    young: int
    """Of *live*, those in blocks that compaction has not written."""


class Kind(enum.IntEnum):
    """What an agent has a file for. The numbers are in stores."""

    OTHER = 0
    SYSTEM_PROMPT = 1
    TOOL_DEFINITION = 2
    CONVERSATION = 3
    TOOL_RESULT = 4

    @property
    def label(self) -> str:
        """As people write it."""
        return self.name.lower()


KINDS = {kind.label: kind for kind in Kind}


@dataclass(slots=True, frozen=True)
class AgentUse:
    """One agent: what it is, and what its files take. Sizes are bytes before compression."""

    name: str
    directories: tuple[str, ...]
    """Paths below the root; all that is in them is its own."""
    state: str
    """active, idle or paused."""
    importance: int
    """0 to 100."""
    files: int
    open_files: int
    logical_bytes: int
    """What its files say they hold."""
    shared_bytes: int
    """Of that, what files of others hold as well."""
    exclusive_bytes: int
    """What would be garbage if the agent went: each chunk once that nobody else has."""
    hot_bytes: int
    """On tmpfs: its staged files, and the contents that it and perhaps others share there."""
    last_used_ns: int
    """Since the epoch; 0: never."""


@dataclass(slots=True)
class Holding:
    """What the files of one kind take that one agent has."""

    agent: str | None
    """None: they are no agent's."""
    kind: str
    files: int = 0
    logical_bytes: int = 0
    """What they say they hold."""
    stored_bytes: float = 0.0
    """Their part of the segments: what is shared counts divided by those who share it."""
    hot_bytes: int = 0
    """Of the logical bytes, those on tmpfs; likewise, on disk and compacted, the next two."""
    warm_bytes: int = 0
    cold_bytes: int = 0
