"""What stays on tmpfs: by kind, agent, use and sharing, and by what people say."""

from __future__ import annotations

import errno
import os
import time
from dataclasses import replace

import pytest
import trio

from agentfs.config import Tiers
from agentfs.filesystem import images
from agentfs.filesystem.passthrough import PassthroughFiles
from agentfs.model import Kind
from agentfs.policy.placement import Facts, score, tier
from fakes.relay import FakeRelay
from fakes.volumes import Machine, Shell, profile, quiet, running

WEIGHTS = Tiers()
USED = Facts(Kind.CONVERSATION, "active", 50, 1)
MINUTE_S = 60.0

IMAGE_BYTES = 400_000


# The formula


@pytest.mark.parametrize(
    ("change", "age_s", "expected"),
    [
        ({}, 4.9 * MINUTE_S, "hot"),
        ({}, 5.1 * MINUTE_S, "warm"),
        ({}, 61 * MINUTE_S, "cold"),
        ({"kind": Kind.SYSTEM_PROMPT}, 86_400.0, "hot"),
        ({"kind": Kind.TOOL_DEFINITION}, 86_400.0, "hot"),
        ({"kind": Kind.SYSTEM_PROMPT, "state": "idle"}, 14 * MINUTE_S, "hot"),
        ({"kind": Kind.SYSTEM_PROMPT, "state": "idle"}, 16 * MINUTE_S, "warm"),
        ({"kind": Kind.TOOL_RESULT}, 0.0, "hot"),
        ({"kind": Kind.TOOL_RESULT}, 1.0, "warm"),
        ({"state": "idle"}, 1.0, "warm"),
        ({"state": "paused"}, 31 * MINUTE_S, "cold"),
        ({"sharers": 4}, 14 * MINUTE_S, "hot"),
        ({"importance": 100}, 14 * MINUTE_S, "hot"),
        ({"importance": 0}, 1.0, "warm"),
        ({"state": None}, 4.9 * MINUTE_S, "hot"),
    ],
)
def test_a_tier_follows_from_kind_agent_age_and_sharing(
    change: dict[str, object], age_s: float, expected: str
) -> None:
    assert tier(replace(USED, age_s=age_s, **change), WEIGHTS) == expected  # type: ignore[arg-type]


def test_a_score_falls_by_one_in_each_half_life() -> None:
    assert score(USED, WEIGHTS) == 0.0
    assert score(replace(USED, age_s=3 * WEIGHTS.half_life_s), WEIGHTS) == -3.0


def test_weights_are_the_profiles() -> None:
    mine = Tiers(tool_result=9.0, cool_s=10.0)
    assert tier(replace(USED, kind=Kind.TOOL_RESULT, age_s=60.0), mine) == "hot"
    assert tier(replace(USED, age_s=60.0), mine) == "warm"


# The images of a volume whose kernel does nothing


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Resident:
    """A volume in relay mode, and what is resident in it."""

    def __init__(self, shell: Shell, relay: FakeRelay) -> None:
        files = shell.volume.files
        assert isinstance(files, PassthroughFiles)
        self.shell, self.relay, self.files = shell, relay, files
        self.clock = files.images.clock = Clock()

    async def make(self, *paths: str) -> None:
        """Sealed files of random bytes, none resident; directories as needed."""
        for path in paths:
            for end in [place for place, one in enumerate(path) if one == "/" and place]:
                if not self.shell.exists(path[:end]):
                    self.shell.mkdir(path[:end])
            await self.shell.write(path, os.urandom(IMAGE_BYTES))
        await self.shell.sync()

    async def use(self, path: str) -> None:
        """Open for reading, as the kernel has it done, and close."""
        self.clock.now += 0.1
        inode = self.shell.inode(path)
        await self.files.prepare(inode, os.O_RDONLY)
        handle = self.files.open(inode, os.O_RDONLY, is_privileged=True)
        self.files.release(handle)

    async def restore(self, path: str, age_s: float) -> None:
        """Write a file anew, give it the time it had, have it sealed: as `cp -a` does."""
        inode = self.shell.inode(path)
        await self.files.prepare(inode, os.O_WRONLY | os.O_TRUNC)
        handle = self.files.open(inode, os.O_WRONLY, is_privileged=True)
        await self.files.write(handle, 0, os.urandom(IMAGE_BYTES))
        self.shell.change(path, mtime_ns=time.time_ns() - int(age_s * 1e9))
        self.files.release(handle)
        await self.shell.sync()

    async def pass_(self, seconds: float) -> None:
        self.clock.now += seconds
        await self.settle()

    async def settle(self) -> None:
        """Housekeeping for as long as there is any."""
        self.files.images._next_round = 0.0
        for _ in range(3):
            await self.files.tidy()

    def tiers(self, *paths: str) -> list[str]:
        return [self.shell.describe(path, "tier") for path in paths]

    def have_images(self, *paths: str) -> list[bool]:
        contents = [self.shell.inode(path).content for path in paths]
        return [self.files.images.find(content or 0) is not None for content in contents]


