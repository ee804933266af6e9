"""The composition root: builds a mount, serves it, and takes it down in order.

Start: open the volume, mount (in relay mode the keeper did), listen on the control
socket, say that it is ready. End, whether by `agentfs umount`, umount(8) or a signal: stop
accepting, unmount, seal what is staged, make it durable, close the volume.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import gc
import json
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyfuse3
import trio

from agentfs import __version__
from agentfs.config import MountConfig
from agentfs.control import lock, server
from agentfs.errors import AgentfsError, FilesOpen, NoSpace, NoSuchPath, PathTaken, UsageError
from agentfs.filesystem.memory import limit_heaps, map_from
from agentfs.filesystem.volume import Volume
from agentfs.fuse import announce
from agentfs.fuse.connection import Connection
from agentfs.fuse.operations import Operations
from agentfs.fuse.session import PlainSession, RelaySession, Session
from agentfs.notify import notify, watchdog_period_s

log = logging.getLogger(__name__)

_WRITERS_S = 5.0
"""How long `agentfs umount` waits for programs that have files open for writing."""

_MAPPED_FROM_BYTES = 4 << 20
"""Requests have a MiB at most: the pages of a new mapping would cost as much as its bytes."""

_HEAPS = 1
"""Of malloc: threads of ours seldom allocate at the same time, the GIL sees to that; and of others
malloc_trim gives back no end, which may be a block of 4 MiB."""

_MAX_TASKS = 1024
"""Requests answered at once; more wait in the kernel. As many programs may wait for a slow disk, in
fsync or for room, before others have to wait with them."""

Ready = Callable[[dict[str, Any]], None]

_HAND_OVER_S = 0.5
"""How long requests in hand may take when another worker waits to go on; they are sent again."""


@dataclass
class KeeperLine:
    """What a worker has of its keeper."""

    line: socket.socket
    pid: int
    send: Callable[[socket.socket, dict[str, Any]], None]
    handed_over: int
    """Exit code that says that another worker is to go on."""


def run(config: MountConfig, reason: str, ready: Ready) -> int:
    """Serve a mount in plain mode until it is unmounted; returns the exit code.

    :param reason: why this mode
    :param ready: called once with what there is to say when the mount is up
    :raises AgentfsError: it could not be mounted; nothing was changed
    """
    held = lock.hold(config.store)
    try:
        return _serve(config, PlainSession(config, reason), None, ready)
    finally:
        os.close(held)


def run_worker(config: MountConfig, connection: Connection, reason: str, keeper: KeeperLine) -> int:
    """Serve what the keeper has mounted, in relay mode, from where an earlier worker stopped.

    The caller holds the store's lock. Returns the exit code.
    """
    session = RelaySession(config, connection, reason)
    return _serve(config, session, keeper, lambda info: keeper.send(keeper.line, {"ready": info}))


def _serve(config: MountConfig, session: Session, keeper: KeeperLine | None, ready: Ready) -> int:
    _tune_heap()
    _raise_file_limit()
    try:
        volume = _open_volume(config, session)
        try:
            return trio.run(functools.partial(_Mount(config, session, volume, keeper).serve, ready))
        finally:
            volume.close()
    finally:
        session.close()


def _open_volume(config: MountConfig, session: Session) -> Volume:
    with _naming_a_full_disk(config.store):
        return Volume(
            config.store, config.profile, relay=session.relay, private_tmpfs=os.geteuid() == 0
        )


@contextlib.contextmanager
def _naming_a_full_disk(store: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise NoSpace(f"no space left below {store}; free some and try again") from error
        raise


def _tune_heap() -> None:
    """Have what seals and reads free go back: of ten files of 10 MB glibc kept 20 MB.

    To be called before there are threads: one begins with a heap of its own.
    """
    map_from(_MAPPED_FROM_BYTES)
    limit_heaps(_HEAPS)


def _tune_interpreter() -> None:
    """Keep requests from waiting for the garbage collector or for a thread that seals.

    What lives as long as the process need not be looked at again, and a thread gives up
    the GIL after 0.2 ms instead of 5 ms when the event loop wants it.
    """
    sys.setswitchinterval(0.0002)
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)


def _raise_file_limit() -> None:
    """Have as many descriptors as may be: in relay mode each file in use takes two."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = int(Path("/proc/sys/fs/nr_open").read_text())
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    except (ValueError, OSError):  # not root
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class _Mount:
    """One mount from ready to gone."""

    def __init__(
        self, config: MountConfig, session: Session, volume: Volume, keeper: KeeperLine | None
    ) -> None:
        self._config = config
        self._session = session
        self._volume = volume
        self._keeper = keeper
        self._refusals_in, self._refusals = trio.open_memory_channel[str](1)
        self._started = time.monotonic()
        self._is_to_end = trio.Event()
        self._writing_back = trio.CancelScope()
        volume.view.stats = functools.partial(self._figures, is_repeated=True)

    async def serve(self, ready: Ready) -> int:
        self._start()  # in no nursery, which would make a group of its error
        async with trio.open_nursery() as until_the_end:
            until_the_end.start_soon(self._stop_on_signals)
            await self._answer_requests(ready, until_the_end)
            await self._write_back()
            until_the_end.cancel_scope.cancel()
        log.info("%s is unmounted", self._config.mountpoint)
        return 0

    def _start(self) -> None:
        """Mount.

        :raises FuseUnavailable: the kernel or fusermount3 refused
        """
        self._session.start(Operations(self._volume, self._session.relay))
        notifier, cloner = self._session.notifier, self._volume.cloner
        cloner.announce = functools.partial(announce.announce, notifier, self._volume.table.missing)
        cloner.write_back = functools.partial(announce.write_back, notifier)

    async def _answer_requests(self, ready: Ready, until_the_end: trio.Nursery) -> None:
        """Serve until the mount is gone."""
        mode = self._session.mode
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._terminate)
                nursery.start_soon(self._volume.run)
                handlers = {
                    "stats": self._stats,
                    "top": self._top,
                    "report": self._report,
                    "sync": self._sync,
                    "gc": self._gc,
                    "compact": self._compact,
                    "clone": self._clone,
                    "ls": self._ls,
                    "agents": self._agents,
                    "agent": self._agent,
                    "spawn": self._spawn,
                    "warm": self._warm,
                    "restart": self._restart,
                    "fsck": self._fsck,
                    "stop": self._stop,
                }
                await nursery.start(functools.partial(server.serve, self._config.store, handlers))
                _tune_interpreter()
                nursery.start_soon(self._session.watch, self._volume.files)
                nursery.start_soon(self._say_alive)
                if self._keeper is not None:
                    until_the_end.start_soon(self._obey, self._keeper)
                ready(
                    {
                        "mode": mode,
                        "mode_reason": self._session.reason,
                        "commits_lost": self._volume.commits_lost,
                    }
                )
                log.info(
                    "%s is mounted (%s mode: %s)",
                    self._config.mountpoint,
                    mode,
                    self._session.reason,
                )
                await pyfuse3.main(max_tasks=_MAX_TASKS)
                nursery.cancel_scope.cancel()
        finally:
            self._session.close()

    async def _write_back(self) -> None:
        try:
            with self._writing_back:
                await self._volume.seal_for_close()
        except OSError as error:
            log.error("not all could be sealed: %s; it stays staged for the next mount", error)
        if self._writing_back.cancelled_caught:
            log.warning("told twice to end: what is not sealed stays staged for the next mount")

    async def _stop_on_signals(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _ in signals:
                if self._keeper is None:
                    self._end()
                else:
                    self._is_to_end.set()  # the keeper, which had the same signal, says the rest

    def _end(self) -> None:
        """End the mount and write back; asked again, end without that."""
        if self._is_to_end.is_set():
            self._writing_back.cancel()
        self._is_to_end.set()

    async def _terminate(self) -> None:
        await self._is_to_end.wait()
        pyfuse3.terminate()

    # The keeper

    async def _obey(self, keeper: KeeperLine) -> None:
        """Do what the keeper says. Without a keeper the mount goes on, for as long as we live."""
        with trio.socket.from_stdlib_socket(keeper.line) as line:
            while packet := await line.recv(4096):
                message = json.loads(packet)
                if "stop" in message:
                    self._end()
                elif "retire" in message:
                    await self._hand_over(keeper)
                elif "refused" in message:
                    await self._refusals_in.send(message["refused"])
        log.warning("the keeper is gone: nobody will take over from this worker")
        self._keeper = None

    async def _hand_over(self, keeper: KeeperLine) -> None:
        """Answer what is in hand, and end as if killed: the next worker recovers from that."""
        relay = self._session.relay
        assert relay is not None, "who has a keeper has a relay"
        relay.retire()
        with trio.move_on_after(_HAND_OVER_S):
            while relay.stats()["pending"]:
                await trio.sleep(0.002)
                relay.pump()
        logging.shutdown()
        os._exit(keeper.handed_over)

    async def _say_alive(self) -> None:
        """Tell the service manager's watchdog that requests are still being answered."""
        period_s = watchdog_period_s()
        while period_s is not None:
            if self._keeper is None:
                notify("WATCHDOG=1")
            else:
                with contextlib.suppress(OSError):
                    self._keeper.send(self._keeper.line, {"alive": True})
            await trio.sleep(period_s)

    # Control operations

    async def _stats(self, args: dict[str, Any], progress: server.ProgressFn) -> dict[str, Any]:
        return self._figures()

    def _figures(self, *, is_repeated: bool = False) -> dict[str, Any]:
        return self._volume.stats(is_repeated=is_repeated) | {
            "version": __version__,
            "mode": self._session.mode,
            "mode_reason": self._session.reason,
            "relay": self._session.counts(),
            "pid": os.getpid() if self._keeper is None else self._keeper.pid,
            "keeper_pid": None if self._keeper is None else self._keeper.pid,
            "worker_pid": os.getpid(),
            "rss_bytes": _rss_bytes(),
            "uptime_s": round(time.monotonic() - self._started, 3),
            "store": str(self._config.store),
            "mountpoint": str(self._config.mountpoint),
            "profile": self._config.profile.name,
        }

    async def _top(self, args: dict[str, Any], progress: server.ProgressFn) -> dict[str, Any]:
        uses = await self._volume.census.uses()
        return self._figures(is_repeated=True) | {"rows": [dataclasses.asdict(use) for use in uses]}

    async def _report(self, args: dict[str, Any], progress: server.ProgressFn) -> dict[str, Any]:
        """The figures, and rows of three kinds, which "of" tells apart."""
        holdings = await self._volume.breakdown(functools.partial(progress, "files"))
        uses = await self._volume.census.uses()
        rows = [
            *({"of": "holding"} | dataclasses.asdict(holding) for holding in holdings),
            *({"of": "agent"} | dataclasses.asdict(use) for use in uses),
            *({"of": "sample"} | sample for sample in self._volume.samples.all()),
        ]
        return self._figures() | {"rows": rows}

    async def _sync(self, args: dict[str, Any], progress: server.ProgressFn) -> dict[str, Any]:
        with _naming_a_full_disk(self._config.store):
            files = await self._volume.sync(functools.partial(progress, "sealing"))
        return {"files": files}

    async def _gc(self, args: dict[str, Any], progress: server.ProgressFn) -> dict[str, Any]:
        with _naming_a_full_disk(self._config.store):
            return await self._volume.collect(functools.partial(progress, "rewriting segments"))

    async def _compact(self, args: dict[str, Any], progress: server.ProgressFn) -> dict[str, Any]:
        with _naming_a_full_disk(self._config.store):
            return await self._volume.compact(functools.partial(progress, "compacting, MiB"))

    async def _fsck(self, args: dict[str, Any], progress: server.ProgressFn) -> dict[str, Any]:
        with _naming_a_full_disk(self._config.store):
            return await self._volume.check(progress)

    async def _clone(self, args: dict[str, Any], progress: server.ProgressFn) -> dict[str, Any]:
        source, target, replaces = (args.get(key) for key in ("source", "target", "replaces"))
        if not (isinstance(source, str) and isinstance(target, str) and isinstance(replaces, bool)):
            raise UsageError("bad request: clone takes a source, a target and replaces")
        started = time.perf_counter()
        with _naming_a_full_disk(self._config.store), self._naming_paths(source, target):
            cloned = await self._volume.clone(
                os.fsencode(source),
                os.fsencode(target),
                replaces=replaces,
                progress=functools.partial(progress, "cloning"),
            )
        return dataclasses.asdict(cloned) | {"daemon_s": round(time.perf_counter() - started, 6)}

    async def _ls(self, args: dict[str, Any], progress: server.ProgressFn) -> dict[str, Any]:
        path = args.get("path")
        if not isinstance(path, str):
            raise UsageError("bad request: ls takes a path")
        try:
            rows = await self._volume.listing(os.fsencode(path))
        except OSError as error:
            raise NoSuchPath(f"{self._config.mountpoint}{path} is not there") from error
        return {"rows": [dataclasses.asdict(row) for row in rows]}

    async def _warm(self, args: dict[str, Any], progress: server.ProgressFn) -> dict[str, Any]:
        path = args.get("path")
        if not isinstance(path, str):
            raise UsageError("bad request: warm takes a path")
        try:
            warmed = await self._volume.warm(
                os.fsencode(path), functools.partial(progress, "warming")
            )
        except OSError as error:
            raise NoSuchPath(f"{self._config.mountpoint}{path} is not there") from error
        return dataclasses.asdict(warmed)

    async def _agents(self, args: dict[str, Any], progress: server.ProgressFn) -> dict[str, Any]:
        return {"rows": [dataclasses.asdict(use) for use in await self._volume.agents.uses()]}

    async def _agent(self, args: dict[str, Any], progress: server.ProgressFn) -> dict[str, Any]:
        """Where an agent's files are; with "set", an attribute of its directories is set before."""
        name, change = args.get("name"), args.get("set", {})
        if not (isinstance(name, str) and isinstance(change, dict)):
            raise UsageError("bad request: agent takes a name, and what to set")
        agents = self._volume.agents
        directories = agents.directories(os.fsencode(name))
        if not directories:
            raise NoSuchPath(f"no agent is called {name}; agentfs agents lists them")
        with _naming_a_full_disk(self._config.store):
            for attribute, value in change.items():
                agents.set(directories, attribute, value)
        self._volume.files.judge_anew()
        return {"directories": [os.fsdecode(agents.path(one)) for one in directories]}

    async def _spawn(self, args: dict[str, Any], progress: server.ProgressFn) -> dict[str, Any]:
        source, target, name = (args.get(key) for key in ("source", "target", "name"))
        if not (isinstance(source, str) and isinstance(target, str) and isinstance(name, str)):
            raise UsageError("bad request: spawn takes a source, a target and a name")
        started, cpu_before_s = time.perf_counter(), time.process_time()
        if self._volume.agents.directories(os.fsencode(name)):
            raise PathTaken(f"there is an agent {name} already; agentfs agents says where")
        with _naming_a_full_disk(self._config.store), self._naming_paths(source, target):
            cloned = await self._volume.spawn(
                os.fsencode(source), os.fsencode(target), os.fsencode(name)
            )
        return dataclasses.asdict(cloned) | {
            "daemon_s": round(time.perf_counter() - started, 6),
            "daemon_cpu_s": round(time.process_time() - cpu_before_s, 6),
        }

    @contextlib.contextmanager
    def _naming_paths(self, source: str, target: str) -> Iterator[None]:
        root = str(self._config.mountpoint)
        try:
            yield
        except OSError as error:
            if error.errno == errno.EEXIST:
                raise PathTaken(f"{root}{target} is there already; --force replaces it") from error
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                raise NoSuchPath(
                    f"{root}{source} or the directory of {root}{target} is not there"
                ) from error
            if error.errno in (errno.EINVAL, errno.ENAMETOOLONG, errno.EROFS):
                raise UsageError(
                    f"{root}{source} cannot become {root}{target}: {error.strerror}"
                ) from error
            raise

    async def _restart(self, args: dict[str, Any], progress: server.ProgressFn) -> dict[str, Any]:
        """Be replaced: who asked sees the connection end, or why it cannot be."""
        if self._keeper is None:
            raise UsageError(
                "only relay mode has a keeper that can replace the worker; umount, and mount again"
            )
        self._keeper.send(self._keeper.line, {"restart": True})
        raise AgentfsError(f"the worker is not replaced: {await self._refusals.receive()}")

    async def _stop(self, args: dict[str, Any], progress: server.ProgressFn) -> dict[str, Any]:
        await self._sync(args, progress)
        deadline = trio.current_time() + _WRITERS_S
        while True:
            try:
                await trio.to_thread.run_sync(_unmount, self._config.mountpoint)
                return {}
            except FilesOpen:
                if not self._volume.files.has_writers or trio.current_time() > deadline:
                    raise
            await trio.sleep(0.1)


def _unmount(mountpoint: Path) -> None:
    """Take the mount down as umount(8) does; the kernel then ends the session.

    :raises FilesOpen: a program has a file open or its working directory there
    """
    command = ["umount", "-i"] if os.geteuid() == 0 else ["fusermount3", "-u"]
    done = subprocess.run([*command, str(mountpoint)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise FilesOpen(f"{mountpoint} cannot be unmounted: {done.stderr.strip()}")


def _rss_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
