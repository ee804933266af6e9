"""A day in the life of a machine with 200 agents: what is found on tmpfs when it is opened?

Agents of five roles share prompts and tools; each has a conversation of its own that it appends
a turn to, sometimes a tool result that it reads once, and now and then a fork. Who works when
follows Zipf's law, in sessions of 12 turns on average, 40 s from one to the next; some ten agents
are at work at a time, the others idle. A turn reads the prompt, three tools of the role's eight
a tenth of a second apart, and after half a second the conversation; two seconds later it appends.
tmpfs has room for a tenth of what there is. Six hours of the day are played, and twice in them
somebody reads all conversations: 400 of 31,000 opens, which nobody could foresee.

The files, the store, the staging and the images are the real ones, and so are the times: opening
a file and reading all of it, as the daemon does that. What is simulated is the kernel, which
attaches files, and the clock, so that hours take minutes. Ways to decide what stays, each on
a store of its own, have every event one after the other:

    policy   as configured: by kind, agent, sharing and last use, with prefetch
    lru      what was used last stays; all is made resident when it is opened
    none     nothing is resident; all of the budget is given to the cache of decompressed blocks
    still    policy without prefetch (when asked for)
    scarce   policy short of memory: what has cooled leaves at once (when asked for)

An open is hot if nothing had to be decompressed for it since the program asked. Prefetch takes
its real time on the clock of the day: who opens a file before it is there waits for the rest,
and that open is not hot. Segments stay in the page cache.

    python -m bench.day --work DIR
"""

import argparse
import bisect
import collections
import contextlib
import itertools
import os
import random
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import trio

from agentfs import config
from agentfs.filesystem import images, livefile, passthrough, placement
from agentfs.filesystem.namespace import Caller
from agentfs.filesystem.volume import Volume
from agentfs.model import ROOT_INODE, Inode
from bench.common import Results, benchmark, figures_table, parser, progress
from bench.conversations import conversations
from bench.targets import work_directory

KIB = 1 << 10
ROOT = Caller(0, 0)

ROLES = 5
TOOLS = 24
TOOLS_OF_A_ROLE = 8
TOOLS_OF_A_TURN = 3
PROMPT_BYTES = 400 * KIB
RESULT_BYTES = 100 * KIB
TOOL_BYTES = 130 * KIB
RESULTS = 3
"""Of each agent, to begin with."""

BLOCK_CACHE_BYTES = 4 << 20
TURN_BYTES = 6 * KIB
FULL_BYTES = 2 << 20
"""Of a conversation: the context is full, and another one begins."""

TURNS = 12
"""Of a session, on average."""

TURN_S = 40.0
RESULT_SHARE = 0.2
FORK_SHARE = 0.02
SCANS_AT = (0.35, 0.8)
"""Of the day."""

TICK_S = 10.0
HOT_BYTES_SHARE = 0.1


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    made = parser("day", __doc__)
    made.add_argument("--agents", type=int, default=200, help="default 200")
    made.add_argument("--hours", type=float, default=6.0, help="of the day (default 6)")
    made.add_argument("--sessions", type=float, default=2000, help="in 24 hours (default 2000)")
    made.add_argument("--zipf", type=float, default=1.0, help="exponent (default 1.0)")
    made.add_argument("--seed", type=int, default=1)
    made.add_argument("--policies", default="policy,lru,none", help="default policy,lru,none")
    return made


# The trace


@dataclass(frozen=True, order=True)
class Event:
    """Something an agent does at a moment of the day."""

    at_s: float
    agent: int
    action: str
    """read, append, fork, or result: what a tool writes."""
    path: str


def directory(agent: int) -> str:
    return f"/agents/agent-{agent:03}"


def role_tools(rng: random.Random) -> list[list[int]]:
    return [sorted(rng.sample(range(TOOLS), TOOLS_OF_A_ROLE)) for _ in range(ROLES)]


def first_sizes(chosen: argparse.Namespace) -> list[int]:
    """Of the agents' conversations in the morning: half of them above 540 KB."""
    rng = random.Random(chosen.seed + 1)
    return [min(int(rng.lognormvariate(13.2, 0.8)), FULL_BYTES) for _ in range(chosen.agents)]


