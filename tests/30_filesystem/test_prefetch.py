"""What is brought before an agent asks for it: what it used when it was taken up before."""

from __future__ import annotations

import os

import pytest
import trio
import trio.testing

from agentfs.filesystem import prefetch as prefetcher_module
from agentfs.filesystem.contents import pieces_of
from agentfs.filesystem.images import Images
from agentfs.filesystem.passthrough import PassthroughFiles
from agentfs.filesystem.prefetch import Prefetcher
from agentfs.policy import prefetch
from agentfs.policy.prefetch import PAUSE_S, WINDOW_S, Habits
from agentfs.policy.pressure import Step
from fakes.relay import FakeRelay
from fakes.volumes import Machine, Shell, profile

FILE_BYTES = 100_000
LONG_S = 2 * PAUSE_S

# The habits


def taken_up(habits: Habits, at_s: float, *names: str, agent: bytes = b"a") -> None:
    """An agent uses files, one a second."""
    for number, name in enumerate(names):
        now_s = at_s + number
        assert habits.use(agent, now_s) == (number == 0)
        inode = hash(name)
        if habits.is_to_learn(agent, inode, now_s):
            habits.learn(agent, inode, (1, name.encode()))


def expected(habits: Habits, agent: bytes = b"a") -> dict[str, float]:
    return {name.decode(): share for (_, name), share in habits.expected(agent)}


def test_what_an_agent_used_when_it_was_taken_up_is_expected_in_that_order() -> None:
    habits = Habits()
    taken_up(habits, 0.0, "talk", "prompt", "tool")
    assert expected(habits) == {}, "it is being learned"
    assert habits.use(b"a", LONG_S)
    assert list(expected(habits).items()) == [("talk", 1.0), ("prompt", 1.0), ("tool", 1.0)]
    assert habits.use(b"b", LONG_S)
    assert expected(habits, b"b") == {}, "another agent has habits of its own"


def test_what_was_used_once_is_not_expected_and_what_is_used_mostly_stays_so() -> None:
    habits = Habits()
    for time in range(8):
        taken_up(habits, time * LONG_S, "talk", "prompt", f"result-{time}")
    taken_up(habits, 8 * LONG_S, "talk")  # a backup, say
    taken_up(habits, 9 * LONG_S, "talk", "new")
    habits.use(b"a", 10 * LONG_S)
    assert expected(habits) == {"talk": 1.0, "prompt": 0.75**2}
    taken_up(habits, 11 * LONG_S, "talk", "new")
    habits.use(b"a", 12 * LONG_S)
    assert set(expected(habits)) == {"talk", "prompt", "new"}


def at_work(habits: Habits, at_s: float, *names: str, for_turns: str = "") -> list[bool]:
    """What an agent that uses files is said to be after each."""
    found = []
    for name in names:
        habits.use(b"a", at_s)
        inode = hash(name)
        if habits.is_to_learn(b"a", inode, at_s):
            habits.learn(b"a", inode, (1, name.encode()), is_for_turns=name in for_turns)
        found.append(habits.is_to_serve(b"a"))
    return found


def test_an_agent_is_at_work_when_it_begins_as_it_mostly_does_or_uses_two_of_its_habits() -> None:
    habits = Habits()
    assert at_work(habits, 0.0, "prompt", "tool", "talk") == [False] * 3
    assert at_work(habits, LONG_S, "prompt", "tool") == [True, False], "once each time"
    assert at_work(habits, 2 * LONG_S, "tool", "new", "talk") == [False, False, True]
    assert at_work(habits, 3 * LONG_S, "new") == [False]


def test_who_reads_what_is_for_every_turn_is_at_work_though_nothing_else_is_known_of_it() -> None:
    habits = Habits()
    at_work(habits, 0.0, "talk")
    assert at_work(habits, LONG_S, "prompt", "tool", for_turns="prompt tool") == [False, True]
    assert "talk" in expected(habits)


def test_who_reads_one_file_of_an_agent_does_not_make_it_forget_the_others() -> None:
    habits = Habits()
    at_work(habits, 0.0, "prompt", "talk")
    for time in range(1, 9):
        assert at_work(habits, time * LONG_S, "talk") == [False]
    assert at_work(habits, 9 * LONG_S, "prompt") == [True]
    assert expected(habits) == {"prompt": 1.0, "talk": 1.0}


