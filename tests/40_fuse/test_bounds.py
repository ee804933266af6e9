"""A disk that is slow, descriptors that run out: who asks for too much waits or is told so.

What the daemon takes is counted here for a few thousand files, with --soak for 100,000.
"""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fakes.disk

STOPPED_DISK = Path(fakes.disk.__file__).parent / "stopped_disk"
KIB = 1 << 10

SPARE = 100
"""Descriptors that the daemon is left with."""

OWN_DESCRIPTORS = 32
"""Of the daemon beside those it has for files that are open: segments, what it seals just now."""

THREADS = 60
"""trio's 40, those of the relay, one a core that compresses, some that seal."""

FILE_KIB = 3
"""Of the daemon's memory, for a file that the kernel knows."""

OTHERS_LIMIT_S = 40.0

SYNC_MANY = """
import threading
there, count = sys.argv[1], int(sys.argv[2])
threading.stack_size(256 << 10)
def write_and_sync(number):
    fd = os.open(f"{there}/{number}", os.O_WRONLY | os.O_CREAT)
    os.write(fd, b"%d" % number)
    written.release()
    os.fsync(fd)
    synced.append(number)
    os.close(fd)
written, synced = threading.Semaphore(0), []
threads = [threading.Thread(target=write_and_sync, args=[number]) for number in range(count)]
for thread in threads: thread.start()
for thread in threads: written.acquire()
print("written", flush=True)
sys.stdin.readline()
print(len(synced), flush=True)
for thread in threads: thread.join()
print(len(synced), flush=True)
"""

