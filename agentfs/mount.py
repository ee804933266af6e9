"""The composition root: builds a mount, serves it, and takes it down in order.

Start: lock the store, open the volume, mount, listen on the control socket, say
that it is ready. End, whether by `agentfs umount`, umount(8) or a signal: stop
accepting, unmount, seal what is staged, make it durable, close the volume.
"""

from __future__ import annotations

import errno
import functools
import gc
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyfuse3
import trio

from agentfs import __version__
from agentfs.config import MountConfig
from agentfs.control import lock, server
from agentfs.errors import FilesOpen, FuseUnavailable, NoSpace
from agentfs.filesystem.volume import Volume
from agentfs.fuse import loop
from agentfs.fuse.operations import Operations

log = logging.getLogger(__name__)

MODE = "plain"

_MAX_TASKS = 128
"""Requests answered at once; more wait in the kernel."""


def run(config: MountConfig, ready: Callable[[dict[str, Any]], None]) -> int:
    """Serve a mount until it is unmounted; returns the exit code.

    :param ready: called once with what there is to say when the mount is up
    :raises AgentfsError: it could not be mounted; nothing was changed
    """
    _raise_file_limit()
    held = lock.hold(config.store)
    try:
        volume = _open_volume(config)
        try:
            return trio.run(functools.partial(_Mount(config, volume).serve, ready))
        finally:
            volume.close()
    finally:
        os.close(held)


def _open_volume(config: MountConfig) -> Volume:
    try:
        return Volume(config.store, config.profile)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise NoSpace(f"no space left below {config.store}; free some and try again") from error
        raise


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
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class _Mount:
    """One mount from ready to gone."""

    def __init__(self, config: MountConfig, volume: Volume) -> None:
        self._config = config
        self._volume = volume
        self._started = time.monotonic()
        self._is_mounted = False

    async def serve(self, ready: Callable[[dict[str, Any]], None]) -> int:
        self._mount()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._stop_on_signals)
                nursery.start_soon(self._volume.run)
                handlers = {
                    "stats": self._stats,
                    "sync": self._sync,
                    "gc": self._gc,
                    "stop": self._stop,
                }
                await nursery.start(
                    functools.partial(server.serve, self._config.store, handlers)
                )
                _tune_interpreter()
                ready({"mode": MODE})
                log.info("%s is mounted (%s mode)", self._config.mountpoint, MODE)
                await pyfuse3.main(max_tasks=_MAX_TASKS)
                nursery.cancel_scope.cancel()
        finally:
            self._unmount()
        await self._write_back()
        log.info("%s is unmounted", self._config.mountpoint)
        return 0

    def _mount(self) -> None:
        options = set(pyfuse3.default_options)
        options |= {_MountOption(f"fsname={_escaped(self._config.store)}"), "subtype=agentfs"}
        if self._config.allow_other:
            options.add("allow_other")
        loop.enable()
        try:
            pyfuse3.init(Operations(self._volume), str(self._config.mountpoint), options)
        except RuntimeError as error:
            raise FuseUnavailable(
                f"{self._config.mountpoint} could not be mounted: {error}; see the log"
            ) from error
        self._is_mounted = True

    def _unmount(self) -> None:
        if self._is_mounted:
            pyfuse3.close(unmount=True)
            self._is_mounted = False

    async def _write_back(self) -> None:
        try:
            await self._volume.seal_for_close()
        except OSError as error:
            log.error("not all could be sealed: %s; it stays staged for the next mount", error)

    async def _stop_on_signals(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _ in signals:
                pyfuse3.terminate()

    # Control operations

    async def _stats(self, args: dict[str, Any], progress: server.ProgressFn) -> dict[str, Any]:
        return self._volume.stats() | {
            "version": __version__,
            "mode": MODE,
            "pid": os.getpid(),
            "rss_bytes": _rss_bytes(),
            "uptime_s": round(time.monotonic() - self._started, 3),
            "store": str(self._config.store),
            "mountpoint": str(self._config.mountpoint),
            "profile": self._config.profile.name,
        }

    async def _sync(self, args: dict[str, Any], progress: server.ProgressFn) -> dict[str, Any]:
        files = await self._volume.sync(functools.partial(progress, "sealing"))
        return {"files": files}

    async def _gc(self, args: dict[str, Any], progress: server.ProgressFn) -> dict[str, Any]:
        return await self._volume.collect(functools.partial(progress, "rewriting segments"))

    async def _stop(self, args: dict[str, Any], progress: server.ProgressFn) -> dict[str, Any]:
        await self._sync(args, progress)
        await trio.to_thread.run_sync(_unmount, self._config.mountpoint)
        return {}


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


class _MountOption(str):
    """pyfuse3 encodes options as ASCII; a path is bytes."""

    def encode(self, *_: object) -> bytes:
        return os.fsencode(str(self))


def _escaped(path: Path) -> str:
    """Protect a path from libfuse, which splits options at commas and unescapes backslashes."""
    return str(path).replace("\\", "\\\\").replace(",", "\\,")
