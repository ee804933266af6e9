"""What programs notice when the worker dies: killed again and again under busy programs.

Programs (bench/busy.py) do everything that can be done with files and know what must come of it,
while the worker is killed with SIGKILL at random moments; beside it, the same without kills.

    python -m bench.takeover --work DIR [--seconds 60 --kills 20 --programs 8]
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from bench.common import Results, benchmark, err, parser, shown, table
from bench.targets import Agentfs, available, work_directory

GRACE_SECONDS = 60.0


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    made = parser("takeover", __doc__)
    made.add_argument("--seconds", type=float, default=60.0, help="of each run (default 60)")
    made.add_argument("--kills", type=int, default=20, help="in that time (default 20)")
    made.add_argument("--programs", type=int, default=8, help="at once (default 8)")
    made.add_argument("--seed", type=int, default=1, help="of what they do, and when (default 1)")
    return made


def _kill_now_and_then(target: Agentfs, chosen: argparse.Namespace) -> int:
    """Kill the worker at random moments, spread over the time; how often it was."""
    moments = random.Random(chosen.seed)
    share = chosen.seconds / chosen.kills
    begin = time.monotonic()
    for number in range(chosen.kills):
        due = begin + (number + moments.random()) * share
        time.sleep(max(0.0, due - time.monotonic()))
        os.kill(target.stats()["worker_pid"], signal.SIGKILL)
    return int(chosen.kills)


def measure_one(target: Agentfs, chosen: argparse.Namespace, *, kills: bool) -> Results:
    """One run."""
    command = [sys.executable, str(Path(__file__).with_name("busy.py"))]
    programs = [
        subprocess.Popen(
            [
                *command,
                str(target.root / f"{number}"),
                str(chosen.seconds),
                str(chosen.seed * 100 + number),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(chosen.programs)
    ]
    try:
        killed = _kill_now_and_then(target, chosen) if kills else 0
        answers = [
            json.loads(program.communicate(timeout=chosen.seconds + GRACE_SECONDS)[0])
            for program in programs
        ]
    finally:
        for program in programs:
            program.kill()
    worst = max(answers, key=lambda answer: answer["longest_s"])
    return {
        "kills": killed,
        "operations": sum(answer["operations"] for answer in answers),
        "failed": sum(answer["failed"] for answer in answers),
        "errors": [error for answer in answers for error in answer["errors"]],
        "longest_s": worst["longest_s"],
        "longest": worst["longest"],
    }


def measure(chosen: argparse.Namespace) -> Results:
    """Without kills, and with."""
    found: Results = {}
    available([Agentfs.name], chosen)
    with work_directory(chosen) as work:
        for case, kills in (("undisturbed", False), ("worker killed", True)):
            with Agentfs(work, chosen) as target, target.watched():
                found[case] = measure_one(target, chosen, kills=kills)
    return found


def show(results: Results) -> None:
    """Runs down."""
    table(
        "Programs while the worker is killed",
        ["run", "kills", "operations", "errors", "longest operation, s", "which"],
        [
            [
                case,
                shown(one["kills"], 0),
                shown(one["operations"], 0),
                shown(one["failed"], 0),
                shown(one["longest_s"], 3),
                one["longest"],
            ]
            for case, one in results.items()
        ],
    )
    for error in results["worker killed"]["errors"]:
        err.print(error, markup=False)


def main() -> int:
    """Measure, show, write. 1 when a program got an error, 2 when nothing could run."""
    return benchmark("takeover", arguments(), measure, show, is_right=_nothing_failed)


def _nothing_failed(results: Results) -> bool:
    return not any(one["failed"] for one in results.values())


if __name__ == "__main__":
    sys.exit(main())
