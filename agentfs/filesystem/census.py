"""Who the agents are, counted no more often than it is worth.

To count takes a look at every file of every agent and at every recipe, so those who ask
at about the same time get the same answer: screens, scrapers, and `cat` of a thousand files.
"""

from __future__ import annotations

import time

import trio

from agentfs.filesystem.agents import Agents
from agentfs.model import AgentUse

_KEPT_S = 1.0
_COST_SHARE = 0.05
"""Of the time may be spent on counting."""


class Census:
    """The last count, or a new one if that is too old."""

    def __init__(self, agents: Agents) -> None:
        self._agents = agents
        self._counting = trio.Lock()
        self._uses: list[AgentUse] = []
        self._good_until = 0.0

    async def uses(self) -> list[AgentUse]:
        """All agents, by name."""
        async with self._counting:
            if time.monotonic() >= self._good_until:
                began = time.monotonic()
                self._uses = await self._agents.uses()
                now = time.monotonic()
                self._good_until = now + max(_KEPT_S, (now - began) / _COST_SHARE)
            return self._uses