USE = """
there = sys.argv[1]
os.mkdir(f"{there}/directory")
for number in range(50):
    name = f"{there}/directory/{number}"
    with open(name, "wb") as file: file.write(b"other")
    with open(name, "rb") as file: assert file.read() == b"other"
    os.rename(name, name + ".new")
    assert os.stat(name + ".new").st_size == 5
assert len(os.listdir(f"{there}/directory")) == 50
for name in os.listdir(f"{there}/directory"): os.unlink(f"{there}/directory/{name}")
os.rmdir(f"{there}/directory")
"""


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The disk of stores that are mounted stands still while this file exists."""
    stopped = tmp_path / "stopped"
    monkeypatch.setenv("STOPPED_DISK", str(stopped))
    path = os.pathsep.join([str(STOPPED_DISK), os.environ["PYTHONPATH"]])
    monkeypatch.setenv("PYTHONPATH", path)
    yield stopped
    stopped.unlink(missing_ok=True)


def others_go_on(there: Path) -> None:
    """Programs that do not ask for the disk are served."""
    command = [sys.executable, "-I", "-c", f"import os, sys\n{USE}", str(there)]
    subprocess.run(command, check=True, timeout=OTHERS_LIMIT_S)


def test_while_hundreds_wait_in_fsync_for_a_slow_disk_others_go_on(
    disk: Path, mounted: Any, script: Any
) -> None:
    disk.touch()
    with script(SYNC_MANY, mounted.path, 300) as syncing:
        assert syncing.stdout.readline() == "written\n"
        others_go_on(mounted.path)
        syncing.stdin.write("\n")
        syncing.stdin.flush()
        assert syncing.stdout.readline() == "0\n"  # fsync waits, and tells nobody what is not so
        disk.unlink()
        assert syncing.stdout.readline() == "300\n"


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def status(pid: int, field: str) -> int:
    """A number of /proc/PID/status; sizes are in KiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def open_unless_enfile(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        if error.errno != errno.ENFILE:
            raise
    return None


def test_a_daemon_that_may_open_no_more_says_so_and_goes_on(mounted: Any, as_root: None) -> None:
    """What programs may have open leaves it enough to seal, to be asked and to unmount."""
    for number in range(SPARE):
        (mounted.path / f"old{number}").write_bytes(b"old")
    mounted.agentfs("sync", mounted.store)
    worker = mounted.stats()["worker_pid"]
    limit = descriptors(worker) + SPARE
    subprocess.run(["prlimit", f"--pid={worker}", f"--nofile={limit}:{limit}"], check=True)
    paths = [mounted.path / f"new{number}" for number in range(2 * SPARE)]
    opened = {path: fd for path in paths if (fd := open_unless_enfile(path)) is not None}
    assert not any(path.exists() for path in paths if path not in opened)
    assert SPARE / 2 < len(opened) < 2 * SPARE
    for path, fd in opened.items():
        os.write(fd, bytes(path))
        os.fsync(fd)
    (mounted.path / "old0").unlink()
    mounted.agentfs("gc", mounted.store)
    assert len(os.listdir(mounted.path)) == SPARE - 1 + len(opened)
    for fd in opened.values():
        os.close(fd)
    assert all(path.read_bytes() == bytes(path) for path in opened)
    mounted.remount()
    assert all(path.read_bytes() == bytes(path) for path in opened)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "files" in metafunc.fixturenames:
        soak = metafunc.config.getoption("--soak")
        limit = pytest.mark.timeout(3000) if soak else ()
        metafunc.parametrize("files", [pytest.param(100_000 if soak else 3_000, marks=limit)])


def test_what_the_daemon_takes_for_files_and_handles_is_bounded(mounted: Any, files: int) -> None:
    """Threads do not depend on files, descriptors on those that are open for writing only."""
    worker = mounted.stats()["worker_pid"]
    before, rss_before = descriptors(worker), status(worker, "VmRSS")
    paths = [mounted.path / str(number % 50) / str(number) for number in range(files)]
    for folder in range(50):
        (mounted.path / str(folder)).mkdir()
    for path in paths:
        path.write_bytes(bytes(path))
    assert sum(len(os.listdir(mounted.path / str(folder))) for folder in range(50)) == files
    for _ in range(3):  # served, made resident, resident
        assert all(path.read_bytes() == bytes(path) for path in paths)
    handles = [
        os.open(path, os.O_RDWR if at % 2 else os.O_RDONLY) for at, path in enumerate(paths[:1000])
    ]
    for fd in handles[1::2]:
        os.pwrite(fd, b"W", 0)
    mappings = [mmap.mmap(fd, 1, prot=mmap.PROT_READ) for fd in handles[::4]]
    assert all(mapping[0] for mapping in mappings)
    assert descriptors(worker) <= before + len(handles) / 2 + OWN_DESCRIPTORS
    for mapping in mappings:
        mapping.close()
    for fd in handles:
        os.close(fd)
    mounted.agentfs("sync", mounted.store)
    assert descriptors(worker) <= before + OWN_DESCRIPTORS
    assert status(worker, "Threads") <= THREADS
    assert status(worker, "VmHWM") - rss_before <= 64 * KIB + files * FILE_KIB
    for path in paths:
        path.unlink()
    mounted.agentfs("gc", mounted.store)
    stats = mounted.stats()
    assert stats["staged_files"] == stats["unique_bytes"] == 0


FILL = """
there, count = sys.argv[1], int(sys.argv[2])
for number in range(count):
    with open(f"{there}/fill{number}", "wb") as file: file.write(bytes([number]) * (1 << 20))
    print(number, flush=True)
"""


def test_while_the_disk_stands_still_tmpfs_takes_its_budget_and_others_read_and_remove(
    disk: Path, mount_store: Any, tmp_path: Path, script: Any
) -> None:
    budget_mib, count = 16, 40
    small = tmp_path / "small.toml"
    small.write_text(f'[hot]\nbytes = "{budget_mib}MiB"\n')
    mounted = mount_store("--profile", small)
    for number in range(20):
        (mounted.path / f"other{number}").write_bytes(b"other")
    disk.touch()
    with script(FILL, mounted.path, count) as writing:
        for _ in range(budget_mib - 1):
            writing.stdout.readline()
        for _ in range(10):  # the writer has every chance to go beyond
            assert mounted.stats()["resident_bytes"] <= (budget_mib + 1) * KIB * KIB
        for number in range(20):
            path = mounted.path / f"other{number}"
            assert path.read_bytes() == b"other"
            path.unlink()
        assert not any(name.startswith("other") for name in os.listdir(mounted.path))
        disk.unlink()
        writing.stdout.read()
    assert writing.returncode == 0
    for number in range(count):
        content = (mounted.path / f"fill{number}").read_bytes()
        assert content == bytes([number]) * KIB * KIB
