"""One store, open: every part built once, and the tasks that run beside requests."""

from __future__ import annotations

import errno
import functools
import logging
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from agentfs.chunks import Store
from agentfs.chunks.digest import DomainKeys
from agentfs.config import Profile
from agentfs.filesystem import copies, fsck
from agentfs.filesystem.agents import Agents
from agentfs.filesystem.breakdown import Breakdown
from agentfs.filesystem.census import Census
from agentfs.filesystem.clone import Cloned, Cloner
from agentfs.filesystem.contents import RECIPES_KEPT, ContentReader
from agentfs.filesystem.description import PIN_ATTRIBUTE, Described, Describer
from agentfs.filesystem.dictionaries import Dictionaries
from agentfs.filesystem.durability import Durability
from agentfs.filesystem.files import Files
from agentfs.filesystem.gate import Gate
from agentfs.filesystem.livefile import InodeTable, LiveFile
from agentfs.filesystem.memory import Heap, Memory
from agentfs.filesystem.namespace import Namespace
from agentfs.filesystem.passthrough import PassthroughFiles
from agentfs.filesystem.placement import Placement
from agentfs.filesystem.prefetch import Prefetcher
from agentfs.filesystem.pressure import Pressure
from agentfs.filesystem.ranges import holes_in
from agentfs.filesystem.reclaim import Collector
from agentfs.filesystem.relay import Relay
from agentfs.filesystem.report import Totals
from agentfs.filesystem.rewrite import Packing, Rewriter
from agentfs.filesystem.samples import Samples
from agentfs.filesystem.seal import Sealer
from agentfs.filesystem.staging import (
    Staging,
    directory_on_tmpfs,
    is_anothers,
    was_used_in_this_boot,
)
from agentfs.filesystem.turns import Turns
from agentfs.filesystem.view import View
from agentfs.index import CACHE_KIB, Index
from agentfs.machine.reading import Machine
from agentfs.model import Holding, Inode
from agentfs.policy.kinds import rules_of
from agentfs.policy.pressure import Step
from agentfs.policy.sealing import due, packing_order

log = logging.getLogger(__name__)

_TICK_S = 0.5
_FLUSH_S = 5.0
"""How long names and seals may wait for a flush that nobody asks for; as long as on ext4."""

_SHRUNK = 8
"""Into which a cache is divided that is shrunk."""

_EARLY_PACE = 10.0
"""How many times as fast contents cool that are evicted early: conversations in half a minute."""

_COPY_AFTER_S = 900.0
"""How old a copy of the namespace gets while names change."""
_COPY_SHARE = 0.01
"""Of the time may be spent on copies: of a large index they are made less often."""

_SNAPSHOT = "snapshot"
_SNAPSHOT_ATTEMPTS = 10

_NAMES = 128
"""Of a directory, read at once."""

Progress = Callable[[int, int], None]


@dataclass(slots=True)
class Warmed:
    """What `Volume.warm` did."""

    files: int = 0
    bytes: int = 0
    left_files: int = 0
    """Of these: too large, or there was no room."""
    left_bytes: int = 0


@contextmanager
def _going_on() -> Iterator[None]:
    """What fails in housekeeping is logged: else the mount would end with it."""
    try:
        yield
    except Exception:
        log.exception("housekeeping failed; it goes on")