def trace(chosen: argparse.Namespace) -> list[Event]:
    """All that happens, in order."""
    rng = random.Random(chosen.seed)
    tools = role_tools(rng)
    ranks = list(range(chosen.agents))
    rng.shuffle(ranks)
    weights = list(itertools.accumulate(1 / (rank + 1) ** chosen.zipf for rank in ranks))
    turns = []
    day_s = chosen.hours * 3600
    for _ in range(round(chosen.sessions * chosen.hours / 24)):
        agent = bisect.bisect(weights, rng.random() * weights[-1])
        at_s = rng.random() * day_s
        for _ in range(1 + int(rng.expovariate(1 / (TURNS - 1)))):
            turns.append((at_s, agent))
            at_s += rng.expovariate(1 / TURN_S)
    scans = [
        (share * day_s + agent * 0.2, -1 - agent)
        for share in SCANS_AT
        for agent in range(chosen.agents)
    ]
    events = []
    talks = [Talk(size) for size in first_sizes(chosen)]
    for at_s, agent in sorted(turns + scans):
        if agent < 0:
            path = talks[-1 - agent].path(-1 - agent)
            events.append(Event(at_s, -1 - agent, "read", path))
        elif at_s < day_s:
            events += turn(rng, agent, at_s, tools[agent % ROLES], talks[agent])
    return sorted(events)


@dataclass
class Talk:
    """An agent's conversation. When the context is full another is begun."""

    size: int
    number: int = 0

    def path(self, agent: int) -> str:
        return f"{directory(agent)}/conversations/{self.number}.jsonl"

    def grow(self) -> None:
        self.size += TURN_BYTES
        if self.size > FULL_BYTES:
            self.size, self.number = 0, self.number + 1


def turn(
    rng: random.Random, agent: int, at_s: float, tools: list[int], talk: Talk
) -> Iterator[Event]:
    """An agent reads what it needs, and appends what came of it."""
    base, path = directory(agent), talk.path(agent)
    yield Event(at_s, agent, "read", f"{base}/prompts/system.md")
    for number, tool in enumerate(rng.sample(tools, TOOLS_OF_A_TURN)):
        yield Event(at_s + 0.1 * (number + 1), agent, "read", f"{base}/tools/{tool:02}.json")
    if talk.size:
        yield Event(at_s + 0.5, agent, "read", path)
    if rng.random() < RESULT_SHARE:
        result = f"{base}/results/{at_s:.0f}.txt"
        yield Event(at_s + 1.0, agent, "result", result)
        yield Event(at_s + 1.2, agent, "read", result)
    if rng.random() < FORK_SHARE:
        yield Event(at_s + 1.5, agent, "fork", path)
    yield Event(at_s + 2.0, agent, "append", path)
    talk.grow()


# The kernel and the clock


class Clock:
    """Stands in for the module `time` where the volume asks what time it is."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def time_ns(self) -> int:
        return int(self.now * 1e9) + 1_795_000_000 * 10**9

    def monotonic(self) -> float:
        return self.now


class Kernel:
    """Attaches files to backing files, and has none open between two events."""

    has_taken_over = False
    highest_nodeid = 1

    def __init__(self) -> None:
        self._registered = itertools.count(1)

    def register(self, fd: int) -> int:
        return next(self._registered)

    def unregister(self, backing_id: int) -> None: ...
    def attach(self, nodeid: int, backing_id: int, fd: int, **options: Any) -> None: ...
    def detach(self, nodeid: int) -> bool:
        return True

    def opens(self, nodeid: int) -> int:
        return 0

    def writers(self, nodeid: int) -> tuple[int, int]:
        return 0, 0

    def attr_changed(self, nodeid: int) -> None: ...
    def put_attr(self, *attributes: Any) -> None: ...
    def set_ino(self, nodeid: int, ino: int) -> None: ...
    def forget_ino(self, nodeid: int) -> None: ...
    def set_acl_free(self, is_free: bool) -> None: ...
    def rows(self) -> list[tuple[int, int, int, int, int, int, int]]:
        return []

    def backings(self) -> list[tuple[int, int, int]]:
        return []


class Scarce(images.Images):
    """On a machine that is short of memory all day."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.cool(1.0)


