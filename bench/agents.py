"""How much memory do 10, 100, 1000 agents take? Each with what it reads at every turn in memory.

Every agent is a process and has

    prompts/system.md               50 MB  }
    tools/0.json ... 9.json        100 MB  }  the template's, as `agentfs agent spawn` leaves them
    conversations/opening.jsonl      1 MB  }
    conversations/current.jsonl      9 MB     its own, written just now
    conversations/day-0 ... 9      100 MB     its own, from some days ago (by their times)

It maps all but the last and touches every page; then, with all agents alive, it is counted what
is in memory for them: the tmpfs, pages cached for files of the mount, the daemon (PSS of all its
processes), page tables. What the kernel can take back without writing, such as cached pages of
segments, is no more counted than it is for plain files, nor are inodes and names, some 1 kB a file
with either. Beside it is by how much MemAvailable fell, less what as many processes without files
take: of the whole machine, which should be quiet. And what there is of different bytes among those
mapped: with less than that in memory nobody could have touched them all.

Plain files: a copy for each agent, measured on ext4 for as many as --plain-agents, for more
agents by multiplication. What is in the files: `woven.py`.

What is simulated: the cold conversations of more agents than --cold-agents are not written. On
disk each is counted with what the written ones take on average, in memory with nothing.

    python -m bench.agents --corpus DIR --work DIR
    python -m bench.agents --corpus DIR --agents 10,50 --megabyte 100000
"""

import argparse
import ctypes
import itertools
import mmap
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from agentfs.control import client
from bench.common import (
    Columns,
    Results,
    Stopwatch,
    add_targets,
    benchmark,
    err,
    figures_table,
    out,
    parser,
    progress,
)
from bench.corpus import unpack
from bench.mapping import mappers
from bench.proc import available_bytes, field_bytes, processes
from bench.targets import Agentfs, Target, available, work_directory
from bench.woven import Weaver

PROMPT_MB = 50
TOOLS_MB = (10,) * 10
OPENING_MB = 1
CURRENT_MB = 9
COLD_MB = (10,) * 10
MAPPED_MB = PROMPT_MB + sum(TOOLS_MB) + OPENING_MB + CURRENT_MB

TARGETS_GB = {10: 1.2, 100: 2.5, 1000: 9.5}
"""Of RAM, by agents."""

MEGABYTE = 10**6

PARTS = ("tmpfs", "cached", "daemon", "tables")
"""Of what is in memory for agents."""

COLUMNS: Columns = {
    "logical": ("logical", 2),
    "plain files: RAM": ("plain_ram", 2),
    "RAM": ("ram", 3),
    "target": ("target", 1),
    "different bytes": ("different", 2),
    "one more, MB": ("ram_per_agent", 2),
    **{part: (part, 3) for part in PARTS},
    "MemAvailable": ("available_down", 2),
    "worker's RSS": ("worker_rss", 3),
    "SSD": ("stored", 2),
}

MEMORY_SHARE = 0.8
"""Of what is available, that agents may take."""
PROCESS_BYTES = 10**6

DAY_S = 86_400
SETTLED_S = 12.0
"""tmpfs has not changed for so long: images are judged every 5 s."""
SETTLING_S = 180.0

_SYS_CACHESTAT = 451
"""On every architecture; Linux 6.5."""


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    made = parser("agents", __doc__)
    made.set_defaults(hang_seconds=7200.0)
    add_targets(made, "ext4,agentfs")
    made.add_argument("--corpus", type=Path, required=True, metavar="TAR_OR_DIR")
    made.add_argument(
        "--agents",
        type=lambda text: sorted(map(int, text.split(","))),
        default=[10, 100, 1000],
        metavar="N,N,...",
        help="measured with so many (default 10,100,1000)",
    )
    made.add_argument("--cold-agents", type=int, default=100, help="default %(default)s")
    made.add_argument("--plain-agents", type=int, default=10, help="default %(default)s")
    made.add_argument("--megabyte", type=int, default=MEGABYTE, help="bytes in one (%(default)s)")
    return made