class Volume:
    """A store that is open for reading and writing.

    Opening takes over the staged files that a killed daemon left. `run` serves
    until cancelled; `close` writes what is left and lets go of the store.
    """

    def __init__(
        self,
        path: Path,
        profile: Profile,
        *,
        relay: Relay | None = None,
        private_tmpfs: bool = False,
        machine: Machine | None = None,
    ) -> None:
        """Open the store at *path*, which exists; an empty directory becomes a store.

        :param machine: whose memory may get short; None: the one that this is
        :param private_tmpfs: keep what is staged on a tmpfs of our own, which takes root
        :param relay: takes over reads and writes of files that lie on tmpfs; None: we serve them
        """
        self._profile = profile
        self.path = path
        is_copied = copies.is_current(path)
        was_killed = was_used_in_this_boot(path)
        self.index = Index(path)
        segments = path / fsck.SEGMENTS
        segments.mkdir(mode=0o700, exist_ok=True)
        self._store = Store(
            segments,
            cache_bytes=profile.store.cache_bytes,
            segment_bytes=profile.store.segment_bytes,
        )
        if is_anothers(directory_on_tmpfs(self.index.store_id, private=private_tmpfs), path):
            log.warning("%s gets another id: somebody else stages files under its own", path)
            self.index.renew_store_id()
        self.staging = Staging(
            path, self.index.store_id, profile.hot.budget_bytes, private=private_tmpfs
        )
        self.table = InodeTable(self.index, self.staging)
        keeps_acl = profile.store.acl == "keep"
        self.namespace = Namespace(self.index, self.table, keeps_acl=keeps_acl)
        self.durability = Durability(self.index)
        gate = Gate()
        keys = DomainKeys(self.index.secret)
        reader = ContentReader(self.index, self._store, keys)
        self._reader = reader
        parts = (self.table, self.namespace, self.staging, reader)
        self.describer = Describer(
            self.index,
            self.table,
            self.namespace,
            rules_of(profile.kinds),
            is_hot=lambda content: self.files.is_hot(content),
        )
        self.placement = Placement(self.index, self.table, self.describer, profile.tiers)
        self.files = (
            Files(*parts)
            if relay is None
            else PassthroughFiles(*parts, self.index, relay, self.placement)
        )
        is_relayed = relay is not None
        self.prefetcher = Prefetcher(
            self.table,
            self.namespace,
            self.placement,
            self.files,
            is_crowded=lambda: reader.takes_all_cores,
            room_bytes=profile.hot.budget_bytes if is_relayed else profile.store.cache_bytes,
            unit_bytes=0 if is_relayed else profile.store.block_bytes,
        )
        self.agents = Agents(
            self.index,
            self.table,
            self.namespace,
            self.describer,
            idle_s=profile.tiers.idle_s,
        )
        dictionaries = Dictionaries(
            self.index,
            self._store,
            segments,
            gate,
            level=profile.store.level,
            is_busy=lambda: self._is_busy,
        )
        self.sealer = Sealer(
            self.index,
            self._store,
            self.staging.room,
            self.durability,
            gate,
            keys,
            level=profile.store.level,
            block_bytes=profile.store.block_bytes,
            dictionaries=dictionaries,
            dedups_by_user=profile.store.dedup == "user",
            on_sealed=self.files.unstage_if_sealed,
        )
        settings = profile.store
        self._collector = Collector(
            self.index,
            self._store,
            self.table,
            reader,
            self.durability,
            gate,
            self.staging,
            Rewriter(self.index, self._store, segments, self.durability),
            dictionaries,
            is_busy=lambda: self._is_busy,
            on_removed=self._copy_anew,
            sealed=Packing(settings.level, settings.block_bytes, is_packed=False),
            packed=Packing(settings.compact_level, settings.compact_block_bytes, is_packed=True),
            garbage_share=settings.gc_garbage_share,
            segment_bytes=settings.segment_bytes,
            background_cpu=settings.background_cpu,
            warm_bytes=self.placement.warm_bytes,
        )
        self.cloner = Cloner(
            self.index, self.table, self.namespace, self.staging, self.files, self.sealer
        )
        self.agents.resident_digests = self.files.resident_digests
        self.census = Census(self.agents)
        self.view = self.table.unlisted = View(self.index, self.table, self.census)
        self._totals = Totals(self.index, path)
        self._heap = Heap(self._store.give_back)
        self._memory = Memory(machine or Machine())
        self.pressure = Pressure(profile.pressure, self.staging, self._memory)
        self.pressure.on_change = self._give_up
        self.samples = Samples(functools.partial(self.stats, is_repeated=True))
        self.commits_lost = 0
        """Changes that an earlier daemon made and damage to its log has taken."""
        self._copied_changes = self.index.changes if is_copied else -1
        self._snapshot_lock = trio.Lock()
        shutil.rmtree(path / _SNAPSHOT, ignore_errors=True)
        try:
            with self.index.starting():
                if was_killed:
                    self._note_lost_commits()
                self._begin(relay)
        except BaseException:
            self._memory.close()
            self._store.close()
            raise

    @property
    def _is_busy(self) -> bool:
        """Whether somebody needs the machine for what he waits for."""
        return self.sealer.is_busy or self._reader.is_busy

    def _note_lost_commits(self) -> None:
        """Say what SQLite does not: that its log was damaged while no power was lost."""
        self.commits_lost = self.index.commits_passed_over
        if self.commits_lost:
            log.error(
                "the index's log was damaged: the last changes before the daemon was killed are "
                "lost, at least %d; fsck names them until --repair",
                self.commits_lost,
            )
            with self.index.transaction:
                self.index.note_lost_commits(self.commits_lost)

    def _begin(self, relay: Relay | None) -> None:
        """Take over what an earlier daemon left."""
        if relay is not None and relay.has_taken_over:
            self._inherit_nodeids(relay)
        else:
            self.table.drop_unlinked()
            self.index.dentries.forget_exchanges()
        self._take_over()
        self.files.inherit()

    def _inherit_nodeids(self, relay: Relay) -> None:
        """The kernel goes on using the nodeids that another worker gave it."""
        self.index.inodes.skip_to(relay.highest_nodeid)
        self.table.missing.forget()
        rows = relay.rows()
        self.table.inherit_unlinked(
            {inode for _, inode, _, passed, handles, *_ in rows if passed or handles}
        )
        newest: dict[int, int] = {}
        for nodeid, inode, *_ in rows:
            if nodeid != inode:
                newest[inode] = max(nodeid, newest.get(inode, 0))
        for nodeid, inode, *_ in rows:
            if nodeid != inode:
                self.table.inherit_nodeid(nodeid, inode, is_newest=newest[inode] == nodeid)

    def _take_over(self) -> None:
        taken: set[int] = set()
        for inode_id, staged, status in list(self.staging.survivors()):
            inode = self.index.inodes.get(inode_id)
            if inode is None or not inode.is_regular:
                self.staging.discard(staged)
                continue
            file = self.table.enliven(inode)
            if file.staged is not None:  # killed at the end of a move to disk: a copy of this one
                self.staging.discard(staged)
                continue
            ctime_ns = inode.ctime_ns
            file.staged = staged
            file.may_be_sparse = True
            if staged.is_frozen:
                file.note_change()  # its times are others' as well: the row has this one's
            else:
                file.touch(status.st_mtime_ns)
                inode.ctime_ns = max(ctime_ns, status.st_mtime_ns)
            inode.size = status.st_size
            inode.holes = holes_in(status)
            taken.add(inode_id)
        with self.index.transaction:
            self.index.loans.keep_only(taken)  # what others show is theirs by now
        if taken:
            log.info("took over %d staged files of an earlier daemon", len(taken))

    async def run(self) -> None:
        """Seal what rests and keep the index small. Runs until cancelled.

        A seal may take minutes: nothing that keeps memory and the log small waits for one.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_house)
            nursery.start_soon(self._flush_now_and_then)
            nursery.start_soon(self.sealer.serve_fsync)
            nursery.start_soon(self._keep_copies)
            nursery.start_soon(self.samples.run)
            nursery.start_soon(self._warm_pinned)
            nursery.start_soon(self.prefetcher.run)
            nursery.start_soon(self._reader.read_ahead)
            nursery.start_soon(self._collector.compact_in_background)
            nursery.start_soon(self.pressure.watch)
            while True:
                with trio.move_on_after(_TICK_S):
                    await self.staging.is_wanted.wait()
                is_wanted = self.staging.is_wanted.is_set()
                self.staging.is_wanted = trio.Event()
                with _going_on():
                    await self._seal_what_rests(is_wanted=is_wanted)
                self.staging.was_made.set()
                self.staging.was_made = trio.Event()

    async def _keep_house(self) -> None:
        while True:
            with _going_on():
                self.files.look_at_growth()
                self.pressure.look()
                self._tidy_index()
                await self.files.tidy()
                await self._heap.tidy()
            await trio.sleep(_TICK_S)

    def _tidy_index(self) -> None:
        try:
            self.table.record_reads()
            self.table.reap()
            self.index.checkpoint_if_due()
            if self.staging.room.is_short:
                self.index.checkpoint()  # gives the log's room back
        except OSError as error:
            log.error("cannot tidy the index: %s", error)

    async def _flush_now_and_then(self) -> None:
        while True:
            with _going_on():
                try:
                    await self.durability.sync()
                except OSError as error:
                    log.error("cannot flush the index: %s", error)
            await trio.sleep(_FLUSH_S)

    async def _seal_what_rests(self, *, is_wanted: bool = False) -> None:
        """:param is_wanted: somebody waits for the room that it makes"""
        is_early = is_wanted or self.pressure.step >= Step.SEAL_EARLY or self.staging.lacks_disk(0)
        rest_s = 0.0 if is_early else self._profile.seal.rest_s
        if is_early:
            self.files.close_kept()
        found = due(
            (file for file in self.table.staged_files() if file.inode.nlink),
            time.monotonic(),
            rest_s=rest_s,
            open_rest_s=self._profile.seal.open_rest_s,
        )
        if found:
            await self._seal(found)

    def _give_up(self, before: Step, now: Step) -> None:
        """Do what a step of pressure means, or undo it; the others ask for the step."""
        shrinks = now >= Step.SHRINK_CACHES
        if shrinks != (before >= Step.SHRINK_CACHES):
            part = _SHRUNK if shrinks else 1
            self._store.limit_cache(self._profile.store.cache_bytes // part)
            self.index.limit_cache(CACHE_KIB // part)
            self._reader.limit_recipes(RECIPES_KEPT // part)
        if shrinks and now > before:
            self._heap.ask()  # in its thread: who waits for memory is not to wait for that
        self.files.cool(_EARLY_PACE if now >= Step.SEAL_EARLY else 1.0 if shrinks else None)
        self.prefetcher.is_on = now < Step.STOP_PREFETCH
        self.staging.slows_writers = now >= Step.SLOW_WRITERS

    async def _seal(self, files: list[LiveFile]) -> None:
        try:
            await self.sealer.seal(packing_order(files), wait=False)
        except OSError as error:
            log.error("cannot seal %d files: %s; they stay staged", len(files), error)
            for file in files:
                file.retry_later()

    async def sync(self, progress: Progress) -> int:
        """Seal every staged file and make all of it durable; the number of files."""
        self.table.record_reads()
        self.files.close_kept()
        dirty = [file for file in self.table.staged_files() if file.is_dirty]
        await self.sealer.seal(packing_order(dirty), wait=True, progress=progress)
        await self.durability.sync()
        self.index.checkpoint()
        return len(dirty)

    async def seal_for_close(self) -> None:
        """After the mount is gone: remove what no name leads to, and seal the rest."""
        self.files.abandon()
        self.table.abandon_kernel_state()
        for file in list(self.table.staged_files()):
            self.files.unstage_if_sealed(file)  # its copy was kept for who had it open for writing
        await self.sync(lambda done, total: None)
        if self.index.changes != self._copied_changes:
            await self._copy_namespace_if_possible(self._copy_at_the_end)

    # Copies of the index

    async def _keep_copies(self) -> None:
        """Copy the namespace now and then. Runs until cancelled."""
        pause_s = _COPY_AFTER_S
        while True:
            await trio.sleep(pause_s)
            if self.index.changes == self._copied_changes:
                continue
            began = time.monotonic()
            await self._copy_namespace_if_possible(self._copy_namespace)
            pause_s = max(_COPY_AFTER_S, (time.monotonic() - began) / _COPY_SHARE)

    async def _copy_namespace_if_possible(self, copy: Callable[[], Awaitable[None]]) -> None:
        """A disk that is full, or a page that is damaged, is no reason to stop anything else."""
        try:
            await copy()
        except Exception as error:
            log.error("cannot copy the namespace: %s; the copies there are stay", error)

    async def _copy_anew(self) -> None:
        """The copies that are there name segments that are gone."""
        copy = functools.partial(self._copy_namespace, times=copies.KEPT)
        await self._copy_namespace_if_possible(copy)

    async def _copy_at_the_end(self) -> None:
        await trio.to_thread.run_sync(copies.write, self.path, self.index)
        self._copied_changes = self.index.changes

    async def _copy_namespace(self, *, times: int = 1) -> None:
        changes = self.index.changes
        async with self._snapshot() as snapshot:
            for _ in range(times):
                await trio.to_thread.run_sync(self._write_copy, snapshot)
        self._copied_changes = changes

    def _write_copy(self, snapshot: Path) -> None:
        index = Index(snapshot, read_only=True)
        try:
            copies.write(self.path, index)
        finally:
            index.close()

    @asynccontextmanager
    async def _snapshot(self) -> AsyncIterator[Path]:
        """A directory with the index as it is at one moment, for another thread to read.

        The database file changes only when the log is folded in, so it is copied between two of
        these. cp(1) copies it: to open and close it in this process would end SQLite's locks.
        """
        directory = self.path / _SNAPSHOT
        async with self._snapshot_lock:
            directory.mkdir(mode=0o700)
            try:
                for _ in range(_SNAPSHOT_ATTEMPTS):
                    self.index.checkpoint()
                    checkpoints = self.index.checkpoints
                    self.staging.room.require(self.index.bytes_on_disk())
                    files = [file for file in self.index.files if file.exists()]
                    command = ["cp", "--reflink=auto", *map(str, files), f"{directory}"]
                    await trio.to_thread.run_sync(subprocess.check_call, command)
                    if checkpoints == self.index.checkpoints:
                        break
                else:
                    raise OSError(errno.EBUSY, "the index changes too fast to be copied")
                yield directory
            finally:
                shutil.rmtree(directory, ignore_errors=True)

    async def check(self, progress: fsck.Progress) -> dict[str, Any]:
        """Check everything while it is used; blocks that are damaged are marked."""
        async with self._collector.alone(), self._snapshot() as snapshot:
            report = await trio.to_thread.run_sync(
                lambda: fsck.check(self.path, progress, index_directory=snapshot)
            )
            with self.index.transaction:
                self.index.contents.record_check(
                    damaged=report.blocks, readable=report.readable_again, misplaced=report.chunks
                )
        return report.as_dict()

    async def collect(self, progress: Progress) -> dict[str, int]:
        """Remove garbage; what was given back."""
        return (await self._collector.collect(progress)).as_dict()

    async def compact(self, progress: Progress) -> dict[str, int]:
        """Pack everything sealed as small as it gets; what was given back."""
        return (await self._collector.compact(progress)).as_dict()

    async def clone(
        self,
        source: bytes,
        target: bytes,
        *,
        replaces: bool,
        progress: Progress,
        agent: tuple[bytes, bytes] | None = None,
    ) -> Cloned:
        """Make *target* a copy of the file or tree *source*, which shares all its bytes.

        Both are paths below the root, without links and `..`. See `Cloner.clone`.
        """
        return await self.cloner.clone(
            source, target, replaces=replaces, progress=progress, agent=agent
        )

    async def spawn(self, template: bytes, target: bytes, name: bytes) -> Cloned:
        """Make a new agent of a directory, which may be an agent's; see `clone`."""
        known_as = self.agents.agent_of(template)
        return await self.clone(
            template,
            target,
            replaces=False,
            progress=lambda done, total: None,
            agent=(known_as, name),
        )

    async def warm(self, path: bytes, progress: Progress) -> Warmed:
        """Bring the bytes of a file, or of all files below a directory, as near as may be.

        Not more than fits on tmpfs. See `Files.warm`.

        :param progress: called with (files looked at, 0)
        :raises OSError: ENOENT or ENOTDIR
        """
        top = self.namespace.walk(path)[-1]
        return await self._warm(top, path.rpartition(b"/")[2], progress)

    async def _warm_pinned(self) -> None:
        """Bring what is pinned, as far as there is room, when a mount begins."""
        for number in self.index.xattrs.inodes_with(PIN_ATTRIBUTE):
            try:
                await self._warm(self.table.get(number), b"", lambda done, total: None)
            except OSError as error:
                log.warning("cannot warm pinned inode %d: %s", number, error)

    async def _warm(self, top: Inode, name: bytes, progress: Progress) -> Warmed:
        warmed, room = Warmed(), self.files.room_to_warm()
        async for inode, its_name in self._files_below(top, name):
            live = self.table.live(inode.id)
            is_staged = live is not None and live.staged is not None
            warmed.files += 1
            warmed.bytes += inode.size
            if inode.content is not None and not is_staged:
                room -= inode.size
                if room < 0 or not await self._try_to_warm(inode, its_name):
                    warmed.left_files += 1
                    warmed.left_bytes += inode.size
            progress(warmed.files, 0)
        return warmed

    async def _try_to_warm(self, inode: Inode, name: bytes) -> bool:
        try:
            return await self.files.warm(inode, name)
        except (KeyError, OSError) as error:
            log.warning("cannot warm inode %d: %s", inode.id, error)
            return False

    async def _files_below(self, top: Inode, name: bytes) -> AsyncIterator[tuple[Inode, bytes]]:
        """Regular files with their names; what changes meanwhile may be among them or not."""
        turns = Turns()
        if top.is_regular:
            yield top, name
        pending = [top.id] if top.is_directory else []
        while pending:
            directory, after = pending.pop(), b""
            while rows := self.namespace.rows_after(directory, after, _NAMES):
                after = rows[-1][-1]
                for row in rows:
                    inode = self.namespace.inode_of(row)
                    if inode.is_directory:
                        pending.append(inode.id)
                    elif inode.is_regular:
                        yield inode, row[-1]
                    await turns.give()

    async def listing(self, path: bytes) -> list[Described]:
        """What `agentfs ls` shows of a file, or of what is in a directory.

        :raises OSError: ENOENT or ENOTDIR
        """
        turns, rows = Turns(), []
        for row in self.describer.listing(path):
            rows.append(row)
            await turns.give()
        return rows

    async def breakdown(self, progress: Progress) -> list[Holding]:
        """Where the bytes are, by agent and kind."""
        breakdown = Breakdown(self.index, self.table, self.namespace, self.describer)
        return await breakdown.count(progress)

    def stats(self, *, is_repeated: bool = False) -> dict[str, Any]:
        """What `agentfs stats` shows of the store; of a large one not quite new if repeated."""
        cache = self._store.stats()
        staged = list(self.table.staged_files())
        totals = self._totals.recent() if is_repeated else self._totals.now()
        return totals | {
            "staged_files": len(staged),
            "staged_bytes": sum(file.inode.size for file in staged),
            "resident_bytes": self.staging.used_bytes,
            "resident_budget_bytes": self.staging.budget_bytes,
            **self.pressure.figures(),
            "cache_hits": cache["cache_hits"],
            "cache_misses": cache["cache_misses"],
            **self.prefetcher.figures(),
            "compaction": self._collector.state.state,
            "compaction_done_bytes": self._collector.state.done_bytes,
            "compaction_total_bytes": self._collector.state.total_bytes,
        }

    def close(self) -> None:
        """Let go of the store. What is still staged stays so, for the next mount.

        After an error the relay is closed by then: it is neither asked nor told anything.
        """
        self.table.watch()
        self.table.record_reads()
        self.table.reap()
        self._memory.close()
        self.staging.close()
        self._store.close()
        self.index.close()
