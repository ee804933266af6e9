"""A screen that is drawn again and again, until q or Ctrl-C.

On a terminal it takes the whole screen and gives it back. In a pipe, or on a terminal
that knows no escape codes, it is one frame after the other.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from agentfs.cli import output

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

DEFAULT_INTERVAL_S = 2.0
_MIN_INTERVAL_S, _MAX_INTERVAL_S = 0.1, 86400.0

Gather = Callable[[], dict[str, Any]]
Draw = Callable[[dict[str, Any], int | None], "RenderableType"]
"""What was gathered and the rows of the terminal, None for any number, to a frame."""


def interval(text: str) -> float:
    """Parse an argument: seconds between two frames."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not _MIN_INTERVAL_S <= seconds <= _MAX_INTERVAL_S:  # a NaN is within no bounds
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number of seconds from {_MIN_INTERVAL_S:g} to {_MAX_INTERVAL_S:g}"
        )
    return seconds


def show(gather: Gather, draw: Draw, interval_s: float, *, as_json: bool) -> int:
    """Draw what *gather* returns every *interval_s*; with *as_json*, print a line of it.

    Ends with exit code 0 at q or Ctrl-C; what *gather* raises ends it as well.
    """
    console = output.console()
    with contextlib.suppress(KeyboardInterrupt):
        if as_json:
            _print_each(lambda: output.print_json_line(gather()), interval_s)
        elif console.is_terminal and not console.is_dumb_terminal:
            _take_the_screen(console, gather, draw, interval_s)
        else:
            _print_each(lambda: console.print(draw(gather(), None), "\n"), interval_s)
    return 0


def _print_each(step: Callable[[], None], interval_s: float) -> None:
    while True:
        step()
        sys.stdout.flush()
        time.sleep(interval_s)


def _take_the_screen(console: Console, gather: Gather, draw: Draw, interval_s: float) -> None:
    from rich.live import Live

    figures = gather()  # an error is to be read on the screen that stays
    with (
        _keys_and_resizes() as wait,
        Live(console=console, screen=True, auto_refresh=False) as screen,
    ):
        due = time.monotonic() + interval_s
        while True:
            screen.update(draw(figures, console.height), refresh=True)
            pressed = wait(due - time.monotonic())
            if "q" in pressed.lower():
                return
            if time.monotonic() >= due:
                figures = gather()
                due = time.monotonic() + interval_s


@contextlib.contextmanager
def _keys_and_resizes() -> Iterator[Callable[[float], str]]:
    """Yield a function that waits so many seconds, for a key or a resize at most: keys pressed."""
    import termios
    import tty

    woken, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    keyboard = sys.stdin.fileno() if sys.stdin.isatty() else None
    ignored = signal.signal(signal.SIGWINCH, lambda *_: None)  # else none wakes us
    former = {number: signal.signal(number, _end) for number in (signal.SIGTERM, signal.SIGHUP)}
    former_waker = signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    settings = termios.tcgetattr(keyboard) if keyboard is not None else None

    def wait(seconds: float) -> str:
        watched = [woken] if keyboard is None else [woken, keyboard]
        ready, _, _ = select.select(watched, [], [], max(seconds, 0.0))
        if woken in ready:
            os.read(woken, 4096)
        if keyboard is None or keyboard not in ready:
            return ""
        # A terminal that has gone reads as empty: as if somebody had pressed q there.
        return os.read(keyboard, 4096).decode(errors="replace") or "q"

    try:
        if keyboard is not None:
            tty.setcbreak(keyboard)
        yield wait
    finally:
        if keyboard is not None and settings is not None:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(keyboard, termios.TCSADRAIN, settings)
        signal.set_wakeup_fd(former_waker)
        for number, handler in (former | {signal.SIGWINCH: ignored}).items():
            signal.signal(number, handler)
        os.close(woken)
        os.close(waker)


def _end(number: int, _frame: object) -> None:
    """End by a signal, but give the screen back first."""
    raise SystemExit(128 + number)
