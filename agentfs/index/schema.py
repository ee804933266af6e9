"""The schema, its migrations, and what every column means.

A migration, once released, is never edited: a store records the names it has
seen, and a store that has seen a name unknown here is newer than this program.

Bytes matter: tests hold a small file (inode, name, content) to 250 bytes and a
chunk to 75, indexes included. Hence integer keys, chunks named by half a digest, digests
indexed by their first four bytes only, and columns that are NULL where nothing need be said.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import struct
import time
from collections.abc import Callable

from sqlite_utils import Database, Migrations

from agentfs.index.runs import list_chunks
from agentfs.model import AGENT_ATTRIBUTE, ROOT_INODE

APPLICATION_ID = 0x61676673
"""`agfs` in ASCII; tells file(1) and us that a database is one of ours."""

PAGE_BYTES = 1024
"""SQLite writes whole pages to its log: creating a file costs 3.7 kB and 23 us with 1 KiB pages,
13 kB and 30 us with 4 KiB. Of those of 1 KiB our log keeps what changed, 440 bytes (native/pages,
docs/decisions/0002). Names of more than 230 bytes go to overflow pages, which few have."""

HEADER_BYTES = 100
"""Of an SQLite database: https://sqlite.org/fileformat.html#the_database_header"""

CHECKED = 1
"""As user_version: the pages have checksums."""

_USER_VERSION = struct.Struct(">60xI4xI")
"""user_version and application_id in the header."""


def says_checked(header: bytes) -> bool:
    """Whether the header is that of an index whose pages have checksums."""
    if len(header) < HEADER_BYTES:
        return False
    return _USER_VERSION.unpack_from(header) == (CHECKED, APPLICATION_ID)


IS_AGENT = f"name = x'{AGENT_ATTRIBUTE.hex()}'"
"""Of rows of xattr: they name the agent whose directory the inode is."""

migrations = Migrations("agentfs")


@migrations()
def first(db: Database) -> None:
    """Inodes, names, attributes, contents, chunks and blocks."""
    for statement in _FIRST:
        db.execute(statement)
    db.execute(
        "INSERT INTO inode VALUES"
        " (?1, 16877, ?2, ?3, 2, 0, ?4, ?4, ?4, NULL, NULL, NULL, NULL, ?1)",
        (ROOT_INODE, os.geteuid(), os.getegid(), time.time_ns()),
    )
    db.execute("INSERT INTO setting VALUES ('store_id', lower(hex(randomblob(16))))")


@migrations()
def damage(db: Database) -> None:
    """Blocks whose bytes are known to be lost."""
    for statement in _DAMAGE:
        db.execute(statement)


@migrations()
def loans(db: Database) -> None:
    """Files that name the content of what they replaced."""
    for statement in _LOANS:
        db.execute(statement)


@migrations()
def packing(db: Database) -> None:
    """Chunks are named by 16 bytes, found by 4, and listed by their blocks."""
    for statement in _PACKING:
        db.execute(statement)
    list_chunks(db.execute)


@migrations()
def kinds(db: Database) -> None:
    """What contents are, directories of agents, and where files lie."""
    for statement in _KINDS:
        db.execute(statement)


@migrations()
def domains(db: Database) -> None:
    """Whose bytes contents and chunks are, and what their keys are made of."""
    for statement in _DOMAINS:
        db.execute(statement)
    add_secret(db.execute)


@migrations()
def halves(db: Database) -> None:
    """Contents of one chunk keep the second half of their digest."""
    for statement in _HALVES:
        db.execute(statement)


@migrations()
def dictionaries(db: Database) -> None:
    """Blocks that need a dictionary: no row says so, but who cannot read them must know."""


@migrations()
def differences(db: Database) -> None:
    """A log of differences: no row says so, but who cannot read it must know."""


def add_secret(execute: Callable[..., sqlite3.Cursor]) -> bool:
    """Give a store its secret, unless it has one. In a transaction.

    :param execute: of the database
    """
    made = execute("INSERT OR IGNORE INTO setting VALUES ('secret', ?)", (secrets.token_hex(32),))
    return made.rowcount == 1