# Files


class Fleet:
    """Agents on one target, more and more of them."""

    def __init__(self, target: Target, weaver: Weaver, chosen: argparse.Namespace) -> None:
        self.target = target
        self.agents: list[Path] = []
        self.cold = 0
        """Of them, how many have their cold conversations."""
        self.cold_stored_bytes = 0
        """What those added to the store."""
        self._weaver = weaver
        self._megabyte = chosen.megabyte
        self._template = target.root / "agents" / "template"
        self._write_template()

    def _write_template(self) -> None:
        for kind in ("prompts", "tools", "conversations"):
            (self._template / kind).mkdir(parents=True)
        whole = self._weaver.document("prompts", PROMPT_MB * self._megabyte, "prompt")
        (self._template / "prompts/system.md").write_bytes(whole)
        for number, megabytes in enumerate(TOOLS_MB):
            whole = self._weaver.document("tools", megabytes * self._megabyte, f"tools/{number}")
            (self._template / f"tools/{number}.json").write_bytes(whole)
        self._write_session("conversations/opening.jsonl", self._template, OPENING_MB, "opening")
        self.target.sync()

    def _write_session(self, name: str, agent: Path, megabytes: int, seed: str) -> None:
        pieces = self._weaver.session(megabytes * self._megabyte, seed)
        _write(agent / name, pieces)

    def add(self) -> None:
        """One agent more."""
        agent = self._template.with_name(f"agent-{len(self.agents):04}")
        if isinstance(self.target, Agentfs):
            what = {"source": "/agents/template", "target": f"/agents/{agent.name}"}
            # What `agentfs agent spawn` asks for; to start a thousand commands takes minutes.
            client.call(self.target.store, "spawn", what | {"name": agent.name})
        else:
            shutil.copytree(self._template, agent)
        self._write_session("conversations/current.jsonl", agent, CURRENT_MB, f"{agent.name}/now")
        self.agents.append(agent)

    def write_cold(self, agent: Path) -> None:
        """What the agent did on other days, as a backup brings it back: with its times."""
        for number, pieces in enumerate(self._cold_sessions(agent)):
            path = agent / f"conversations/day-{number}.jsonl"
            _write(path, pieces)
            at_s = time.time() - (number + 2) * DAY_S
            os.utime(path, (at_s, at_s))

    def _cold_sessions(self, agent: Path) -> Iterator[Iterator[bytes]]:
        sizes = (megabytes * self._megabyte for megabytes in COLD_MB)
        return self._weaver.sessions(sizes, agent.name)

    def is_whole(self) -> bool:
        """Whether the cold conversations of the latest agent that has some are as written."""
        if not self.cold:
            return True
        agent = self.agents[self.cold - 1]
        return all(
            (agent / f"conversations/day-{number}.jsonl").read_bytes() == b"".join(pieces)
            for number, pieces in enumerate(self._cold_sessions(agent))
        )

    def stored_bytes(self) -> int:
        """On disk, with all sealed."""
        self.target.sync()
        stored = self.target.stored_bytes()
        assert stored is not None, "it has a disk"
        return stored

    def settle(self) -> None:
        """Wait until nothing changes in memory: all is sealed, what is cold has left."""
        self.target.sync()
        since, before, end = time.monotonic(), -1, time.monotonic() + SETTLING_S
        while time.monotonic() < min(since + SETTLED_S, end):
            time.sleep(1)
            if (now := tmpfs_bytes(self.target)) != before:
                since, before = time.monotonic(), now


def _write(path: Path, pieces: Iterable[bytes]) -> None:
    with path.open("wb", buffering=0) as file:
        for piece in pieces:
            file.write(piece)


