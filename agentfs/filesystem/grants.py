"""Opens for reading that the relay grants by itself where we serve the bytes: in plain mode.

What a program has read once it opens again and again, and the kernel has its pages. As long as
nobody writes the file and no read is to be recorded, such an open changes nothing that we must know
at once: the relay counts it, and says when the last one is closed.
"""

from __future__ import annotations

from agentfs.filesystem.livefile import InodeTable, LiveFile
from agentfs.filesystem.relatime import fresh_until_ns
from agentfs.filesystem.relay import Relay
from agentfs.model import VIEW_FIRST

_GRANTED_MAX = 8192
"""Files, of 1 KB each."""


class Grants:
    """Which files programs may open without us; none until there is a relay."""

    def __init__(self, table: InodeTable) -> None:
        self._table = table
        self._relay: Relay | None = None
        self._granted: dict[LiveFile, None] = {}

    def begin(self, relay: Relay) -> None:
        """Grant what may be from now on."""
        self._relay = relay
        self._table.watch(relay.opens, self._changed, self._detach)

    def abandon(self) -> None:
        """The mount is gone."""
        if self._relay is not None:
            self._relay = None
            self._table.watch()
            self._granted.clear()
            for file in self._table.files():
                file.is_attached = False

    def give(self, file: LiveFile) -> None:
        """A program has closed a file: grant the opens for reading that may follow."""
        inode = file.inode
        if self._relay is None or file.writers or not inode.nlink or inode.id >= VIEW_FIRST:
            return
        until_ns = fresh_until_ns(inode)
        if until_ns:
            self._granted.pop(file, None)  # the latest comes last
            self._granted[file] = None
            self._attach(self._relay, file, until_ns)
            if len(self._granted) > _GRANTED_MAX:
                self.end(next(iter(self._granted)))

    @staticmethod
    def _attach(relay: Relay, file: LiveFile, until_ns: int) -> None:
        file.is_attached = True
        relay.attach(file.nodeid, 0, fresh_until_ns=until_ns)

    def end(self, file: LiveFile) -> None:
        """Opening a file is to reach us from now on; who has it open goes on reading."""
        if file.is_attached:
            self._detach(file)
            self._table.released(file)

    def _detach(self, file: LiveFile) -> None:
        if self._relay is None or not file.is_attached:
            return
        self._granted.pop(file, None)
        if self._relay.detach(file.nodeid):
            file.is_attached = False
        else:
            self._attach(self._relay, file, 0)

    def closed(self, file: LiveFile) -> None:
        """Nobody has it open any more whom the relay let in."""
        if file not in self._granted:
            self.end(file)
        else:
            self._granted[file] = self._granted.pop(file)  # the latest comes last

    def is_read_anew(self, file: LiveFile) -> bool:
        """Whether it is the first time that who was let in wants bytes that the kernel has no more.

        Who follows may want them brought in time, so opens must reach us again.
        """
        if file not in self._granted:
            return False
        self.end(file)
        return True

    def was_read(self, file: LiveFile) -> None:
        """Its time of access has changed, without the kernel's asking."""
        if self._relay is not None and file.is_attached:
            self._relay.attr_changed(file.nodeid)

    def _changed(self, nodeid: int) -> None:
        file = self._table.live_at(nodeid)
        if file is not None and self._relay is not None:
            self._relay.attr_changed(nodeid)
            self.end(file)
