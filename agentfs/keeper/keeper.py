"""The keeper: mounts, and sees to it that there is a worker.

It holds what must outlive a worker: the descriptors of the FUSE connection, the ledger
(docs/RELAY.md) and the store's lock. It does nothing else, so there is little in it that can
fail. Workers are forked by a fork server, which is warm before it is needed.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import agentfs
from agentfs.config import MountConfig
from agentfs.control import lock
from agentfs.errors import AgentfsError, WorkerFails, error_for
from agentfs.fuse import _relay
from agentfs.fuse.connection import Connection, connect
from agentfs.keeper import line
from agentfs.notify import notify

log = logging.getLogger(__name__)

QUICK_S = 1.0
"""A worker that dies before it is this old has died quickly; who serves longer is of some use."""

DEATHS_MAX = 5
"""So many quick deaths in a row, and there is no use in trying again."""

_SPAWN_AGAIN_S = 5.0
"""After a fork server that did not get warm; an upgrade may be under way."""

_PR_SET_CHILD_SUBREAPER = 36


@dataclass(eq=False)
class _Server:
    """A fork server."""

    pid: int
    socket: socket.socket
    is_warm: bool = False


@dataclass(eq=False)
class _Worker:
    """A worker, from the order to fork it until it has been reaped."""

    socket: socket.socket
    pid: int = 0
    """0: it has not said."""
    error: dict[str, Any] = field(default_factory=dict)
    """What it said before it ended."""
    began: float = field(default_factory=time.monotonic)


def run(config: MountConfig, reason: str, ready: Callable[[dict[str, Any]], None]) -> int:
    """Keep a mount until it is unmounted; returns the exit code.

    :param reason: why relay mode
    :param ready: called once, when the first worker serves
    :raises AgentfsError: it could not be mounted, or it cannot be kept
    """
    held = lock.hold(config.store)
    try:
        connection = connect(config)
        try:
            return _Keeper(config, reason, connection, held, ready).run()
        except BaseException:  # else the last worker has seen the mount go
            with contextlib.suppress(OSError):
                _relay.unmount(config.mountpoint, lazy=True)
            raise
        finally:
            for descriptor in (*connection.devices, connection.ledger):
                os.close(descriptor)
    finally:
        os.close(held)


class _Keeper:
    def __init__(
        self,
        config: MountConfig,
        reason: str,
        connection: Connection,
        held: int,
        ready: Callable[[dict[str, Any]], None],
    ) -> None:
        self._config = config
        self._reason = reason
        self._descriptors = (held, connection.ledger, *connection.devices)
        self._ready: Callable[[dict[str, Any]], None] | None = ready
        self._worker: _Worker | None = None
        self._server: _Server | None = None
        self._fresh: _Server | None = None
        """Takes the place of the fork server once it is warm: a restart is under way."""
        self._ended: dict[int, int] = {}
        """Exit codes by pid of those that were reaped and are not known to be the worker, yet."""
        self._spawn_at: float | None = None
        """When to start a fork server, as there is none; by time.monotonic()."""
        self._is_stopping = False
        self._quick_deaths = 0
        self._exit_code: int | None = None

    def run(self) -> int:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        wakeup, wakeup_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wakeup_writer, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        self._server = self._spawn()
        try:
            while self._exit_code is None:
                self._wait(wakeup)
            return self._exit_code
        finally:
            self._end_all()

    def _wait(self, wakeup: int) -> None:
        """Deal with what happens next."""
        sockets = {one.fileno(): one for one in self._sockets()}
        limit_s = None if self._spawn_at is None else max(0.0, self._spawn_at - time.monotonic())
        ready, _, _ = select.select([wakeup, *sockets], [], [], limit_s)
        if self._spawn_at is not None and time.monotonic() >= self._spawn_at:
            self._server, self._spawn_at = self._spawn(), None
        readable = [sockets[number] for number in ready if number != wakeup]
        if wakeup in ready:
            signals = os.read(wakeup, 512)
            if signal.SIGTERM in signals or signal.SIGINT in signals:
                self._stop()
        for source in (self._worker, self._server, self._fresh):
            if source is not None and source.socket in readable:
                self._hear(source)
        self._reap()
        self._bury()

    def _sockets(self) -> list[socket.socket]:
        sources = (self._worker, self._server, self._fresh)
        return [
            source.socket
            for source in sources
            if source is not None and source.socket.fileno() >= 0
        ]

    # What is said

    def _hear(self, source: _Worker | _Server) -> None:
        message, _ = line.receive(source.socket)
        if message is None:
            source.socket.close()
        elif isinstance(source, _Worker):
            self._hear_worker(source, message)
        else:
            self._is_warm(source, message["warm"])

    def _hear_worker(self, worker: _Worker, message: dict[str, Any]) -> None:
        if "pid" in message:
            worker.pid = message["pid"]
        elif "ready" in message:
            self._is_ready(worker, message["ready"])
        elif "error" in message:
            worker.error = message
        elif "restart" in message:
            self._restart()
        elif "alive" in message:
            notify("WATCHDOG=1")

    def _is_ready(self, worker: _Worker, info: dict[str, Any]) -> None:
        if self._ready is not None:
            self._ready(info)
            self._ready = None
        else:
            log.info("worker %d serves after %.3f s", worker.pid, time.monotonic() - worker.began)

    def _is_warm(self, server: _Server, layout: int) -> None:
        server.is_warm = True
        if server is self._fresh:
            self._fresh = None
            if layout != _relay.LEDGER_LAYOUT:
                self._discard(server)
                self._refuse("it keeps its ledger otherwise; unmount, and mount again")
                return
            old, self._server, self._spawn_at = self._server, server, None
            if old is not None:
                self._discard(old)
            self._tell({"retire": True})
        if self._worker is None:
            self._start()

    def _restart(self) -> None:
        if self._fresh is None:
            self._fresh = self._spawn()

    def _refuse(self, why: str) -> None:
        log.error("the worker is not replaced: %s", why)
        self._tell({"refused": why})

    def _stop(self) -> None:
        self._is_stopping = True
        notify("STOPPING=1")
        self._tell({"stop": True})

    def _tell(self, message: dict[str, Any]) -> None:
        if self._worker is not None and self._worker.socket.fileno() >= 0:
            with contextlib.suppress(OSError):
                line.send(self._worker.socket, message)

    # Who comes

    def _spawn(self) -> _Server:
        """A fork server of the code as it is on disk now."""
        ours, theirs = line.pair()
        theirs.set_inheritable(True)
        root = str(Path(agentfs.__file__).resolve().parents[1])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        command = [sys.executable, "-P", "-m", "agentfs.keeper.forkserver", str(theirs.fileno())]
        with theirs:
            pid = os.posix_spawn(sys.executable, command, os.environ | {"PYTHONPATH": path})
        with contextlib.suppress(OSError):  # if it has ended already, it will be reaped
            line.send(ours, {"config": line.config_message(self._config)})
        return _Server(pid, ours)

    def _start(self) -> None:
        assert self._server is not None, "a worker is started when a fork server is warm"
        ours, theirs = line.pair()
        self._worker = _Worker(ours)
        order = {"reason": self._reason, "keeper_pid": os.getpid()}
        with theirs, contextlib.suppress(OSError):  # a fork server that is gone will be reaped
            line.send(self._server.socket, {"start": order}, (theirs.fileno(), *self._descriptors))
        if self._is_stopping:
            self._tell({"stop": True})

    # Who goes

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._has_ended(pid, os.waitstatus_to_exitcode(status))

    def _has_ended(self, pid: int, code: int) -> None:
        if self._fresh is not None and pid == self._fresh.pid:
            self._fresh = None
            self._refuse(f"the new version does not start ({_how(code)})")
        elif self._server is not None and pid == self._server.pid:
            self._server_ended(self._server, code)
        else:
            self._ended[pid] = code

    def _bury(self) -> None:
        """Deal with the worker's end: it has said its last, and has been reaped.

        Its pid comes with what it says, which may be read after it was reaped.
        """
        worker = self._worker
        if worker is None or worker.socket.fileno() >= 0:
            return
        if worker.pid == 0:  # it was never forked, or died at once
            self._worker_ended(worker, 1)
        elif worker.pid in self._ended:
            self._worker_ended(worker, self._ended[worker.pid])
        if self._worker is not worker:
            self._ended.clear()

    def _server_ended(self, server: _Server, code: int) -> None:
        server.socket.close()
        self._server = None
        if not server.is_warm and (self._ready is not None or self._worker is None):
            raise self._not_started({}, f"no worker can be started ({_how(code)})")
        log.error("the fork server %d %s; there will be another", server.pid, _how(code))
        self._spawn_at = time.monotonic() + (0.0 if server.is_warm else _SPAWN_AGAIN_S)

    def _worker_ended(self, worker: _Worker, code: int) -> None:
        pid, self._worker = worker.pid, None
        if code == 0:
            self._exit_code = 0
            return
        if self._ready is not None:
            raise self._not_started(worker.error, f"the daemon {_how(code)} while it started")
        age_s = time.monotonic() - worker.began
        if code == line.HANDED_OVER:
            log.info("worker %d has handed over", pid)
        else:
            self._quick_deaths = self._quick_deaths + 1 if age_s < QUICK_S else 0
            log.error("worker %d %s after %.1f s; another takes over", pid, _how(code), age_s)
        if self._quick_deaths >= DEATHS_MAX:
            raise WorkerFails(
                f"{DEATHS_MAX} workers in a row died within {QUICK_S:g} s of their start, so "
                f"{self._config.mountpoint} is unmounted; mounting again recovers what was written"
            )
        if self._server is None:
            self._spawn_at = time.monotonic()
        elif self._server.is_warm:
            self._start()

    def _not_started(self, error: dict[str, Any], otherwise: str) -> AgentfsError:
        if error:
            return error_for(error["exit_code"], error["error"])
        return AgentfsError(f"{otherwise}; see {self._config.store}/daemon.log")

    def _discard(self, server: _Server) -> None:
        server.socket.close()  # it ends with that

    def _end_all(self) -> None:
        for source in (self._worker, self._server, self._fresh):
            if source is not None:
                source.socket.close()


def _how(code: int) -> str:
    return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
