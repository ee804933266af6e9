"""The filesystems under measurement, each mounted for the length of a `with` block.

Promises: leaving the block unmounts and removes everything, also after an error; a daemon that does
not answer is cut off through /sys/fs/fuse/connections, so a benchmark fails instead of hanging.
A target that cannot run here says why (`missing`) and is left out.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench import caches
from bench.common import NothingRan, Results, err

STEP_SECONDS = 120.0
DELAY_SECONDS = 1_000_000
IMAGE_BYTES = 16 << 30
FAILURES = (OSError, RuntimeError, subprocess.SubprocessError)  # of a target; others are ours


def run(*command: str | Path, seconds: float = STEP_SECONDS, **keywords: Any) -> str:
    """Run to the end and return standard output; RuntimeError with what it said otherwise."""
    done = subprocess.run(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
        **keywords,
    )
    if done.returncode:
        said = " / ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise RuntimeError(f"{command[0]} gave {done.returncode}: {said}")
    return str(done.stdout)


def device_of(mountpoint: Path) -> str | None:
    """major:minor of what is mounted there, None if nothing is. Never blocks on a dead daemon."""
    found = None
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        words = line.split()
        if words[4] == str(mountpoint):
            found = words[2]
    return found


class Target:
    """One filesystem: where to work (`root`), how to make it durable, what it keeps on disk."""

    name = "?"
    fuse = False

    def __init__(self, work: Path, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.base = Path(tempfile.mkdtemp(prefix=f"{self.name.split(':')[0]}-", dir=work)).resolve()
        self.root = self.base / "mnt"
        self.root.mkdir()

    @classmethod
    def missing(cls, arguments: argparse.Namespace) -> str | None:
        """Why it cannot run here; None if it can."""
        return None

    def prepare(self) -> None:
        """Make the store, once."""

    def mount(self) -> None:
        """Mount what `prepare` made; the root is usable afterwards."""
        raise NotImplementedError

    def unmount(self) -> None:
        """Unmount; everything written is on disk afterwards."""
        run("umount", self.root)

    def sync(self) -> None:
        """Make everything written durable in its final form (what a user would call)."""
        run("sync", "-f", self.root)

    def quiesce(self) -> None:
        """Untimed: let background work finish, or it would run into the next target."""

    def stored_bytes(self) -> int | None:
        """Bytes that the data and metadata take on disk now; None for those that only have RAM."""
        return None

    def backing(self) -> list[Path]:
        """The files that hold the data."""
        return []

    def forget_names(self) -> None:
        """Drop cached names and attributes of this mount only."""
        caches.forget_names(self.root)

    def remount_cold(self) -> None:
        """Unmount, drop the cached pages of the store, mount again."""
        self.unmount()
        caches.forget_pages(*self.backing())
        self.mount()

    def daemon_pid(self) -> int | None:
        """The process that serves, if there is one."""
        return None

    def __enter__(self) -> Self:
        try:
            self.prepare()
            self.mount()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._remove()

    def _remove(self) -> None:
        if device_of(self.root) is not None:
            try:
                self.unmount()
            except FAILURES as problem:
                err.print(f"{self.name}: unmount failed ({problem}); forcing", markup=False)
                self.cut_off()
        self.stop()
        shutil.rmtree(self.base, ignore_errors=True)

    def stop(self) -> None:
        """End what `mount` started, if it still runs."""

    def cut_off(self) -> None:
        """Abort the FUSE connection and detach the mount: waiters get an error."""
        device = device_of(self.root)
        if device is None:
            return
        if self.fuse:
            abort = Path(f"/sys/fs/fuse/connections/{device.partition(':')[2]}/abort")
            with contextlib.suppress(OSError):
                abort.write_text("1")
        with contextlib.suppress(RuntimeError):
            run("umount", "--lazy", self.root)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Cut the target off when the block takes longer than --hang-seconds."""
        timer = threading.Timer(self.arguments.hang_seconds, self.cut_off)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


class Tmpfs(Target):
    """The floor: names and bytes in RAM, no daemon."""

    name = "tmpfs"

    def mount(self) -> None:
        run("mount", "-t", "tmpfs", "-o", "size=50%", "bench", self.root)

    def remount_cold(self) -> None:
        """There is nothing colder than RAM; a remount would lose the files."""


