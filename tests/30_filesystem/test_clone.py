"""A clone shows what its source was, shares its bytes, and is independent of it from then on."""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from agentfs.filesystem import clone as clone_module
from agentfs.filesystem.namespace import AttributeChange
from agentfs.index import Index
from agentfs.model import ROOT_INODE
from fakes.recount import miscounts
from fakes.volumes import Machine, Shell, profile, running

BYTES = bytes(range(256)) * 40


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trees of more than seven names take several transactions."""
    monkeypatch.setattr(clone_module, "_BATCH", 7)


def checked(shell: Shell) -> None:
    """Every count in the index is right."""
    shell.volume.table.reap()
    assert not miscounts(shell.volume.index)


def chunks(shell: Shell) -> int:
    (count,) = shell.volume.index.execute("SELECT count(*) FROM chunk").fetchone()
    return int(count)


async def contents(shell: Shell, path: str) -> dict[str, object]:
    """Everything below *path*, with bytes; not atime, which reading changes."""
    found: dict[str, object] = {}
    pending = [path]
    while pending:
        here = pending.pop()
        attributes = shell.attributes(here)
        mtime = shell.times(here)[1]
        data = await shell.read(here) if stat.S_ISREG(attributes.mode) else b""
        found[here.removeprefix(path)] = attributes, mtime, shell.xattrs(here), data
        if stat.S_ISDIR(attributes.mode):
            pending += [f"{here}/{os.fsdecode(name)}" for name in shell.names(here)]
    return found


async def make_tree(shell: Shell) -> None:
    """Every type of file, twenty names; half of the bytes are sealed."""
    shell.mkdir("/src", 0o750)
    for number in range(5):
        await shell.write(f"/src/sealed{number}", BYTES + bytes([number]))
    shell.mkdir("/src/deep")
    shell.mkdir("/src/deep/deeper", 0o1777)
    await shell.write("/src/deep/deeper/a", b"a")
    await shell.write("/src/sparse", b"end", 1 << 20)
    await shell.sync()
    for number in range(3):
        await shell.write(f"/src/staged{number}", BYTES + bytes([number]))
    await shell.append("/src/sealed0", b"more, not sealed")
    shell.link("/src/sealed1", "/src/deep/link to sealed1")
    shell.link("/src/staged1", "/src/deep/deeper/link to staged1")
    shell.link("/src/sealed2", "/link from outside")
    shell.symlink(b"staged0", "/src/symlink")
    shell.mknod("/src/fifo", stat.S_IFIFO | 0o600)
    shell.mknod("/src/device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    shell.mknod("/src/empty", stat.S_IFREG | 0o644)
    shell.set_xattr("/src/sealed3", b"user.kind", b"prompt")
    shell.set_xattr("/src/deep", b"security.label", b"secret")
    shell.change("/src/sealed4", mode=0o4755, uid=7, gid=8)
    shell.change("/src/staged2", mode=0o600, uid=9, gid=9)
    for number, path in enumerate(["/src/sealed0", "/src/staged0", "/src/staged1", "/src/staged2"]):
        shell.change(path, mtime_ns=1_000_000_001 + number)
    shell.change("/src/deep", mtime_ns=5)


@pytest.mark.parametrize("state", ["staged", "sealed", "sealed and open", "mixed"])
async def test_a_tree_is_cloned_with_all_that_it_is(
    shell: Shell, machine: Machine, state: str, small_batches: None
) -> None:
    await make_tree(shell)
    if state.startswith("sealed"):
        await shell.sync()
    handle = shell.open("/src/staged0") if state == "sealed and open" else None
    known = chunks(shell)
    for target in ("/one", "/two"):
        cloned = await shell.clone("/src", target)
        assert (cloned.files, cloned.directories) == (14, 3)
    expected = await contents(shell, "/src")
    del expected["/sealed2"]
    for target in ("/one", "/two"):
        found = await contents(shell, target)
        outside = found.pop("/sealed2")
        assert found == expected
        assert outside[0].nlink == 1, "its other name is not in the tree"
        assert shell.is_same(f"{target}/sealed1", f"{target}/deep/link to sealed1")
        assert shell.is_same(f"{target}/staged1", f"{target}/deep/deeper/link to staged1")
        assert not shell.is_same(f"{target}/sealed1", "/src/sealed1")
    checked(shell)
    if handle is not None:
        shell.close(handle)
    await shell.sync()
    after = chunks(shell)
    await machine.unmount()
    shell = machine.open()
    assert (await contents(shell, "/two")).keys() == (await contents(shell, "/src")).keys()
    checked(shell)
    if state.startswith("sealed"):
        assert after == known, "a clone adds no chunk"
    assert not machine.staged_names()


async def test_a_clone_of_sealed_files_reads_and_stages_nothing(shell: Shell) -> None:
    await shell.write("/a", BYTES)
    await shell.sync()
    before = shell.volume.stats()
    await shell.clone("/a", "/b")
    after = shell.volume.stats()
    assert not shell.is_staged("/b")
    assert shell.recipe("/b") == shell.recipe("/a")
    for key in ("cache_hits", "cache_misses", "staged_files", "resident_bytes"):
        assert after[key] == before[key], key


async def test_a_clone_of_a_staged_file_is_the_same_file_on_tmpfs(
    shell: Shell, machine: Machine
) -> None:
    await shell.write("/a", BYTES)
    used = shell.volume.staging.used_bytes
    for number in range(5):
        await shell.clone("/a", f"/b{number}")
    staged = [shell.file(path).staged for path in ("/a", "/b0", "/b4")]
    assert len({os.stat(one.path).st_ino for one in staged if one is not None}) == 1
    assert shell.volume.staging.used_bytes == used
    shell.unlink("/a")
    assert shell.volume.staging.used_bytes == used
    await shell.sync()
    assert shell.volume.staging.used_bytes == 0
    assert not machine.staged_names()


async def by_pwrite(shell: Shell, path: str) -> bytes:
    await shell.write(path, b"NEW", 10)
    return BYTES[:10] + b"NEW" + BYTES[13:]


async def by_append(shell: Shell, path: str) -> bytes:
    await shell.append(path, b"tail")
    return BYTES + b"tail"


async def by_cutting(shell: Shell, path: str) -> bytes:
    await shell.truncate(path, 5000)
    return BYTES[:5000]


async def by_emptying(shell: Shell, path: str) -> bytes:
    await shell.truncate(path, 0)
    return b""


async def by_extending(shell: Shell, path: str) -> bytes:
    await shell.truncate(path, len(BYTES) + 10)
    return BYTES + bytes(10)


CHANGES = [by_pwrite, by_append, by_cutting, by_emptying, by_extending]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("changed", ["/a", "/b"])
@pytest.mark.parametrize("sealed", ["never", "before", "between", "before, and open"])
async def test_what_is_written_to_one_never_shows_in_the_other(
    shell: Shell, machine: Machine, change: Callable[..., object], changed: str, sealed: str
) -> None:
    await shell.write("/a", BYTES)
    handle = shell.open("/a") if sealed == "before, and open" else None
    if sealed.startswith("before"):
        await shell.sync()
    await shell.clone("/a", "/b")
    if sealed == "between":
        await shell.seal("/a")
    other = "/b" if changed == "/a" else "/a"
    reader = shell.open(other, os.O_RDONLY)
    times = shell.times(other)
    expected = await change(shell, changed)  # type: ignore[misc]
    assert await shell.read(changed) == expected
    assert await shell.pread(reader, 1 << 20, 0) == BYTES
    assert await shell.read(other) == BYTES
    assert shell.times(other)[1] == times[1]
    shell.close(reader)
    if handle is not None:
        shell.close(handle)
    machine.kill()
    shell = machine.open()
    assert await shell.read(changed) == expected
    assert await shell.read(other) == BYTES
    await machine.unmount()
    shell = machine.open()
    assert await shell.read(changed) == expected
    assert await shell.read(other) == BYTES
    checked(shell)


async def test_times_of_two_that_share_a_staged_file_are_their_own_after_a_kill(
    shell: Shell, machine: Machine
) -> None:
    await shell.write("/a", BYTES)
    shell.change("/a", atime_ns=11, mtime_ns=12)
    await shell.clone("/a", "/b")
    assert shell.times("/b") == (11, 12)
    shell.change("/b", atime_ns=21, mtime_ns=22)
    await shell.clone("/b", "/c")
    shell.change("/a", mtime_ns=13)
    expected = {"/a": (11, 13), "/b": (21, 22), "/c": (21, 22)}
    for _ in ("as it is", "after a kill", "after another"):
        assert {path: shell.times(path) for path in expected} == expected
        machine.kill()
        shell = machine.open()
    await shell.append("/b", b"!")
    assert await shell.read("/a") == await shell.read("/c") == BYTES
    assert shell.times("/a")[1] == expected["/a"][1]


async def test_the_mtime_of_a_written_file_survives_its_clone_and_a_kill(
    shell: Shell, machine: Machine
) -> None:
    await shell.write("/a", BYTES)
    times = shell.times("/a")
    await shell.clone("/a", "/b")
    machine.kill()
    shell = machine.open()
    assert shell.times("/a") == shell.times("/b") == times


async def test_files_staged_on_disk_are_shared_as_well(machine: Machine) -> None:
    shell = machine.open(profile(budget_bytes=1000))
    await shell.write("/a", BYTES)
    await shell.clone("/a", "/b")
    staged = [shell.file(path).staged for path in ("/a", "/b")]
    assert all(one is not None and one.on_disk for one in staged)
    await shell.append("/b", b"!")
    assert await shell.read("/a") == BYTES
    machine.kill()
    shell = machine.open()
    assert (await shell.read("/a"), await shell.read("/b")) == (BYTES, BYTES + b"!")


async def test_a_shared_file_that_outgrows_the_tmpfs_leaves_its_twin_alone(
    machine: Machine,
) -> None:
    shell = machine.open(profile(budget_bytes=2 * len(BYTES) + 8192))
    await shell.write("/a", BYTES)
    await shell.clone("/a", "/b")
    await shell.write("/b", BYTES * 3, len(BYTES))
    staged = shell.file("/b").staged
    assert staged is not None
    assert staged.on_disk
    assert await shell.read("/a") == BYTES
    assert await shell.read("/b") == BYTES * 4
    await shell.sync()
    assert await shell.read("/b") == BYTES * 4
    assert shell.volume.staging.used_bytes == 0


async def test_a_clone_while_the_file_is_sealed_and_written(shell: Shell) -> None:
    """Whatever the order, each clone is what the file was when it was made."""
    await shell.write("/a", BYTES)
    async with trio.open_nursery() as nursery, running(shell.volume):
        nursery.start_soon(shell.sync)
        expected = {}
        handle = shell.open("/a")
        for number in range(20):
            await shell.pwrite(handle, bytes([65 + number]) * 100, number * 50)
            await shell.clone("/a", f"/b{number}")
            expected[f"/b{number}"] = await shell.read("/a")
            if number % 4 == 0:
                nursery.start_soon(shell.sync)
            await trio.sleep(0.001)
        shell.close(handle)
    for path, data in expected.items():
        assert await shell.read(path) == data, path
    await shell.sync()
    for path, data in expected.items():
        assert await shell.read(path) == data, path
    checked(shell)


async def test_a_file_that_is_replaced_by_a_clone_stays_with_who_has_it_open(
    shell: Shell,
) -> None:
    await shell.write("/a", b"new")
    await shell.write("/b", b"old")
    handle = shell.open("/b")
    await shell.clone("/a", "/b", replaces=True)
    assert await shell.read("/b") == b"new"
    assert await shell.pread(handle, 10, 0) == b"old"
    shell.close(handle)
    checked(shell)


@pytest.mark.parametrize("kind", ["file", "tree", "symlink"])
async def test_a_tree_replaces_anything_at_one_moment(
    shell: Shell, kind: str, small_batches: None
) -> None:
    await make_tree(shell)
    if kind == "file":
        await shell.write("/dst", b"old")
    elif kind == "symlink":
        shell.symlink(b"src", "/dst")
    else:
        await shell.clone("/src", "/dst")
        await shell.write("/dst/deep/only here", b"old")
        shell.link("/dst/staged0", "/link into the old tree")
    seen = []

    async def look(parent: int, name: bytes, is_new: bool) -> None:
        seen.append((parent, name, is_new, shell.exists("/dst/deep/only here")))

    shell.volume.cloner.announce = look
    await shell.clone("/src", "/dst", replaces=True)
    assert seen == [(ROOT_INODE, b"dst", False, False)]
    if kind == "tree":
        assert shell.attributes("/link into the old tree").nlink == 1
        assert await shell.read("/link into the old tree") == BYTES + b"\0"
        shell.unlink("/link into the old tree")
    expected, found = await contents(shell, "/src"), await contents(shell, "/dst")
    assert {**found, "/sealed2": None} == {**expected, "/sealed2": None}
    checked(shell)
    (count,) = shell.volume.index.execute("SELECT count(*) FROM inode").fetchone()
    assert count == 1 + 2 * 17, "nothing is left of what was replaced"


async def test_names_of_one_file_in_a_replaced_directory_go_together(shell: Shell) -> None:
    for path in ("/src", "/dst"):
        shell.mkdir(path)
        await shell.write(f"{path}/a", BYTES)
    for number in range(3):
        shell.link("/dst/a", f"/dst/b{number}")
    shell.link("/dst/a", "/outside")
    await shell.clone("/src", "/dst", replaces=True)
    assert shell.attributes("/outside").nlink == 1
    shell.unlink("/outside")
    checked(shell)
    (count,) = shell.volume.index.execute("SELECT count(*) FROM inode").fetchone()
    assert count == 5


async def test_a_directory_that_was_replaced_takes_no_names_any_more(
    shell: Shell, small_batches: None
) -> None:
    await make_tree(shell)
    await shell.clone("/src", "/dst")
    old = shell.inode("/dst/deep").id
    shell.volume.table.looked_up(old)  # somebody's working directory
    await shell.clone("/src", "/dst", replaces=True)
    names = shell.volume.namespace
    for attempt in (
        lambda: names.create(old, b"new", stat.S_IFREG | 0o644, shell.caller),
        lambda: names.link(shell.inode("/src/empty").id, old, b"new"),
        lambda: names.rename(*shell.place("/src/empty"), old, b"new", 0),
    ):
        with pytest.raises(OSError, match="directory is gone"):
            attempt()
    shell.volume.table.forget(old, 1)
    checked(shell)


REFUSED = [
    ("/src", "/src/inside", False, "within the source"),
    ("/src", "/src", True, "is the source"),
    ("/src/deep", "/src", True, "holds it"),
    ("/", "/inside", False, "within the source"),
    ("/src", "/", True, "cannot be replaced"),
    ("/src", "/taken", False, "is taken"),
    ("/missing", "/new", False, "no such name"),
    ("/src", "/missing/new", False, "no such name"),
    ("/src", "/taken/new", False, "not a directory"),
    ("/taken/new", "/new", False, "not a directory"),
    ("/src", "/" + 256 * "n", False, "too long"),
]


@pytest.mark.parametrize(("source", "target", "replaces", "why"), REFUSED)
async def test_what_cannot_be_cloned_is_refused_and_leaves_nothing(
    shell: Shell, source: str, target: str, replaces: bool, why: str
) -> None:
    shell.mkdir("/src")
    shell.mkdir("/src/deep")
    await shell.write("/taken", b"taken")
    changes = shell.volume.index.changes
    with pytest.raises(OSError, match=why):
        await shell.clone(source, target, replaces=replaces)
    assert shell.volume.index.changes == changes
    checked(shell)


async def test_a_name_taken_meanwhile_is_not_replaced(shell: Shell, small_batches: None) -> None:
    await make_tree(shell)
    async with trio.open_nursery() as nursery:

        async def take() -> None:
            await shell.write("/dst", b"mine")

        nursery.start_soon(take)
        with pytest.raises(FileExistsError):
            await shell.clone("/src", "/dst")
    assert await shell.read("/dst") == b"mine"
    checked(shell)
    (unlinked,) = shell.volume.index.execute(
        "SELECT count(*) FROM inode WHERE nlink = 0"
    ).fetchone()
    assert unlinked == 0


async def test_a_large_tree_is_seen_whole_or_not_at_all(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clone_module, "_BATCH", 2)
    await make_tree(shell)
    looks = []

    async def look() -> None:
        while True:
            looks.append(shell.exists("/dst"))
            if looks[-1]:
                assert await contents(shell, "/dst") == found
                return
            await trio.lowlevel.checkpoint()

    await shell.clone("/src", "/like")
    found = await contents(shell, "/like")
    shell.unlink("/link from outside")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        await shell.clone("/src", "/dst")
    assert looks.count(False) > 1, "others had their turn meanwhile"


class Killed(BaseException):
    """The daemon ends here."""


@pytest.mark.parametrize("replaces", [False, True])
async def test_a_kill_at_any_moment_leaves_the_whole_clone_or_none(
    machine: Machine, replaces: bool, small_batches: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each run dies before a later statement of SQL than the one before."""
    shell = machine.open()
    await make_tree(shell)
    if replaces:
        shell.mkdir("/dst")
        await shell.write("/dst/old", b"old")
        for number in range(9):
            await shell.clone("/dst/old", f"/dst/old{number}")
    outcomes = set()
    source = await contents(shell, "/src")
    for at in range(1, 200, 3):
        left = at

        def count_down(statement: str) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed

        def trace(*, on: bool, shell: Shell = shell) -> None:
            index = shell.volume.index
            for noun in (index.inodes, index.dentries, index.contents, index.xattrs):
                for name in ("_execute", "_executemany"):
                    if hasattr(noun, name):
                        original = getattr(index, name.removeprefix("_"))
                        setattr(noun, name, counted(original) if on else original)

        def counted(original: Callable[..., object]) -> Callable[..., object]:
            def call(statement: str, *arguments: object) -> object:
                if not statement.startswith("SELECT"):
                    count_down(statement)
                return original(statement, *arguments)

            return call

        monkeypatch.setattr(shell.volume.cloner, "_remove", killed_remove(shell))
        trace(on=True)
        finished = False
        try:
            await shell.clone("/src", "/dst", replaces=replaces)
            finished = True
        except Killed:
            pass
        trace(on=False)
        machine.kill()
        shell = machine.open()
        checked(shell)
        assert await contents(shell, "/src") == source
        if shell.exists("/dst/deep"):
            found = await contents(shell, "/dst")
            assert {**found, "/sealed2": 0} == {**source, "/sealed2": 0}
            outcomes.add("whole")
            await machine.unmount()  # and again from before
            shell = machine.open()
            await remove(shell, "/dst")
        else:
            outcomes.add("none")
            assert shell.exists("/dst") == replaces
        if replaces and not shell.exists("/dst"):
            shell.mkdir("/dst")
            await shell.write("/dst/old", b"old")
        shell.volume.table.reap()
        (hidden,) = shell.volume.index.execute(
            "SELECT count(*) FROM inode WHERE nlink = 0"
        ).fetchone()
        assert hidden == 0
        if finished:
            break
        source = await contents(shell, "/src")
    assert outcomes == {"whole", "none"}


