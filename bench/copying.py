"""`cp` of one large file within each target: time, and what the copy takes.

The source is random bytes, read once before, so in agentfs it is resident. Targets take turns;
each round copies with cp(1), which asks for copy_file_range; medians count. The last copy is
synced: the chunks and bytes that it added to the store.

    python -m bench.copying --targets tmpfs,ext4,agentfs,agentfs-plain --json copying.json
"""

import argparse
import contextlib
import filecmp
import random
import statistics
import subprocess
import sys
from pathlib import Path

from bench.common import (
    Results,
    Stopwatch,
    add_targets,
    all_identical,
    benchmark,
    figures_table,
    parser,
    progress,
    ratio,
)
from bench.targets import Agentfs, Target, available, work_directory

PIECE_BYTES = 1 << 20


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    made = parser("copying", __doc__)
    made.set_defaults(hang_seconds=1800.0)
    add_targets(made, "tmpfs,ext4,agentfs,agentfs-plain")
    made.add_argument(
        "--megabytes", type=int, default=1000, help="size of the file, MB of 10^6 bytes"
    )
    made.add_argument("--rounds", type=int, default=5, help="copies of each (default 5)")
    return made


def fill(target: Target, size: int) -> None:
    """The source, synced and read once."""
    rng = random.Random(size)
    with _source(target).open("wb") as file:
        for start in range(0, size, PIECE_BYTES):
            file.write(rng.randbytes(min(PIECE_BYTES, size - start)))
    target.sync()
    with _source(target).open("rb", buffering=0) as file:
        while file.read(PIECE_BYTES):
            pass


def copy(target: Target) -> float:
    """Seconds that cp takes."""
    with Stopwatch() as watch:
        subprocess.run(["cp", _source(target), _copy(target)], check=True)
    return watch.seconds


def _source(target: Target) -> Path:
    return target.root / "source"


def _copy(target: Target) -> Path:
    return target.root / "copy"


def measure(chosen: argparse.Namespace) -> Results:
    """All are mounted at once and take turns."""
    kinds = available(chosen.targets, chosen)
    size = chosen.megabytes * 1_000_000
    found: Results = {"bytes": size, "targets": {}}
    times: dict[str, list[float]] = {name: [] for name in kinds}
    with contextlib.ExitStack() as stack:
        work = stack.enter_context(work_directory(chosen))
        bar = stack.enter_context(progress())
        task = bar.add_task("copying: filling", total=len(kinds) * (chosen.rounds + 1))
        targets = []
        for kind in kinds.values():
            target = stack.enter_context(kind(work, chosen))
            with target.watched():
                fill(target, size)
            targets.append(target)
            bar.advance(task)
        for number in range(chosen.rounds):
            bar.update(task, description=f"copying: round {number + 1}")
            for target in targets:
                with target.watched():
                    _copy(target).unlink(missing_ok=True)
                    target.quiesce()
                    times[target.name].append(copy(target))
                bar.advance(task)
        for target in targets:
            with target.watched():
                found["targets"][target.name] = _cost(target) | {
                    "mb_per_second": size / 1e6 / statistics.median(times[target.name]),
                    "seconds": times[target.name],
                }
    floor = found["targets"].get("tmpfs", {}).get("mb_per_second")
    for one in found["targets"].values():
        one["of_tmpfs"] = ratio(one["mb_per_second"], floor)
    return found


def _cost(target: Target) -> Results:
    """What the copy that is there adds, once all is in its final form."""
    identical = filecmp.cmp(_source(target), _copy(target), shallow=False)
    _copy(target).unlink()
    target.sync()
    before = target.stats() if isinstance(target, Agentfs) else None
    copy(target)
    target.sync()
    if not isinstance(target, Agentfs) or before is None:
        return {"identical": identical}
    after = target.stats()
    return {
        "identical": identical,
        "chunks_added": after["chunks"] - before["chunks"],
        "bytes_added": after["stored_bytes"] - before["stored_bytes"],
    }


def show(results: Results) -> None:
    """One row a target."""
    columns = {
        "MB/s": ("mb_per_second", 0),
        "of tmpfs": ("of_tmpfs", 2),
        "chunks added": ("chunks_added", 0),
        "bytes added": ("bytes_added", 0),
    }
    figures_table(f"cp of {results['bytes'] / 1e6:,.0f} MB", results["targets"], columns)


def main() -> int:
    """Measure, show, write. 1 when a copy differs, 2 when no target can run here."""
    return benchmark("copying", arguments(), measure, show, is_right=all_identical)


if __name__ == "__main__":
    sys.exit(main())
