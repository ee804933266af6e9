"""Requests that an earlier worker had, too, and may have done: docs/RELAY.md has the table.

When a worker dies between doing what a request asks for and its reply, the kernel
sends the request again to the next one. The kernel holds the locks of the
directories meanwhile and had looked the names up, so whoever finds that a name
exists already, or is gone, knows that it was this very request.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from agentfs.fuse.abi import Opcode

if TYPE_CHECKING:
    from agentfs.fuse._relay import Relay

_RESENT = 1 << 63
"""In the number of a request: it is not the first time that it is sent."""


class Resent:
    """What the relay knows of the requests that are being answered; without it none is resent."""

    def __init__(self, relay: Relay | None) -> None:
        self._relay = relay
        self.generation = 0 if relay is None else relay.generation

    def __call__(self, nodeid: int, opcode: Opcode) -> bool:
        """Whether the request of that kind for *nodeid* that is being answered was sent again.

        There is one at most: all of them lock the directory, or the inode, in the kernel.
        """
        return self._relay is not None and bool(self._relay.unique(opcode, nodeid)[0] & _RESENT)

    def number(self, nodeid: int, opcode: Opcode) -> int:
        """The number of that request, the same each time it is sent; 0: it is sent once only."""
        return 0 if self._relay is None else self._relay.unique(opcode, nodeid)[0] & ~_RESENT

    def forgive(self, error: OSError, error_number: int, nodeid: int, opcode: Opcode) -> None:
        """Raise *error*, unless it is the one that says that the request has been done already."""
        if error.errno != error_number or not self(nodeid, opcode):
            raise error

    def may_have_created_attribute(self, nodeid: int) -> bool:
        """Whether an attribute that must be new is being set, and not for the first time."""
        if self.generation < 2 or self._relay is None:
            return False
        number, flags = self._relay.unique(Opcode.SETXATTR, nodeid)
        return bool(number & _RESENT) and bool(flags & os.XATTR_CREATE)

    def places(self, stream: int) -> Sequence[tuple[int, bytes]]:
        """How far another worker has listed a directory."""
        return () if self._relay is None else self._relay.places(stream)
