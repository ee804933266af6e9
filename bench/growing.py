"""Conversations that grow turn by turn: what the store writes, and what it keeps.

Conversations of a corpus are written again as agents write them, a message every ten seconds, many
agents at a time. A clock of the benchmark's own makes these seconds short; the daemon's parts that
decide (what rests, when to seal, flush and compact) run as in a mount, without the kernel.

- *rewrite*: the whole history as JSON each turn, into the same file.
- *replace*: the same beside the old one, which it is renamed over.
- *append*: one line of JSONL each turn.
- *versions*: each turn's history in a file of its own, as checkpoints are.

What the store writes is what the kernel counts for this process on its disk (write_bytes in
/proc/self/io): segments, SQLite's log and database, copies of the namespace, compaction.

    python -m bench.growing --corpus DIR --json growing.json
"""

import argparse
import gc
import json
import os
import random
import stat
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from agentfs import config
from agentfs.filesystem.namespace import Caller
from agentfs.filesystem.volume import Volume
from agentfs.model import ROOT_INODE
from bench.common import NothingRan, Results, benchmark, figures_table, parser, progress
from bench.targets import directory_bytes

TURN_S = 10.0
REST_S = 600.0
"""After the last turn; compaction that nobody asked for has its chance."""
SETTLED_S = 0.002
TMPFS_BYTES = 1 << 30

Turns = list[str]


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    made = parser("growing", __doc__)
    made.add_argument("--corpus", type=Path, required=True, metavar="DIR", help="a directory")
    made.add_argument("--profile", default="default", help="of the store (default: %(default)s)")
    made.add_argument(
        "--conversations", type=int, default=30, help="that grow at a time (default: %(default)s)"
    )
    return made


def conversations(corpus: Path, count: int) -> list[Turns]:
    """Messages, as lines of JSON, of so many conversations drawn from all there are."""
    found = []
    for path in sorted(corpus.rglob("*.json")):
        try:
            whole = json.loads(path.read_bytes())
        except ValueError:
            continue
        messages = whole.get("messages") if isinstance(whole, dict) else None
        if isinstance(messages, list) and len(messages) >= 10:
            found.append([json.dumps(message) for message in messages])
    return random.Random(1).sample(found, min(count, len(found)))


@dataclass
class Agents:
    """Programs that write into a volume, and what they wrote."""

    volume: Volume
    written_bytes: int = 0

    async def write(self, name: str, data: bytes, offset: int = 0) -> None:
        """Open, made if need be; write; close."""
        encoded = os.fsencode(name)
        inode = self.volume.namespace.lookup(ROOT_INODE, encoded)
        if inode is None:
            inode = self.volume.namespace.create(
                ROOT_INODE, encoded, stat.S_IFREG | 0o644, Caller(0, 0)
            )
        handle = self.volume.files.open(inode, os.O_WRONLY, is_privileged=True)
        handle.file.name = (ROOT_INODE, encoded)
        if not offset:
            await self.volume.files.truncate(handle.file, 0, is_privileged=True)
        await self.volume.files.write(handle, offset, data)
        self.volume.files.release(handle)
        self.written_bytes += len(data)

    async def rewrite(self, name: str, turns: Turns) -> None:
        """One turn more of a history."""
        await self.write(name, history(turns))

    async def replace(self, name: str, turns: Turns) -> None:
        """The same beside it, renamed over it."""
        await self.write(f"{name}.tmp", history(turns))
        old, new = os.fsencode(f"{name}.tmp"), os.fsencode(name)
        self.volume.namespace.rename(ROOT_INODE, old, ROOT_INODE, new, 0)

    async def append(self, name: str, turns: Turns) -> None:
        """One turn more of a log."""
        written = sum(len(turn) + 1 for turn in turns[:-1])
        await self.write(name, turns[-1].encode() + b"\n", written)

    async def checkpoint(self, name: str, turns: Turns) -> None:
        """One turn more, in a file of its own."""
        await self.write(f"{name}.{len(turns):04}", history(turns))


def history(turns: Turns) -> bytes:
    """As agents keep it."""
    return ("[\n" + ",\n".join(turns) + "\n]\n").encode()


WAYS = {
    "rewrite": Agents.rewrite,
    "replace": Agents.replace,
    "append": Agents.append,
    "versions": Agents.checkpoint,
}


def _disk_writes() -> int:
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("write_bytes"):
            return int(line.split()[1])
    raise NothingRan("the kernel does not count what a process writes")


