"""What an agent is about to open: what it opened the last few times it was taken up.

An agent is *taken up* when it uses a file after a minute of none: mostly its prompt or its
conversation, which the rest of them follows. What it uses in the next half minute is a habit
in the making. How likely a file is to be wanted is the share of those times in which it was, the
last one weighing a quarter: so what is used once, as most results of tools are, is not expected.

Who reads one file of every agent, as a search or a backup does, takes them all up and wants
nothing else of them. So an agent is *at work* when it has begun with the file it mostly begins
with, or has used two that are habits, or read before every turn; only then the others are brought,
and a time of one file with which it does not begin makes it forget nothing. In `bench.day`, where
all conversations are read twice, two thirds of the files brought in vain were for such readers.
"""

from __future__ import annotations

from collections.abc import Iterator

PAUSE_S = 60.0
"""Without use, after which an agent is taken up anew. Turns of one session are closer."""

WINDOW_S = 30.0
"""After it was taken up: what an agent uses then it wants at once, or with its first turn."""

LIKELY = 0.4
"""From which on a file is brought: it was wanted the last two times, or often before."""

_WEIGHT = 0.25
"""Of the last time; of fewer than four all count alike."""

AGENTS_MAX = 1024
FILES_MAX = 32
"""Of an agent. A habit takes 200 bytes: 8 MB in all, of agents that use as many files."""

_SIGNS = 2
"""That an agent is at work; one may be chance."""

_FADED = LIKELY / 4
"""Below which a habit is dropped."""

Place = tuple[int, bytes]
"""(directory, name): a file that is written anew and renamed keeps its place."""


class _Habits:
    """Of one agent."""

    __slots__ = (
        "beginnings",
        "is_served",
        "likelihoods",
        "new",
        "signs",
        "taken_up_at",
        "times",
        "used_at",
    )

    def __init__(self) -> None:
        self.times = 0
        """It has been taken up, and its habits learned from."""
        self.likelihoods: dict[Place, float] = {}
        self.beginnings: dict[Place, float] = {}
        """In which share of the times it began with a file."""
        self.is_served = False
        """It has been found at work since it was taken up."""
        self.new: dict[int, Place] = {}
        """By inode, what it has used since it was taken up, in that order."""
        self.signs = 0
        """Of these, how many are habits, or read before every turn."""
        self.taken_up_at = 0.0
        self.used_at = -PAUSE_S

    def learn(self) -> None:
        """Let the last time count."""
        places = list(dict.fromkeys(self.new.values()))
        self.new, self.signs, self.is_served = {}, 0, False
        is_chance = len(places) == 1 and not self.begins_with(places[0])
        if not places or (is_chance and self.likelihoods):
            return
        self.times += 1
        share = max(1 / self.times, _WEIGHT)
        self.likelihoods = _learned(self.likelihoods, places, share)
        self.beginnings = _learned(self.beginnings, [] if is_chance else places[:1], share)

    def begins_with(self, place: Place) -> bool:
        """Whether it mostly does."""
        return self.beginnings.get(place, 0.0) >= LIKELY

    def note(self, inode: int, place: Place, *, is_for_turns: bool) -> None:
        """It has used a file since it was taken up, for the first time."""
        if not self.new and self.begins_with(place):
            self.signs = _SIGNS
        self.signs += is_for_turns or self.likelihoods.get(place, 0.0) >= LIKELY
        self.new[inode] = place


def _learned(old: dict[Place, float], places: list[Place], share: float) -> dict[Place, float]:
    """Likelihoods after a time in which *places* were used, in that order; they come first."""
    faded = {place: value * (1 - share) for place, value in old.items()}
    learned = {place: faded.pop(place, 0.0) + share for place in places}
    kept = [(place, value) for place, value in faded.items() if value >= _FADED]
    return learned | dict(kept[: max(FILES_MAX - len(learned), 0)])


class Habits:
    """Of all agents; the 1024 that were taken up last are remembered. Seconds are the caller's."""

    def __init__(self) -> None:
        self._agents: dict[bytes, _Habits] = {}

    def use(self, agent: bytes, now_s: float) -> bool:
        """Note that an agent uses a file; True: it is thereby taken up."""
        habits = self._agents.get(agent)
        if habits is not None and now_s - habits.used_at < PAUSE_S:
            habits.used_at = now_s
            return False
        habits = self._agents.pop(agent, None) or _Habits()
        self._agents[agent] = habits  # the latest comes last
        if len(self._agents) > AGENTS_MAX:
            del self._agents[next(iter(self._agents))]
        habits.learn()
        habits.used_at = habits.taken_up_at = now_s
        return True

    def is_to_learn(self, agent: bytes, inode: int, now_s: float) -> bool:
        """Whether an inode that an agent uses now is to be noted, and is not yet."""
        habits = self._agents[agent]
        is_early = now_s - habits.taken_up_at < WINDOW_S
        return is_early and inode not in habits.new and len(habits.new) < FILES_MAX

    def learn(self, agent: bytes, inode: int, place: Place, *, is_for_turns: bool = False) -> None:
        """Note what it uses, and where that lies.

        :param is_for_turns: agents read it before every turn, as prompts and tools
        """
        self._agents[agent].note(inode, place, is_for_turns=is_for_turns)

    def is_to_serve(self, agent: bytes) -> bool:
        """Whether it is at work, and was not before; True once each time that it is taken up."""
        habits = self._agents[agent]
        if habits.is_served or habits.signs < _SIGNS:
            return False
        habits.is_served = True
        return True

    def expected(self, agent: bytes) -> Iterator[tuple[Place, float]]:
        """What it is likely to want when it is at work, and how likely, in the order of use."""
        for place, likelihood in self._agents[agent].likelihoods.items():
            if likelihood >= LIKELY:
                yield place, likelihood
