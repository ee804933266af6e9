"""The one connection to the index, its transactions and its durability.

Promises: one process and one connection, held exclusively (SQLite before 3.51.3
can corrupt a WAL that several connections reset). A transaction is a short,
synchronous block on the event loop's thread: no await inside, so no other task
sees it half done. A commit reaches the WAL, which survives the death of the
process; `wal_descriptor` lets the caller make it survive the machine's. Every page
is checked when it is read (native/pages): a damaged one is an error, never wrong rows.
"""

from __future__ import annotations

import _sqlite3
import errno
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

from sqlite_utils import Database

from agentfs.errors import StoreDamaged, StoreNewer, StoreUnusable
from agentfs.index import _pages, packing, schema
from agentfs.model import SECTOR_BYTES

INDEX_NAME = "index.db"

COPIES_DIRECTORY = "namespace"
"""Where a store keeps copies of its index's rows."""

CHECKPOINT_BYTES = 8 << 20
"""Size of the log at which it is folded into the database: some 18,000 creates. The fold takes
40 ms, and a mount that finds so much after a kill 0.2 s."""

VACUUM_BYTES = 8 << 20

CACHE_KIB = 32 << 10
"""SQLite's own, of pages."""


def disk_error(error: BaseException | None) -> OSError | None:
    """What an error of SQLite's says of the disk: it is full or it fails; None: nothing."""
    if not isinstance(error, sqlite3.OperationalError):
        return None
    code = error.sqlite_errorcode & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return OSError(errno.ENOSPC, "no space left for the index")
    return OSError(errno.EIO, f"the index: {error}") if code == sqlite3.SQLITE_IOERR else None


def connect(path: Path, mode: str) -> sqlite3.Connection:
    """Open a database as it lies on the disk: pages of ours are checked as they are read.

    :param mode: of SQLite's URI, with further parameters
    :raises StoreUnusable: this Python's SQLite takes no VFS
    """
    try:
        _pages.register_vfs(getattr(_sqlite3, "__file__", None))
    except OSError as error:
        raise StoreUnusable(f"this Python cannot check the index: {error}; use Debian's") from error
    vfs = f"&vfs={_pages.VFS}" if has_checksums(path) else ""
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}{vfs}",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=256,
    )


def has_checksums(path: Path) -> bool:
    """Whether the pages of a database have them; those of one that is yet to be made will.

    Two fields of its header say so, lest damage to one turn the checks off.
    """
    try:
        with open(path, "rb") as file:
            header = file.read(schema.HEADER_BYTES)
    except FileNotFoundError:
        return True
    return not header or (
        header[_pages.RESERVED_AT : _pages.RESERVED_AT + 1] == bytes([_pages.RESERVED])
        or schema.says_checked(header)
    )


Unreadable = sqlite3.DatabaseError
"""What reading a damaged page raises."""

_SCAN_BYTES = 1 << 20


def damaged_pages(path: Path) -> list[int]:
    """Numbers of the pages of a database whose checksum fails; the first page is 1."""
    found: list[int] = []
    if not has_checksums(path):
        return found
    with open(path, "rb") as file:
        first = 1
        while data := file.read(_SCAN_BYTES):
            found += _pages.damaged(data, first, packing.packed_path(path))
            first += _SCAN_BYTES // _pages.PAGE_BYTES
    return found


def commits_behind_end(path: Path) -> int:
    """Transactions in a database's log behind a damaged entry, where SQLite takes it to end.

    After a kill that is damage. After a power cut it need not be: entries that were not flushed
    yet reach the disk in any order.
    """
    if not has_checksums(path):
        return 0
    try:
        with open(path.with_name(f"{path.name}-wal"), "rb") as log:
            return _pages.commits_behind_end(log.fileno())
    except OSError:
        return 0  # there is no log, or SQLite will find that it cannot be read