@pytest.fixture
def resident(machine: Machine) -> Resident:
    relay = FakeRelay()
    return Resident(machine.open(profile(budget_bytes=10 * IMAGE_BYTES), relay=relay), relay)


async def test_conversations_cool_and_prompts_of_active_agents_stay(resident: Resident) -> None:
    paths = ("/agents/a/prompts/p", "/agents/a/conversations/c", "/agents/a/tools/t")
    await resident.make(*paths)
    for path in paths:
        await resident.use(path)
    await resident.pass_(299.0)
    assert resident.tiers(*paths) == ["hot", "hot", "hot"]
    await resident.pass_(2)
    assert resident.tiers(*paths) == ["hot", "warm", "hot"]
    await resident.pass_(100_000)
    assert resident.tiers(*paths) == ["hot", "warm", "hot"], "the agent has just used a file"


async def used_an_hour_ago(resident: Resident) -> tuple[str, ...]:
    """A prompt, a conversation, and one that is open still; nearly an hour."""
    paths = ("/agents/a/prompts/p", "/agents/a/conversations/c", "/open/c")
    await resident.make(*paths)
    for path in paths:
        await resident.use(path)
    resident.relay.open_files[resident.shell.inode("/open/c").id] = 1
    await resident.pass_(59 * MINUTE_S)
    return paths


async def test_what_has_cooled_leaves_when_it_is_told_to(resident: Resident) -> None:
    paths = await used_an_hour_ago(resident)
    assert resident.tiers(*paths) == ["hot", "warm", "hot"]
    assert resident.have_images(*paths) == [True, True, True], "nobody wants the memory"
    resident.files.cool(1.0)
    await resident.settle()
    assert resident.have_images(*paths) == [True, False, True]
    resident.relay.open_files.clear()
    await resident.settle()
    assert resident.have_images(*paths) == [True, False, False]


async def test_what_is_cold_leaves_though_nobody_wants_the_memory(resident: Resident) -> None:
    paths = await used_an_hour_ago(resident)
    assert resident.have_images(*paths) == [True, True, True]
    await resident.pass_(2 * MINUTE_S)
    assert resident.have_images(*paths) == [True, False, True]
    await resident.use(paths[1])
    assert resident.have_images(paths[1]) == [True], "it is used again"


@pytest.mark.parametrize(("age_s", "stays"), [(50 * MINUTE_S, True), (3 * 86_400.0, False)])
async def test_what_is_restored_with_its_times_is_as_old_as_these(
    resident: Resident, age_s: float, stays: bool
) -> None:
    path = "/agents/a/conversations/c"
    await resident.make(path)
    await resident.restore(path, age_s)
    await resident.settle()
    assert resident.have_images(path) == [stays]
    await resident.use(path)
    await resident.settle()
    assert resident.have_images(path) == [True], "it has been read since"


async def test_contents_cool_as_many_times_as_fast_as_they_are_told_to(resident: Resident) -> None:
    paths = ("/agents/a/prompts/p", "/agents/a/conversations/c")
    await resident.make(*paths)
    for path in paths:
        await resident.use(path)
    for pace, seconds, stays in ((None, 40.0, True), (1.0, 0.0, True), (10.0, 0.0, False)):
        resident.files.cool(pace)
        await resident.pass_(seconds)
        assert resident.have_images(*paths) == [True, stays], pace


async def test_a_paused_agents_files_give_way_first(resident: Resident) -> None:
    paths = [f"/agents/{name}/conversations/c" for name in "abcdefgh"]
    await resident.make(*paths, "/new1", "/new2", "/new3", "/new4")
    for path in paths:
        await resident.use(path)
    agents = resident.shell.volume.agents
    agents.set(agents.directories(b"e"), "state", "paused")
    agents.set(agents.directories(b"f"), "importance", "10")
    agents.set(agents.directories(b"a"), "importance", "90")
    resident.files.judge_anew()
    await resident.settle()
    assert resident.tiers(paths[4]) == ["warm"]
    for new in ("/new1", "/new2", "/new3"):
        await resident.use(new)
    assert resident.have_images(*paths).index(False) == 4
    assert resident.have_images(*paths).count(False) == 1
    await resident.use("/new4")
    assert resident.have_images(paths[5]) == [False], "then the least important one's"
    assert resident.have_images(*paths).count(False) == 2, "the oldest is the most important"


async def test_what_is_used_again_and_again_is_ordered_once(resident: Resident) -> None:
    paths = [f"/{number}" for number in range(10)]
    await resident.make(*paths, "/new1", "/new2")
    for _ in range(3):
        for path in paths:
            await resident.use(path)
    found = resident.files.images
    assert len(found._order) == found.count == 10
    for path in (paths[0], *paths[2:]):
        await resident.use(path)
    await resident.use("/new1")
    assert resident.have_images(*paths).index(False) == 1, "not what was used first"
    await resident.use("/new2")
    assert resident.have_images(*paths) == [False, False, *[True] * 8]
    assert len(found._order) == 10