class LeastRecentlyUsed(images.Images):
    """What was used last stays; all is made resident at once, and nothing cools."""

    def _priority(self, image: images.Image) -> float:
        return image.used_at

    def _was_opened(self, digest: bytes) -> bool:
        return True

    async def settle(self) -> None: ...


class Nothing(images.Images):
    """Nothing is resident."""

    async def get(self, content: int, **how: Any) -> images.Image | None:
        return None

    def adopt(self, *arguments: Any) -> images.Image | None:
        return None


POLICIES: dict[str, type[images.Images]] = {
    "policy": images.Images,
    "scarce": Scarce,
    "lru": LeastRecentlyUsed,
    "none": Nothing,
    "still": images.Images,
}
PREFETCHES = {"policy"}


# One policy


class Day:
    """The trace on a volume of its own."""

    def __init__(self, volume: Volume, clock: Clock) -> None:
        self.volume = volume
        self.clock = clock
        self.hot: collections.Counter[str] = collections.Counter()
        self.ms: dict[str, list[float]] = collections.defaultdict(list)
        self.used: list[int] = []
        self.ready_at: dict[int, float] = {}
        """Of files brought before they were opened."""
        self.busy_until = 0.0
        self.prefetch_began = 0.0
        self._bring = volume.files.bring
        volume.files.bring = self.bring  # type: ignore[method-assign]

    def decompressed(self) -> int:
        """Blocks, so far."""
        return int(self.volume._store.stats()["cache_misses"])

    def place(self, path: str) -> tuple[int, bytes]:
        """The directory, made if need be, and the name."""
        parent = ROOT_INODE
        *above, name = os.fsencode(path).strip(b"/").split(b"/")
        for one in above:
            found = self.volume.namespace.lookup(parent, one)
            if found is None:
                found = self.volume.namespace.create(parent, one, 0o040755, ROOT)
            parent = found.id
        return parent, name

    async def write(self, path: str, data: bytes) -> None:
        """Append to a file, made if need be."""
        parent, name = self.place(path)
        files, names = self.volume.files, self.volume.namespace
        inode = names.lookup(parent, name) or names.create(parent, name, 0o100644, ROOT)
        await files.prepare(inode, os.O_WRONLY)
        handle = files.open(inode, os.O_WRONLY, is_privileged=True)
        handle.file.name = (parent, name)
        await files.write(handle, inode.size, data)
        files.release(handle)

    async def read(self, path: str, kind: str) -> None:
        """Open a file, read all of it, close it; measured."""
        files, inode = self.volume.files, self.volume.namespace.walk(os.fsencode(path))[-1]
        late_s = max(self.ready_at.pop(inode.id, 0.0) - self.clock.now, 0.0)
        before, start = self.decompressed(), perf_counter()
        await files.prepare(inode, os.O_RDONLY)
        handle = files.open(inode, os.O_RDONLY, is_privileged=True)
        image = handle.file.image
        if image is not None and handle.file.staged is None:
            with image.opened() as fd:
                os.pread(fd, image.size, 0)
        else:
            await files.read(handle, 0, inode.size)
        self.ms[kind].append((perf_counter() - start + late_s) * 1e3)
        files.release(handle)
        self.hot[kind] += self.decompressed() == before and not late_s

    async def prefetch(self) -> None:
        """Bring what is likely to be opened next. Who opens it sooner than that takes waits."""
        self.busy_until = max(self.busy_until, self.clock.now)
        self.prefetch_began = perf_counter()
        await self.volume.prefetcher.work()
        self.busy_until += perf_counter() - self.prefetch_began

    async def bring(self, inode: Inode, name: bytes, likelihood: float) -> bool:
        """One file, one after the other; it is there when it has been brought."""
        is_new = await self._bring(inode, name, likelihood)
        if is_new:
            self.ready_at[inode.id] = self.busy_until + perf_counter() - self.prefetch_began
        return is_new

    async def settle(self) -> None:
        """Seal what was written; housekeeping."""
        staged = [file for file in self.volume.table.staged_files() if file.is_dirty]
        await self.volume.sealer.seal(staged, wait=True)
        await self.volume.files.tidy()
        self.volume.index.checkpoint_if_due()
        self.used.append(self.volume.staging.used_bytes)

    async def make_room(self) -> None:
        staging = self.volume.staging
        while True:
            await staging.is_wanted.wait()
            staging.is_wanted = trio.Event()
            await self.settle()
            staging.was_made.set()
            staging.was_made = trio.Event()

    async def do(self, event: Event, text: bytes) -> None:
        parent, name = self.place(event.path)
        if event.action in ("read", "fork") and not self.volume.namespace.lookup(parent, name):
            return  # another conversation was about to begin
        if event.action == "read":
            await self.read(event.path, event.path.split("/")[3])
        elif event.action == "fork":
            await self.clone(event.path, f"{event.path}.fork")
        else:
            await self.write(event.path, text)

    async def clone(self, source: str, target: str) -> None:
        await self.volume.clone(
            source.encode(), target.encode(), replaces=True, progress=lambda done, total: None
        )

    def forget(self) -> None:
        """Let nothing be resident."""
        files = self.volume.files
        assert isinstance(files, passthrough.PassthroughFiles)
        files.images.make_room(self.volume.staging.budget_bytes)


