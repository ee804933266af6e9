"""Mounts end: in order, by SIGKILL, and on a full disk. What was done stays done."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import random
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import is_agentfs, run_agentfs, wait_until

MIB = 1 << 20

Entry = dict[str, Any]


def picture(root: Path, *, times: bool = True) -> dict[str, Entry]:
    """Everything a program can see of a tree, atime aside."""
    seen: dict[str, Entry] = {}
    links: dict[int, str] = {}
    for path in sorted([root, *root.rglob("*")]):
        status = path.lstat()
        name = str(path.relative_to(root))
        entry: Entry = {
            "mode": status.st_mode,
            "owner": (status.st_uid, status.st_gid),
            "nlink": status.st_nlink,
            "rdev": status.st_rdev,
            "same as": links.setdefault(status.st_ino, name),
        }
        if times:
            entry["times"] = (status.st_mtime_ns, status.st_ctime_ns)
        if path.is_symlink():
            entry["target"] = os.readlink(path)
        else:
            entry["xattrs"] = {key: os.getxattr(path, key) for key in os.listxattr(path)}
        if stat.S_ISREG(status.st_mode):
            entry["bytes"] = (status.st_size, hashlib.sha256(path.read_bytes()).hexdigest())
        seen[name] = entry
    return seen


def grow_a_tree(root: Path, seed: int) -> None:
    rng = random.Random(seed)
    folders = [root]
    for number in range(40):
        folder = rng.choice(folders) / f"folder {number}"
        folder.mkdir()
        folders.append(folder)
    files = []
    for number in range(200):
        path = rng.choice(folders) / f"file {number}"
        data = rng.randbytes(rng.randrange(200)) * rng.randrange(1, 500)
        path.write_bytes(data)
        path.chmod(rng.choice([0o644, 0o600, 0o755, 0o444]))
        if rng.random() < 0.3:
            os.utime(path, ns=(rng.randrange(10**18), rng.randrange(10**18)))
        if rng.random() < 0.2:
            os.setxattr(path, "user.note", rng.randbytes(30))
        if rng.random() < 0.2:
            os.link(path, rng.choice(folders) / f"link {number}")
        if rng.random() < 0.2:
            os.symlink(path, rng.choice(folders) / f"symlink {number}")
        files.append(path)
    with (root / "sparse").open("wb") as file:
        file.seek(10 * MIB)
        file.write(b"end")


def test_a_remount_gives_everything_back(mounted: Any) -> None:
    grow_a_tree(mounted.path, 1)
    before = picture(mounted.path)
    mounted.remount()
    assert picture(mounted.path) == before
    assert mounted.stats()["staged_files"] == 0


def test_sync_leaves_everything_as_it_was_and_nothing_staged(mounted: Any) -> None:
    grow_a_tree(mounted.path, 2)
    before = picture(mounted.path)
    mounted.agentfs("sync", mounted.path)
    assert mounted.stats()["staged_files"] == 0
    assert picture(mounted.path) == before


def test_gc_leaves_everything_as_it_was(mounted: Any) -> None:
    grow_a_tree(mounted.path, 3)
    mounted.agentfs("sync", mounted.path)
    for path in sorted(mounted.path.rglob("file *"))[::2]:
        path.unlink()
    before = picture(mounted.path)
    mounted.agentfs("gc", mounted.path)
    assert picture(mounted.path) == before
    mounted.remount()
    assert picture(mounted.path) == before


def test_a_killed_daemon_gives_everything_back(mounted: Any) -> None:
    grow_a_tree(mounted.path, 4)
    # What a program set is kept to the nanosecond; when it wrote, to a tick of the kernel's clock.
    before = picture(mounted.path, times=False)
    chosen = {path: path.stat().st_mtime_ns for path in mounted.path.rglob("file *")}
    mounted.kill()
    mounted.mount()
    assert picture(mounted.path, times=False) == before
    for path, mtime_ns in chosen.items():
        assert abs(path.stat().st_mtime_ns - mtime_ns) < 100_000_000


WRITER = """
import json, os, random, sys
root, log, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
rng = random.Random(seed)
log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

def done(*what):
    os.write(log, (json.dumps(what) + "\\n").encode())

for step in range(10**6):
    name = f"{seed}-{rng.randrange(12)}"
    path = f"{root}/{name}"
    action = rng.randrange(7)
    try:
        if action <= 1:
            text = f"{step} " * rng.randrange(1, 3000)
            done("begin", name)
            with open(path, "w") as file:
                file.write(text)
            done("is", name, text)
        elif action == 2:
            done("begin", name)
            with open(path, "a") as file:
                file.write(f"+{step}")
            done("append", name, f"+{step}")
        elif action == 3:
            done("begin", name)
            os.unlink(path)
            done("gone", name)
        elif action == 4:
            other = f"{seed}-{rng.randrange(12)}"
            if other != name:
                done("begin", name); done("begin", other)
                os.rename(path, f"{root}/{other}")
                done("rename", name, other)
        elif action == 5:
            mode = rng.choice([0o600, 0o644, 0o755])
            done("begin", name)
            os.chmod(path, mode)
            done("mode", name, mode)
        elif rng.random() < 0.2:
            done("begin", name)
            fd = os.open(path, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)
            done("same", name)
    except FileNotFoundError:
        done("missing", name)
    except OSError:
        break
