"""From a command to a daemon: two forks, and a pipe that says how it went.

The forks happen before any thread exists and before trio or pyfuse3 are
imported. The pipe carries lines of JSON from the daemon to the command::

    {"pid": int}                               as soon as the daemon exists
    {"ready": {}}                              mounted; what run() told about it
    {"error": str, "exit_code": int}           or why not

End of file without either of the last two means that the daemon died.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentfs.errors import AgentfsError, DaemonSilent, error_for
from agentfs.logs import log_to_stderr

LOG_NAME = "daemon.log"
LOG_MAX_BYTES = 4 * 1024 * 1024  # at start a longer log becomes daemon.log.1

# Opening a large store after a crash reads its last segments; minutes are long enough.
START_LIMIT_S = 300.0

Run = Callable[[Callable[[dict[str, Any]], None]], int]
"""The daemon's life: is given `ready`, returns an exit code, may raise AgentfsError."""


def spawn(run: Run, store: Path) -> tuple[int, dict[str, Any]]:
    """Start *run* as a daemon; returns its pid and what it said when it was ready.

    Raises the AgentfsError that *run* raised before it was ready.
    """
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _detach_and_run(run, store, reader, writer)  # does not return
    os.close(writer)
    os.waitpid(child, 0)
    with contextlib.closing(os.fdopen(reader, "rb", buffering=0)) as pipe:
        return _await_ready(pipe.fileno(), store)


def _await_ready(pipe: int, store: Path) -> tuple[int, dict[str, Any]]:
    deadline = time.monotonic() + START_LIMIT_S
    pid, pending = 0, b""
    while True:
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not select.select([pipe], [], [], left_s)[0]:
            if pid:
                os.kill(pid, signal.SIGTERM)
            raise DaemonSilent(
                f"the daemon was not ready after {START_LIMIT_S:g} s and was told to end; "
                f"see {store / LOG_NAME}"
            )
        data = os.read(pipe, 65536)
        if not data:
            raise AgentfsError(f"the daemon died while it started; see {store / LOG_NAME}")
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "error" in message:
                raise error_for(message["exit_code"], message["error"])
            if "ready" in message:
                return pid, message["ready"]
            pid = message["pid"]


def _detach_and_run(run: Run, store: Path, reader: int, writer: int) -> None:
    """Become the daemon, and end with it. Runs in the forked child only."""
    exit_code = 1
    try:
        os.close(reader)
        os.setsid()
        if os.fork() != 0:
            os._exit(0)  # so that the daemon leads no session and can get no terminal
        os.chdir("/")
        os.umask(0o077)
        _redirect_stdio(store)
        _close_inherited(writer)
        log_to_stderr()
        exit_code = _run_reporting(run, writer, store)
    except BaseException:
        logging.getLogger(__name__).exception("the daemon ends")
    finally:
        with contextlib.suppress(Exception):
            logging.shutdown()
            sys.stderr.flush()
        # Not sys.exit(): the parent's cleanup handlers and buffers are not ours to run.
        os._exit(exit_code)


def _run_reporting(run: Run, writer: int, store: Path) -> int:
    pipe: int | None = writer

    def tell(message: dict[str, Any]) -> None:
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):  # the command was interrupted
                os.write(pipe, json.dumps(message, default=str).encode() + b"\n")

    def ready(info: dict[str, Any]) -> None:
        nonlocal pipe
        tell({"ready": info})
        if pipe is not None:
            os.close(pipe)
            pipe = None

    tell({"pid": os.getpid()})
    try:
        return run(ready)
    except AgentfsError as error:
        logging.getLogger(__name__).error("%s", error)
        tell({"error": str(error), "exit_code": error.exit_code})
        return error.exit_code
    except Exception as error:
        tell(
            {
                "error": f"unexpected {type(error).__name__}: {error}; see {store / LOG_NAME}",
                "exit_code": 1,
            }
        )
        raise


def _redirect_stdio(store: Path) -> None:
    path = store / LOG_NAME
    with contextlib.suppress(OSError):
        if path.stat().st_size > LOG_MAX_BYTES:
            path.replace(store / f"{LOG_NAME}.1")
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    for fd in {null, log} - {0, 1, 2}:
        os.close(fd)


def _close_inherited(keep: int) -> None:
    """Let go of what the caller's shell had open: a pipe kept here would never end."""
    os.closerange(3, keep)
    os.closerange(keep + 1, os.sysconf("SC_OPEN_MAX"))
