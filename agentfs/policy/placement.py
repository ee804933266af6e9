"""Where a content belongs: on tmpfs, on disk, or packed on disk.

    tier   where                                      what the score says
    hot    tmpfs, uncompressed, shared by all         >= -cool_s / half_life_s
    warm   disk, as it was sealed; page cache         between
    cold   disk, packed by compaction                 <  -cold_s / half_life_s

Everything is counted in doublings: one more means that twice as many opens are expected
within the next half-life. `score` is the formula and `config.Tiers` its table of weights;
eviction, cooling and compaction ask nothing else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from agentfs.config import Tiers
from agentfs.model import Kind

ACTIVE = "active"
IDLE = "idle"
PAUSED = "paused"

USUAL_IMPORTANCE = 50
IMPORTANCE_MAX = 100

_FOR_EVERY_TURN = (Kind.SYSTEM_PROMPT, Kind.TOOL_DEFINITION)

_LATENCY_BYTES = 1 << 20
"""To bring a content back costs 2 ms and 2 ms a MiB: what is small costs more for its bytes."""


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
    heat: float = 1.0
    """Opens, each of which counts half as much after each half-life."""


def score(facts: Facts, weights: Tiers) -> float:
    """How many opens of a content are expected, in doublings; 0: what a conversation gets now.

    The sum of

    - the weight of its kind: an agent reads prompt and tools before every turn;
    - the weight of its agent's state, 0 if it is active;
    - `importance` for 100, as much less for 0, nothing for 50;
    - `sharing` for each doubling of the files that have it;
    - log2 of its heat. Prompts and tools of an active agent do not lose any by time.
    """
    heat = max(facts.heat, 1.0) if is_kept(facts) else facts.heat
    by_state = {IDLE: weights.idle, PAUSED: weights.paused}
    return (
        float(getattr(weights, facts.kind.label))
        + by_state.get(facts.state or ACTIVE, 0.0)
        + weights.importance * (facts.importance - USUAL_IMPORTANCE) / USUAL_IMPORTANCE
        + weights.sharing * math.log2(max(facts.sharers, 1))
        + math.log2(max(heat, 2.0**-500))
    )


def is_kept(facts: Facts) -> bool:
    """Whether a content does not cool: prompts and tools of active agents."""
    return facts.kind in _FOR_EVERY_TURN and facts.state == ACTIVE


def worth_of_bytes(size: int) -> float:
    """What is gained by a byte of a content on tmpfs, in doublings, beside that of a large one."""
    return math.log2((_LATENCY_BYTES + size) / max(size, 1))


def decayed(heat: float, age_s: float, weights: Tiers) -> float:
    """What is left of a heat after some time."""
    return float(heat * 2.0 ** (-age_s / weights.half_life_s))


def tier(facts: Facts, age_s: float, weights: Tiers) -> str:
    """hot, warm or cold: where a content belongs that was last used *age_s* seconds ago.

    How often it was used before does not matter: a conversation cools when it has rested.
    """
    standing = score(replace(facts, heat=decayed(1.0, age_s, weights)), weights)
    if standing >= -weights.cool_s / weights.half_life_s:
        return "hot"
    return "warm" if standing >= -weights.cold_s / weights.half_life_s else "cold"