def killed_remove(shell: Shell) -> Callable[..., object]:
    """What is dead tidies up nothing."""

    async def remove(directory: object) -> None:
        pass

    return remove


async def remove(shell: Shell, path: str) -> None:
    for name in shell.names(path):
        below = f"{path}/{os.fsdecode(name)}"
        if stat.S_ISDIR(shell.attributes(below).mode):
            await remove(shell, below)
        else:
            shell.unlink(below)
    shell.rmdir(path)


async def test_a_tree_being_made_when_the_daemon_was_killed_is_gone(
    machine: Machine, small_batches: None
) -> None:
    shell = machine.open()
    await make_tree(shell)
    (before,) = shell.volume.index.execute("SELECT count(*) FROM inode").fetchone()
    staged = machine.staged_names()

    class Enough(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise Enough

    shell.volume.cloner._remove = killed_remove(shell)  # type: ignore[method-assign,assignment]
    with pytest.raises(Enough):
        await shell.volume.clone(b"src", b"dst", replaces=False, progress=stop)
    (during,) = shell.volume.index.execute("SELECT count(*) FROM inode").fetchone()
    assert during > before
    machine.kill()
    shell = machine.open()
    (after,) = shell.volume.index.execute("SELECT count(*) FROM inode").fetchone()
    assert after == before
    assert machine.staged_names() == staged
    checked(shell)
    await machine.unmount()


async def test_a_clone_that_fails_leaves_nothing(
    shell: Shell, small_batches: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_tree(shell)
    (before,) = shell.volume.index.execute("SELECT count(*) FROM inode").fetchone()
    used = shell.volume.staging.used_bytes
    calls = 0
    real = shell.volume.files.share

    def full(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError(errno.ENOSPC, "full")
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(shell.volume.files, "share", full)
    with pytest.raises(OSError, match="full"):
        await shell.clone("/src", "/dst")
    assert not shell.exists("/dst")
    shell.volume.table.reap()
    (after,) = shell.volume.index.execute("SELECT count(*) FROM inode").fetchone()
    assert after == before
    assert shell.volume.staging.used_bytes == used
    checked(shell)


async def test_many_clones_at_once(shell: Shell, small_batches: None) -> None:
    await make_tree(shell)
    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(shell.clone, "/src", f"/dst{number}")
    shell.unlink("/link from outside")
    expected = await contents(shell, "/src")
    for number in range(5):
        assert await contents(shell, f"/dst{number}") == expected
    checked(shell)


async def test_a_hard_link_made_in_a_later_batch_is_counted(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clone_module, "_BATCH", 2)
    shell.mkdir("/src")
    await shell.write("/src/a", b"linked")
    for number in range(9):
        shell.link("/src/a", f"/src/b{number}")
    await shell.clone("/src", "/dst")
    assert shell.attributes("/dst/a").nlink == 10
    checked(shell)
    shell.unlink("/dst/a")
    await shell.sync()
    assert await shell.read("/dst/b8") == b"linked"
    checked(shell)


async def test_clones_of_clones_while_files_change(machine: Machine) -> None:
    """Random writes, clones, seals and kills; each file is what it was written to be."""
    shell = machine.open()
    rng = random.Random(7)
    expected: dict[str, bytes] = {"/0": BYTES}
    await shell.write("/0", BYTES)
    for step in range(300):
        path = rng.choice(sorted(expected))
        match rng.choice(["clone", "clone", "write", "cut", "seal", "unlink", "kill", "utime"]):
            case "clone":
                target = f"/{rng.randrange(12)}"
                if target != path:
                    await shell.clone(path, target, replaces=True)
                    expected[target] = expected[path]
            case "write":
                at = rng.randrange(len(expected[path]) + 1)
                data = bytes([step % 256]) * rng.randrange(1, 3000)
                await shell.write(path, data, at)
                old = expected[path]
                expected[path] = old[:at] + data + old[at + len(data) :]
            case "cut":
                size = rng.randrange(len(expected[path]) + 1)
                await shell.truncate(path, size)
                expected[path] = expected[path][:size]
            case "seal":
                if shell.is_staged(path):
                    await shell.seal(path)
            case "unlink":
                if len(expected) > 1:
                    shell.unlink(path)
                    del expected[path]
            case "kill":
                machine.kill()
                shell = machine.open()
            case "utime":
                shell.volume.namespace.change_attributes(
                    shell.inode(path), AttributeChange(mtime_ns=step)
                )
        for path, data in expected.items():
            assert await shell.read(path) == data, (step, path)
    await shell.sync()
    assert shell.volume.staging.used_bytes == 0
    checked(shell)


async def test_a_file_with_a_name_outside_survives_a_tree_that_is_dropped(tmp_path: Path) -> None:
    """Its other names go with the tree."""
    index = Index(tmp_path)
    rows = [(2, 0o40755, 0), (3, 0o40755, 2), (4, 0o100644, 2), (5, 0o100644, 1)]
    with index.transaction:
        for number, mode, nlink in rows:
            index.execute(
                "INSERT INTO inode VALUES (?, ?, 0, 0, ?, 0, 0, 0, 0, NULL, NULL, NULL, NULL, ?)",
                (number, mode, nlink, 2 if number == 3 else None),
            )
        index.dentries.insert_all([(2, b"sub", 3), (3, b"in", 4), (1, b"out", 4), (3, b"only", 5)])
        index.remove_unlinked()
    assert index.execute("SELECT id, nlink FROM inode").fetchall() == [(1, 2), (4, 1)]
    assert not miscounts(index)
    index.close()