class _Transaction:
    """`with index.transaction:` commits at the end, or rolls back on any exception."""

    __slots__ = ("_connection", "_execute", "on_failure", "on_rollback")

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._execute = connection.cursor().execute
        self.on_failure: Callable[[], None] = lambda: None
        """Called when the disk failed: what is in memory may be ahead of the rows."""
        self.on_rollback: list[Callable[[], None]] = []
        """Called when rows are not what they seemed to be: then forget them."""

    def __enter__(self) -> None:
        self._execute("BEGIN")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            try:
                self._execute("COMMIT")
                return
            except sqlite3.Error as failure:
                error = failure
        if self._connection.in_transaction:  # on a full disk SQLite has rolled back already
            self._execute("ROLLBACK")
        for forget in self.on_rollback:
            forget()
        failed = disk_error(error)
        if failed is not None:
            self.on_failure()
            raise failed from error
        if kind is None and error is not None:
            raise error


class IndexConnection:
    """An open index database."""

    def __init__(self, store: Path, *, read_only: bool = False) -> None:
        """Open the index in the directory *store*, creating it when missing.

        :raises StoreNewer: a newer version has written it
        :raises StoreDamaged: it is not a database, or not one of agentfs'
        :raises StoreUnusable: *read_only* and there is none
        """
        self.path = store / INDEX_NAME
        self.files = (self.path, packing.packed_path(self.path))
        """The database, and its packed pages if there are any; without its WAL."""
        self.read_only = read_only
        if read_only and not self.path.exists():
            raise StoreUnusable(f"{store} is not an agentfs store: it has no {INDEX_NAME}")
        self._copy: TemporaryDirectory[str] | None = None
        self.commits_passed_over = 0 if read_only else commits_behind_end(self.path)
        """Transactions that were in the log behind what SQLite took for its end."""
        self.connection = self._look() if read_only else self._open()
        self.execute = self.connection.execute
        self.executemany = self.connection.executemany
        self.transaction = _Transaction(self.connection)
        self._wal: int | None = None
        self.checkpoints = 0
        """Grows with each: while it stays, the database file does."""
        if self.commits_passed_over:
            with suppress(OSError):
                self.checkpoint()  # else they would be found again behind what comes now

    def _open(self) -> sqlite3.Connection:
        if not self.path.exists() or not self.path.stat().st_size:
            self._refuse_a_store_without_index()
        else:
            self._look_first()
            if not has_checksums(self.path):
                self._add_checksums()
        connection = self._connect(self.path, "rwc")
        with self._blamed(connection):
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")  # first: no -shm then
            connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            connection.execute("PRAGMA temp_store = MEMORY")
            connection.execute(f"PRAGMA page_size = {schema.PAGE_BYTES}")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA wal_autocheckpoint = 0")
            if connection.execute("PRAGMA user_version").fetchone() != (schema.CHECKED,):
                connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {schema.CHECKED}")
            self._migrate(connection)
        return connection

    def _migrate(self, connection: sqlite3.Connection) -> None:
        database = Database(connection, execute_plugins=False)
        if schema.migrations.pending(database):
            schema.migrations.apply(database)
            with suppress(sqlite3.OperationalError):  # no room: the log keeps them
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _refuse_a_store_without_index(self) -> None:
        """An empty index would give up all that the store holds, and gc would then remove it."""
        if any((self.path.parent / COPIES_DIRECTORY).glob("*")):
            raise StoreDamaged(
                f"{self.path} is missing or empty; agentfs fsck --repair makes it from the copy"
            )

    def _add_checksums(self) -> None:
        """Write an index without page checksums anew, with them."""
        fresh = self.path.with_name(f"{INDEX_NAME}.new")
        fresh.unlink(missing_ok=True)
        old = self._connect(self.path, "rw")
        try:
            with self._blamed(old):
                old.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                old.execute("PRAGMA journal_mode = DELETE")  # no log is left that could be replayed
        finally:
            old.close()
        connection = self._connect(fresh, "rwc")
        with self._blamed(connection):
            connection.execute("PRAGMA synchronous = FULL")
            old_uri = f"{self.path.absolute().as_uri()}?mode=ro&vfs=unix"
            connection.execute("ATTACH ? AS old", (old_uri,))
            connection.execute("BEGIN")
            for kind, name, statement in connection.execute(
                "SELECT type, name, sql FROM old.sqlite_schema WHERE sql IS NOT NULL"
                " AND name NOT LIKE 'sqlite_%' ORDER BY type DESC"  # tables before their indexes
            ).fetchall():
                connection.execute(statement)
                if kind == "table":
                    connection.execute(f"INSERT INTO main.{name} SELECT * FROM old.{name}")
            connection.execute("COMMIT")
            connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
        connection.close()
        os.replace(fresh, self.path)

    def _look_first(self) -> None:
        """Refuse a stranger's database before SQLite writes anything, as it does when it opens one.

        Reading beside a WAL makes SQLite leave an -shm file, which nothing needs.
        """
        shared = self.path.with_name(f"{INDEX_NAME}-shm")
        had_shared = shared.exists()
        connection = self._connect(self.path, self._mode_to_look())
        try:
            with self._blamed(connection):
                self._refuse_strangers(connection)
        finally:
            connection.close()
            if not had_shared:
                shared.unlink(missing_ok=True)

    def _look(self) -> sqlite3.Connection:
        """A connection that writes nothing in the store: with a WAL to replay, to a copy."""
        path, mode = self.path, self._mode_to_look()
        if mode == "ro":
            self._copy = TemporaryDirectory(prefix="agentfs-")
            for file in (*self.files, self.path.with_name(f"{INDEX_NAME}-wal")):
                if file.exists():
                    shutil.copyfile(file, Path(self._copy.name, file.name))
            path = Path(self._copy.name, INDEX_NAME)
        connection = self._connect(path, mode)
        with self._blamed(connection):
            self._refuse_strangers(connection)
        return connection

    def _mode_to_look(self) -> str:
        wal = self.path.with_name(f"{INDEX_NAME}-wal")
        # Without a WAL to replay, nothing need be written beside the database to read it.
        return "ro" if wal.exists() and wal.stat().st_size else "ro&immutable=1"

    def _connect(self, path: Path, mode: str) -> sqlite3.Connection:
        try:
            return connect(path, mode)
        except sqlite3.DatabaseError as error:
            raise self._unreadable(error) from error

    @contextmanager
    def _blamed(self, connection: sqlite3.Connection) -> Iterator[None]:
        """Close the connection when the block fails, and say what is wrong with the store."""
        try:
            yield
        except BaseException as error:
            self._abandon(connection)
            cause = error.__cause__ if isinstance(error, OSError) else error
            if isinstance(cause, sqlite3.DatabaseError):
                raise self._unreadable(cause) from error
            raise

    @contextmanager
    def starting(self) -> Iterator[None]:
        """What the block cannot read makes the store unusable: the index is closed.

        :raises StoreDamaged: a page is damaged
        """
        with self._blamed(self.connection):
            yield

    def _unreadable(self, error: sqlite3.DatabaseError) -> StoreDamaged:
        return StoreDamaged(
            f"{self.path} cannot be read ({error}); agentfs fsck --repair saves what it can"
        )

    def _abandon(self, connection: sqlite3.Connection) -> None:
        connection.close()
        if self._copy is not None:
            self._copy.cleanup()

    def _refuse_strangers(self, connection: sqlite3.Connection) -> None:
        database = Database(connection, execute_plugins=False)
        tables = database.table_names()
        if not tables:
            return
        (application,) = database.execute("PRAGMA application_id").fetchone()
        if application != schema.APPLICATION_ID:
            raise StoreDamaged(f"{self.path} is a database, but not one of agentfs'")
        packing.refuse_anothers(connection, self.path)
        known = {row.name for row in schema.migrations.pending(Database(memory=True))}
        applied = {row.name for row in schema.migrations.applied(database)}
        if applied - known:
            raise StoreNewer(
                f"{self.path.parent} was written by a newer agentfs "
                f"(it has {', '.join(sorted(applied - known))}); update agentfs"
            )
        if self.read_only and known - applied:
            raise StoreNewer(f"{self.path.parent} needs an upgrade; mount it once")

    @property
    def changes(self) -> int:
        """Rows changed since opening; moves with every commit that wrote anything."""
        return self.connection.total_changes

    def sync_wal(self) -> None:
        """Make everything committed before the call survive a power cut.

        Safe in any thread. Equals synchronous=FULL, without making each commit wait for it.
        """
        if self._wal is None:
            try:
                self._wal = os.open(f"{self.path}-wal", os.O_RDONLY)
            except FileNotFoundError:
                return  # nothing was ever committed
        os.fdatasync(self._wal)

    def checkpoint_if_due(self) -> bool:
        """Fold the WAL into the database when it has grown; True when it did."""
        try:
            grown = os.stat(f"{self.path}-wal").st_size >= CHECKPOINT_BYTES
        except FileNotFoundError:
            grown = False
        if grown:
            self.checkpoint()
        return grown

    def setting(self, name: str) -> Any:
        """What the store remembers under a name; None: nothing."""
        row = self.execute("SELECT value FROM setting WHERE name = ?", (name,)).fetchone()
        return None if row is None else row[0]

    def set_setting(self, name: str, value: int | str) -> None:
        """Remember it, in place of what there is."""
        self.execute("INSERT OR REPLACE INTO setting VALUES (?, ?)", (name, value))

    def limit_cache(self, kib: int) -> None:
        """Keep so much of the database in memory from now on."""
        self.execute(f"PRAGMA cache_size = -{kib}")
        self.execute("PRAGMA shrink_memory")

    def checkpoint(self) -> None:
        """Fold the WAL into the database and start it again from its beginning, empty.

        :raises OSError: there is no room, or the disk failed; nothing is lost
        """
        self.checkpoints += 1
        try:
            self.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.OperationalError as error:
            raise disk_error(error) or error from error

    def vacuum(self) -> None:
        """Write the database anew without gaps, if that is soon done: 10 ms a MiB.

        Nobody else is served meanwhile, so a large one stays as it is; gaps are some 6 % of it.

        :raises OSError: there is no room, or the disk failed; nothing is lost
        """
        if self.path.stat().st_size <= VACUUM_BYTES:
            try:
                self.execute("VACUUM")
            except sqlite3.OperationalError as error:
                raise disk_error(error) or error from error
        self.checkpoint()

    def pack(self) -> Iterator[None]:
        """Keep all pages compressed; others may use the index at each step.

        :raises OSError: there is no room, or the disk failed; nothing is lost
        """
        try:
            yield from packing.pack(self)
        except sqlite3.OperationalError as error:
            raise disk_error(error) or error from error

    @property
    def is_worth_packing(self) -> bool:
        """Whether enough has been written since it was packed."""
        return packing.is_worth_packing(self)

    def inconsistencies(self) -> list[str]:
        """What SQLite itself finds wrong: entries that an index lacks, pages that are lost."""
        rows = self.execute("PRAGMA integrity_check(20)").fetchall()
        return [text for (text,) in rows if text != "ok"]

    def bytes_on_disk(self) -> int:
        """Bytes of the database, its packed pages and its WAL."""
        total = 0
        for name in (*self.files, f"{self.path}-wal"):
            if os.path.exists(name):
                found = os.stat(name)
                total += min(found.st_size, found.st_blocks * SECTOR_BYTES)  # it has holes
        return total

    def close(self) -> None:
        """Checkpoint and close. Idempotent."""
        if not self.read_only:
            with suppress(OSError):  # the WAL keeps what found no room
                self.checkpoint()
        self._abandon(self.connection)
        if self._wal is not None:
            os.close(self._wal)
            self._wal = None