def test_only_a_pause_makes_an_agent_be_taken_up_and_only_its_beginning_is_learned() -> None:
    habits = Habits()
    assert habits.use(b"a", 0.0)
    assert not habits.use(b"a", PAUSE_S - 1)
    assert not habits.use(b"a", 2 * PAUSE_S - 2), "the pause is since the last use"
    assert habits.is_to_learn(b"a", 1, WINDOW_S - 1)
    assert not habits.is_to_learn(b"a", 1, WINDOW_S)
    assert habits.use(b"a", 3 * PAUSE_S)


def test_habits_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    habits = Habits()
    for time in range(3):
        taken_up(habits, time * 10 * LONG_S, *[f"{time}-{number}" for number in range(50)])
    habits.use(b"a", 100 * LONG_S)
    assert len(expected(habits)) <= prefetch.FILES_MAX
    monkeypatch.setattr(prefetch, "AGENTS_MAX", 2)
    taken_up(habits, 0.0, "x", agent=b"b")
    taken_up(habits, 0.0, "x", agent=b"c")
    assert habits.use(b"a", 100 * LONG_S + 1), "it is forgotten, as if it had never been there"


# A volume


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Taken:
    """A volume with an agent, in which time passes when a test says so."""

    TALK, PROMPT, TOOL = "/agents/a/conversations/c", "/agents/a/prompts/p", "/agents/a/tools/t"
    ALL = (TALK, PROMPT, TOOL)

    def __init__(self, shell: Shell) -> None:
        self.shell = shell
        self.clock = Clock()
        self.prefetcher.clock = self.clock
        if isinstance(self.files, PassthroughFiles):
            self.files.images.clock = self.clock

    @property
    def prefetcher(self) -> Prefetcher:
        return self.shell.volume.prefetcher

    @property
    def files(self) -> PassthroughFiles:
        return self.shell.volume.files  # type: ignore[return-value]

    @property
    def images(self) -> Images:
        return self.files.images

    async def make(self, *paths: str) -> None:
        for path in paths:
            for end in [place for place, one in enumerate(path) if one == "/" and place]:
                if not self.shell.exists(path[:end]):
                    self.shell.mkdir(path[:end])
            await self.shell.write(path, os.urandom(FILE_BYTES))
        await self.shell.sync()

    async def use(self, *paths: str) -> None:
        """Open, read and close, and let what follows from it be done."""
        for path in paths:
            self.clock.now += 1
            await self.files.prepare(self.shell.inode(path), os.O_RDONLY)
            await self.shell.read(path)
            await self.prefetcher.work()

    async def forget(self, pause_s: float = LONG_S) -> None:
        """After a pause nothing is resident, or decompressed."""
        self.clock.now += pause_s
        if isinstance(self.files, PassthroughFiles):
            self.images.make_room(self.shell.volume.staging.budget_bytes)
        self.shell.volume._store.drop_cache()

    def are_here(self, *paths: str) -> list[bool]:
        """Whether a program would have them at once."""
        found = []
        for path in paths:
            content = self.shell.inode(path).content
            assert content is not None
            if isinstance(self.files, PassthroughFiles):
                found.append(self.images.find(content) is not None)
            else:
                found.append(self.is_cached(content))
        return found

    def is_cached(self, content: int) -> bool:
        volume = self.shell.volume
        reader = volume.files._contents
        pieces = pieces_of(volume.index, reader.recipe(content), 0, FILE_BYTES)
        return volume._store.get(pieces, cached_only=True) is not None

    def figures(self) -> tuple[int, int, int, float | None]:
        figures = self.shell.volume.stats()
        return (
            figures["prefetched"],
            figures["prefetch_used"],
            figures["prefetch_wasted"],
            figures["prefetch_hit_rate"],
        )


BUDGET_BYTES = 30 * FILE_BYTES


@pytest.fixture(params=["plain", "relay"])
def taken(machine: Machine, request: pytest.FixtureRequest) -> Taken:
    relay = FakeRelay() if request.param == "relay" else None
    small = profile(budget_bytes=BUDGET_BYTES, block_bytes=64 << 10)
    return Taken(machine.open(small, relay=relay))


@pytest.fixture
def relayed(machine: Machine) -> Taken:
    return Taken(machine.open(profile(budget_bytes=BUDGET_BYTES), relay=FakeRelay()))


