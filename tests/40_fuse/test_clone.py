"""`agentfs clone` in a real mount, while programs use what is cloned."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import run_agentfs, wait_until

BYTES = bytes(range(256)) * 800
STATES = ["just written", "sealed", "sealed and read"]


def brought_to(mounted: Any, path: Path, state: str) -> None:
    """Leave a file with BYTES in one of the states that files rest in."""
    path.write_bytes(BYTES)
    if state != "just written":
        mounted.agentfs("sync", mounted.path)
    if state == "sealed and read":
        for _ in range(2):
            assert path.read_bytes() == BYTES


def clone(mounted: Any, source: Path, target: Path, *options: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(
        mounted.agentfs("clone", source, target, "--json", *options)
    )
    return answer


def by_pwrite(path: Path) -> bytes:
    with path.open("r+b") as file:
        file.seek(10)
        file.write(b"NEW")
    return BYTES[:10] + b"NEW" + BYTES[13:]


def by_append(path: Path) -> bytes:
    with path.open("ab") as file:
        file.write(b"tail")
    return BYTES + b"tail"


def by_o_trunc(path: Path) -> bytes:
    path.write_bytes(b"short")
    return b"short"


def by_truncate(path: Path) -> bytes:
    os.truncate(path, 50_000)
    return BYTES[:50_000]


def by_mapping(path: Path) -> bytes:
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        mapping[5:8] = b"MAP"
    return BYTES[:5] + b"MAP" + BYTES[8:]


def by_rename_over(path: Path) -> bytes:
    other = path.with_name("other")
    other.write_bytes(b"renamed")
    other.rename(path)
    return b"renamed"


CHANGES = [by_pwrite, by_append, by_o_trunc, by_truncate, by_mapping, by_rename_over]


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("changed", ["source", "clone"])
@pytest.mark.parametrize("reader_opens", ["before the clone", "after the clone", "not"])
def test_what_is_written_to_one_never_shows_in_the_other(
    mounted: Any, state: str, changed: str, reader_opens: str
) -> None:
    expected: dict[Path, bytes] = {}
    readers = []
    for change in CHANGES:
        source = mounted.path / f"{change.__name__}.source"
        copy = mounted.path / f"{change.__name__}.clone"
        brought_to(mounted, source, state)
        written, other = (source, copy) if changed == "source" else (copy, source)
        if reader_opens == "before the clone":
            readers.append((source.open("rb", buffering=0), source))
        clone(mounted, source, copy)
        if reader_opens == "after the clone":
            readers += [(path.open("rb", buffering=0), path) for path in (source, copy)]
        before = other.stat()
        expected[written], expected[other] = change(written), BYTES
        assert other.stat().st_mtime_ns == before.st_mtime_ns
    for when in ("as it is", "sealed", "mounted again"):
        for path, data in expected.items():
            assert path.read_bytes() == data, path
            assert path.stat().st_size == len(data), path
        for file, path in readers:
            found = os.pread(file.fileno(), 1 << 20, 0)
            assert found in (BYTES, expected[path]), path
        if when == "as it is":
            mounted.agentfs("sync", mounted.path)
        else:
            for file, _path in readers:
                file.close()
            readers = []
            mounted.remount()


@pytest.mark.parametrize("by", ["descriptor", "mapping"])
def test_a_file_open_for_writing_is_cloned_as_it_is_then(mounted: Any, by: str) -> None:
    source, copy = mounted.path / "log", mounted.path / "copy"
    source.write_bytes(BYTES)
    with source.open("r+b", buffering=0) as file, mmap.mmap(file.fileno(), 0) as mapping:
        for number in range(3):
            new = b"entry %d" % number
            if by == "mapping":
                mapping[: len(new)] = new
            else:
                os.pwrite(file.fileno(), new, 0)
            clone(mounted, source, copy, "--force")
            os.pwrite(file.fileno(), b"after", 100)
            assert copy.read_bytes() == new + BYTES[len(new) :]
            copy.write_bytes(b"mine")
            assert source.read_bytes()[: len(new)] == new
            os.pwrite(file.fileno(), BYTES[100:105], 100)
        mapping[:4] = b"last"
    assert source.read_bytes()[:4] == b"last"
    assert copy.read_bytes() == b"mine"


def test_a_writer_of_a_clone_that_others_read_leaves_them_what_they_had(
    mounted: Any, mode: str
) -> None:
    source, copy = mounted.path / "a", mounted.path / "b"
    source.write_bytes(BYTES)
    clone(mounted, source, copy)
    number = copy.stat().st_ino
    with copy.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert mapped[:100] == BYTES[:100]
        with copy.open("r+b") as writer:
            writer.write(b"NEW")
        if mode == "relay":
            assert mapped[:] == BYTES, "as after a rename over it"
        assert copy.read_bytes() == b"NEW" + BYTES[3:]
        assert copy.stat().st_ino == number
        mounted.agentfs("sync", mounted.path)
        assert copy.read_bytes() == b"NEW" + BYTES[3:]
    assert source.read_bytes() == BYTES
    mounted.remount()
    assert copy.read_bytes() == b"NEW" + BYTES[3:]
    assert source.read_bytes() == BYTES


def make_agent(path: Path) -> None:
    (path / "conversations").mkdir(parents=True)
    (path / "prompt").write_bytes(BYTES)
    os.link(path / "prompt", path / "same prompt")
    for number in range(10):
        (path / "conversations" / f"{number}.jsonl").write_bytes(b"line %d\n" % number * 99)
    os.symlink("prompt", path / "link")
    os.mkfifo(path / "fifo", 0o600)
    with (path / "sparse").open("wb") as file:
        file.truncate(1 << 20)
    os.setxattr(path / "prompt", "user.kind", b"prompt")
    os.chmod(path / "conversations", 0o2750)
    os.utime(path / "prompt", ns=(5, 6))
    os.utime(path / "conversations", ns=(7, 8))


def seen(path: Path) -> dict[str, Any]:
    """What `find -printf` and reading tell of a tree."""
    found: dict[str, Any] = {}
    for entry in [path, *sorted(path.rglob("*"))]:
        status = entry.lstat()
        data = entry.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        names = os.listxattr(entry, follow_symlinks=False)
        xattrs = {name: os.getxattr(entry, name, follow_symlinks=False) for name in names}
        found[str(entry.relative_to(path))] = (
            *(status.st_mode, status.st_uid, status.st_gid, status.st_nlink, status.st_size),
            *(status.st_mtime_ns, status.st_blocks * 512 < status.st_size, xattrs, data),
        )
    return found


@pytest.mark.parametrize("sealed", [False, True])
def test_a_tree_is_cloned_with_all_that_it_is(mounted: Any, sealed: bool) -> None:
    agent = mounted.path / "agent"
    make_agent(agent)
    if sealed:
        mounted.agentfs("sync", mounted.path)
    chunks = mounted.stats()["chunks"]
    expected = seen(agent)
    for number in range(3):
        target = mounted.path / f"clone{number}"
        assert not target.exists(), "and the kernel remembers that"
        answer = clone(mounted, agent, target)
        assert answer["inode"] == target.stat().st_ino
        assert (answer["files"], answer["directories"]) == (14, 2)
        assert seen(target) == expected
    assert {path.name for path in mounted.path.iterdir()} == {
        *("agent", "clone0", "clone1", "clone2")
    }
    mounted.agentfs("sync", mounted.path)
    assert not sealed or mounted.stats()["chunks"] == chunks
    mounted.remount()
    assert seen(mounted.path / "clone2") == expected
    assert mounted.path.stat().st_nlink == 6


@pytest.fixture
def watched(mounted: Any) -> Iterator[Callable[[Path], list[Any]]]:
    """`watched(path)` lists, over and over, how many entries another thread sees there."""
    stop = threading.Event()
    threads = []

    def watch(path: Path) -> list[Any]:
        sights: list[Any] = []

        def look() -> None:
            while not stop.is_set():
                try:
                    sights.append(len(os.listdir(path)))
                except FileNotFoundError:
                    sights.append(None)
                except OSError as error:
                    sights.append(error)

        threads.append(threading.Thread(target=look))
        threads[-1].start()
        return sights

    yield watch
    stop.set()
    for thread in threads:
        thread.join(30)


def test_others_see_the_whole_tree_or_none(
    mounted: Any, watched: Callable[[Path], list[Any]]
) -> None:
    source, target = mounted.path / "source", mounted.path / "target"
    source.mkdir()
    for number in range(1500):
        (source / str(number)).write_bytes(b"%d" % number)
    sights = watched(target)
    clone(mounted, source, target)
    wait_until(lambda: 1500 in sights)
    (source / "one more").touch()
    clone(mounted, source, target, "--force")
    wait_until(lambda: 1501 in sights)
    last = sights.index(1501) - 1
    if isinstance(sights[last], int) and sights[last] < 1500:
        del sights[last]  # began to list the old tree before it was replaced
    assert set(sights) == {None, 1500, 1501}
    assert sights == sorted(sights, key=lambda sight: sight or 0), "each in its turn"


def test_who_has_the_old_tree_open_keeps_its_files(mounted: Any) -> None:
    agent, target = mounted.path / "agent", mounted.path / "target"
    make_agent(agent)
    clone(mounted, agent, target)
    (target / "prompt").write_bytes(b"old")
    with (target / "prompt").open("r+b", buffering=0) as file:
        directory = os.open(target / "conversations", os.O_RDONLY)
        clone(mounted, agent, target, "--force")
        assert file.read() == b"old"
        file.write(b", and written to")
        assert os.pread(file.fileno(), 100, 0) == b"old, and written to"
        with pytest.raises(FileNotFoundError):
            os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=directory)
        os.close(directory)
    assert seen(target) == seen(agent)
    mounted.remount()
    assert seen(target) == seen(agent)


@pytest.mark.timeout(180)
def test_a_kill_during_a_clone_leaves_the_whole_tree_or_none(mounted: Any) -> None:
    source = mounted.path / "source"
    for number in range(1200):
        (source / str(number % 40)).mkdir(exist_ok=True, parents=True)
        (source / str(number % 40) / f"f{number}").write_bytes(b"%d" % number)
    whole = len(list(source.rglob("*")))
    outcomes = []
    for attempt in range(6):
        target = mounted.path / f"target{attempt}"
        command = threading.Thread(target=run_agentfs, args=("clone", source, target), daemon=True)
        before = time.monotonic()
        if attempt == 0:  # how long it takes when it is left alone
            run_agentfs("clone", source, target)
            took_s = time.monotonic() - before
        else:
            command.start()
            time.sleep(took_s * (1 - 0.1 * attempt))
        mounted.kill()
        if attempt:
            command.join(30)
        mounted.mount()
        outcomes.append(len(list(target.rglob("*"))) if target.exists() else 0)
        assert len(list(source.rglob("*"))) == whole
    assert set(outcomes) <= {0, whole}
    assert outcomes[0] == whole
    for attempt, count in enumerate(outcomes):
        if count:
            target = mounted.path / f"target{attempt}"
            assert (target / "7" / "f7").read_bytes() == b"7"
    mounted.remount()


def test_programs_share_the_memory_of_a_clone_that_is_not_sealed_yet(
    mounted: Any, mode: str
) -> None:
    if mode != "relay":
        pytest.skip("pages are shared in relay mode only")
    source = mounted.path / "source"
    source.write_bytes(os.urandom(8 << 20))
    for number in range(8):
        clone(mounted, source, mounted.path / f"clone{number}")
    used = mounted.stats()["resident_bytes"]
    assert used < 9 << 20, "one file on the tmpfs for all"
    expected = source.read_bytes()
    for number in range(8):
        assert (mounted.path / f"clone{number}").read_bytes() == expected


def test_an_ordinary_user_gains_nothing(mounted: Any, as_root: None) -> None:
    """Neither by the command, which stops at rights or at the socket, nor by the socket."""
    secret = mounted.path / "secret"
    secret.write_bytes(b"secret")
    secret.chmod(0o600)
    mounted.path.chmod(0o777)
    status = os.stat(mounted.store / "control")
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o600, os.geteuid())
    script = (
        "import os, socket, sys; os.setgroups([]); os.setuid(65534)\n"
        "try: socket.socket(socket.AF_UNIX).connect(sys.argv[1])\n"
        "except PermissionError: print('refused')"
    )
    os.chmod(mounted.store, 0o755)
    with contextlib.chdir(mounted.store):
        command = [sys.executable, "-I", "-c", script, "control"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "refused\n"


def test_a_clone_is_seen_at_once_by_whoever_found_nothing_there_before(
    mounted: Any, mode: str
) -> None:
    root = mounted.path
    (root / "src").mkdir()
    (root / "src" / "file").write_bytes(b"bytes")
    os.listdir(root)
    before = root.stat()

    def clone(name: str) -> None:
        mounted.agentfs("clone", root / "src", root / name)
        assert (root / name / "file").read_bytes() == b"bytes"

    clone("never asked for")
    after = root.stat()
    assert (after.st_nlink, after.st_mtime_ns > before.st_mtime_ns) == (before.st_nlink + 1, True)
    assert not (root / "asked for").exists()
    clone("asked for")
    if mode == "relay":
        assert not (root / "of another worker").exists()
        mounted.agentfs("restart", root)
        clone("of another worker")
    (root / "gone").mkdir()
    (root / "gone").rmdir()
    clone("gone")
    (root / "moved").mkdir()
    (root / "moved").rename(root / "to here")
    clone("moved")
    names = [f"missing {number}" for number in range(8200)]
    assert not any((root / name).exists() for name in names)
    clone(names[0])
    clone(names[-1])
