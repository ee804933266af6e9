"""What fsync costs: by the size of the file it is called for, and by how many call it at once.

Each call follows an append of 100 bytes to a file of its own: there is something to make durable.

    python -m bench.fsync --work DIR
"""

import argparse
import contextlib
import os
import statistics
import sys
import threading
from pathlib import Path
from time import perf_counter

from bench import operations
from bench.common import Results, add_targets, benchmark, cases_table, parser
from bench.targets import one_by_one

SIZES = (0, 64 << 10, 1 << 20, 16 << 20)
CALLERS = (1, 8, 64)


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    made = parser("fsync", __doc__)
    add_targets(made, "ext4,agentfs,agentfs-plain")
    made.add_argument("--calls", type=int, default=40, help="of each caller (default 40)")
    return made


def _append(descriptor: int, calls: int, taken: list[float]) -> None:
    for _ in range(calls):
        os.write(descriptor, operations.LINE)
        start = perf_counter()
        os.fsync(descriptor)
        taken.append(perf_counter() - start)


def measure_one(folder: Path, size: int, callers: int, calls: int) -> dict[str, float]:
    """Median milliseconds of a call, and calls per second of all callers together."""
    folder.mkdir()
    taken: list[float] = []
    with contextlib.ExitStack() as stack:
        descriptors = []
        for number in range(callers):
            file = stack.enter_context((folder / f"{number}.jsonl").open("wb", buffering=0))
            for first in range(0, size, operations.FILE_BYTES):
                file.write(operations.payload(number * 1_000_000 + first))
            os.fsync(file.fileno())
            descriptors.append(file.fileno())
        threads = [
            threading.Thread(target=_append, args=(one, calls, taken)) for one in descriptors
        ]
        start = perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = perf_counter() - start
    return {"ms": statistics.median(taken) * 1e3, "per_second": len(taken) / seconds}


def measure(chosen: argparse.Namespace) -> Results:
    """Every target by itself: a disk has one queue."""
    cases = [*((size, 1) for size in SIZES), *((0, callers) for callers in CALLERS[1:])]
    return one_by_one(
        chosen,
        lambda target: {
            f"{size >> 10} KiB, {callers} at once": measure_one(
                target.root / f"{size}-{callers}", size, callers, chosen.calls
            )
            for size, callers in cases
        },
    )


def show(results: Results) -> None:
    """Cases down, targets across."""
    cases_table(
        "Append 100 B and fsync: median ms of the fsync; of all callers, calls per second",
        "file, callers",
        results,
        {"ms": ("ms", 2), "/s": ("per_second", 0)},
    )


def main() -> int:
    """Measure, show, write. 2 when no target can run here."""
    return benchmark("fsync", arguments(), measure, show)


if __name__ == "__main__":
    sys.exit(main())
