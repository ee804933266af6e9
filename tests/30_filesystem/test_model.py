"""Any sequence of operations on a volume gives what it gives on the model.

Between the operations files are sealed, garbage is collected, and the volume is closed and killed
and opened again. Hypothesis looks for a sequence that shows a difference and shortens it.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentfs.filesystem import staging
from agentfs.filesystem.files import Handle
from contracts.namespace import errno_of
from fakes.model import Model, ModelHandle
from fakes.recount import miscounts
from fakes.volumes import AGENT, ROOT, Machine, profile

PATHS = ["/a", "/b", "/c", "/d", "/d/a", "/d/b", "/d/e", "/d/e/a", "/x", "/x/a"]
SIZES = [0, 1, 5, 4095, 4096, 4097, 20_000, 70_000]
SLOTS = 3

paths = st.sampled_from(PATHS)
modes = st.sampled_from([0o644, 0o755, 0o4755, 0o2755, 0o2644, 0o600, 0o1777])
numbers = st.sampled_from(SIZES)
lengths = st.sampled_from(SIZES[1:])
slots = st.integers(0, SLOTS - 1)


def some_bytes(seed: int, size: int) -> bytes:
    """Few different ones, so that duplicates are common; they compress, and are no zeros."""
    line = b"line %d of what the agent said\n" % seed
    return (line * (size // len(line) + 1))[:size]


data = st.builds(some_bytes, st.integers(1, 4), numbers)
operations = st.one_of(
    st.tuples(st.just("write"), paths, data, numbers),
    st.tuples(st.just("write"), paths, data, st.just(0)),
    st.tuples(st.just("append"), paths, data),
    st.tuples(st.just("replace"), paths, data),
    st.tuples(st.just("truncate"), paths, numbers),
    st.tuples(st.just("allocate"), paths, st.sampled_from([0, 1, 3, 16, 17]), numbers, lengths),
    st.tuples(st.just("copy_range"), paths, numbers, paths, numbers, lengths),
    st.tuples(st.just("open unnamed"), slots, st.sampled_from(["", "/d", "/x"])),
    st.tuples(st.just("name"), slots, paths),
    st.tuples(st.just("mkdir"), st.sampled_from(["/d", "/d/e", "/x", "/x/a"])),
    st.tuples(st.just("mknod"), paths, st.sampled_from([stat.S_IFIFO, stat.S_IFREG])),
    st.tuples(st.just("symlink"), st.just(b"target"), paths),
    st.tuples(st.just("link"), paths, paths),
    st.tuples(st.just("unlink"), paths),
    st.tuples(st.just("rmdir"), paths),
    st.tuples(st.just("rename"), paths, paths, st.sampled_from([0, 0, 0, 1, 2])),
    st.tuples(st.just("clone"), paths, paths),
    st.tuples(st.just("clone over"), paths, paths),
    st.tuples(st.just("chmod"), paths, modes),
    st.tuples(st.just("chown"), paths, st.sampled_from([0, 1000])),
    st.tuples(st.just("utime"), paths, st.integers(1, 10**18)),
    st.tuples(st.just("set_xattr"), paths, st.just(b"user.kind"), data),
    st.tuples(st.just("remove_xattr"), paths, st.just(b"user.kind")),
    st.tuples(st.just("become"), st.sampled_from([ROOT, AGENT])),
    st.tuples(st.just("open"), slots, paths),
    st.tuples(st.just("pwrite"), slots, data, numbers),
    st.tuples(st.just("pread"), slots, numbers, numbers),
    st.tuples(st.just("close"), slots),
)
events = st.sampled_from(["seal one", "sync", "collect", "kill", "reopen", "reap"])
steps = st.lists(
    st.one_of(operations, operations, operations, operations, st.tuples(events)),
    min_size=5,
    max_size=60,
)

STAGED: list[tuple[Any, ...]] = [
    ("mkdir", "/d"),
    ("write", "/a", some_bytes(1, 20_000), 0),
    ("write", "/b", some_bytes(2, 5), 4096),
    ("write", "/c", some_bytes(3, 70_000), 0),
    ("write", "/d/a", some_bytes(4, 4097), 0),
    ("open unnamed", 0, "/d"),
    ("pwrite", 0, some_bytes(1, 4096), 0),
]
BEGINNINGS: dict[str, list[tuple[Any, ...]]] = {
    "nothing": [],
    "staged files": STAGED,
    "sealed files": [*STAGED, ("sync",)],
}
"""What most operations need to find."""


class Comparison:
    """The same operations on both."""

    def __init__(self, machine: Machine, budget_bytes: int) -> None:
        self._machine = machine
        self._settings = profile(budget_bytes=budget_bytes, block_bytes=64 * 1024)
        self._real = machine.open(self._settings)
        self._model = Model()
        self._open: dict[int, tuple[Handle, ModelHandle]] = {}

    async def step(self, operation: str, *arguments: Any) -> None:
        event = getattr(self, f"_{operation.replace(' ', '_')}", None)
        if event is not None:
            await event(*arguments)
            return
        outcomes = [
            await outcome(getattr(side, operation), *arguments)
            for side in (self._real, self._model)
        ]
        assert outcomes[0] == outcomes[1], (operation, arguments)

    async def check(self) -> None:
        """Names, attributes and bytes are the same everywhere."""
        pending = [""]
        while pending:
            path = pending.pop()
            assert self._real.names(path) == self._model.names(path), path
            for name in self._model.names(path):
                below = f"{path}/{os.fsdecode(name)}"
                await self._check_one(below)
                if self._model.node(below).is_directory:
                    pending.append(below)
        assert self._real.attributes("").nlink == self._model.attributes("").nlink
        self._real.volume.table.reap()
        assert not miscounts(self._real.volume.index)

    async def _check_one(self, path: str) -> None:
        assert self._real.attributes(path) == self._model.attributes(path), path
        assert self._real.xattrs(path) == self._model.xattrs(path), path
        expected = self._model.times(path)
        known = [
            mine if theirs is not None else None
            for mine, theirs in zip(self._real.times(path), expected, strict=True)
        ]
        assert known == list(expected), path
        if stat.S_ISREG(self._model.node(path).mode):
            assert await self._real.read(path) == await self._model.read(path), path

    # What has other names or no counterpart

    async def _become(self, caller: Any) -> None:
        self._real.caller = self._model.caller = caller

    async def _chmod(self, path: str, mode: int) -> None:
        await self._change(path, mode=mode)

    async def _chown(self, path: str, uid: int) -> None:
        await self._change(path, uid=uid, gid=uid)

    async def _clone_over(self, source: str, target: str) -> None:
        outcomes = [
            await outcome(lambda side=side: side.clone(source, target, replaces=True))
            for side in (self._real, self._model)
        ]
        assert outcomes[0] == outcomes[1], ("clone over", source, target)

    async def _utime(self, path: str, time_ns: int) -> None:
        await self._change(path, atime_ns=time_ns, mtime_ns=time_ns // 2 + 1)

    async def _change(self, path: str, **fields: int) -> None:
        outcomes = [
            await outcome(lambda side=side: side.change(path, **fields))
            for side in (self._real, self._model)
        ]
        assert outcomes[0] == outcomes[1], ("change", path, fields)

    async def _open_(self, slot: int, path: str) -> None:
        await self._open_both(slot, lambda side: side.open(path))

    async def _open_unnamed(self, slot: int, directory: str) -> None:
        await self._open_both(slot, lambda side: side.open_unnamed(directory))

    async def _name(self, slot: int, path: str) -> None:
        outcomes = [await outcome(side.name, handle, path) for side, handle in self._both(slot)]
        assert len(set(outcomes)) <= 1, ("name", slot, path)

    async def _open_both(self, slot: int, open_on: Callable[[Any], Any]) -> None:
        await self._close(slot)
        handles = []
        for side in (self._real, self._model):
            try:
                handles.append(open_on(side))
            except OSError as error:
                handles.append(errno_of(error))
        if isinstance(handles[0], Handle):
            self._open[slot] = handles[0], handles[1]
        else:
            assert handles[0] == handles[1]

    async def _pwrite(self, slot: int, written: bytes, offset: int) -> None:
        for side, handle in self._both(slot):
            await side.pwrite(handle, written, offset)

    async def _pread(self, slot: int, size: int, offset: int) -> None:
        found = [await side.pread(handle, size, offset) for side, handle in self._both(slot)]
        assert len(set(found)) <= 1, ("pread", slot, size, offset)

    def _both(self, slot: int) -> list[tuple[Any, Any]]:
        if slot not in self._open:
            return []
        return list(zip((self._real, self._model), self._open[slot], strict=True))

    async def _close(self, slot: int) -> None:
        for side, handle in self._both(slot):
            side.close(handle)
        self._open.pop(slot, None)

    # Events

    async def _seal_one(self) -> None:
        staged = [file for file in self._real.volume.table.staged_files() if file.is_dirty]
        await self._real.volume.sealer.seal(staged[:1], wait=True)

    async def _sync(self) -> None:
        await self._real.sync()

    async def _collect(self) -> None:
        await self._real.collect()

    async def _reap(self) -> None:
        self._real.volume.table.reap()

    async def _kill(self) -> None:
        self._machine.kill()
        self._reopened()

    async def _reopen(self) -> None:
        await self._machine.unmount()
        assert not self._machine.staged_names() or self._machine.tmpfs.exists()
        self._reopened()

    def _reopened(self) -> None:
        self._open.clear()
        self._real = self._machine.open(self._settings)
        self._real.caller = self._model.caller


async def outcome(function: Callable[..., Any], *arguments: Any) -> int | None:
    """The errno, or None: it worked."""
    try:
        result = function(*arguments)
        if hasattr(result, "__await__"):
            await result
    except OSError as error:
        return errno_of(error)
    return None


async def compare(sequence: list[tuple[Any, ...]], budget_bytes: int) -> None:
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        machine = Machine(Path(directory))
        patch.setattr(staging, "TMPFS", machine.tmpfs)
        try:
            comparison = Comparison(machine, budget_bytes)
            for operation, *arguments in sequence:
                name = "open_" if operation == "open" else operation
                await comparison.step(name, *arguments)
            await comparison.check()
            await comparison._reopen()
            await comparison.check()
            assert not machine.staged_names()
        finally:
            machine.close()


@pytest.mark.timeout(300)
@given(st.sampled_from(list(BEGINNINGS)), steps, st.sampled_from([1 << 30, 30_000]))
@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_a_volume_agrees_with_the_model(
    beginning: str, sequence: list[tuple[Any, ...]], budget_bytes: int
) -> None:
    trio.run(compare, BEGINNINGS[beginning] + sequence, budget_bytes)


def test_the_comparison_sees_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that forgets to extend a file is found out."""

    async def forgetful(self: Model, path: str, size: int) -> None:
        del self.node(path).data[size:]

    monkeypatch.setattr(Model, "truncate", forgetful)
    with pytest.raises(AssertionError, match="/a"):
        trio.run(compare, [("write", "/a", b"x", 0), ("truncate", "/a", 5)], 1 << 30)