class LoopDevice(Target):
    """A disk filesystem in a sparse image on the work directory's disk."""

    mkfs: tuple[str, ...] = ()
    options = "loop"

    @classmethod
    def missing(cls, arguments: argparse.Namespace) -> str | None:
        return None if shutil.which(cls.mkfs[0]) else f"{cls.mkfs[0]} is not installed"

    @property
    def image(self) -> Path:
        return self.base / "image"

    def prepare(self) -> None:
        with self.image.open("wb") as file:
            file.truncate(IMAGE_BYTES)
        run(*self.mkfs, self.image)
        self.mount()
        run("sync", "-f", self.root)
        self._empty = 0
        self._empty = self.stored_bytes()
        self.unmount()

    def mount(self) -> None:
        run("mount", "-o", self.options, self.image, self.root)

    def stored_bytes(self) -> int:
        usage = os.statvfs(self.root)
        return (usage.f_blocks - usage.f_bfree) * usage.f_frsize - self._empty

    def backing(self) -> list[Path]:
        return [self.image]


class Ext4(LoopDevice):
    name = "ext4"
    mkfs = ("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1,lazy_journal_init=1")


class Btrfs(LoopDevice):
    """Compressing; duplicates are merged by `dedupe` where duperemove is installed."""

    name = "btrfs"
    mkfs = ("mkfs.btrfs", "-q", "-m", "single")
    options = "loop,compress=zstd:3"

    def dedupe(self) -> bool:
        """Merge equal extents. False if duperemove is not installed."""
        if not shutil.which("duperemove"):
            return False
        run("duperemove", "-rdhq", "--dedupe-options=same", self.root, seconds=3600)
        self.sync()
        return True


class Bare(Target):
    """The ceiling: bench.bare, on pyfuse3 as shipped."""

    name = "bare"
    fuse = True
    options: tuple[str, ...] = ()

    def mount(self) -> None:
        self._log = (self.base / "log").open("w")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.bare", *self.options, str(self.root)],
            cwd=Path(__file__).parent.parent,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        end = time.monotonic() + STEP_SECONDS
        while device_of(self.root) is None:
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"bare did not mount: {(self.base / 'log').read_text()}")
            time.sleep(0.02)

    def unmount(self) -> None:
        run("umount", self.root)
        self._process.wait(STEP_SECONDS)

    def sync(self) -> None:
        """It has nothing but RAM."""

    def remount_cold(self) -> None:
        """As for tmpfs."""

    def daemon_pid(self) -> int:
        return self._process.pid

    def stop(self) -> None:
        if hasattr(self, "_process") and self._process.poll() is None:
            self._process.kill()
            self._process.wait()


class BarePolling(Bare):
    """The same filesystem with the request loop of agentfs."""

    name = "bare-polling"
    options = ("--polling",)


def directory_bytes(directory: Path) -> dict[str, int]:
    """Apparent and allocated bytes of all files below."""
    apparent = allocated = 0
    for file in directory.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            status = file.lstat()
            apparent += status.st_size if not file.is_dir() else 0
            allocated += status.st_blocks * 512
    return {"apparent": apparent, "allocated": allocated}


class Agentfs(Target):
    """agentfs as it mounts by default, or with the profile of a name like agentfs:archive."""

    name = "agentfs"
    fuse = True
    mount_options: tuple[str, ...] = ()

    @classmethod
    def missing(cls, arguments: argparse.Namespace) -> str | None:
        if not shutil.which(arguments.agentfs[0]):
            return f"{arguments.agentfs[0]} is not a command (--agentfs)"
        return None

    @property
    def store(self) -> Path:
        return self.base / "store"

    def _call(self, *words: str | Path, seconds: float | None = None) -> str:
        limit = seconds or self.arguments.hang_seconds
        return run(*self.arguments.agentfs, *words, seconds=limit)

    def mount(self) -> None:
        options = self.mount_options
        self._call("mount", *options, "--store", self.store, self.root, seconds=STEP_SECONDS)
        if device_of(self.root) is None:
            raise RuntimeError("agentfs mount returned, and nothing is mounted")

    def unmount(self) -> None:
        self._call("umount", self.root)
        end = time.monotonic() + STEP_SECONDS
        while device_of(self.root) is not None:
            if time.monotonic() > end:
                raise RuntimeError("agentfs umount returned, and the mount is still there")
            time.sleep(0.05)

    def sync(self) -> None:
        self._call("sync", self.root)

    def quiesce(self) -> None:
        self.sync()

    def stats(self) -> dict[str, Any]:
        """What the daemon says of itself; the keys are agentfs's own."""
        answer: dict[str, Any] = json.loads(self._call("stats", "--json", self.root))
        return answer

    def compact(self) -> None:
        """Have it packed as small as it gets."""
        self._call("compact", self.root)

    def stored_bytes(self) -> int:
        return directory_bytes(self.store)["allocated"]

    def backing(self) -> list[Path]:
        return [self.store]

    def daemon_pid(self) -> int:
        return int(self.stats()["worker_pid"])


class AgentfsPlain(Agentfs):
    """agentfs where the daemon serves reads and writes, as it does without rights."""

    name = "agentfs-plain"
    mount_options = ("--mode", "plain")


