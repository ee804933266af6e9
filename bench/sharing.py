"""What a thousand mappings of one prompt cost in memory.

Equal files in as many directories are written and sealed, the target is mounted anew, then they
are opened and mapped by many processes that touch every page. Against the same processes before
that, which map as many files of one page on the disk: proportional set size of the mappings (PSS),
MemAvailable, page tables. Plain mode keeps a copy of the pages for every file, so measure few files
there.

    python -m bench.sharing --json sharing.json
    python -m bench.sharing --targets agentfs,agentfs-plain --files 20 --processes 10
"""

import argparse
import mmap
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.common import Results, Stopwatch, add_targets, benchmark, figures_table, parser, progress
from bench.proc import available_bytes, machine_bytes
from bench.targets import Agentfs, Target, one_by_one

MIB = 1 << 20
PAGE = mmap.PAGESIZE


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


def map_all(paths: list[Path]) -> list[mmap.mmap]:
    """Map files and read a byte of every page."""
    maps = []
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        maps.append(mmap.mmap(fd, 0, prot=mmap.PROT_READ))
        os.close(fd)
    for one in maps:
        for offset in range(0, len(one), PAGE):
            one[offset]
    return maps


@contextmanager
def workers(count: int, work: Callable[[int], object]) -> Iterator[list[int]]:
    """Processes that have each done their part and hold on to it; their pids."""
    started = []
    try:
        for number in range(count):
            done, tell = os.pipe()
            pid = os.fork()
            if not pid:
                try:
                    kept = work(number)
                    os.write(tell, b"k")
                    while kept is not tell:
                        time.sleep(3600)
                finally:
                    os._exit(1)  # what its parent does at the end is not for it
            os.close(tell)
            started.append((pid, done))
        for pid, done in started:
            if os.read(done, 1) != b"k":
                raise RuntimeError(f"process {pid} ended before it had mapped its files")
        yield [pid for pid, _ in started]
    finally:
        for pid, done in started:
            os.close(done)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


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
    count = chosen.processes
    content = random.Random(1).randbytes(chosen.bytes // 64) * 64
    with Stopwatch() as writing:
        share = write(target.root, content, chosen, target.name)
        target.sync()
    target.remount_cold()
    with tempfile.TemporaryDirectory(dir=chosen.work) as disk:
        pages = write(Path(disk), bytes(PAGE), chosen, "pages")
        with workers(count, lambda number: map_all(pages[number])):
            available, tables = available_bytes(), machine_bytes("PageTables")
    with Stopwatch() as mapping, workers(count, lambda number: map_all(share[number])) as pids:
        mapping.__exit__()
        results: Results = {
            "written_s": writing.seconds,
            "mapped_s": mapping.seconds,
            "pss_mib": sum(mapped_pss_kib(pid, target.root) for pid in pids) / 1024,
            "available_down_mib": (available - available_bytes()) / 2**20,
            "page_tables_up_mib": (machine_bytes("PageTables") - tables) / 2**20,
        }
    if isinstance(target, Agentfs):
        stats = target.stats()
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