"""


def expected_of(log: Path) -> tuple[dict[str, tuple[str, int | None]], set[str]]:
    """(text and mode, None when unknown, of each file; names whose last operation may be half)."""
    files: dict[str, tuple[str, int | None]] = {}
    unsure: set[str] = set()
    for line in log.read_text().splitlines():
        what, name, *more = json.loads(line)
        if what == "begin":
            unsure.add(name)
            continue
        unsure.discard(name)
        text, mode = files.get(name, ("", None))
        if what == "is":
            files[name] = (more[0], mode)
        elif what == "append":
            files[name] = (text + more[0], mode)
        elif what == "gone":
            files.pop(name, None)
        elif what == "rename":
            files[more[0]] = files.pop(name)
            unsure.discard(more[0])
        elif what == "mode":
            files[name] = (text, more[0])
        elif what == "missing":
            assert name not in files
            unsure = {other for other in unsure if other.split("-")[0] != name.split("-")[0]}
    return files, unsure


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_sigkill_loses_no_completed_operation(mounted: Any, tmp_path: Path, seed: int) -> None:
    command = [sys.executable, "-I", "-c", WRITER, mounted.path]
    writers = [
        subprocess.Popen([*command, tmp_path / f"log{number}", f"{number}"])
        for number in (seed * 10, seed * 10 + 1)
    ]
    time.sleep(1.5 + seed * 0.4)
    mounted.kill()
    for writer in writers:
        writer.wait(timeout=30)
    mounted.mount()
    for number in (seed * 10, seed * 10 + 1):
        files, unsure = expected_of(tmp_path / f"log{number}")
        assert files, "the writer got somewhere"
        here = {path.name for path in mounted.path.iterdir() if path.name.startswith(f"{number}-")}
        assert here - unsure == set(files) - unsure
        for name, (text, mode) in files.items():
            if name not in unsure:
                path = mounted.path / name
                assert path.read_text() == text, name
                assert mode in (None, stat.S_IMODE(path.stat().st_mode)), name
    mounted.remount()


def test_a_mount_killed_again_and_again_loses_nothing(mounted: Any) -> None:
    for number in range(4):
        (mounted.path / f"{number}").write_bytes(b"%d" % number * 10_000)
        mounted.kill()
        mounted.mount()
        for earlier in range(number + 1):
            assert (mounted.path / f"{earlier}").read_bytes() == b"%d" % earlier * 10_000


# A full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 64 MiB for the store."""
    if os.geteuid() != 0:
        pytest.skip("mounting takes root")
    path = tmp_path / "agentmem.store"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m,mode=700", "agentfs-test", path]
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("no small filesystem can be mounted here")
    yield path
    subprocess.run(["umount", "-l", path], check=True)


@pytest.fixture
def tiny_staging(tmp_path: Path) -> Path:
    """A profile that leaves tmpfs to nobody, so that everything is on the small disk."""
    path = tmp_path / "tiny.toml"
    path.write_text("[hot]\nbytes = 1048576\n[store]\nsegment_bytes = '1MiB'\n")
    return path


def fill(folder: Path, seed: int) -> tuple[int, dict[str, bytes]]:
    """Write files until the disk is full: (errno, those that were fsynced)."""
    rng = random.Random(seed)
    kept = {}
    for number in range(200):
        data = rng.randbytes(400_000)
        try:
            with (folder / f"{seed}-{number}").open("wb", buffering=0) as file:
                view = memoryview(data)
                while view:
                    view = view[file.write(view) :]
                os.fsync(file.fileno())
        except OSError as error:
            return error.errno or 0, kept
        kept[f"{seed}-{number}"] = data
    return 0, kept


@pytest.mark.timeout(180)
def test_a_full_disk_is_reported_corrupts_nothing_and_works_again_after_freeing(
    small_disk: Path, tiny_staging: Path, mount_store: Any
) -> None:
    mounted = mount_store("--profile", tiny_staging)
    number, kept = fill(mounted.path, 1)
    assert errno.errorcode[number] == "ENOSPC", mounted.log()
    assert len(kept) > 20
    for name, data in kept.items():
        assert (mounted.path / name).read_bytes() == data
    for path in list(mounted.path.iterdir()):
        if path.name not in kept or int(path.name.split("-")[1]) % 2:
            path.unlink()
            kept.pop(path.name, None)
    mounted.agentfs("gc", mounted.path)
    _, more = fill(mounted.path, 2)
    assert len(more) > 5, mounted.log()
    kept |= more
    with contextlib.suppress(OSError):
        for path in mounted.path.iterdir():
            if path.name not in kept:
                path.unlink()
    for name in list(more):
        (mounted.path / name).unlink()
        del kept[name]
    mounted.agentfs("gc", mounted.path)
    mounted.remount()
    assert {path.name: path.read_bytes() for path in mounted.path.iterdir()} == kept


