"""What a second agent costs: clones of a large file, of an agent's directory, of many small files.

On agentfs by `agentfs clone`: milliseconds of the command, and of those the daemon's own. Where the
filesystem has none, by `cp -a --reflink=auto`, which btrfs does without copying bytes.

    python -m bench.clone --work DIR
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

from bench.common import Results, add_targets, benchmark, cases_table, parser
from bench.targets import Agentfs, Target, one_by_one, run

MIB = 1 << 20


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    made = parser("clone", __doc__)
    add_targets(made, "btrfs,agentfs,agentfs-plain")
    made.add_argument("--megabytes", type=int, default=1024, help="of the file (default 1024)")
    made.add_argument("--files", type=int, default=10_000, help="in the tree (default 10000)")
    made.add_argument("--rounds", type=int, default=9, help="clones of each (default 9)")
    return made


CASES = [
    ("file", "just written"),
    ("agent", "just written"),
    ("file", "sealed"),
    ("agent", "sealed"),
    ("tree", "sealed"),
]
_SEALED_AT_ONCE = 4000
"""In relay mode a file that is not sealed takes two descriptors of the daemon."""


def _fill(path: Path, megabytes: int) -> None:
    with path.open("wb") as file:
        for _ in range(megabytes):
            file.write(os.urandom(MIB))


def _file(target: Target, path: Path, chosen: argparse.Namespace) -> None:
    _fill(path, chosen.megabytes)


def _agent(target: Target, path: Path, chosen: argparse.Namespace) -> None:
    (path / "conversations").mkdir(parents=True)
    _fill(path / "prompt", 50)
    _fill(path / "tools", 100)
    for number in range(10):
        _fill(path / "conversations" / f"{number}.jsonl", 1)


def _tree(target: Target, path: Path, chosen: argparse.Namespace) -> None:
    for number in range(chosen.files):
        if number % _SEALED_AT_ONCE == 0:
            target.sync()
        folder = path / f"{number // 100}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.json").write_bytes(b'{"result": %d}\n' % number)


SOURCES: dict[str, Callable[[Target, Path, argparse.Namespace], None]] = {
    "file": _file,
    "agent": _agent,
    "tree": _tree,
}


def _clone(target: Target, source: Path, copy: Path) -> dict[str, float]:
    """Milliseconds of the command, and on agentfs of its daemon."""
    start = perf_counter()
    if not isinstance(target, Agentfs):
        run("cp", "-a", "--reflink=auto", source, copy)
        return {"ms": (perf_counter() - start) * 1e3}
    answer = json.loads(run(*target.arguments.agentfs, "clone", "--json", source, copy))
    return {"ms": (perf_counter() - start) * 1e3, "daemon_ms": answer["daemon_s"] * 1e3}


def measure_one(target: Target, kind: str, state: str, chosen: argparse.Namespace) -> Results:
    """Medians of one kind of source in one state."""
    source = target.root / f"{kind}-{state}"
    SOURCES[kind](target, source, chosen)
    if state == "sealed":
        target.sync()
    chunks = target.stats()["chunks"] if isinstance(target, Agentfs) else None
    rounds = [
        _clone(target, source, source.with_name(f"{source.name}.{number}"))
        for number in range(chosen.rounds)
    ]
    found: Results = {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
    if isinstance(target, Agentfs) and state == "sealed":
        target.sync()
        found["chunks_added"] = target.stats()["chunks"] - chunks
    return found


def measure(chosen: argparse.Namespace) -> Results:
    """Every target by itself."""
    return one_by_one(
        chosen,
        lambda target: {
            f"{source}, {state}": measure_one(target, source, state, chosen)
            for source, state in CASES
        },
    )


def show(results: Results) -> None:
    """Sources down, targets across."""
    cases_table(
        "One clone: median ms of the command, of the daemon in it; chunks that all clones added",
        "source",
        results,
        {"ms": ("ms", 0), "daemon": ("daemon_ms", 1), "chunks": ("chunks_added", 0)},
    )


def main() -> int:
    """Measure, show, write. 2 when no target can run here."""
    return benchmark("clone", arguments(), measure, show)


if __name__ == "__main__":
    sys.exit(main())
