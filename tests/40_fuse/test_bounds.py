"""A disk that is slow, descriptors that run out: who asks for too much waits or is told so.

What the daemon takes is counted here for a few thousand files, with --soak for 100,000.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fakes.disk

STOPPED_DISK = Path(fakes.disk.__file__).parent / "stopped_disk"
MIB = 1 << 20
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
