"""From argv to an exit code. No traceback gets past this module."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from agentfs.cli import output
from agentfs.errors import AgentfsError

INTERRUPTED = 130  # as a shell reports a program that SIGINT ended


def main(argv: Sequence[str] | None = None) -> int:
    """Run `agentfs` with *argv* (default: this process's); returns its exit code."""
    from agentfs.cli.arguments import build_parser

    arguments = build_parser().parse_args(argv)
    return guarded(lambda: _run(arguments), as_json=arguments.json)


def mount_helper() -> int:
    """Run as `mount.fuse.agentfs`, the program mount(8) calls for fuse.agentfs."""
    from agentfs.cli.helper import helper_main

    return guarded(lambda: helper_main(sys.argv[1:]), as_json=False)


def guarded(run: Callable[[], int], *, as_json: bool) -> int:
    """Call *run*; whatever it raises becomes one line on stderr and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        # A path may hold bytes that no locale can show; showing them must not be an error.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        exit_code = run()
        sys.stdout.flush()  # here, where a reader that is gone can be handled
        return exit_code
    except AgentfsError as error:
        return _report(str(error), error.exit_code, as_json)
    except KeyboardInterrupt:
        return _report("interrupted", INTERRUPTED, as_json)
    except BrokenPipeError:
        # The reader had enough, as `head` does. Keep Python from flushing into it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if os.environ.get("AGENTFS_DEBUG") == "1":
            raise
        what = f"{type(error).__name__}: {error}".replace("\n", " ")
        hint = "AGENTFS_DEBUG=1 shows where; a daemon's log is daemon.log in its store"
        return _report(f"unexpected {what} ({hint})", 1, as_json)


def _run(arguments: argparse.Namespace) -> int:
    command: Callable[[argparse.Namespace], int] = arguments.run()
    return command(arguments)


def _report(message: str, exit_code: int, as_json: bool) -> int:
    line = " ".join(message.split())
    print(f"agentfs: {line}", file=sys.stderr)
    if as_json:
        answer: dict[str, Any] = {"error": line, "exit_code": exit_code}
        output.print_json(answer)
    return exit_code