class Days:
    """The same day with every way to decide, event by event, in an order drawn for each.

    In turns each way would always follow the same other one, and find the processor's caches as
    that leaves them: 3 % of the median.
    """

    def __init__(self, days: list[Day], clock: Clock, chosen: argparse.Namespace) -> None:
        self.days = days
        self.clock = clock
        self.chosen = chosen
        self.texts = conversations(1 << 40, seed=chosen.seed)
        self.spare = b""
        self.order = random.Random(chosen.seed + 2)

    def text(self, size: int) -> bytes:
        """New bytes, like those that agents write."""
        while len(self.spare) < size:
            self.spare += next(self.texts)
        taken, self.spare = self.spare[:size], self.spare[size:]
        return taken

    async def live(self) -> None:
        """Prepare, and have the whole day, with housekeeping for who waits for room."""
        async with trio.open_nursery() as nursery:
            for day in self.days:
                nursery.start_soon(day.make_room)
            await self.prepare()
            await self.run(trace(self.chosen))
            nursery.cancel_scope.cancel()

    async def write(self, path: str, size: int) -> None:
        text = self.text(size)
        for day in self.days:
            await day.write(path, text)

    async def settle(self) -> None:
        for day in self.days:
            await day.settle()

    async def prepare(self) -> None:
        """Make all agents' files, sealed, none of them hot."""
        roles = role_tools(random.Random(self.chosen.seed))
        tools = [self.text(TOOL_BYTES) for _ in range(TOOLS)]
        for role, those in enumerate(roles):
            await self.write(f"/roles/{role}/prompts/system.md", PROMPT_BYTES)
            for tool in those:
                for day in self.days:
                    await day.write(f"/roles/{role}/tools/{tool:02}.json", tools[tool])
        await self.settle()
        for agent, size in enumerate(first_sizes(self.chosen)):
            base = directory(agent)
            for day in self.days:
                day.place(base)
                await day.clone(f"/roles/{agent % ROLES}", base)
            await self.write(f"{base}/conversations/0.jsonl", size)
            for number in range(RESULTS):
                await self.write(f"{base}/results/{number}.txt", RESULT_BYTES)
            if agent % 10 == 0:
                await self.settle()
        await self.settle()
        for day in self.days:
            day.forget()

    async def run(self, events: list[Event]) -> None:
        begin = ticked = self.clock.now
        sizes = {"append": TURN_BYTES, "result": RESULT_BYTES}
        with progress() as bar:
            for event in bar.track(events):
                at = begin + event.at_s
                while at - ticked >= TICK_S:  # of a long pause the last ticks will do
                    self.clock.now = ticked = max(ticked + TICK_S, at - 4 * TICK_S)
                    await self.settle()
                self.clock.now = at
                text = self.text(sizes.get(event.action, 0))
                for day in self.days:
                    await day.do(event, text)
                    await day.prefetch()
                self.order.shuffle(self.days)


