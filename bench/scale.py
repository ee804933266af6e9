"""Does it stay as fast with many files? Every metadata operation at 1,000 and at 100,000 files.

Two stores of each target stand side by side, one small and one large; the operations run on one
and the other in turn, always on the same number of fresh files: the ratio is about the store.
Everything runs on one core unless --pin -1: the scheduler puts one daemon beside the driver and
another one on another core, and that alone made one of two equal stores look twice as fast.
Also the daemon's resident memory (VmRSS), with each store after a sync.

    python -m bench.scale --targets agentfs,bare --json scale.json
"""

import argparse
import contextlib
import os
import sys

from bench import operations
from bench.common import (
    Results,
    Stopwatch,
    add_targets,
    benchmark,
    medians,
    parser,
    progress,
    ratio,
    shown,
    table,
)
from bench.proc import field_bytes
from bench.targets import Target, available, work_directory

PER_DIRECTORY = 1000


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    made = parser("scale", __doc__)
    made.set_defaults(pin=max(os.sched_getaffinity(0)))
    add_targets(made, "agentfs,bare")
    made.add_argument("--small", type=int, default=1000, help="files in one store (default 1000)")
    made.add_argument("--large", type=int, default=100_000, help="in the other (default 100000)")
    made.add_argument("--files", type=int, default=1000, help="files per operation (default 1000)")
    made.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default 5)")
    return made


def fill(target: Target, files: int) -> float:
    """Write so many small distinct files, 1,000 to a directory; seconds, sync included."""
    with Stopwatch() as watch:
        for first in range(0, files, PER_DIRECTORY):
            directory = target.root / f"store-{first // PER_DIRECTORY:04d}"
            directory.mkdir()
            for number in range(first, min(files, first + PER_DIRECTORY)):
                descriptor = os.open(f"{directory}/{number:06d}.json", operations.CREATE, 0o644)
                os.write(descriptor, operations.payload(number)[:256])
                os.close(descriptor)
        target.sync()
    return watch.seconds


def resident_kib(pid: int | None) -> int | None:
    """VmRSS of a process in KiB; None without a daemon."""
    return None if pid is None else field_bytes(f"/proc/{pid}/status", "VmRSS") // 1024


def measure(chosen: argparse.Namespace) -> Results:
    """Per target: medians at both sizes, large/small per operation, memory and fill time."""
    found: Results = {}
    for name, kind in available(chosen.targets, chosen).items():
        with contextlib.ExitStack() as stack:
            work = stack.enter_context(work_directory(chosen))
            stores: dict[int, Target] = {
                files: stack.enter_context(kind(work, chosen))
                for files in (chosen.small, chosen.large)
            }
            bar = stack.enter_context(progress())
            task = bar.add_task(f"scale: filling {name}", total=chosen.rounds)
            filled = {}
            for files, target in stores.items():
                with target.watched():
                    filled[files] = fill(target, files)
            memory = {files: resident_kib(target.daemon_pid()) for files, target in stores.items()}
            rounds: dict[int, list[dict[str, float]]] = {files: [] for files in stores}
            for number in range(chosen.rounds):
                bar.update(task, description=f"scale: {name}")
                order = list(stores.items())
                for files, target in order if number % 2 else reversed(order):
                    with target.watched():
                        rounds[files].append(operations.measure(target, str(number), chosen.files))
                        target.quiesce()
                bar.advance(task)
        middle = {files: medians(several) for files, several in rounds.items()}
        small, large = middle[chosen.small], middle[chosen.large]
        found[name] = {
            "microseconds": {str(files): one for files, one in middle.items()},
            "large/small": {key: ratio(large[key], small[key]) for key in small},
            "rss_kib": {str(files): kib for files, kib in memory.items()},
            "fill_seconds": {str(files): seconds for files, seconds in filled.items()},
        }
    return found


def show(results: Results) -> None:
    """One table a target."""
    for name, one in results.items():
        sizes = list(one["microseconds"])
        rows = [
            [
                operation,
                *(shown(one["microseconds"][size][operation]) for size in sizes),
                shown(one["large/small"][operation], 2),
            ]
            for operation in operations.ABOUT
        ]
        rows.append(["daemon's memory, MiB", *(_mebibytes(one["rss_kib"][s]) for s in sizes), ""])
        rows.append(["filled in, s", *(shown(one["fill_seconds"][s]) for s in sizes), ""])
        table(
            f"{name}, us per file by files in the store",
            ["operation", *(f"{int(s):,}" for s in sizes), "ratio"],
            rows,
        )


def _mebibytes(kib: int | None) -> str:
    return shown(None if kib is None else kib / 1024)


def main() -> int:
    """Measure, show, write. 2 when no target can run here."""
    return benchmark("scale", arguments(), measure, show)


if __name__ == "__main__":
    sys.exit(main())
