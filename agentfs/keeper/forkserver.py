"""Forks workers: a process that has everything imported, `python -m agentfs.keeper.forkserver FD`.

To start Python and import what a worker needs takes half a second, to fork 10 ms, and what is
imported is in memory once. It has no threads and runs no event loop, so a fork of it is a
whole process. A worker is forked twice: its parent is the keeper, which reaps orphans.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys
from typing import Any

from agentfs import mount
from agentfs.config import MountConfig
from agentfs.errors import AgentfsError
from agentfs.fuse import _relay
from agentfs.fuse.connection import Connection
from agentfs.keeper import line
from agentfs.logs import log_to_stderr

log = logging.getLogger(__name__)


def serve(keeper: socket.socket) -> None:
    """Fork a worker whenever the keeper says so. Returns when the keeper is gone."""
    message, _ = line.receive(keeper)
    if message is None:
        return
    config = line.config_of(message["config"])
    gc.collect()
    gc.freeze()  # a collection would touch, and so copy, what is shared
    line.send(keeper, {"warm": _relay.LEDGER_LAYOUT})
    while True:
        message, descriptors = line.receive(keeper)
        if message is None:
            return
        _fork(keeper, config, message["start"], descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _fork(
    keeper: socket.socket, config: MountConfig, start: dict[str, Any], descriptors: list[int]
) -> None:
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    if os.fork():
        os._exit(0)
    keeper.close()
    exit_code = 1
    try:
        exit_code = _work(config, start, descriptors)
    except BaseException:
        log.exception("the worker ends")
    finally:
        logging.shutdown()
        sys.stderr.flush()
        os._exit(exit_code)


def _work(config: MountConfig, start: dict[str, Any], descriptors: list[int]) -> int:
    """Be a worker; the store's lock is among the descriptors and stays open until the end."""
    own, _lock, ledger, *devices = descriptors
    keeper = socket.socket(fileno=own)
    line.send(keeper, {"pid": os.getpid()})
    try:
        return mount.run_worker(
            config,
            Connection(tuple(devices), ledger),
            start["reason"],
            mount.KeeperLine(keeper, start["keeper_pid"], line.send, line.HANDED_OVER),
        )
    except AgentfsError as error:
        log.error("%s", error)
        line.send(keeper, {"error": str(error), "exit_code": error.exit_code})
        return error.exit_code


def main() -> None:
    """Serve the keeper on the descriptor that the first argument names."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # what they mean, the keeper decides
    log_to_stderr()
    serve(socket.socket(fileno=int(sys.argv[1])))


if __name__ == "__main__":
    main()
