"""What the daemon takes of a core while many agents work: each has a turn every few seconds.

A turn appends a line of some 2 KiB to the agent's conversation and reads its prompt again, each
by open, read or write, and close. The agents' turns are spread evenly over the time between two
turns of one. Processor time is that of all processes of the mount, threads and children included:
the daemon, and in relay mode keeper, fork server and worker. Its cost per turn is what is left
when the same daemon at rest is taken away.

    python -m bench.overhead --work DIR
    python -m bench.overhead --agents 0                 only at rest
"""

import argparse
import itertools
import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bench.common import Results, add_targets, benchmark, figures_table, parser
from bench.conversations import conversations
from bench.proc import processes
from bench.targets import Agentfs, Target, one_by_one

ROLES = 5
PROMPT_BYTES = 50 << 10
BEFORE_BYTES = 100 << 10
"""Of each conversation when it begins."""

LINES_BYTES = 16 << 20
"""Drawn from again and again; no two conversations have the same line at the same place."""

TURN_BYTES = (1 << 10, 3 << 10)
WARM_UP_TURNS = 2
"""Of each agent, which do not count: conversations are copied to tmpfs by the first."""

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    made = parser("overhead", __doc__)
    add_targets(made, "agentfs,agentfs-plain")
    made.add_argument("--agents", type=int, default=200, help="default 200; 0: only at rest")
    made.add_argument("--seconds", type=float, default=60.0, help="measured (default 60)")
    made.add_argument("--every", type=float, default=5.0, help="seconds of a turn (default 5)")
    made.add_argument("--rest", type=float, default=10.0, help="seconds at rest (default 10)")
    return made


def cpu_seconds(top: int) -> float:
    """What a process and all below it have used, those that have ended included."""
    ticks = 0
    for process in processes(top):
        after_name = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        ticks += sum(map(int, after_name[11:15]))  # utime, stime, cutime, cstime
    return ticks / TICKS_PER_S


def turns() -> Iterator[bytes]:
    """Lines of conversations, about as long as a turn."""
    whole = b"".join(conversations(LINES_BYTES)).splitlines(keepends=True)
    low, high = TURN_BYTES
    return itertools.cycle(line for line in whole if low <= len(line) <= high)


class Agent:
    """One agent's files, and what it does with them."""

    def __init__(self, root: Path, number: int, lines: Iterator[bytes]) -> None:
        directory = root / "agents" / f"agent-{number:03}"
        directory.mkdir(parents=True)
        self._lines = lines
        self._prompt = directory / "prompt.md"
        self._conversation = directory / "conversation.jsonl"
        self._size = BEFORE_BYTES

    def begin(self, prompt: bytes) -> None:
        self._prompt.write_bytes(prompt)
        text = b""
        while len(text) < BEFORE_BYTES:
            text += next(self._lines)
        self._conversation.write_bytes(text)
        self._size = len(text)

    def turn(self) -> None:
        line = next(self._lines)
        with self._conversation.open("ab", buffering=0) as file:
            file.write(line)
        self._size += len(line)
        with self._prompt.open("rb", buffering=0) as file:
            while file.read(64 << 10):
                pass

    @property
    def is_whole(self) -> bool:
        return self._conversation.stat().st_size == self._size


def work(agents: list[Agent], every_s: float, seconds: float) -> list[float]:
    """Have all take their turns for so long; milliseconds of each turn."""
    took_ms = []
    began = time.perf_counter()
    for number in range(round(seconds * len(agents) / every_s)):
        at = began + number * every_s / len(agents)
        time.sleep(max(at - time.perf_counter(), 0))
        start = time.perf_counter()
        agents[number % len(agents)].turn()
        took_ms.append((time.perf_counter() - start) * 1e3)
    time.sleep(max(began + seconds - time.perf_counter(), 0))
    return took_ms


def measure_one(target: Agentfs, chosen: argparse.Namespace) -> Results:
    """Shares of a core, at rest and at work, of one way to mount."""
    top = int(target.stats()["pid"])
    lines = turns()
    roles = [b"".join(itertools.islice(lines, PROMPT_BYTES >> 11)) for _ in range(ROLES)]
    agents = [Agent(target.root, number, lines) for number in range(chosen.agents)]
    for number, agent in enumerate(agents):
        agent.begin(roles[number % ROLES])
    target.sync()
    before = cpu_seconds(top)
    time.sleep(chosen.rest)
    rest = (cpu_seconds(top) - before) / chosen.rest
    found: Results = {"rest_percent": 100 * rest}
    if agents:
        work(agents, chosen.every, WARM_UP_TURNS * chosen.every)
        before, start = cpu_seconds(top), time.perf_counter()
        took_ms = work(agents, chosen.every, chosen.seconds)
        share = (cpu_seconds(top) - before) / (elapsed := time.perf_counter() - start)
        found |= {
            "percent": 100 * share,
            "turns": len(took_ms),
            "turns_per_second": len(took_ms) / elapsed,
            "us_per_turn": (share - rest) * elapsed / len(took_ms) * 1e6,
            "turn_ms": statistics.median(took_ms),
            "turn_p99_ms": statistics.quantiles(took_ms, n=100)[98],
            "identical": all(agent.is_whole for agent in agents),
        }
    return found


def measure(chosen: argparse.Namespace) -> Results:
    """Every target by itself."""

    def of(target: Target) -> Results:
        assert isinstance(target, Agentfs), "others have several daemons, or none"
        return measure_one(target, chosen)

    return one_by_one(chosen, of)


def show(results: Results) -> None:
    """Targets down, figures across."""
    columns = {
        "% of a core": ("percent", 2),
        "at rest": ("rest_percent", 2),
        "us a turn": ("us_per_turn", 0),
        "turns/s": ("turns_per_second", 1),
        "turn ms": ("turn_ms", 2),
        "p99 ms": ("turn_p99_ms", 2),
    }
    figures_table("The daemon's processor time while agents work", results, columns)


def main() -> int:
    """Measure, show, write. 2 when no target can run here."""
    return benchmark("overhead", arguments(), measure, show)


if __name__ == "__main__":
    sys.exit(main())