async def test_opening_a_conversation_brings_prompt_and_tools(taken: Taken) -> None:
    await taken.make(*taken.ALL)
    await taken.use(*taken.ALL)
    await taken.forget()
    assert taken.are_here(*taken.ALL) == [False, False, False]
    await taken.use(taken.TALK)
    assert taken.are_here(taken.PROMPT, taken.TOOL) == [True, True]
    assert taken.figures() == (2, 0, 0, None)
    await taken.use(taken.PROMPT)
    assert taken.figures() == (2, 1, 0, 1.0)


async def test_what_comes_first_brings_the_conversation(taken: Taken) -> None:
    await taken.make(*taken.ALL)
    await taken.use(taken.PROMPT, taken.TOOL, taken.TALK)
    await taken.forget()
    await taken.use(taken.PROMPT)
    assert taken.are_here(taken.TALK) == [True]


async def test_what_is_not_used_within_five_minutes_was_wasted(taken: Taken) -> None:
    await taken.make(*taken.ALL)
    await taken.use(*taken.ALL)
    await taken.forget()
    await taken.use(taken.TALK, taken.PROMPT)
    await taken.forget(301.0)
    await taken.prefetcher.work()
    assert taken.figures() == (2, 1, 1, 0.5)


async def test_what_is_brought_is_either_used_or_wasted_once(taken: Taken) -> None:
    await taken.make(*taken.ALL)
    await taken.use(*taken.ALL)
    for _ in range(2):
        await taken.forget()
        await taken.use(taken.TALK)
    assert taken.figures() == (2, 0, 0, None), "not again, when it had just been in vain"
    await taken.forget(301.0)
    await taken.prefetcher.work()
    assert taken.figures() == (2, 0, 2, 0.0)


async def test_nothing_is_brought_that_is_there(taken: Taken) -> None:
    await taken.make(*taken.ALL)
    await taken.use(*taken.ALL)
    await taken.use(*taken.ALL)  # a small file gets an image when it is opened again
    taken.clock.now += LONG_S
    await taken.use(taken.TALK)
    assert taken.figures() == (0, 0, 0, None)


async def test_a_file_that_was_written_anew_and_renamed_is_known_again(taken: Taken) -> None:
    await taken.make(*taken.ALL)
    await taken.use(*taken.ALL)
    await taken.shell.replace(taken.PROMPT, os.urandom(FILE_BYTES))
    await taken.shell.sync()
    taken.shell.unlink(taken.TOOL)
    await taken.forget()
    await taken.use(taken.TALK)
    assert taken.are_here(taken.PROMPT) == [True]
    assert taken.figures()[0] == 1


async def test_who_reads_the_conversations_of_all_agents_makes_nothing_be_brought(
    taken: Taken,
) -> None:
    await taken.make(*taken.ALL)
    await taken.use(taken.PROMPT, taken.TOOL, taken.TALK)
    await taken.forget()
    await taken.use(taken.TALK)
    assert taken.are_here(taken.PROMPT, taken.TOOL) == [False, False]
    await taken.use(taken.TOOL)
    assert taken.are_here(taken.PROMPT) == [True], "it was the agent itself"


async def test_what_an_agent_has_just_written_and_reads_again_is_no_habit(relayed: Taken) -> None:
    result, talk = "/agents/a/results/r", "/agents/a/conversations/new"
    await relayed.make(*relayed.ALL)
    relayed.shell.mkdir("/agents/a/results")
    for _ in range(2):
        await relayed.use(relayed.PROMPT)
        for path in (result, talk):
            await relayed.shell.write(path, os.urandom(FILE_BYTES))
            await relayed.use(path)
        await relayed.shell.sync()
        await relayed.forget()
    await relayed.use(relayed.PROMPT)
    assert relayed.are_here(result, talk) == [False, True], "a conversation is gone on with"


async def test_switched_off_it_brings_nothing_and_still_learns(taken: Taken) -> None:
    await taken.make(*taken.ALL)
    taken.prefetcher.is_on = False
    await taken.use(*taken.ALL)
    await taken.forget()
    await taken.use(taken.TALK)
    assert taken.are_here(taken.PROMPT, taken.TOOL) == [False, False]
    taken.prefetcher.is_on = True
    await taken.forget()
    await taken.use(taken.TALK)
    assert taken.are_here(taken.PROMPT) == [True]