def mapped_files(agent: Path) -> Iterator[Path]:
    """What an agent has mapped."""
    yield agent / "prompts/system.md"
    yield from (agent / f"tools/{number}.json" for number in range(len(TOOLS_MB)))
    yield from (agent / f"conversations/{name}.jsonl" for name in ("opening", "current"))


# Memory


def tmpfs_bytes(target: Target) -> int:
    """What the tmpfs of a store takes."""
    if not isinstance(target, Agentfs):
        return 0
    for owner in Path("/run/agentfs").glob("*/store"):
        if Path(os.fsdecode(owner.read_bytes())) == target.store:
            usage = os.statvfs(owner)
            return (usage.f_blocks - usage.f_bfree) * usage.f_frsize
    return 0


def cached_bytes(path: Path) -> int:
    """Of a file, in the page cache under its own name; through the relay nothing is."""
    figures = (ctypes.c_uint64 * 5)()
    whole = (ctypes.c_uint64 * 2)()
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(path, os.O_RDONLY)
    try:
        if libc.syscall(_SYS_CACHESTAT, fd, whole, figures, 0):
            raise OSError(ctypes.get_errno(), "cachestat", str(path))
    finally:
        os.close(fd)
    return int(figures[0]) * mmap.PAGESIZE


def pss_bytes(pid: int) -> int:
    """Of all a process's memory: what it shares is counted in parts."""
    return field_bytes(f"/proc/{pid}/smaps_rollup", "Pss")


def table_bytes(pid: int) -> int:
    """Page tables of a process."""
    return field_bytes(f"/proc/{pid}/status", "VmPTE")


def memory_of(target: Target, agents: list[Path], pids: list[int]) -> Results:
    """What is in memory for agents that have all mapped and touched."""
    top = int(target.stats()["pid"]) if isinstance(target, Agentfs) else None
    found: Results = {
        "tmpfs_bytes": tmpfs_bytes(target),
        "cached_bytes": sum(cached_bytes(path) for agent in agents for path in mapped_files(agent)),
        "daemon_bytes": 0 if top is None else sum(map(pss_bytes, processes(top))),
        "tables_bytes": sum(map(table_bytes, pids)),
    }
    if isinstance(target, Agentfs):
        found["worker_rss_bytes"] = field_bytes(f"/proc/{target.daemon_pid()}/status", "VmRSS")
    return found


# Measuring


def write_up_to(fleet: Fleet, count: int, chosen: argparse.Namespace) -> None:
    """So many agents are there, and the machine has settled."""
    name, first = fleet.target.name, len(fleet.agents)
    with progress() as bar, Stopwatch() as watch:
        task = bar.add_task(f"{name}: agents", total=count - first)
        for _ in range(first, count):
            fleet.add()
            bar.advance(task)
        before = fleet.stored_bytes()
        cold = fleet.agents[fleet.cold : chosen.cold_agents]
        task = bar.add_task(f"{name}: their cold conversations", total=len(cold))
        for agent in cold:
            fleet.write_cold(agent)
            bar.advance(task)
        fleet.cold += len(cold)
        fleet.cold_stored_bytes += fleet.stored_bytes() - before
        fleet.settle()
    err.print(f"{name}: {count} agents are there, after {watch.seconds:.0f} s more")


