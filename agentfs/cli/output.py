"""How the commands speak: JSON, binary units, and progress on stderr."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from agentfs.units import duration, size

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

__all__ = [
    "answer",
    "bar",
    "console",
    "count",
    "duration",
    "print_columns",
    "print_json",
    "print_json_line",
    "printable",
    "progress",
    "size",
]

BAR_CELLS = 24
PATIENCE_S = 2.0  # what is done sooner needs no progress bar
MAX_WIDTH = 96


def print_json(value: dict[str, Any]) -> None:
    """Print *value* as one indented JSON object on stdout."""
    print(json.dumps(value, indent=2, default=str))


def print_json_line(value: dict[str, Any]) -> None:
    """Print *value* as one of several JSON objects, one a line."""
    print(json.dumps(value, default=str))


def answer(as_json: bool, value: dict[str, Any], text: str) -> int:
    """Print a command's answer in the form that was asked for; returns exit code 0."""
    if as_json:
        print_json(value)
    else:
        print(text)
    return 0


def console(*, soft_wrap: bool = False) -> Console:
    """A console on stdout; without colours or a terminal what it draws stays readable."""
    from rich.console import Console

    made = Console(highlight=False, soft_wrap=soft_wrap)
    if not made.is_terminal:
        made.width = MAX_WIDTH  # a pipe has no width, and rich would guess 80
    return made


def printable(name: str) -> str:
    """Return a name on one line, what a terminal might take for more than text escaped."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in name)


def print_columns(rows: Iterable[Sequence[str]], right: Collection[int] = ()) -> None:
    """Print rows of cells, each column as wide as it must be; those in *right* end flush."""
    table = list(rows)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = (
            cell.rjust(width) if place in right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join(cells).rstrip())


def bar(share: float) -> str:
    """Draw *share* (0 to 1), where Unicode can in eighths of a cell; what is not zero is seen."""
    eighths = round(share * BAR_CELLS * 8)
    if share > 0:
        eighths = max(eighths, 1)
    if "utf" not in (sys.stdout.encoding or "").lower():
        return "#" * -(-eighths // 8)
    full, rest = divmod(eighths, 8)
    return "█" * full + (" ▏▎▍▌▋▊▉"[rest] if rest else "")


def count(number: int, plural: str) -> str:
    """Return "1 file" or "2 files", with thousands marked."""
    return f"{number:,} {plural if number != 1 else plural.removesuffix('s')}"


def prefetch(figures: Mapping[str, Any]) -> str:
    """What became of files that were brought before they were asked for."""
    brought, rate = count(figures["prefetched"], "files"), figures["prefetch_hit_rate"]
    if rate is None:
        return f"{brought} brought"
    used, wasted = figures["prefetch_used"], figures["prefetch_wasted"]
    return f"{brought} brought, {used:,} used soon after, {wasted:,} not ({rate:.0%})"


def pressure(figures: Mapping[str, Any]) -> str:
    """Return what a daemon gives up for want of memory, and which readings call for it."""
    causes = ", ".join(figures["pressure_causes"])
    return f"{figures['pressure']} ({causes})" if causes else str(figures["pressure"])


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function (what, done, total) that draws a bar once PATIENCE_S is over.

    Without a terminal on stderr it draws nothing.
    """
    if not sys.stderr.isatty():
        yield lambda _what, _done, _total: None
        return
    started = time.monotonic()
    bar: Progress | None = None
    task: TaskID | None = None

    def update(what: str, done: int, total: int) -> None:
        nonlocal bar, task
        if bar is None:
            if time.monotonic() - started < PATIENCE_S:
                return
            bar = _bar()
            bar.start()
        if task is None:
            task = bar.add_task(what, total=None)
        bar.update(task, description=what, completed=done, total=total or None)

    try:
        yield update
    finally:
        if bar is not None:
            bar.stop()


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)
