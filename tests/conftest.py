"""Mounts for tests: each starts as a user would start it, and none outlives its test.

A daemon that hangs would hang whatever touches its mount, the test included, and
no signal handler runs in a process that waits for FUSE. So each mount has a
watchdog, a process of its own, that aborts the FUSE connection shortly before
the test's time is over; the test then fails with an error it can report.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import agentfs
from agentfs.cli.mounts import all_mounts
from agentfs.control import lock
from agentfs.filesystem.staging import OWN_TMPFS, alone
from agentfs.fuse._relay import passthrough_available
from fakes.connection import Connection

COMMAND_LIMIT_S = 60.0
TEST_LIMIT_S = 120.0

# Programs that tests start use the agentfs that the tests use, not one that happens to lie in
# their working directory: an installed one has the C extension, a bare source tree has not.
os.environ["PYTHONPATH"] = str(Path(agentfs.__file__).resolve().parents[1])
os.environ["PYTHONSAFEPATH"] = "1"

# A terminal's size is its own; pytest's workers are told that of another.
for variable in ("COLUMNS", "LINES"):
    os.environ.pop(variable, None)

# A shell without job control lets what it starts in the background ignore it, and their children.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="kills and power cuts by the hundred")


def run_agentfs(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own; never waits longer than COMMAND_LIMIT_S."""
    settings: dict[str, Any] = {"timeout": COMMAND_LIMIT_S} | options
    return subprocess.run(
        [sys.executable, "-m", "agentfs.cli", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        **settings,
    )


class Mounted:
    """A store that is mounted by a daemon of its own."""

    def __init__(self, store: Path, path: Path, options: tuple[str, ...], limit_s: float) -> None:
        self.store = store
        self.path = path
        self._options = options
        self._deadline = time.monotonic() + limit_s
        self._connections: list[Connection] = []
        self.pid = 0

    def agentfs(self, *arguments: str | Path, check: bool = True) -> str:
        """Run a command; returns its stdout. With *check* it must succeed."""
        done = run_agentfs(*arguments)
        assert not check or done.returncode == 0, f"{arguments}: {done.stderr}{self.log()}"
        return done.stdout

    def stats(self) -> dict[str, Any]:
        """Return what `agentfs stats --json` says of this store."""
        figures: dict[str, Any] = json.loads(self.agentfs("stats", self.store, "--json"))
        return figures

    def mount(self) -> None:
        """Mount the store; it must not be mounted."""
        answer = self.agentfs("mount", self.path, "--store", self.store, "--json", *self._options)
        self.pid = json.loads(answer)["pid"]
        self._keep_connections()  # of an earlier mount, which ended without umount()
        self._connections.append(Connection(self.path))
        self._connections[-1].abort_after(max(self._deadline - time.monotonic(), 1.0))

    def umount(self) -> None:
        """Unmount as a user would, sealing everything."""
        self.agentfs("umount", self.path)
        self._keep_connections()

    def remount(self) -> None:
        """Unmount if mounted, and mount again: what was in memory only is gone."""
        if lock.holder(self.store) is not None:
            self.umount()
        self.mount()

    def kill(self) -> None:
        """End the daemon as a crash would; the dead mount stays. Returns when it is gone."""
        self._keep_connections()
        self._send_kill()
        self._wait_for_end()

    def log(self) -> str:
        """Return the daemon's log."""
        with contextlib.suppress(OSError):
            return (self.store / "daemon.log").read_text()
        return ""

    def destroy(self) -> None:
        """Leave nothing: daemon dead, connection aborted, mount detached.

        The kill comes first, or the daemon might just be unmounting its tmpfs; what it waits for,
        should it hang, ends with the connection.
        """
        self._keep_connections()
        self._send_kill()
        for connection in self._connections:
            connection.abort()
            connection.close()
        detach(self.path)
        self._wait_for_end()
        self.lose_tmpfs()

    def lose_tmpfs(self) -> None:
        """What a killed daemon staged waits on its tmpfs for a next mount that never comes."""
        with alone() if OWN_TMPFS.exists() else contextlib.nullcontext():
            for tmpfs in self.tmpfs():
                detach(tmpfs)
                tmpfs.rmdir()

    def tmpfs(self) -> list[Path]:
        """The tmpfs of the store, if there is one: root's mounts have it."""
        owner = os.fsencode(self.store)
        return [one.parent for one in OWN_TMPFS.glob("*/store") if one.read_bytes() == owner]

    def _send_kill(self) -> None:
        for victim in {self._holder() or 0, self.pid} - {0}:
            # The lock may be stale or the pid reused: look before shooting.
            if is_agentfs(victim):
                workers = children(victim)  # the keeper first: it would start others
                for process in (victim, *workers):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process, signal.SIGKILL)

    def _wait_for_end(self) -> None:
        wait_until(lambda: self._holder() is None)
        self.pid = 0

    def _holder(self) -> int | None:
        """The daemon that has the store, also when its disk cannot be read any more."""
        try:
            return lock.holder(self.store)
        except OSError:
            return self.pid if is_agentfs(self.pid) else None

    def _keep_connections(self) -> None:
        for connection in self._connections:
            connection.keep()


def is_agentfs(pid: int) -> bool:
    """Whether *pid* is a live process that runs agentfs."""
    try:
        return b"agentfs" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def children(pid: int) -> list[int]:
    """The child processes of *pid*."""
    with contextlib.suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def wait_until(condition: Callable[[], bool], limit_s: float = 20.0) -> None:
    """Wait for *condition*; fails the test when it takes longer than *limit_s*."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def detach(path: Path) -> None:
    """Unmount all that is mounted at *path*, lazily; not an error if nothing is."""
    while any(mount.mountpoint == path for mount in all_mounts()):
        if os.geteuid() == 0:
            if ctypes.CDLL(None).umount2(os.fsencode(path), 2) != 0:
                return
        elif subprocess.run(["fusermount3", "-u", "-z", path], check=False).returncode != 0:
            return


MountStore = Callable[..., Mounted]


@pytest.fixture(params=["plain", "relay"])
def mode(request: pytest.FixtureRequest) -> str:
    """Each mode there is: all but sharing and speed must be the same in both."""
    chosen: str = request.param
    obstacle = passthrough_available() if chosen == "relay" else None
    if obstacle is not None:
        pytest.skip(f"no relay mode here: {obstacle}")
    return chosen


@pytest.fixture
def mount_store(tmp_path: Path, request: pytest.FixtureRequest, mode: str) -> Iterator[MountStore]:
    """Mount stores on demand: `mount_store("--profile", path, name="second")`.

    Stores of different names are different; each is unmounted after the test.
    """
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("there is no /dev/fuse that this user may open")
    marker = request.node.get_closest_marker("timeout")
    limit_s = float(marker.args[0]) if marker and marker.args else TEST_LIMIT_S
    made: list[Mounted] = []

    def mount(*options: str | Path, name: str = "agentmem") -> Mounted:
        path = tmp_path / name
        path.mkdir(exist_ok=True)
        store = tmp_path / f"{name}.store"
        mounted = Mounted(store, path, ("--mode", mode, *map(str, options)), limit_s * 0.8)
        made.append(mounted)
        mounted.mount()
        return mounted

    yield mount
    for mounted in made:
        mounted.destroy()


@pytest.fixture
def mounted(mount_store: MountStore) -> Mounted:
    """One mounted store, empty, with the default profile."""
    return mount_store()
