"""What a new agent of a template costs: `agentfs agent spawn`, and mapping all that it has.

A template is a prompt, tools and a conversation, ten files. Milliseconds of the daemon, from the
request to the answer; of CPU that all its threads took in that; of the command; and of opening and
mapping all files of the new agent and reading a byte of each. On a machine that others use, the
CPU says what it takes.

    python -m bench.spawn --work DIR
"""

import argparse
import json
import mmap
import os
import statistics
import sys
from pathlib import Path
from time import perf_counter

from bench.common import Results, add_targets, benchmark, figures_table, parser
from bench.targets import Agentfs, Target, one_by_one, run

FILES = {"prompt.md": 50, "tools.json": 100, **{f"turns-{n}.jsonl": 1 for n in range(8)}}
"""Of a template: megabytes of each."""

WARM_UPS = 5
"""Spawned before it counts: the first imports and plans queries."""


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    made = parser("spawn", __doc__)
    add_targets(made, "agentfs,agentfs-plain")
    made.add_argument("--rounds", type=int, default=50, help="agents to spawn (default 50)")
    made.add_argument("--megabyte", type=int, default=1 << 20, help="bytes in one (default 2^20)")
    return made


def _map_all(directory: Path) -> None:
    for file in directory.iterdir():
        with file.open("rb") as opened:
            mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ)[0]


def measure_one(target: Agentfs, chosen: argparse.Namespace) -> Results:
    """Medians and the slowest of one way to mount."""
    template = target.root / "agents" / "template"
    template.mkdir(parents=True)
    for name, megabytes in FILES.items():
        (template / name).write_bytes(os.urandom(megabytes * chosen.megabyte))
    target.sync()
    _map_all(template)
    chunks = target.stats()["chunks"]
    daemon, cpu, command, mapped = [], [], [], []
    for number in range(WARM_UPS + chosen.rounds):
        words = ("agent", "spawn", f"agent-{number}", target.root, "--from", "template", "--json")
        start = perf_counter()
        answer = json.loads(run(*chosen.agentfs, *words))
        command.append((perf_counter() - start) * 1e3)
        cpu.append(answer["daemon_cpu_s"] * 1e3)
        daemon.append(answer["daemon_s"] * 1e3)
        start = perf_counter()
        _map_all(Path(answer["directory"]))
        mapped.append((perf_counter() - start) * 1e3)
    target.sync()
    return {
        "daemon_ms": statistics.median(daemon[WARM_UPS:]),
        "daemon_max_ms": max(daemon[WARM_UPS:]),
        "daemon_cpu_ms": statistics.median(cpu[WARM_UPS:]),
        "command_ms": statistics.median(command[WARM_UPS:]),
        "map_ms": statistics.median(mapped[WARM_UPS:]),
        "chunks_added": target.stats()["chunks"] - chunks,
    }


def measure(chosen: argparse.Namespace) -> Results:
    """Every target by itself."""

    def of(target: Target) -> Results:
        assert isinstance(target, Agentfs), "others have no agents"
        return measure_one(target, chosen)

    return one_by_one(chosen, of)


def show(results: Results) -> None:
    """Targets down, figures across."""
    columns = {
        "daemon ms": ("daemon_ms", 2),
        "slowest": ("daemon_max_ms", 2),
        "its CPU": ("daemon_cpu_ms", 2),
        "command ms": ("command_ms", 0),
        "map ms": ("map_ms", 2),
        "chunks added": ("chunks_added", 0),
    }
    figures_table(
        "A new agent of ten files: median ms, and what all of them added", results, columns
    )


def main() -> int:
    """Measure, show, write. 2 when no target can run here."""
    return benchmark("spawn", arguments(), measure, show)


if __name__ == "__main__":
    sys.exit(main())
