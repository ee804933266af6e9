"""Ask a daemon something and wait for its answer; plain sockets, no trio.

A daemon that is gone, stuck or talks nonsense ends in an AgentfsError, never in
a hang: every wait has a limit, and an operation that takes long is told from a
stuck daemon by its heartbeat.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from agentfs.control import lock, protocol
from agentfs.errors import AgentfsError, DaemonSilent, NotMounted, StoreUnusable, error_for

# A daemon under full load answers within a second; this is for one that is swapped out.
SILENCE_S = 30.0

_TAKE_OVER_S = 2.0  # another worker listens within a second
_TRY_EVERY_S = 0.02

ProgressFn = Callable[[str, int, int], None]
"""Called with what is being done, how many are done, and of how many (0: unknown)."""


def call(
    store_dir: Path,
    op: str,
    args: dict[str, Any] | None = None,
    *,
    on_progress: ProgressFn | None = None,
    silence_s: float = SILENCE_S,
    is_repeatable: bool = True,
) -> dict[str, Any]:
    """Run *op* in the daemon that holds *store_dir*; returns its result.

    While somebody holds the store another worker may be about to listen: it is asked
    again for a while, unless *op* is not *is_repeatable*.

    Raises NotMounted when nobody listens, DaemonSilent when nothing is heard for
    *silence_s* seconds, and the daemon's own error when it answers with one.
    """
    deadline = time.monotonic() + (_TAKE_OVER_S if is_repeatable else 0.0)
    first: NotMounted | None = None
    while True:
        try:
            return _call_once(store_dir, op, args or {}, on_progress, silence_s)
        except NotMounted as error:
            first = first or error  # a daemon that died meanwhile says more than that there is none
            if time.monotonic() >= deadline or lock.holder(store_dir) is None:
                raise first from None
            time.sleep(_TRY_EVERY_S)


def _call_once(
    store_dir: Path,
    op: str,
    args: dict[str, Any],
    on_progress: ProgressFn | None,
    silence_s: float,
) -> dict[str, Any]:
    try:
        with contextlib.closing(_connect(store_dir, silence_s)) as connection:
            connection.sendall(protocol.encode({"op": op, "args": args}))
            rows: list[dict[str, Any]] = []
            for reply in _replies(connection):
                if "rows" in reply:
                    rows.extend(reply["rows"])
                elif "progress" not in reply:
                    return _result(reply) | ({"rows": rows} if rows else {})
                elif on_progress is not None:
                    on_progress(*_progress(reply["progress"]))
    except TimeoutError as error:
        raise DaemonSilent(
            f"the daemon of {store_dir} has not answered for {silence_s:g} s; "
            f"see {store_dir}/daemon.log, or kill it and mount again"
        ) from error
    except (LookupError, TypeError, ValueError) as error:  # MalformedLine is a ValueError
        raise DaemonSilent(
            f"{store_dir}/control answers, but not as an agentfs daemon of this version"
        ) from error
    except OSError as error:  # reset in the middle of an answer
        raise _died(store_dir) from error
    raise _died(store_dir)


def _connect(store_dir: Path, silence_s: float) -> socket.socket:
    deadline = time.monotonic() + silence_s
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(silence_s)
    try:
        with protocol.socket_address(store_dir) as address:
            while True:
                try:
                    connection.connect(address)
                    return connection
                except BlockingIOError:  # the backlog is full
                    if time.monotonic() > deadline:
                        raise TimeoutError from None
                    time.sleep(0.05)
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError) as error:
        connection.close()
        raise NotMounted(
            f"no agentfs daemon answers for the store {store_dir}; agentfs mount starts one"
        ) from error
    except PermissionError as error:
        connection.close()
        raise StoreUnusable(
            f"the store {store_dir} belongs to another user; ask as that user or as root"
        ) from error
    except BaseException:
        connection.close()
        raise


def _replies(connection: socket.socket) -> Iterator[dict[str, Any]]:
    pending = b""
    while data := connection.recv(protocol.MAX_LINE_BYTES):
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            yield protocol.decode(line)
        if len(pending) > protocol.MAX_LINE_BYTES:
            raise protocol.MalformedLine("the reply has no end")


def _result(reply: dict[str, Any]) -> dict[str, Any]:
    if reply.get("ok") is True and isinstance(reply.get("result"), dict):
        result: dict[str, Any] = reply["result"]
        return result
    if reply.get("ok") is False:
        raise error_for(int(reply["exit_code"]), str(reply["error"]))
    raise protocol.MalformedLine("the reply is neither ok nor an error")


def _progress(given: object) -> tuple[str, int, int]:
    if not isinstance(given, dict):
        raise protocol.MalformedLine("the progress is not an object")
    return str(given.get("what", "")), int(given.get("done", 0)), int(given.get("total", 0))


def _died(store_dir: Path) -> AgentfsError:
    return NotMounted(
        f"the daemon of {store_dir} ended before it answered; see {store_dir}/daemon.log"
        if os.path.exists(store_dir / "daemon.log")
        else f"the daemon of {store_dir} ended before it answered"
    )
