r"""What goes over the control socket, `STORE/control`.

One JSON object a line, UTF-8, at most MAX_LINE_BYTES with its newline::

    request   {"op": str, "args": {}}
    replies   {"progress": {"what": str, "done": int, "total": int}}   zero or more
              {"rows": [{}]}                                           zero or more
              {"ok": true, "result": {}}                               then one of
              {"ok": false, "error": str, "exit_code": int}            these two

Rows are what the result has under "rows", which may be more than fits into a line.

A client may send its next request after that last reply, or hang up. While an
operation runs the server sends at least one progress line every HEARTBEAT_S, so
a client that hears nothing for longer knows that the daemon is stuck.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

SOCKET_NAME = "control"
MAX_LINE_BYTES = 64 * 1024
ROWS_BYTES = 32 * 1024
"""Of rows in one line, from which on another is begun."""
HEARTBEAT_S = 2.0


class MalformedLine(ValueError):
    """A line that is not one JSON object."""


def encode(message: dict[str, Any]) -> bytes:
    """Return *message* as one line; what JSON cannot carry is sent as its str()."""
    return json.dumps(message, separators=(",", ":"), default=str).encode() + b"\n"


def row_lines(rows: Iterable[dict[str, Any]]) -> Iterator[bytes]:
    """Lines with some of the rows each."""
    some: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        some.append(row)
        size += len(encode(row))
        if size >= ROWS_BYTES:
            yield encode({"rows": some})
            some, size = [], 0
    if some:
        yield encode({"rows": some})


def decode(line: bytes) -> dict[str, Any]:
    """Return the object in *line*; raises MalformedLine."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:  # "[[[[..." exhausts the parser's stack
        raise MalformedLine("the line is not JSON") from error
    if not isinstance(message, dict):
        raise MalformedLine("the line is not a JSON object")
    return message


@contextlib.contextmanager
def socket_address(store_dir: Path) -> Iterator[str]:
    """Yield a short address of the store's socket, valid inside the block.

    sun_path holds 108 bytes and a store's path may be longer, so the address
    leads through a descriptor of the directory.
    """
    directory_fd = os.open(store_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory_fd}/{SOCKET_NAME}"
    finally:
        os.close(directory_fd)
