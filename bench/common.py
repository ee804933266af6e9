"""What every benchmark shares: arguments, timing, medians, tables, JSON with machine facts."""

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from agentfs.machine.reading import Machine
from agentfs.machine.tune import HALT_POLL
from bench import proc

out = Console(width=None if sys.stdout.isatty() else 200)
err = Console(stderr=True)

Results = dict[str, Any]


class Stopwatch(AbstractContextManager["Stopwatch"]):
    """`with Stopwatch() as watch: ...; watch.seconds`"""

    seconds = 0.0

    def __enter__(self) -> Self:
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._start


def compile_client(source: str, directory: Path) -> Path:
    """A C program, made in a directory with cc."""
    client = directory / "client"
    command = ["cc", "-O2", "-x", "c", "-", "-o", str(client)]
    subprocess.run(command, input=source, text=True, check=True)
    return client


def medians(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median of each key over the rounds that have it."""
    keys = dict.fromkeys(key for one in rounds for key in one)
    return {key: statistics.median(one[key] for one in rounds if key in one) for key in keys}


def ratio(value: float | None, base: float | None) -> float | None:
    """value / base, or None when either is missing."""
    return value / base if value is not None and base else None


def shown(value: float | None, digits: int = 1, unit: str = "") -> str:
    """A number for a table cell; a dash for what was not measured."""
    return "-" if value is None else f"{value:,.{digits}f}{unit}"


def table(title: str, columns: Iterable[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table: first column names, the rest numbers."""
    drawn = Table(title=title, title_justify="left")
    for position, column in enumerate(columns):
        drawn.add_column(column, justify="left" if position == 0 else "right")
    for row in rows:
        drawn.add_row(*row)
    out.print(drawn)


Columns = Mapping[str, tuple[str, int]]
"""Of figures: title: (key, digits)."""


def figures_table(
    title: str, rows: Mapping[str, Results], columns: Columns, what: str = "target"
) -> None:
    """Targets, or *what* else, down, figures across; whether bytes came back the same, last."""
    verdicts = {
        name: "yes" if one["identical"] else "NO"
        for name, one in rows.items()
        if "identical" in one
    }
    table(
        title,
        [what, *columns, *(["identical"] if verdicts else [])],
        [
            [
                name,
                *(shown(one.get(key), digits) for key, digits in columns.values()),
                *([verdicts[name]] if verdicts else []),
            ]
            for name, one in rows.items()
        ],
    )


def cases_table(
    title: str, cases: str, targets: Mapping[str, Mapping[str, Results]], columns: Columns
) -> None:
    """Cases down, the figures of each target across."""
    table(
        title,
        [cases, *(f"{name} {column}" for name in targets for column in columns)],
        [
            [
                case,
                *(
                    shown(one[case].get(key), digits)
                    for one in targets.values()
                    for key, digits in columns.values()
                ),
            ]
            for case in next(iter(targets.values()))
        ],
    )


def progress() -> Progress:
    """A bar on standard error; silent when that is not a terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    )


def _beside_python(program: str) -> str:
    """The program of the same virtual environment (PATH may lack it), or the bare name."""
    beside = Path(sys.executable).parent / program
    return shlex.quote(str(beside)) if beside.exists() else program


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has."""
    made = argparse.ArgumentParser(
        prog=f"python -m bench.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    environment = os.environ
    made.add_argument("--json", type=Path, metavar="FILE", help="write the results there, too")
    made.add_argument(
        "--work",
        type=Path,
        default=environment.get("BENCH_WORK"),
        metavar="DIR",
        help="for stores and mountpoints, on a real disk (BENCH_WORK; default: a temporary one)",
    )
    made.add_argument(
        "--agentfs",
        type=shlex.split,
        default=shlex.split(environment.get("BENCH_AGENTFS", _beside_python("agentfs"))),
        metavar="COMMAND",
        help="how to call agentfs (BENCH_AGENTFS; default: the one installed beside this Python)",
    )
    made.add_argument(
        "--s3ql-bin",
        type=Path,
        default=environment.get("BENCH_S3QL_BIN"),
        metavar="DIR",
        help="directory with mkfs.s3ql and mount.s3ql (BENCH_S3QL_BIN); without it s3ql is skipped",
    )
    made.add_argument(
        "--s3ql-compress",
        default="lzma-6",
        metavar="ALG-LEVEL",
        help="s3ql's --compress (default: lzma-6, its own default)",
    )
    made.add_argument(
        "--pin",
        type=int,
        metavar="CPU",
        help="keep driver and daemons on that one CPU: no wake-ups across cores (-1: do not)",
    )
    made.add_argument(
        "--hang-seconds",
        type=float,
        default=300.0,
        metavar="S",
        help="cut a target off when one step takes longer (default: %(default)s)",
    )
    return made


def add_targets(made: argparse.ArgumentParser, default: str) -> None:
    """The option that chooses the filesystems, comma-separated."""
    made.add_argument(
        "--targets",
        type=lambda text: text.split(","),
        default=default.split(","),
        metavar="A,B,...",
        help=f"default: {default}",
    )


def _first_line(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    text = (done.stdout or done.stderr).strip()
    return text.splitlines()[0] if text else None


def machine_facts(arguments: argparse.Namespace) -> Results:
    """Where the figures come from: hardware, kernel and versions. None means not installed."""
    import pyfuse3

    s3ql = arguments.s3ql_bin and str(Path(arguments.s3ql_bin) / "python")
    version = "import importlib.metadata as m; print(m.version('s3ql'))"
    return {
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cores": os.cpu_count(),
        "cpu": proc.field("/proc/cpuinfo", "model name"),
        "memory": proc.field("/proc/meminfo", "MemTotal"),
        "load_1_minute": os.getloadavg()[0],
        "kernel": platform.release(),
        "polls_before_halt_ns": Machine().setting(HALT_POLL),
        "python": platform.python_version(),
        "pyfuse3": pyfuse3.__version__,
        "agentfs": _first_line(*arguments.agentfs, "version"),
        "commit": _first_line(
            "git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"
        ),
        "s3ql": s3ql and _first_line(s3ql, "-c", version),
        "borg": _first_line("borg", "--version"),
        "restic": _first_line("restic", "version"),
    }


def finish(name: str, arguments: argparse.Namespace, results: Results) -> Results:
    """Wrap the results with parameters and facts; write them when asked to."""
    parameters = {
        key: str(value) if isinstance(value, Path) else value
        for key, value in vars(arguments).items()
        if key not in ("json", "work")
    }
    whole = {
        "benchmark": name,
        "machine": machine_facts(arguments),
        "parameters": parameters,
        "results": results,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(whole, indent=2) + "\n")
    return whole


class NothingRan(RuntimeError):
    """There is no figure to show."""


def all_identical(results: Results) -> bool:
    """Whether every target gave back the bytes it was given."""
    return all(one["identical"] for one in results["targets"].values())


def benchmark(
    name: str,
    made: argparse.ArgumentParser,
    measure: Callable[[argparse.Namespace], Results],
    show: Callable[[Results], None],
    *,
    is_right: Callable[[Results], bool] = lambda results: True,
) -> int:
    """Measure, show, write, as a command: 1 when results are not right, 2 when there are none."""
    chosen = made.parse_args()
    try:
        results = measure(chosen)
    except NothingRan as reason:
        print(reason, file=sys.stderr)
        return 2
    show(results)
    finish(name, chosen, results)
    return 0 if is_right(results) else 1
