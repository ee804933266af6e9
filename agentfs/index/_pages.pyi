from _typeshed import StrPath
from typing_extensions import Buffer

VFS: str
PACKED_SUFFIX: str
PAGE_BYTES: int
RESERVED: int
RESERVED_AT: int

def register_vfs(library: str | None, /) -> None: ...
def damaged(data: Buffer, first: int, packed: StrPath, /) -> list[int]: ...
def commits_behind_end(fd: int, /) -> int: ...