def write_until_full(folder: Path, seed: int) -> tuple[OSError | None, dict[str, bytes]]:
    """Write files, none fsynced, until one is refused: what was accepted of each, and the error."""
    rng = random.Random(seed)
    accepted = {}
    for number in range(400):
        data = rng.randbytes(500_000)
        done = 0
        try:
            with (folder / f"{seed}-{number}").open("wb", buffering=0) as file:
                while done < len(data):
                    done += file.write(data[done : done + 100_000])
        except OSError as error:
            accepted[f"{seed}-{number}"] = data[:done]
            return error, accepted
        accepted[f"{seed}-{number}"] = data
    return None, accepted


def accepted_is_there(folder: Path, accepted: dict[str, bytes]) -> bool:
    return all((folder / name).read_bytes() == data for name, data in accepted.items() if data)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("hot_bytes", [1 << 20, 1 << 30], ids=["small tmpfs", "large tmpfs"])
def test_a_full_disk_refuses_at_once_what_it_could_not_keep_and_keeps_the_rest(
    small_disk: Path, tmp_path: Path, mount_store: Any, hot_bytes: int
) -> None:
    """Nobody asks for fsync: what is only staged counts as well."""
    profile = tmp_path / "profile.toml"
    profile.write_text(f"[hot]\nbytes = {hot_bytes}\n[store]\nsegment_bytes = '1MiB'\n")
    mounted = mount_store("--profile", profile)
    error, accepted = write_until_full(mounted.path, 1)
    assert error is not None, "200 MB do not fit"
    assert errno.errorcode[error.errno or 0] == "ENOSPC", mounted.log()
    size = sum(map(len, accepted.values()))
    assert 30 * MIB < size < 64 * MIB
    room = os.statvfs(mounted.path)
    assert room.f_bavail * room.f_frsize < 2 * MIB
    started = time.monotonic()
    refused, _ = write_until_full(mounted.path, 2)
    assert refused is not None
    assert time.monotonic() - started < 5
    assert accepted_is_there(mounted.path, accepted)
    mounted.agentfs("sync", mounted.path)
    assert accepted_is_there(mounted.path, accepted)
    for path in list(mounted.path.iterdir()):
        if int(path.name.split("-")[1]) % 4 or path.name not in accepted:
            path.unlink()
            accepted.pop(path.name, None)
    mounted.agentfs("gc", mounted.path)
    _, more = write_until_full(mounted.path, 3)
    assert sum(map(len, more.values())) > 10 * MIB, mounted.log()
    mounted.kill()
    mounted.mount()
    assert accepted_is_there(mounted.path, accepted | more)


# The end


@pytest.fixture
def slow_sealing(tmp_path: Path) -> Path:
    """A profile by which sealing takes seconds."""
    path = tmp_path / "slow.toml"
    path.write_text("[store]\nlevel = 19\n")
    return path


def write_much(folder: Path) -> dict[str, bytes]:
    words = [b"%d " % number for number in range(1000)]
    rng = random.Random(5)
    written = {}
    for number in range(20):
        data = b"".join(rng.choices(words, k=400_000))
        (folder / f"{number}").write_bytes(data)
        written[f"{number}"] = data
    return written


def test_sigterm_seals_everything_and_unmounts(mounted: Any) -> None:
    written = write_much(mounted.path)
    os.kill(mounted.pid, signal.SIGTERM)
    wait_until(lambda: not is_agentfs(mounted.pid), 60)
    assert not os.path.ismount(mounted.path)
    assert "stays staged" not in mounted.log()
    mounted.mount()
    assert mounted.stats()["staged_files"] == 0
    assert accepted_is_there(mounted.path, written)


def test_a_second_sigterm_hurries_and_loses_nothing(mount_store: Any, slow_sealing: Path) -> None:
    mounted = mount_store("--profile", slow_sealing)
    written = write_much(mounted.path)
    os.kill(mounted.pid, signal.SIGTERM)
    wait_until(lambda: not os.path.ismount(mounted.path))
    os.kill(mounted.pid, signal.SIGTERM)
    wait_until(lambda: not is_agentfs(mounted.pid), 30)
    assert "told twice to end" in mounted.log()
    mounted.mount()
    assert mounted.stats()["staged_files"] > 0
    assert accepted_is_there(mounted.path, written)


def test_umount_waits_for_who_is_writing_but_not_for_ever(mounted: Any) -> None:
    file = (mounted.path / "a").open("wb")
    started = time.monotonic()
    refused = run_agentfs("umount", mounted.path)
    assert "is in use by" in refused.stderr
    assert 3 < time.monotonic() - started < 20
    timer = threading.Timer(1.5, file.close)
    timer.start()
    mounted.umount()
    timer.join()