def test_the_comparison_goes_deep(monkeypatch: pytest.MonkeyPatch) -> None:
    sequence = [
        ("mkdir", "/d"),
        ("write", "/d/a", b"x" * 5000, 0),
        ("open", 0, "/d/a"),
        ("sync",),
        ("unlink", "/d/a"),
        ("pwrite", 0, b"!", 5000),
        ("pread", 0, 6000, 0),
        ("kill",),
        ("replace", "/d/b", b"y"),
        ("collect",),
    ]
    trio.run(compare, sequence, 1 << 30)


def test_the_comparison_names_files_and_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    sequence = [
        ("open unnamed", 0, ""),
        ("pwrite", 0, b"x" * 5000, 0),
        ("sync",),
        ("name", 0, "/a"),
        ("copy_range", "/a", 1000, "/b", 0, 4096),
        ("write", "/b", b"y", 0),
        ("copy_range", "/a", 1000, "/b", 70_000, 4096),
        ("allocate", "/b", 16, 4096, 70_000),
        ("kill",),
        ("allocate", "/b", 3, 4095, 5),
        ("unlink", "/a"),
    ]
    trio.run(compare, sequence, 1 << 30)
    monkeypatch.setattr(Model, "name", lambda self, handle, path: None)
    with pytest.raises(AssertionError):
        trio.run(compare, sequence, 1 << 30)
