"""All short sequences of operations, and then a power cut: what is promised is there."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentfs.filesystem import volume as volume_module
from fakes.disk import Disk, DiskStore, watch
from fakes.history import History, Seen
from fakes.recorder import Op, data_of
from fakes.recount import miscounts
from fakes.volumes import Machine, Shell, running

ALPHABET: list[Op] = [
    ("create", "b"),
    ("write", "a", 3, "new", 9000),
    ("write", "b", 0, "other", 6000),
    ("truncate", "a", 0),
    ("fsync", "a"),
    ("fsync", "b"),
    ("rename", "b", "a"),
    ("rename", "a", "c"),
    ("link", "b", "c"),
    ("unlink", "a"),
    ("chmod", "a", 0o666),
    ("fsyncdir",),
]

BEFORE = ("create", "a"), ("write", "a", 0, "old", 5000), ("fsync", "a")


def sequences(length: int) -> Iterator[tuple[Op, ...]]:
    """All that can be done where there is a file `a`."""
    for ops in itertools.product(ALPHABET, repeat=length):
        names = {"a"}
        for kind, *arguments in ops:
            takes = set(arguments[:1]) if kind != "create" else set()
            gives = set(arguments[:1]) if kind == "create" else set(arguments[1:2])
            if kind not in ("create", "rename", "link"):
                gives = set()
            if not takes <= names or (kind in ("create", "link") and gives & names):
                break
            names |= gives
            if kind in ("rename", "unlink"):
                names -= takes
        else:
            yield ops


async def perform(shell: Shell, op: Op) -> None:
    kind, *arguments = op
    if kind == "create":
        shell.mknod(arguments[0], 0o100644)
    elif kind == "write":
        name, offset, tag, length = arguments
        await shell.write(name, data_of(tag, length), offset)
    elif kind == "fsyncdir":
        await shell.volume.durability.sync()
    elif kind == "chmod":
        shell.change(arguments[0], mode=arguments[1])
    elif kind in ("truncate", "fsync"):
        await getattr(shell, kind)(*arguments)
    else:
        getattr(shell, kind)(*arguments)


async def look(shell: Shell) -> dict[str, Seen]:
    found = {}
    for name in map(bytes.decode, shell.names()):
        inode = shell.inode(name)
        found[name] = Seen(inode.id, inode.mode & 0o7777, await shell.read(name))
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    soak = metafunc.config.getoption("--soak")
    metafunc.parametrize("length", [1, 2, 3, 4] if soak else [1, 2])


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("wal_reached_the_disk", [False, True])
@pytest.mark.parametrize("seals", [False, True])
async def test_every_sequence_leaves_what_is_promised(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    length: int,
    seals: bool,
    wal_reached_the_disk: bool,
) -> None:
    """With *seals*, what rests is sealed after each operation."""
    monkeypatch.setattr(volume_module, "Store", DiskStore)
    for number, ops in enumerate(sequences(length)):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        machine = Machine(folder)
        monkeypatch.setattr("agentfs.filesystem.staging.TMPFS", machine.tmpfs)
        disk = Disk(machine.store, folder / "durable")
        monkeypatch.setattr(DiskStore, "disk", disk, raising=False)
        shell = machine.open()
        watch(shell.volume.index, disk)
        shell.volume.index.checkpoint()
        history = History()
        async with running(shell.volume):
            for op in (*BEFORE, *ops):
                history.begin(op)
                await perform(shell, op)
                history.done()
                if seals:
                    await shell.volume.sealer.seal(
                        list(shell.volume.table.staged_files()), wait=True
                    )
        machine.kill()
        disk.cut_power(machine.tmpfs, wal_reached_the_disk=wal_reached_the_disk)
        (machine.store / "boot").write_text("an earlier boot\n")
        shell = machine.open()
        wrong = history.after_cut(await look(shell))
        assert wrong is None, f"{ops}: {wrong}"
        assert not miscounts(shell.volume.index), ops
        machine.close()
