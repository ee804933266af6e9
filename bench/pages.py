"""What a page size costs the index: time and WAL bytes per file created, and the size it leaves.

Drives agentfs/index and filesystem/namespace.py without a mount; sizes take turns, medians count.

    python -m bench.pages --work DIR
"""

import argparse
import contextlib
import math
import os
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from agentfs.filesystem.livefile import InodeTable
from agentfs.filesystem.namespace import Caller, Namespace
from agentfs.filesystem.staging import Staging
from agentfs.index import Index, connection, schema
from bench.common import Results, Stopwatch, benchmark, figures_table, medians, parser

SIZES = (1024, 2048, 4096)
FILES_PER_DIRECTORY = 1000


class SharedConnection(sqlite3.Connection):
    """As SQLite does without locking_mode=EXCLUSIVE: file locks and an -shm for each commit."""

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        if "locking_mode" in sql:
            sql = "SELECT 1"
        return super().execute(sql, *parameters)


@contextlib.contextmanager
def index(store: Path, page_bytes: int, *, exclusive: bool, plain: bool) -> Iterator[Index]:
    """An index as agentfs makes it, but for these three."""
    kind = sqlite3.Connection if exclusive else SharedConnection
    connect = sqlite3.connect

    def connected(*words: Any, **options: Any) -> sqlite3.Connection:
        return connect(*words, factory=kind, **options)

    with (
        mock.patch.object(schema, "PAGE_BYTES", page_bytes),
        mock.patch.object(  # checks and differences want 1024
            connection, "has_checksums", side_effect=lambda path: not plain
        ),
        mock.patch.object(sqlite3, "connect", connected),
    ):
        opened = Index(store)
    try:
        yield opened
    finally:
        opened.close()


def measure_one(
    work: Path, files: int, page_bytes: int, *, exclusive: bool = True, plain: bool = True
) -> dict[str, float]:
    """Microseconds and WAL bytes per create, index bytes per file after a checkpoint.

    :param plain: as SQLite writes it: pages without checksums, and whole ones in the log
    """
    store = Path(tempfile.mkdtemp(dir=work))
    with index(store, page_bytes, exclusive=exclusive, plain=plain) as opened:
        staging = Staging(store, opened.store_id, 0)
        names = Namespace(opened, InodeTable(opened, staging))
        caller = Caller(0, 0)
        folders = [
            names.create(1, b"%d" % number, 0o40755, caller).id
            for number in range(math.ceil(files / FILES_PER_DIRECTORY))
        ]
        opened.checkpoint()
        with Stopwatch() as watch:
            for folder in folders:
                for number in range(FILES_PER_DIRECTORY):
                    names.create(folder, b"file-%06d.json" % number, 0o100644, caller)
        wal = os.stat(f"{opened.path}-wal").st_size
        opened.checkpoint()
        size = opened.bytes_on_disk()
        staging.close()
    created = len(folders) * FILES_PER_DIRECTORY
    return {
        "create_us": watch.seconds * 1e6 / created,
        "wal_bytes": wal / created,
        "index_bytes": size / created,
    }


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    made = parser("pages", __doc__)
    made.add_argument("--files", type=int, default=8000, help="created in each round")
    made.add_argument("--rounds", type=int, default=5)
    return made


def measure(chosen: argparse.Namespace) -> Results:
    """Medians by page size, and for the smallest in other ways."""
    ways: dict[str, dict[str, Any]] = {f"{size}": {"page_bytes": size} for size in SIZES}
    ways[f"{SIZES[0]}, not exclusive"] = {"page_bytes": SIZES[0], "exclusive": False}
    ways[f"{SIZES[0]}, as agentfs has it"] = {"page_bytes": SIZES[0], "plain": False}
    rounds: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(dir=chosen.work) as work:
        for _ in range(chosen.rounds):
            for name, way in ways.items():
                one = measure_one(Path(work), chosen.files, **way)
                rounds.setdefault(name, []).append(one)
    return {name: medians(several) for name, several in rounds.items()}


def show(results: Results) -> None:
    """One row a page size."""
    figures_table(
        "Index by page size, per file created",
        results,
        {"us": ("create_us", 1), "WAL bytes": ("wal_bytes", 1), "index bytes": ("index_bytes", 1)},
        "page bytes",
    )


def main() -> int:
    """Measure, show, write."""
    return benchmark("pages", arguments(), measure, show)


if __name__ == "__main__":
    sys.exit(main())