class S3ql(Target):
    """s3ql on a local backend. Uploads wait for `sync`, or they would run into other targets."""

    name = "s3ql"
    fuse = True

    @classmethod
    def missing(cls, arguments: argparse.Namespace) -> str | None:
        if not arguments.s3ql_bin:
            return "no --s3ql-bin"
        tool = Path(arguments.s3ql_bin) / "mount.s3ql"
        return None if tool.exists() else f"{tool} does not exist"

    def _call(self, tool: str, *words: str | Path) -> str:
        return run(
            Path(self.arguments.s3ql_bin).absolute() / tool,
            *words,
            seconds=self.arguments.hang_seconds,
            cwd=self.base,
        )

    @property
    def _access(self) -> Sequence[str | Path]:
        return ("--authfile", self.base / "auth", "--cachedir", self.base / "cache")

    @property
    def store(self) -> Path:
        return self.base / "store"

    def prepare(self) -> None:
        (self.base / "auth").touch(0o600)
        self.store.mkdir()
        (self.base / "cache").mkdir()
        self._call("mkfs.s3ql", "--plain", *self._access, f"local://{self.store}")

    def mount(self) -> None:
        self._call(
            "mount.s3ql",
            *self._access,
            *("--log", self.base / "log"),
            *("--compress", self.arguments.s3ql_compress),
            *("--dirty-block-upload-delay", str(DELAY_SECONDS)),
            f"local://{self.store}",
            self.root,
        )

    def unmount(self) -> None:
        self._call("umount.s3ql", self.root)

    def sync(self) -> None:
        self._call("s3qlctrl", "flushcache", self.root)

    def stored_bytes(self) -> int:
        return directory_bytes(self.store)["allocated"]

    def backing(self) -> list[Path]:
        return [self.store, self.base / "cache"]

    def daemon_pid(self) -> int | None:
        """It says nowhere; its command line has our directory."""
        own = os.fsencode(self.base)
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (process / "cmdline").read_bytes()
                if b"mount.s3ql" in words and own in words:
                    return int(process.name)
        return None

    def stop(self) -> None:
        """A daemon that hung outlives even its aborted connection."""
        if pid := self.daemon_pid():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def remount_cold(self) -> None:
        """Also without its local cache of blocks; the metadata database stays, as s3ql keeps it."""
        self.unmount()
        for cached in (self.base / "cache").glob("*-cache"):
            shutil.rmtree(cached)
        caches.forget_pages(*self.backing())
        self.mount()


ALL: dict[str, type[Target]] = {
    kind.name: kind for kind in (Tmpfs, Ext4, Btrfs, Bare, BarePolling, Agentfs, AgentfsPlain, S3ql)
}


def named(name: str) -> type[Target]:
    """The target of that name; agentfs:PROFILE is agentfs mounted with --profile PROFILE."""
    base, _, profile = name.partition(":")
    if base == Agentfs.name and profile:
        return type("Profiled", (Agentfs,), {"name": name, "mount_options": ("--profile", profile)})
    if name not in ALL:
        raise SystemExit(f"no target {name}; there are {', '.join(ALL)} and agentfs:PROFILE")
    return ALL[name]


@contextlib.contextmanager
def work_directory(arguments: argparse.Namespace) -> Iterator[Path]:
    """A fresh directory for stores and mountpoints, removed afterwards; --pin holds meanwhile."""
    cores = os.sched_getaffinity(0)
    if arguments.pin is not None and arguments.pin >= 0:
        os.sched_setaffinity(0, {arguments.pin})
    if arguments.work:
        arguments.work.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix="bench-", dir=arguments.work))
    try:
        yield made
    finally:
        os.sched_setaffinity(0, cores)
        shutil.rmtree(made, ignore_errors=True)


def available(names: Sequence[str], arguments: argparse.Namespace) -> dict[str, type[Target]]:
    """Those of the named targets that can run here; says of the others why they cannot.

    :raises NothingRan: none can
    """
    chosen = {}
    for name in names:
        kind = named(name)
        reason = "needs root" if os.geteuid() else kind.missing(arguments)
        if reason:
            err.print(f"skipped {name}: {reason}", markup=False)
        else:
            chosen[name] = kind
    if not chosen:
        raise NothingRan("no target can run here")
    return chosen


def one_by_one(arguments: argparse.Namespace, measure: Callable[[Target], Results]) -> Results:
    """What *measure* finds of each target, which has the machine for itself."""
    found: Results = {}
    with work_directory(arguments) as work:
        for name, kind in available(arguments.targets, arguments).items():
            with kind(work, arguments) as target, target.watched():
                found[name] = measure(target)
    return found
