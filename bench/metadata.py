"""Metadata operations: agentfs beside the ceiling (bare pyfuse3), the floor (tmpfs), ext4 and s3ql.

All targets are mounted at once and take turns, A B C, B C A, ...: what the machine does meanwhile
hits all alike. The figure is the median over the rounds; ratios compare within this one run.

    python -m bench.metadata --s3ql-bin DIR --json metadata.json
"""

import argparse
import contextlib
import sys

from bench import operations
from bench.common import (
    NothingRan,
    Results,
    add_targets,
    benchmark,
    err,
    medians,
    parser,
    progress,
    ratio,
    shown,
    table,
)
from bench.targets import FAILURES, Target, available, work_directory

RATIOS = [
    ("agentfs", "bare"),
    ("agentfs", "bare-polling"),
    ("agentfs", "s3ql"),
    ("agentfs-plain", "bare"),
    ("agentfs-plain", "bare-polling"),
    ("agentfs-plain", "s3ql"),
    ("s3ql", "bare"),
]


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    made = parser("metadata", __doc__)
    add_targets(made, "tmpfs,ext4,bare,bare-polling,agentfs,s3ql")
    made.add_argument("--files", type=int, default=2000, help="files per operation (default 2000)")
    made.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default 5)")
    return made


def measure(chosen: argparse.Namespace) -> Results:
    """Microseconds per operation and target: every round and the medians; and the ratios."""
    kinds = available(chosen.targets, chosen)
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in kinds}
    failed: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        work = stack.enter_context(work_directory(chosen))
        targets: list[Target] = [stack.enter_context(kind(work, chosen)) for kind in kinds.values()]
        bar = stack.enter_context(progress())
        task = bar.add_task("metadata", total=chosen.rounds * len(targets))
        for number in range(chosen.rounds):
            turn = number % max(1, len(targets))
            for target in targets[turn:] + targets[:turn]:
                bar.update(task, description=f"metadata, round {number + 1}: {target.name}")
                if target.name not in failed:
                    try:
                        with target.watched():
                            one = operations.measure(target, str(number), chosen.files)
                            target.quiesce()
                        rounds[target.name].append(one)
                    except FAILURES as problem:
                        failed[target.name] = f"round {number + 1}: {problem}"
                        err.print(f"{target.name} failed in {failed[target.name]}", markup=False)
                bar.advance(task)
    middle = {name: medians(several) for name, several in rounds.items() if several}
    if not middle:
        raise NothingRan("every target failed")
    return {
        "unit": "microseconds per file",
        "medians": middle,
        "ratios": ratios(middle),
        "rounds": rounds,
        "failed": failed,
    }


def ratios(middle: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """target/other per operation, for the pairs that were both measured."""
    found: dict[str, dict[str, float]] = {}
    for one, other in RATIOS:
        for operation in operations.ABOUT if one in middle and other in middle else ():
            value = ratio(middle[one][operation], middle[other][operation])
            if value is not None:
                found.setdefault(f"{one}/{other}", {})[operation] = value
    return found


def show(results: Results) -> None:
    """A table: operations down, targets and ratios across."""
    middle, compared = results["medians"], results["ratios"]
    table(
        "Metadata, us per file (median of the rounds)",
        ["operation", *middle, *compared],
        [
            [
                operation,
                *(shown(middle[name].get(operation)) for name in middle),
                *(shown(compared[pair].get(operation), 2) for pair in compared),
            ]
            for operation in operations.ABOUT
        ],
    )


def main() -> int:
    """Measure, show, write. 2 when no target can run here."""
    return benchmark("metadata", arguments(), measure, show)


if __name__ == "__main__":
    sys.exit(main())
