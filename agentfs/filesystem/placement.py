"""What the policy needs to know of contents, found where the files that have them lie.

A content is judged by the directories through which it was last opened: their kind, their
agent, whether that is at work. All of it is looked up now and then, never in a request,
and kept for some seconds; who opens a file only leaves the number of its directory.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import takewhile

from agentfs.config import Tiers
from agentfs.filesystem.description import (
    IMPORTANCE_ATTRIBUTE,
    KIND_ATTRIBUTE,
    PIN_ATTRIBUTE,
    Describer,
)
from agentfs.filesystem.livefile import InodeTable
from agentfs.filesystem.turns import Turns
from agentfs.index import Index
from agentfs.index.agents import STATE_ATTRIBUTE
from agentfs.model import Kind
from agentfs.policy.placement import ACTIVE, IDLE, PAUSED, USUAL_IMPORTANCE, Facts, tier

_KEPT_S = 10.0
"""How long what was found of a directory holds."""

_DIRECTORIES_KEPT = 16_384

_AGES = 4
_NUMBERS = 4096
"""Inodes looked at in one query, about 1 ms."""

_LIVELINESS = {None: 3, ACTIVE: 2, IDLE: 1, PAUSED: 0}
"""The most of several states counts; what is no agent's is judged by its use alone."""


@dataclass(slots=True)
class _Directory:
    """What holds for the files of one directory."""

    until: float
    names: list[bytes]
    kind: Kind | None
    """As an attribute says."""
    is_pinned: bool
    agent: bytes | None = None
    is_paused: bool = False
    importance: int = USUAL_IMPORTANCE