def budget_of(chosen: argparse.Namespace) -> tuple[int, int]:
    """Bytes of all that there is in the morning, each content once, and of tmpfs."""
    whole = sum(first_sizes(chosen)) + ROLES * PROMPT_BYTES + TOOLS * TOOL_BYTES
    whole += chosen.agents * RESULTS * RESULT_BYTES
    return whole, int(whole * HOT_BYTES_SHARE)


def new_day(name: str, store: Path, clock: Clock, budget: int) -> Day:
    """An empty volume that decides in that way."""
    profile = config.load_profile("default")
    blocks = budget if name == "none" else BLOCK_CACHE_BYTES
    profile = replace(
        profile,
        hot=config.Hot(bytes=max(budget, 1 << 20)),
        store=replace(profile.store, cache_bytes=blocks),
    )
    passthrough.Images = POLICIES[name]  # type: ignore[misc]
    store.mkdir()
    volume = Volume(store, profile, relay=Kernel())
    files = volume.files
    assert isinstance(files, passthrough.PassthroughFiles)
    files.clock = files.images.clock = volume.prefetcher.clock = clock.monotonic
    volume.prefetcher.is_on = name in PREFETCHES
    return Day(volume, clock)


def figures(day: Day) -> Results:
    """What programs noticed, and what it took."""
    ms = [one for those in day.ms.values() for one in those]
    return {
        "opens": len(ms),
        "hot": 100 * sum(day.hot.values()) / len(ms),
        **{f"hot {kind}": 100 * day.hot[kind] / len(day.ms[kind]) for kind in sorted(day.ms)},
        "median_ms": statistics.median(ms),
        "p99_ms": statistics.quantiles(ms, n=100)[98],
        "mean_ms": statistics.fmean(ms),
        "prefetched": day.volume.prefetcher.fetched,
        "prefetch_used": day.volume.prefetcher.used,
        "prefetch_wasted": day.volume.prefetcher.wasted,
        "used_mib": statistics.fmean(day.used) / 2**20,
    }


def measure(chosen: argparse.Namespace) -> Results:
    """All ways at once."""
    clock = Clock()
    livefile.time = placement.time = clock  # type: ignore[attr-defined]
    whole, budget = budget_of(chosen)
    with work_directory(chosen) as work, contextlib.ExitStack() as volumes:
        days: dict[str, Day] = {}
        for name in chosen.policies.split(","):
            days[name] = new_day(name, work / name, clock, budget)
            volumes.callback(days[name].volume.close)
        trio.run(Days(list(days.values()), clock, chosen).live)
        sizes = {"whole_mib": whole / 2**20, "budget_mib": budget / 2**20}
        return {name: figures(day) | sizes for name, day in days.items()}


def show(results: Results) -> None:
    """Policies down, figures across."""
    first = next(iter(results.values()))
    columns = {
        **{what: (what, 1) for what in first if what.startswith("hot")},
        "median ms": ("median_ms", 3),
        "p99 ms": ("p99_ms", 1),
        "mean ms": ("mean_ms", 2),
        "tmpfs MiB": ("used_mib", 1),
        "prefetched": ("prefetched", 0),
        "of these used": ("prefetch_used", 0),
    }
    figures_table(
        f"A day of {first['opens']:,} opens, {first['budget_mib']:.0f} of {first['whole_mib']:.0f}"
        " MiB on tmpfs: % of opens that were hot; ms to open and read all",
        results,
        columns,
        "way",
    )


def main() -> int:
    """Measure, show, write."""
    return benchmark("day", arguments(), measure, show)


if __name__ == "__main__":
    sys.exit(main())