@pytest.mark.parametrize("asked", [1, 10_000])
async def test_who_waits_for_bytes_has_the_cores_first(
    taken: Taken, asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    await taken.make(*taken.ALL)
    await taken.use(*taken.ALL)
    await taken.forget()
    left = iter([True] * asked)
    monkeypatch.setattr(taken.prefetcher, "_is_crowded", lambda: next(left, False))
    monkeypatch.setattr("agentfs.filesystem.prefetch._TOO_LATE_S", 0.1)
    await taken.use(taken.TALK)
    assert taken.are_here(taken.PROMPT, taken.TOOL) == [asked == 1] * 2, "too late, it is given up"


async def test_files_of_nobody_teach_nothing(taken: Taken) -> None:
    await taken.make("/c/one", "/c/other")
    await taken.use("/c/one", "/c/other")
    await taken.forget()
    await taken.use("/c/one")
    assert taken.are_here("/c/other") == [False]


async def test_one_agent_gets_no_more_than_an_eighth_of_the_room(relayed: Taken) -> None:
    paths = [f"/agents/a/tools/{number}" for number in range(8)]
    await relayed.make(relayed.TALK, *paths)
    await relayed.use(relayed.TALK, *paths)
    await relayed.forget()
    await relayed.use(relayed.TALK)
    assert relayed.are_here(*paths) == [True] * 3 + [False] * 5


async def test_nothing_makes_room_that_is_likelier_or_open(relayed: Taken) -> None:
    others = [f"/agents/b/prompts/{number}" for number in range(30)]
    await relayed.make(*relayed.ALL, *others)
    await relayed.use(*relayed.ALL)
    await relayed.forget()
    await relayed.shell.volume.warm(b"/agents/b", lambda done, total: None)
    await relayed.use(*others)
    await relayed.images.settle()
    assert relayed.are_here(*others).count(False) == 0
    await relayed.use(relayed.PROMPT)
    assert relayed.are_here(relayed.TALK, relayed.TOOL) == [False, False]
    assert relayed.are_here(*others).count(False) == 1, "for what was opened"
    assert relayed.figures() == (0, 0, 0, None)


async def test_what_counts_less_makes_room(relayed: Taken) -> None:
    dump = [f"/dump/{number}" for number in range(30)]
    await relayed.make(*relayed.ALL, *dump)
    await relayed.use(*relayed.ALL)
    await relayed.forget()
    await relayed.shell.volume.warm(b"/dump", lambda done, total: None)
    assert relayed.are_here(*dump).count(True) == 30
    relayed.clock.now += LONG_S
    await relayed.use(relayed.TALK)
    assert relayed.are_here(relayed.PROMPT, relayed.TOOL) == [True, True]
    assert relayed.shell.volume.staging.used_bytes <= BUDGET_BYTES


async def test_while_memory_is_short_nothing_is_brought(relayed: Taken) -> None:
    await relayed.make(*relayed.ALL)
    await relayed.use(*relayed.ALL)
    await relayed.forget()
    relayed.shell.volume._give_up(Step.NORMAL, Step.STOP_PREFETCH)
    await relayed.use(relayed.TALK)
    assert relayed.are_here(relayed.PROMPT) == [False]


async def test_who_goes_on_using_what_is_known_wakes_nobody(
    taken: Taken, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentfs.filesystem.prefetch._AT_EASE_S", 3600.0)
    looks = 0
    work = taken.prefetcher.work

    async def counted() -> None:
        nonlocal looks
        looks += 1
        await work()

    async def looked(path: str) -> int:
        before = looks
        await taken.files.prepare(taken.shell.inode(path), os.O_RDONLY)
        await taken.shell.read(path)
        with trio.move_on_after(5 * prefetcher_module._LOOKED_AFTER_S):
            while looks == before:
                await trio.sleep(0.001)
        await trio.sleep(2 * prefetcher_module._LOOKED_AFTER_S)
        return looks - before

    await taken.make(*taken.ALL, "/c/one", "/c/other")
    monkeypatch.setattr(taken.prefetcher, "work", counted)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(taken.prefetcher.run)
        await trio.testing.wait_all_tasks_blocked()
        assert await looked(taken.TALK) == 1
        assert await looked(taken.TALK) == 0
        assert await looked(taken.PROMPT) == 1, "it may be what says that the agent is at work"
        assert await looked("/c/one") == 1
        assert await looked("/c/other") == 0, "its directory is nobody's"
        taken.clock.now += LONG_S
        assert await looked(taken.TALK) == 1, "it is taken up anew"
        nursery.cancel_scope.cancel()