def measure_step(fleet: Fleet, count: int, chosen: argparse.Namespace, at_first: int) -> Results:
    """So many agents: written, alive with all mapped, counted."""
    write_up_to(fleet, count, chosen)
    before = available_bytes()
    with mappers([()] * count) as idle:
        idle_bytes = before - available_bytes()
        idle_tables = sum(map(table_bytes, idle.pids))
    agents = fleet.agents
    with mappers([list(mapped_files(one)) for one in agents]) as mapped:
        now_bytes = available_bytes()
        found = memory_of(fleet.target, agents, mapped.pids)
    found["tables_bytes"] = max(found["tables_bytes"] - idle_tables, 0)
    stored = fleet.stored_bytes()
    simulated = count - fleet.cold
    return found | {
        "ram_bytes": sum(found[f"{part}_bytes"] for part in PARTS),
        "available_down_bytes": at_first - now_bytes - idle_bytes,
        "logical_bytes": count * (MAPPED_MB + sum(COLD_MB)) * chosen.megabyte,
        "different_bytes": (MAPPED_MB + (count - 1) * CURRENT_MB) * chosen.megabyte,
        "plain_ram_bytes": count * MAPPED_MB * chosen.megabyte,
        "written_stored_bytes": stored,
        "stored_bytes": stored + simulated * fleet.cold_stored_bytes / max(fleet.cold, 1),
        "simulated_agents": simulated,
        "map_seconds": mapped.seconds,
        "identical": fleet.is_whole(),
    }


def in_memory(counts: list[int], megabyte: int) -> Iterator[int]:
    """Those numbers of agents for which there is memory; says of the others that there is not."""
    there_is = available_bytes()
    for count in counts:
        own = count * ((OPENING_MB + CURRENT_MB) * megabyte + PROCESS_BYTES)
        if own < MEMORY_SHARE * there_is:
            yield count
        else:
            err.print(f"skipped {count} agents: {own / 1e9:.1f} GB are not to be had")


def measure_target(
    target: Target, weaver: Weaver, chosen: argparse.Namespace, at_first: int
) -> list[Results]:
    """All numbers of agents, the smallest first."""
    fleet, found = Fleet(target, weaver, chosen), []
    for count in in_memory(chosen.agents, chosen.megabyte):
        if isinstance(target, Agentfs) or count <= chosen.plain_agents:
            one = measure_step(fleet, count, chosen, at_first)
            found.append({"target": target.name, "agents": count} | one)
    for before, one in itertools.pairwise(found):
        more = one["agents"] - before["agents"]
        one["ram_per_agent_bytes"] = (one["ram_bytes"] - before["ram_bytes"]) / more
    return found


def measure(chosen: argparse.Namespace) -> Results:
    """Every target by itself."""
    steps: list[Results] = []
    with work_directory(chosen) as work:
        weaver = Weaver(unpack(chosen.corpus, work))
        for kind in available(chosen.targets, chosen).values():
            at_first = available_bytes()
            with kind(work, chosen) as target, target.watched():
                steps += measure_target(target, weaver, chosen, at_first)
    return {"megabyte": chosen.megabyte, "steps": steps}


def show(results: Results) -> None:
    """Targets and numbers of agents down, gigabytes across."""
    rows, simulated = {}, []
    is_whole_size = results["megabyte"] == MEGABYTE
    for step in results["steps"]:
        row = {key.removesuffix("_bytes"): value / 1e9 for key, value in sizes(step)}
        row["target"] = TARGETS_GB.get(step["agents"]) if is_whole_size else None
        row["ram_per_agent"] = row.get("ram_per_agent", 0) * 1e3 or None
        rows[f"{step['target']}, {step['agents']}"] = row | {"identical": step["identical"]}
        if step["simulated_agents"]:
            simulated.append(f"{step['simulated_agents']} of {step['agents']}")
    figures_table("Agents with all they read in memory: GB (10^9 bytes)", rows, COLUMNS, "agents")
    if simulated:
        out.print(f"The cold conversations of {', '.join(simulated)} agents were not written.")


def sizes(step: Results) -> Iterator[tuple[str, float]]:
    """The figures of a step that are in bytes."""
    return ((key, value) for key, value in step.items() if key.endswith("_bytes"))


def main() -> int:
    """Measure, show, write. 1 when a file came back different, 2 when no target can run here."""
    return benchmark("agents", arguments(), measure, show, is_right=_is_whole)


def _is_whole(results: Results) -> bool:
    return all(step["identical"] for step in results["steps"])


if __name__ == "__main__":
    sys.exit(main())
