"""Prefetch: when an agent begins to work, what it will want is brought before it asks.

`note` is called when a program uses a file and only puts it into a queue. A task looks at
the queue, learns (`policy.prefetch`), and brings what is likely: in relay mode resident
images, in plain mode decompressed blocks in the daemon's cache. What it uses in plain mode is
what the kernel asks us for: of files whose pages it has, nothing is learned and nothing brought.

It is a guess, so it gives way to all else: one file at a time, begun while somebody who waits
for bytes leaves a core, no more than an eighth of the room for one agent, and only room that is
free or taken by what is worth less.

Habits are in memory. They are learned from one session, so a new daemon is without them for
one session of each agent; kept in the index they would cost a write each time.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import trio

from agentfs.filesystem.files import Files
from agentfs.filesystem.livefile import InodeTable, LiveFile
from agentfs.filesystem.namespace import Namespace
from agentfs.filesystem.placement import Placement
from agentfs.filesystem.turns import Turns
from agentfs.model import Inode, Kind
from agentfs.policy.placement import FOR_EVERY_TURN
from agentfs.policy.prefetch import PAUSE_S, Habits, Place

log = logging.getLogger(__name__)

_ROOM_SHARE = 0.125

_LOOKED_AFTER_S = 0.01
"""The queue is looked at no more often: a turn of the loop costs more than a use."""

_AT_EASE_S = 1.0
"""How long what can bring nothing may lie in the queue: to look at each use when it comes doubled
what 200 agents at work cost the daemon."""

_KNOWN_MAX = 4096
"""Files, and directories of nobody."""

_ASKED_AGAIN_S = 0.005
_TOO_LATE_S = 1.0
"""If so long there is no core, agents have asked for what they want."""

_QUEUED = 4096
"""Uses; of more the oldest are not learned from."""

_EXPECTED_MAX = 4096
_WANTED_WITHIN_S = 5 * PAUSE_S
"""What was brought and not used for so long was brought in vain."""


class Prefetcher:
    """Learns what agents use, and brings it."""

    def __init__(
        self,
        table: InodeTable,
        namespace: Namespace,
        placement: Placement,
        files: Files,
        *,
        is_crowded: Callable[[], bool],
        room_bytes: int,
        unit_bytes: int,
    ) -> None:
        """
        :param is_crowded: whether who waits for bytes needs all cores
        :param room_bytes: where things are brought to
        :param unit_bytes: what a file takes of it at least
        """
        self._table = table
        self._namespace = namespace
        self._placement = placement
        self._files = files
        self._is_crowded = is_crowded
        self._room_bytes = room_bytes
        self._unit_bytes = unit_bytes
        self._habits = Habits()
        self._uses: deque[tuple[int, int, float, bool]] = deque(maxlen=_QUEUED)
        """(inode, directory, time, whether it was sealed) of what programs have begun to use."""
        self._is_wanted = trio.Event()
        self._is_looking = False
        self._known: dict[int, float] = {}
        """By inode: until when further uses of it, or of all in a directory, bring nothing."""
        self._expected: dict[int, float] = {}
        """When inodes were brought that nobody has used since; the oldest come first."""
        self.is_on = True
        """Off, it still learns."""
        self.fetched = self.used = self.wasted = 0
        """Files brought; of these, used within five minutes, and not."""
        self.clock: Callable[[], float] = time.monotonic
        files.on_use = self.note

    def figures(self) -> dict[str, Any]:
        """For stats; what is neither used nor wasted may yet be either."""
        known = self.used + self.wasted
        return {
            "prefetched": self.fetched,
            "prefetch_used": self.used,
            "prefetch_wasted": self.wasted,
            "prefetch_hit_rate": round(self.used / known, 3) if known else None,
        }

    def note(self, file: LiveFile) -> None:
        """A program begins to use a file. 1 us."""
        inode = file.inode
        if inode.parent is not None:
            now_s = self.clock()
            is_sealed = file.staged is None and inode.content is not None
            self._uses.append((inode.id, inode.parent, now_s, is_sealed))
            if not self._is_looking or not self._is_known(inode.parent, inode.id, now_s):
                self._is_wanted.set()

    def _is_known(self, directory: int, inode: int, now_s: float) -> bool:
        known = self._known
        until_s = known.get(inode) or known.get(directory, 0.0)
        return now_s < until_s and inode not in self._expected

    async def run(self) -> None:
        """Learn and bring. Runs until cancelled."""
        while True:
            await self._is_wanted.wait()
            self._is_looking = True
            while self._uses:
                try:
                    await self.work()
                except Exception:
                    log.exception("prefetch failed; it goes on")
                await trio.sleep(_LOOKED_AFTER_S)
                with trio.move_on_after(_AT_EASE_S):
                    await self._is_wanted.wait()
            self._is_looking = False

    async def work(self) -> None:
        """Look at what was used, and bring what that makes likely."""
        self._is_wanted = trio.Event()
        if len(self._known) > _KNOWN_MAX:
            self._known.clear()
        at_work, turns = [], Turns()
        while self._uses:
            agent = self._learn(*self._uses.popleft())
            if agent is not None:
                at_work.append(agent)
            await turns.give()
        self._count_wasted()
        for agent in at_work:
            await self._bring_all(agent)

    def _learn(self, inode: int, directory: int, now_s: float, is_sealed: bool) -> bytes | None:
        """Note a use; the agent, if it is by now known to be at work.

        What was written just now is there, and mostly read once, as results of tools are: no
        habit. But a conversation will be gone on with.
        """
        if self._expected.pop(inode, None) is not None:
            self.used += 1
        agent = self._placement.note_use(directory)
        self._known[directory if agent is None else inode] = now_s + PAUSE_S
        if agent is None:
            return None
        self._habits.use(agent, now_s)
        if self._habits.is_to_learn(agent, inode, now_s):
            name = self._namespace.name_in(directory, inode)
            if name is not None:
                kind = self._placement.kind(directory, inode, name)
                if is_sealed or kind is Kind.CONVERSATION:
                    is_for_turns = kind in FOR_EVERY_TURN
                    self._habits.learn(agent, inode, (directory, name), is_for_turns=is_for_turns)
        return agent if self._habits.is_to_serve(agent) else None

    def _count_wasted(self) -> None:
        until_s = self.clock() - _WANTED_WITHIN_S
        while self._expected:
            inode = next(iter(self._expected))
            if self._expected[inode] > until_s and len(self._expected) <= _EXPECTED_MAX:
                return
            del self._expected[inode]
            self.wasted += 1

    async def _bring_all(self, agent: bytes) -> None:
        room = self._room_bytes * _ROOM_SHARE
        for place, likelihood in list(self._habits.expected(agent)):
            inode = self._sealed(place)
            taken = self._unit_bytes if inode is None else max(inode.size, self._unit_bytes)
            if not self.is_on or not await self._gets_a_core():
                return
            if inode is None or inode.id in self._expected or taken > room:
                continue
            if await self._bring(inode, place, likelihood):
                room -= taken

    async def _gets_a_core(self) -> bool:
        """Give way to who waits; False: for too long to be of use."""
        with trio.move_on_after(_TOO_LATE_S):
            while self._is_crowded():
                await trio.sleep(_ASKED_AGAIN_S)
        return not self._is_crowded()

    def _sealed(self, place: Place) -> Inode | None:
        """A file that has a content to bring, if one lies there and is in use by nobody."""
        inode = self._namespace.lookup(*place)
        if inode is None or not inode.is_regular or inode.content is None or not inode.size:
            return None
        live = self._table.live(inode.id)
        return None if live is not None and (live.staged or live.handles) else inode

    async def _bring(self, inode: Inode, place: Place, likelihood: float) -> bool:
        self._expected[inode.id] = self.clock()  # it may be used while it is brought
        try:
            is_new = await self._files.bring(inode, place[1], likelihood)
        except (KeyError, OSError) as error:  # it is gone, or damaged: who opens it will be told
            log.debug("inode %d is not brought: %s", inode.id, error)
            is_new = False
        if is_new:
            self.fetched += 1
        else:
            self._expected.pop(inode.id, None)  # it was there, or nothing makes room
        return is_new
