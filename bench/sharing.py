"""What a thousand mappings of one prompt cost in memory.

Equal files in as many directories are written and sealed, the target is mounted anew and another
file mapped, then they are opened and mapped by many processes that touch every page. Against the
same processes before that, which map as many files of one page on the disk: proportional set size
of the mappings (PSS), MemAvailable, page tables. Plain mode keeps a copy of the pages for every
file, so measure few files there.

    python -m bench.sharing --json sharing.json
    python -m bench.sharing --targets agentfs,agentfs-plain --files 20 --processes 10
"""

import argparse
import mmap
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from bench.common import Results, Stopwatch, add_targets, benchmark, figures_table, parser, progress
from bench.mapping import mappers
from bench.proc import available_bytes, machine_bytes
from bench.targets import Agentfs, Target, one_by_one

MIB = 1 << 20
PAGE = mmap.PAGESIZE
SETTLED_S = 3.0
"""A daemon has given back what it needed to get the bytes."""


def arguments() -> argparse.ArgumentParser:
    """Beside what every benchmark has: how many files of which size, and how many processes."""
    made = parser("sharing", __doc__)
    add_targets(made, "agentfs")
    made.add_argument("--files", type=int, default=1000, help="default: %(default)s")
    made.add_argument("--bytes", type=int, default=50_000_000, help="of each (%(default)s)")
    made.add_argument("--processes", type=int, default=100, help="default: %(default)s")
    return made


def mapped_pss_kib(pid: int, below: Path) -> int:
    """PSS of a process's mappings of files below a directory, in KiB."""
    total, counts = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            counts = words[-1].startswith(str(below))
        elif counts and words[0] == "Pss:":
            total += int(words[1])
    return total


class Memory(NamedTuple):
    """Figures in MiB."""

    available: float
    page_tables: float
    pss: float


def memory_mib(pids: list[int], below: Path) -> Memory:
    """Of the machine, and of what processes have mapped of files below a directory."""
    time.sleep(SETTLED_S)
    tables = machine_bytes("PageTables")
    pss_kib = sum(mapped_pss_kib(pid, below) for pid in pids)
    return Memory(available_bytes() / MIB, tables / MIB, pss_kib / 1024)


def write(root: Path, content: bytes, chosen: argparse.Namespace, name: str) -> list[list[Path]]:
    """Equal files in as many directories; which process maps which."""
    paths = [root / str(number) / "prompt" for number in range(chosen.files)]
    with progress() as bar:
        task = bar.add_task(f"writing, {name}", total=len(paths))
        for path in paths:
            path.parent.mkdir()
            path.write_bytes(content)
            bar.advance(task)
    return [paths[number :: chosen.processes] for number in range(chosen.processes)]


def measure_target(target: Target, chosen: argparse.Namespace) -> Results:
    """Write the files, map them all, and say what it cost."""
    content, other = random.Random(1).randbytes(chosen.bytes), target.root / "other"
    with Stopwatch() as writing:
        share = write(target.root, content, chosen, target.name)
        target.sync()
    stats = target.stats() if isinstance(target, Agentfs) else None
    other.write_bytes(content[::-1])
    target.sync()
    target.remount_cold()
    with mappers([[other]]):
        pass  # a daemon keeps some of what it needs for the first file
    with tempfile.TemporaryDirectory(dir=chosen.work) as disk:
        pages = write(Path(disk), bytes(PAGE), chosen, "pages")
        with mappers(pages) as mapped:
            before = memory_mib(mapped.pids, Path(disk))
    with mappers(share) as mapped:
        after = memory_mib(mapped.pids, target.root)
    results: Results = {
        "written_s": writing.seconds,
        "mapped_s": mapped.seconds,
        "pss_mib": after.pss,
        "available_down_mib": before.available - after.available,
        "page_tables_up_mib": after.page_tables - before.page_tables,
    }
    if stats is not None:
        results |= {"mode": stats["mode"], "stored_mib": stats["stored_bytes"] / MIB}
    return results


def measure(chosen: argparse.Namespace) -> Results:
    """All targets, one after the other: each wants the memory for itself."""
    return {
        "files": chosen.files,
        "bytes": chosen.bytes,
        "processes": chosen.processes,
        "targets": one_by_one(chosen, lambda target: measure_target(target, chosen)),
    }


def show(results: Results) -> None:
    """One row a target."""
    columns = {
        "written s": ("written_s", 1),
        "mapped s": ("mapped_s", 1),
        "PSS MiB": ("pss_mib", 1),
        "MemAvailable MiB": ("available_down_mib", 1),
        "page tables MiB": ("page_tables_up_mib", 1),
        "stored MiB": ("stored_mib", 1),
    }
    figures_table(
        f"{results['files']} files of {results['bytes'] / 1e6:,.0f} MB, equal content, mapped by "
        f"{results['processes']} processes",
        results["targets"],
        columns,
    )


def main() -> int:
    """Measure, show, write. 2 when no target can run here."""
    return benchmark("sharing", arguments(), measure, show)


if __name__ == "__main__":
    sys.exit(main())