class Placement:
    """Knows which agents are at work, and what contents are to them."""

    def __init__(
        self, index: Index, table: InodeTable, describer: Describer, weights: Tiers
    ) -> None:
        self._index = index
        self._table = table
        self._describer = describer
        self.weights = weights
        self._directories: dict[int, _Directory] = {}
        self._used_ns: dict[bytes, int] = {}
        """By agent."""
        self._seen_ns = 0

    def note_uses(self) -> None:
        """Learn who has closed files since the last call."""
        seen_ns, self._seen_ns = self._seen_ns, time.time_ns()
        uses = reversed(self._table.used_ns.items())
        for directory, used_ns in takewhile(lambda use: use[1] >= seen_ns, uses):
            self._note(directory, used_ns)

    async def note_open_files(self) -> None:
        """Learn who has files open: for as long as that, their agents are at work."""
        turns = Turns()
        for file in list(self._table.files()):
            if file.inode.parent is not None and self._table.is_open(file.inode.id):
                self._note(file.inode.parent, time.time_ns())
            await turns.give()

    def _note(self, directory: int, used_ns: int) -> bytes | None:
        known = self._known(directory)
        if known is None or known.agent is None:
            return None
        self._used_ns[known.agent] = max(used_ns, self._used_ns.get(known.agent, 0))
        return known.agent

    def note_use(self, directory: int) -> bytes | None:
        """A program begins to use a file in a directory: the agent that is at work."""
        return self._note(directory, time.time_ns())

    def forget(self) -> None:
        """Attributes have changed: look everything up anew."""
        self._directories.clear()

    def _known(self, directory: int) -> _Directory | None:
        known = self._directories.get(directory)
        if known is not None and known.until > time.monotonic():
            return known
        try:
            known = self._found(directory)
        except OSError:
            return None  # it is gone
        if len(self._directories) >= _DIRECTORIES_KEPT:
            self._directories.clear()
        self._directories[directory] = known
        return known

    def _found(self, directory: int) -> _Directory:
        describer, xattrs = self._describer, self._index.xattrs
        inode = self._table.get(directory)
        way = [*describer.paths.above(inode), inode]
        names = describer.paths.names(way)
        said = describer.nearest(way, KIND_ATTRIBUTE)
        found = _Directory(
            time.monotonic() + _KEPT_S,
            names,
            describer.kind_named(said) if said is not None else None,
            describer.nearest(way, PIN_ATTRIBUTE) is not None,
        )
        place = describer.agent_at(way)
        if place is not None:
            found.agent = describer.agent(way)
            found.is_paused = xattrs.get(way[place].id, STATE_ATTRIBUTE) is not None
            importance = xattrs.get(way[place].id, IMPORTANCE_ATTRIBUTE)
            found.importance = int(importance) if importance else USUAL_IMPORTANCE
        return found

    def _state(self, known: _Directory) -> str | None:
        if known.agent is None:
            return None
        if known.is_paused:
            return PAUSED
        age_s = self.age_s(self._used_ns.get(known.agent, 0))
        return ACTIVE if age_s < self.weights.idle_s else IDLE

    @staticmethod
    def age_s(used_ns: int) -> float:
        """Seconds since one of a file's times; none if that is yet to come."""
        return max(time.time_ns() - used_ns, 0) / 1e9

    def is_cold(self, inode: int, directory: int, content: int, used_ns: int) -> bool:
        """Whether a file is cold, by its row: reads are recorded there once a day."""
        facts, is_pinned = self.facts(content, {directory: (inode, b"")})
        aged = replace(facts, age_s=self.age_s(used_ns))
        return not is_pinned and tier(aged, self.weights) == "cold"

    async def warm_bytes(self) -> Counter[int]:
        """How many raw bytes of each segment are in files that are not cold.

        Files are asked that were used within four times the age at which a conversation is
        cold. Some 60 us each, and 3 us a chunk, with turns for others.
        """
        self.note_uses()
        since_ns = time.time_ns() - int(_AGES * self.weights.cold_s * 1e9)
        turns, found, counted = Turns(), Counter[int](), set[int]()
        for after in range(0, self._index.inodes.last, _NUMBERS):
            for inode, directory, content, used_ns in self._index.inodes.used_since(
                since_ns, after, _NUMBERS
            ):
                if content not in counted and not self.is_cold(inode, directory, content, used_ns):
                    counted.add(content)
                    found.update(self._index.contents.bytes_by_segment(content))
                await turns.give()
            await turns.give()
        return found

    def kind(self, directory: int, inode: int, name: bytes) -> Kind | None:
        """What a file is for, as far as attributes and its path say."""
        known = self._known(directory)
        return None if known is None else self._kind(known, inode, name)

    def _kind(self, known: _Directory, inode: int, name: bytes) -> Kind | None:
        said = self._index.xattrs.get(inode, KIND_ATTRIBUTE)
        if said is not None:
            return self._describer.kind_named(said)
        if known.kind is not None:
            return known.kind
        return self._describer.kind_by_path([*known.names, name])

    def facts(
        self, content: int | None, places: Mapping[int, tuple[int, bytes]]
    ) -> tuple[Facts, bool]:
        """What is known of a content, with a heat of 1, and whether it is pinned.

        :param places: (inode, name) by directory, of some of the files that have it
        """
        xattrs = self._index.xattrs
        kinds: list[Kind] = []
        states: list[str | None] = []
        importance, is_pinned = 0, False
        for directory, (inode, name) in places.items():
            known = self._known(directory)
            if known is None:
                continue
            kind = self._kind(known, inode, name)
            if kind is not None:
                kinds.append(kind)
            states.append(self._state(known))
            importance = max(importance, known.importance)
            is_pinned = is_pinned or known.is_pinned or bool(xattrs.get(inode, PIN_ATTRIBUTE))
        if not kinds and content is not None:
            kinds.append(self._index.contents.kind(content))
        facts = Facts(
            max(kinds, key=lambda kind: getattr(self.weights, kind.label), default=Kind.OTHER),
            max(states, key=_LIVELINESS.__getitem__, default=None),
            importance if states else USUAL_IMPORTANCE,
            self._index.contents.references(content) if content is not None else 1,
        )
        return facts, is_pinned