class _TurnsForAll:
    """Others have a turn after each step, not after 2 ms."""

    async def give(self) -> None:
        await trio.lowlevel.checkpoint()


async def test_housekeeping_and_prefetch_may_judge_the_same_images(
    resident: Resident, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "Turns", _TurnsForAll)
    paths = [f"/{number}/c" for number in range(6)]
    await resident.make(*paths)
    for path in paths:
        await resident.use(path)
    found = resident.files.images
    assert len(found._placed) == 6
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(found._judge_some, found._placed)
    assert not found._placed
    assert resident.have_images(*paths) == [True] * 6


async def test_what_cannot_be_dropped_now_is_dropped_later(
    resident: Resident, monkeypatch: pytest.MonkeyPatch
) -> None:
    await resident.make("/a", "/b")
    for path in ("/a", "/b"):
        await resident.use(path)
    found = resident.files.images

    def fail(nodeid: int) -> bool:
        raise OSError(errno.EIO, "not now")

    with monkeypatch.context() as patch:
        patch.setattr(resident.relay, "detach", fail)
        with pytest.raises(OSError, match="not now"):
            found.make_room(10 * IMAGE_BYTES)
    assert resident.have_images("/a", "/b") == [True, True]
    assert found.make_room(10 * IMAGE_BYTES)
    assert resident.have_images("/a", "/b") == [False, False]


async def test_a_scan_of_everything_leaves_what_is_used_often(resident: Resident) -> None:
    often = [f"/agents/{name}/prompts/p" for name in "abc"]
    seldom = [f"/dump/{number}" for number in range(20)]
    await resident.make(*often, *seldom)
    for _ in range(4):
        for path in often:
            await resident.use(path)
    await resident.settle()
    for path in seldom:
        await resident.use(path)
    assert resident.have_images(*often) == [True] * 3
    assert resident.have_images(*seldom).count(True) == 7
    assert resident.shell.volume.staging.used_bytes <= 10 * IMAGE_BYTES


async def test_what_is_pinned_stays_and_all_else_makes_room(resident: Resident) -> None:
    await resident.make("/kept/c", "/other", *[f"/{number}" for number in range(12)])
    resident.shell.set_xattr("/kept", b"user.agentfs.pin", b"1")
    for path in ("/kept/c", "/other"):
        await resident.use(path)
    await resident.settle()
    for number in range(12):
        await resident.use(f"/{number}")
    assert resident.have_images("/kept/c", "/other") == [True, False]
    resident.files.cool(10.0)
    await resident.pass_(100_000)
    assert resident.tiers("/kept/c") == ["hot"]
    resident.shell.remove_xattr("/kept", b"user.agentfs.pin")
    resident.files.judge_anew()
    await resident.settle()
    assert resident.have_images("/kept/c") == [False]


async def test_a_pin_on_a_file_holds_for_that_file(resident: Resident) -> None:
    await resident.make("/d/a", "/d/b")
    resident.shell.set_xattr("/d/a", b"user.agentfs.pin", b"1")
    for path in ("/d/a", "/d/b"):
        await resident.use(path)
    await resident.pass_(10_000)
    assert resident.tiers("/d/a", "/d/b") == ["hot", "warm"]


async def test_a_new_mount_brings_what_is_pinned(resident: Resident, machine: Machine) -> None:
    await resident.make("/d/a", "/b")
    resident.shell.set_xattr("/d", b"user.agentfs.pin", b"1")
    await machine.unmount()
    relay = FakeRelay()
    again = Resident(machine.open(profile(budget_bytes=10 * IMAGE_BYTES), relay=relay), relay)
    async with running(again.shell.volume):
        with trio.fail_after(10):
            while again.tiers("/d/a") != ["hot"]:
                await trio.sleep(0.01)
    assert again.have_images("/d/a", "/b") == [True, False]


async def test_warming_brings_what_there_is_room_for_and_says_what_not(resident: Resident) -> None:
    paths = [f"/d/sub/{number:02}" for number in range(12)]
    await resident.make(*paths)
    await resident.shell.write("/d/staged", b"x")
    warmed = await resident.shell.volume.warm(b"/d", quiet)
    assert (warmed.files, warmed.bytes) == (13, 12 * IMAGE_BYTES + 1)
    assert (warmed.left_files, warmed.left_bytes) == (3, 3 * IMAGE_BYTES)
    assert resident.tiers(*paths).count("hot") == 9
    assert (await resident.shell.volume.warm(paths[0].encode(), quiet)).left_files == 0
    with pytest.raises(FileNotFoundError):
        await resident.shell.volume.warm(b"/missing", quiet)


async def test_an_agents_hot_bytes_are_its_resident_ones(resident: Resident) -> None:
    await resident.make("/agents/a/c", "/agents/b/c")
    await resident.shell.clone("/agents/a/c", "/agents/b/copy")
    await resident.use("/agents/a/c")
    hot = {use.name: use.hot_bytes for use in await resident.shell.volume.agents.uses()}
    assert hot == {"a": IMAGE_BYTES, "b": IMAGE_BYTES}