@dataclass
class Machine:
    """A store, and the clock it runs by."""

    store: Path
    profile: config.Profile
    clock: MockClock

    @asynccontextmanager
    async def mounted(self) -> AsyncIterator[Volume]:
        """The volume, served as in a mount, sealed and closed at the end."""
        volume = Volume(self.store, self.profile)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(volume.run)
                yield volume
                nursery.cancel_scope.cancel()
            await volume.seal_for_close()
        finally:
            volume.close()

    async def passes(self, volume: Volume, until: float) -> None:
        """Let time pass, and what falls due in it be done.

        The clock stands still while files are sealed, however long that takes a disk that others
        use as well: else fewer turns would share a seal.
        """
        while (left := until - self.clock.current_time()) > 0:
            self.clock.jump(min(left, 0.5))
            await wait_all_tasks_blocked(SETTLED_S)
            while volume.sealer.is_busy:
                await trio.lowlevel.checkpoint()
                time.sleep(SETTLED_S)
            while volume.stats()["compaction"] == "running":
                self.clock.jump(0.05)  # it sleeps
                await trio.lowlevel.checkpoint()
                time.sleep(SETTLED_S)


async def _grow(
    machine: Machine, way: str, histories: Sequence[Turns], step: Callable[[], None]
) -> Results:
    rng = random.Random(2)
    due = sorted(
        (TURN_S * turn + start, agent, turn)
        for agent, turns in enumerate(histories)
        for start in [rng.uniform(0, TURN_S)]
        for turn in range(1, len(turns) + 1)
    )
    before = _disk_writes()
    async with machine.mounted() as volume:
        agents, began = Agents(volume), machine.clock.current_time()
        for at, agent, turn in due:
            await machine.passes(volume, began + at)
            await WAYS[way](agents, f"{agent}.json", histories[agent][:turn])
            step()
        await machine.passes(volume, machine.clock.current_time() + REST_S)
        unasked = volume.stats()["stored_bytes"]
    written = _disk_writes() - before
    found = {
        "written_mb": agents.written_bytes / 1e6,
        "store_wrote_mb": written / 1e6,
        "store/program": written / agents.written_bytes,
        "rested_mb": unasked / 1e6,
    }
    async with machine.mounted() as volume:
        await volume.compact(lambda done, total: None)
    found["kept_mb"] = directory_bytes(machine.store)["allocated"] / 1e6
    found["times_smaller"] = found["written_mb"] / found["kept_mb"]
    return found


async def _only_the_end(machine: Machine, way: str, histories: Sequence[Turns]) -> int:
    """Bytes of a compacted store that never held anything but the last state."""
    async with machine.mounted() as volume:
        agents = Agents(volume)
        for number, turns in enumerate(histories):
            lines = "".join(f"{turn}\n" for turn in turns).encode()
            await agents.write(f"{number}.json", lines if way == "append" else history(turns))
        await volume.sync(lambda done, total: None)
        await volume.compact(lambda done, total: None)
    return directory_bytes(machine.store)["allocated"]


def measure(chosen: argparse.Namespace) -> Results:
    """Every way by itself, on a store of its own."""
    histories = conversations(chosen.corpus, chosen.conversations)
    if not histories:
        raise NothingRan(f"no conversation below {chosen.corpus}")
    profile = config.load_profile(chosen.profile)
    profile = replace(profile, hot=replace(profile.hot, bytes=TMPFS_BYTES))
    results: Results = {}
    gc.freeze()
    with tempfile.TemporaryDirectory(dir=chosen.work) as work, progress() as bar:
        for way in WAYS:
            task = bar.add_task(way, total=sum(map(len, histories)))
            clock = MockClock(rate=0.0)
            machine = Machine(Path(work) / way, profile, clock)
            machine.store.mkdir()
            with patch("time.monotonic", lambda clock=clock: 1e6 + clock.current_time()):
                results[way] = trio.run(
                    _grow, machine, way, histories, partial(bar.advance, task), clock=clock
                )
                if way != "versions":
                    alone = replace(machine, store=Path(work) / f"{way}-end")
                    alone.store.mkdir()
                    end = trio.run(_only_the_end, alone, way, histories, clock=clock)
                    results[way]["kept/end"] = results[way]["kept_mb"] * 1e6 / end
    return results


def show(results: Results) -> None:
    """Ways down, figures across."""
    figures_table(
        "Growing conversations: MB that programs wrote, that the store wrote, that it keeps",
        results,
        {
            "programs": ("written_mb", 1),
            "store": ("store_wrote_mb", 2),
            "store/programs": ("store/program", 3),
            "kept, rested": ("rested_mb", 2),
            "kept, compacted": ("kept_mb", 2),
            "kept/end alone": ("kept/end", 2),
            "times smaller": ("times_smaller", 1),
        },
        "way",
    )


def main() -> int:
    """Measure, show, write. 2 when there is nothing to measure with."""
    return benchmark("growing", arguments(), measure, show)


if __name__ == "__main__":
    sys.exit(main())
