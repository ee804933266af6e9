"""`agentfs mount` and `agentfs umount`."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentfs.cli import checks, daemonise, output
from agentfs.cli.mounts import Target, absolute, find_target, mount_at, mounts_of
from agentfs.config import (
    DEFAULT_MOUNTPOINT,
    MountConfig,
    default_store,
    load_profile,
    with_hot_bytes,
)
from agentfs.control import client, lock, ownership
from agentfs.errors import (
    DaemonSilent,
    FilesOpen,
    FuseUnavailable,
    MountpointUnusable,
    NotMounted,
    StoreUnusable,
)
from agentfs.logs import log_to_stderr
from agentfs.notify import notify

MNT_DETACH = 2  # from linux/fs.h
STOP_LIMIT_S = 60.0  # from the daemon's answer to the end of its process


def mount_command(arguments: argparse.Namespace) -> int:
    """Mount as the arguments say and report where."""
    given = arguments.mountpoint
    store = arguments.store or default_store()
    profile = load_profile(arguments.profile)
    if arguments.hot_bytes is not None:
        profile = with_hot_bytes(profile, arguments.hot_bytes)
    config = MountConfig(
        store=Path(os.path.realpath(store)),
        mountpoint=absolute(given or DEFAULT_MOUNTPOINT),
        profile=profile,
        foreground=arguments.foreground,
        mode=arguments.mode,
        allow_other=os.geteuid() == 0,
    )
    return mount(config, as_json=arguments.json, make_mountpoint=given is None)


def mount(config: MountConfig, *, as_json: bool, make_mountpoint: bool) -> int:
    """Check, then mount *config* and print one line (or object) when it is up."""
    config = _with_mountpoint(config, make=make_mountpoint)
    try:
        checks.check_all(config)
    except MountpointUnusable as error:
        raise _advised(error, config) from None
    if checks.is_not_empty(config.mountpoint):
        print(
            f"agentfs: {config.mountpoint} is not empty; the mount hides what is there",
            file=sys.stderr,
        )
    for dead in checks.dead_mounts(config):
        detach(dead)
    made = _make_store(config.store)
    run = functools.partial(_run, config)
    try:
        if config.foreground:
            os.umask(0o077)
            log_to_stderr()
            return run(functools.partial(_announce_to_all, config, as_json))
        pid, info = daemonise.spawn(run, config.store)
    except BaseException as error:
        if made and getattr(error, "exit_code", 1) != 1:  # 1: the log is needed
            _unmake_store(config.store, made)
        raise
    _announce(config, pid, info, as_json)
    return 0


def umount_command(arguments: argparse.Namespace) -> int:
    """Unmount as the arguments say; the store is free when this returns."""
    target = find_target(arguments.target)
    how = umount(target)
    value = {"store": str(target.store), "mountpoint": _text(target.mountpoint), "how": how}
    where = target.mountpoint or target.store
    text = f"agentfs: {where} is unmounted, everything is in {target.store}"
    if how == "cleared":
        text = f"agentfs: {where} had no daemon any more and is cleared; mount it to recover"
    return output.answer(arguments.json, value, text)


def umount(target: Target) -> str:
    """Stop the daemon, or clear a mount that has none; returns "stopped" or "cleared"."""
    pid = lock.holder(target.store)
    if pid is None:
        dead = mounts_of(target.store)
        if not dead:
            raise NotMounted(f"the store {target.store} is not mounted; there is nothing to do")
        for mount_ in dead:
            detach(mount_.mountpoint)
        return "cleared"
    with output.progress() as on_progress:
        try:
            client.call(target.store, "stop", on_progress=on_progress)
        except FilesOpen as error:
            raise _naming_user(error, target) from None
        except NotMounted:
            # It ended while it was asked, or it never listened: the lock tells.
            if lock.holder(target.store) is not None:
                raise
        _await_free(target.store, pid, on_progress)
    for mount_ in mounts_of(target.store):  # a daemon that was killed in the middle leaves one
        detach(mount_.mountpoint)
    return "stopped"


def detach(mountpoint: Path) -> None:
    """Take *mountpoint* out of the tree at once, whatever its daemon does."""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.umount2(os.fsencode(mountpoint), MNT_DETACH) == 0:
            return
        reason = os.strerror(ctypes.get_errno())
    else:
        try:
            done = subprocess.run(
                ["fusermount3", "-u", "-z", str(mountpoint)],
                capture_output=True,
                text=True,
                check=False,
            )
        except FileNotFoundError:
            raise FuseUnavailable(
                "fusermount3 is missing; install the Debian package fuse3: apt-get install fuse3"
            ) from None
        if done.returncode == 0:
            return
        reason = done.stderr.strip()
    if mount_at(mountpoint) is not None:  # else it went by itself meanwhile
        raise MountpointUnusable(f"{mountpoint} cannot be unmounted: {reason}")


def _run(config: MountConfig, ready: Callable[[dict[str, Any]], None]) -> int:
    from agentfs.fuse.connection import choose

    mode, reason = choose(config)
    if mode == "relay":
        from agentfs.keeper import keeper

        return keeper.run(config, reason, ready)
    from agentfs.mount import run

    return run(config, reason, ready)


def _announce_to_all(config: MountConfig, as_json: bool, info: dict[str, Any]) -> None:
    _announce(config, os.getpid(), info, as_json)
    notify("READY=1")


def _with_mountpoint(config: MountConfig, *, make: bool) -> MountConfig:
    """Make /agentmem for root: the one thing made before the checks, so check those first."""
    missing = not os.path.lexists(config.mountpoint) and mount_at(config.mountpoint) is None
    if make and missing and os.geteuid() == 0:
        checks.check_store(config.store)
        checks.check_store_free(config.store)
        checks.check_fuse(config.allow_other)
        checks.check_space(config.store)
        os.mkdir(config.mountpoint)
    return config


def _advised(error: MountpointUnusable, config: MountConfig) -> MountpointUnusable:
    """Tell a user without rights how to get the default mountpoint."""
    if config.mountpoint != DEFAULT_MOUNTPOINT or os.path.lexists(DEFAULT_MOUNTPOINT):
        return error
    return MountpointUnusable(
        f"{DEFAULT_MOUNTPOINT} does not exist; name a directory of yours, or make it with: "
        f"sudo install -d -o $USER {DEFAULT_MOUNTPOINT}"
    )


def _make_store(store: Path) -> list[Path]:
    """Have the store's directory, for its owner only; returns the directories made."""
    made: list[Path] = []
    missing = [store, *store.parents]
    try:
        for path in reversed(missing[: _first_existing(missing)]):
            path.mkdir(mode=0o700)
            made.append(path)
    except OSError as error:
        raise StoreUnusable(
            f"the store {store} cannot be made: {error.strerror}; choose another --store"
        ) from error
    ownership.close_to_others(store)  # before the daemon's log is opened there
    return made


