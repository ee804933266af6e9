"""Where a content belongs: on tmpfs, on disk, or packed on disk.

    tier   where                                      what the score says
    hot    tmpfs, uncompressed, shared by all         >= -cool_s / half_life_s
    warm   disk, as it was sealed; page cache         between
    cold   disk, packed by compaction                 <  -cold_s / half_life_s

Everything is counted in doublings: one more means that twice as many opens are expected
within the next half-life. `score` is the formula and `config.Tiers` its table of weights;
eviction, the tiers that people see and compaction ask nothing else. What is warm may stay on
tmpfs until the room, or the memory, is wanted; it is the first to go then.

How often a content was opened does not count, only when: sessions are bursts, and what had
many opens in the last one is no more likely to be opened than what has its first in this. On
the trace of `bench.day` with 4,000 sessions, counting opens left 71 % of conversations hot
instead of 79 %. Nor does the size: a byte of a large content saves as much time as one of a
small.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from agentfs.config import Tiers
from agentfs.model import Kind

ACTIVE = "active"
IDLE = "idle"
PAUSED = "paused"

USUAL_IMPORTANCE = 50
IMPORTANCE_MAX = 100

FOR_EVERY_TURN = (Kind.SYSTEM_PROMPT, Kind.TOOL_DEFINITION)


@dataclass(slots=True, frozen=True)
class Facts:
    """What is known of a content."""

    kind: Kind
    state: str | None
    """Of the agent that is most at work among those whose files have it; None: of no agent."""
    importance: int
    """Of the most important one."""
    sharers: int
    """Files that have it."""
    age_s: float = 0.0
    """Since it was last used."""


def is_kept(facts: Facts) -> bool:
    """Whether a content does not cool: prompts and tools of active agents."""
    return facts.kind in FOR_EVERY_TURN and facts.state == ACTIVE


def score(facts: Facts, weights: Tiers) -> float:
    """How many opens of a content are expected, in doublings; 0: those of a conversation just used.

    The sum of

    - the weight of its kind: an agent reads prompt and tools before every turn;
    - the weight of its agent's state, 0 if it is active;
    - `importance` for 100, as much less for 0, nothing for 50;
    - `sharing` for each doubling of the files that have it;
    - 1 less for each half-life since it was used, but for prompts and tools of an active agent.
    """
    by_state = {IDLE: weights.idle, PAUSED: weights.paused}
    return (
        float(getattr(weights, facts.kind.label))
        + by_state.get(facts.state or ACTIVE, 0.0)
        + weights.importance * (facts.importance - USUAL_IMPORTANCE) / USUAL_IMPORTANCE
        + weights.sharing * math.log2(max(facts.sharers, 1))
        - (0.0 if is_kept(facts) else facts.age_s / weights.half_life_s)
    )


def tier(facts: Facts, weights: Tiers) -> str:
    """hot, warm or cold: where a content belongs."""
    points = score(facts, weights)
    if points >= -weights.cool_s / weights.half_life_s:
        return "hot"
    return "warm" if points >= -weights.cold_s / weights.half_life_s else "cold"