_FIRST = (
    """CREATE TABLE setting (
        name TEXT PRIMARY KEY,
        value NOT NULL
    ) WITHOUT ROWID""",
    """CREATE TABLE inode (
        id INTEGER PRIMARY KEY,     -- the FUSE nodeid and st_ino; never reused while mounted
        mode INTEGER NOT NULL,      -- type and permission bits
        uid INTEGER NOT NULL,
        gid INTEGER NOT NULL,
        nlink INTEGER NOT NULL,     -- 0: unlinked, kept until let go of or the next mount
        size INTEGER NOT NULL,      -- of the sealed content; a staged file's own size overrides it
        atime INTEGER NOT NULL,     -- nanoseconds since the epoch
        mtime INTEGER NOT NULL,
        ctime INTEGER NOT NULL,
        content INTEGER,            -- content.id; NULL: empty, never sealed, or not a regular file
        holes INTEGER,              -- bytes of size that are holes; NULL: none
        rdev INTEGER,               -- device files only
        target BLOB,                -- symbolic links only
        parent INTEGER              -- of a name it has, or has had; NULL: it has lost its last
    )""",
    "CREATE INDEX inode_unlinked ON inode (id) WHERE nlink = 0",
    """CREATE TABLE dentry (
        parent INTEGER NOT NULL,    -- inode.id of a directory
        name BLOB NOT NULL,         -- 1 to 255 bytes of anything but / and NUL
        inode INTEGER NOT NULL,
        PRIMARY KEY (parent, name)
    ) WITHOUT ROWID""",
    """CREATE TABLE xattr (
        inode INTEGER NOT NULL,
        name BLOB NOT NULL,
        value BLOB NOT NULL,
        PRIMARY KEY (inode, name)
    ) WITHOUT ROWID""",
    """CREATE TABLE content (
        id INTEGER PRIMARY KEY,
        digest BLOB NOT NULL,       -- BLAKE3 of the whole file, 32 bytes; 16: see contents.py
        size INTEGER NOT NULL,      -- bytes, holes included
        recipe BLOB NOT NULL,       -- see agentfs/chunks/recipe.py
        refs INTEGER NOT NULL       -- inode rows that name it; 0: garbage, kept for reuse until gc
    )""",
    "CREATE INDEX content_digest ON content (substr(digest, 1, 8))",
    "CREATE INDEX content_dead ON content (id) WHERE refs = 0",
    """CREATE TABLE chunk (
        id INTEGER PRIMARY KEY,     -- 2 and up: 0 and 1 mean holes in a recipe
        digest BLOB NOT NULL,       -- BLAKE3, 32 bytes
        block INTEGER NOT NULL,     -- block.id
        start INTEGER NOT NULL,     -- offset in the raw block
        length INTEGER NOT NULL,    -- bytes
        refs INTEGER NOT NULL       -- times it stands in recipes; derived: gc can recount it
    )""",
    "CREATE INDEX chunk_digest ON chunk (substr(digest, 1, 8))",
    "CREATE INDEX chunk_block ON chunk (block)",
    "CREATE INDEX chunk_dead ON chunk (id) WHERE refs = 0",
    """CREATE TABLE block (
        id INTEGER PRIMARY KEY,
        segment INTEGER NOT NULL,   -- number of the segment file
        offset INTEGER NOT NULL,    -- of the block header in it
        stored INTEGER NOT NULL,    -- bytes in the segment, header included
        raw INTEGER NOT NULL,       -- bytes before compression
        live INTEGER NOT NULL       -- raw bytes that chunk rows still claim; 0: garbage
    )""",
    "CREATE INDEX block_segment ON block (segment)",
)

_DAMAGE = (
    """CREATE TABLE damaged (
        block INTEGER PRIMARY KEY   -- block.id: its bytes failed a check; 0: of chunks in no block
    )""",
)

_LOANS = (
    """CREATE TABLE loan (
        inode INTEGER PRIMARY KEY   -- staged only: its content is that of what it was renamed over
    )""",
)

_PACKING = (
    "UPDATE chunk SET digest = substr(digest, 1, 16)",  # from here on: 16 bytes of BLAKE3
    "DROP INDEX chunk_digest",
    "CREATE INDEX chunk_digest ON chunk (substr(digest, 1, 4))",
    "DROP INDEX content_digest",
    "CREATE INDEX content_digest ON content (substr(digest, 1, 4))",
    "DROP INDEX chunk_block",
    "CREATE INDEX chunk_lost ON chunk (id) WHERE block = 0",
    """ALTER TABLE block ADD COLUMN     -- ids of all its chunks and perhaps others, see runs.py
        chunks BLOB""",
    """ALTER TABLE block ADD COLUMN     -- 1: by compaction, as small as it gets; NULL: as sealed
        packed INTEGER""",
)

_KINDS = (
    """ALTER TABLE content ADD COLUMN   -- what its bytes look like: model.Kind; NULL: nothing known
        kind INTEGER""",
    f"CREATE INDEX xattr_agent ON xattr (inode) WHERE {IS_AGENT}",
    "UPDATE inode SET parent = dentry.parent FROM dentry"
    " WHERE dentry.inode = inode.id AND inode.parent IS NULL",
)

_DOMAINS = (
    """ALTER TABLE content ADD COLUMN   -- uid by whose key the digest is made; NULL: by none
        domain INTEGER""",
    """ALTER TABLE chunk ADD COLUMN     -- the same; all chunks of a block have the same
        domain INTEGER""",
)

_HALVES = (
    "DROP INDEX content_digest",
    "CREATE INDEX content_digest ON content (substr(digest, -16, 4))",
)

STATEMENTS = (*_FIRST, *_DAMAGE, *_LOANS, *_PACKING, *_KINDS, *_DOMAINS, *_HALVES)
"""What makes all tables and indexes, in order."""