def _first_existing(paths: list[Path]) -> int:
    return next(index for index, path in enumerate(paths) if path.exists())


def _unmake_store(store: Path, made: list[Path]) -> None:
    """Leave nothing behind of a store that was made for a mount that failed."""
    with contextlib.suppress(OSError):
        for name in (daemonise.LOG_NAME, lock.LOCK_NAME):
            (store / name).unlink(missing_ok=True)
        for path in reversed(made):
            path.rmdir()


def _announce(config: MountConfig, pid: int, info: dict[str, Any], as_json: bool) -> None:
    mode = info.get("mode", "plain")
    if info.get("commits_lost"):
        print(
            f"agentfs: the index of {config.store} was damaged after its daemon was killed: at "
            f"least {info['commits_lost']} of the last changes are lost; see agentfs fsck",
            file=sys.stderr,
        )
    why = f": {info['mode_reason']}" if "mode_reason" in info else ""
    value = {
        "mountpoint": str(config.mountpoint),
        "store": str(config.store),
        "mode": mode,
        "profile": config.profile.name,
        "pid": pid,
    }
    output.answer(
        as_json,
        value,
        f"agentfs: {config.mountpoint} is mounted ({mode} mode{why}), "
        f"store {config.store}, pid {pid}",
    )
    sys.stdout.flush()


def _await_free(store: Path, pid: int, on_progress: Callable[[str, int, int], None]) -> None:
    deadline = time.monotonic() + STOP_LIMIT_S
    while lock.holder(store) is not None:
        if time.monotonic() > deadline:
            raise DaemonSilent(
                f"the daemon (pid {pid}) was told to stop and still holds {store} "
                f"after {STOP_LIMIT_S:g} s; see {store / daemonise.LOG_NAME}"
            )
        on_progress("stopping", 0, 0)
        time.sleep(0.02)


def _naming_user(error: FilesOpen, target: Target) -> FilesOpen:
    users = [] if target.mountpoint is None else users_of(target.mountpoint)
    if not users:
        return error
    named = ", ".join(f"{name} (pid {pid}, {what})" for pid, name, what in users[:3])
    more = f" and {len(users) - 3} more" if len(users) > 3 else ""
    where = target.mountpoint
    return FilesOpen(
        f"{where} is in use by {named}{more}; end that and umount again (nothing is lost)"
    )


def users_of(mountpoint: Path) -> list[tuple[int, str, str]]:
    """Return (pid, name, path) of processes with a file or directory open below *mountpoint*.

    Only links in /proc are read, so a hanging daemon cannot hang this.
    """
    users = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            path = _path_in_use(process, str(mountpoint))
            if path is not None:
                users.append((int(process.name), _name(process), path))
    return sorted(users)


def _path_in_use(process: Path, top: str) -> str | None:
    links = [process / "cwd", process / "root", process / "exe"]
    with contextlib.suppress(OSError):
        links += (process / "fd").iterdir()
    with contextlib.suppress(OSError):
        links += (process / "map_files").iterdir()
    for link in links:
        with contextlib.suppress(OSError):
            path = os.readlink(link)
            if path == top or path.startswith(f"{top}/"):
                return path
    return None


def _name(process: Path) -> str:
    try:
        return (process / "comm").read_text().strip()
    except OSError:
        return "?"


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
